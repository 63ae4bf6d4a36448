//! The command line: what each subcommand takes, and what it does with it.
//!
//! [`main`] is all that `main.rs` calls. Exit codes: 0 when it worked, 1 when it did not, 2 when the command line
//! is wrong. Results go to stdout, logs and problems to stderr.

mod admin;
#[cfg(test)]
mod configuration_page;
pub mod controller;
pub mod crds;
pub mod dead_letters;
pub mod display;
#[cfg(test)]
mod examples_in_docs;
pub mod explain;
mod http;
pub mod log;
pub mod logging;
pub mod manifests;
mod misspelt;
pub mod router;
pub mod routing_tests;
pub mod run;
pub mod send;
pub mod service;
pub mod shutdown;
pub mod traces;
pub mod units;
pub mod validate;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

/// Routes CloudEvents inside a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Which log messages are written: error, warn, info, debug, trace or off; also by module, such as
    /// info,weir::router=debug.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG",
        default_value = "info",
        value_name = "FILTER",
        help_heading = "Logging"
    )]
    pub log_level: String,

    /// How log messages are written to stderr.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG_FORMAT",
        default_value = "text",
        value_enum,
        help_heading = "Logging"
    )]
    pub log_format: logging::Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller: watch the resources, resolve them, and serve the routing configuration to the routers.
    Controller(controller::Args),
    /// Run a router: take events in, keep them, and deliver them to the Triggers that want them.
    Router(router::Args),
    /// Run a router without a cluster, from manifests in files; changed files are applied at once.
    Run(run::Args),
    /// Receive events over HTTP and print each of them.
    Display(display::Args),
    /// Make an event and send it to a broker or to anything else that takes CloudEvents over HTTP.
    Send(send::Args),
    /// List, show, redrive and drop the dead letters that a router keeps.
    DeadLetters(dead_letters::Args),
    /// Check the event log of a router that does not run, and save what can be read of a damaged one.
    Log(log::Args),
    /// Tell which Triggers an event matches, and why: by manifests in files, or by what a router has in force.
    Explain(explain::Args),
    /// Test routing: which Triggers of manifests in files match which events.
    Test(routing_tests::Args),
    /// Check manifests in files: their fields, filters and references.
    Validate(validate::Args),
    /// Print the custom resource definitions as YAML, for kubectl apply -f -.
    Crds(crds::Args),
}

/// The command line is wrong in a way that only the subcommand can tell: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also how --help and --version end; then it is no error.
            drop(error.print());
            return if error.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    if let Err(error) = logging::init(&cli.log_level, cli.log_format) {
        return fail(&error, logging::Format::Text);
    }
    let format = cli.log_format;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, format),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli {
        log_level: _,
        log_format: _,
        command,
    } = cli;
    if let Command::Crds(args) = command {
        return crds::run(&args);
    }
    // The whole binary uses this one; two of them would make the implicit default ambiguous.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        match command {
            Command::Controller(args) => controller::run(args).await,
            Command::Router(args) => router::run(args).await,
            Command::Run(args) => run::run(args).await,
            Command::Display(args) => display::run(args).await,
            Command::Send(args) => send::run(args).await,
            Command::DeadLetters(args) => dead_letters::run(args).await,
            Command::Crds(args) => crds::run(&args),
            Command::Log(args) => log::run(args),
            Command::Explain(args) => explain::run(args).await,
            Command::Test(args) => routing_tests::run(args),
            Command::Validate(args) => validate::run(args),
        }
    });
    // A read of stdin that nothing will answer must not hold the process.
    runtime.shutdown_background();
    result
}

/// Says why the process ends: as a line for people, or where logs are read by machines as one of those.
fn fail(error: &anyhow::Error, format: logging::Format) -> ExitCode {
    if is_broken_pipe(error) {
        // Whoever read the output has had enough, as in `weir crds | head`.
        return ExitCode::SUCCESS;
    }
    if let Some(usage) = error.downcast_ref::<Usage>() {
        drop(Cli::command().error(ErrorKind::ValueValidation, usage).print());
        return ExitCode::from(2);
    }
    let error = with_causes(error);
    if format == logging::Format::Json && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(error, "the process ends");
    } else {
        drop(writeln!(io::stderr().lock(), "weir: {error}"));
    }
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes in one line; a cause that the message before it already tells is left out.
fn with_causes(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

/// In a pod, the pod's name.
fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host's name")?;
    Ok(name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_told_once() {
        let error =
            anyhow::anyhow!("connection refused").context("cannot reach the broker: connection refused");
        assert_eq!(with_causes(&error), "cannot reach the broker: connection refused");
        let error = anyhow::anyhow!("no such\nfile").context("cannot read x");
        assert_eq!(with_causes(&error), "cannot read x: no such file");
    }
}
