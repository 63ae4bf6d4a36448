//! The command `weir`: parses the command line and calls [`weir::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Failpoints set by `FAILPOINTS` stay active until this is dropped.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    weir::cli::main()
}
