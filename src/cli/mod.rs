//! The command line: the arguments of each subcommand, and its execution.
//!
//! [`main`] is all that `main.rs` calls. Exit codes: 0 for success, 1 for failure, 2 for an invalid command line.
//! Results go to stdout, logs and problems to stderr.

pub mod admin;
#[cfg(test)]
mod configuration_page;
pub mod controller;
pub mod crds;
pub mod dead_letters;
pub mod display;
#[cfg(test)]
mod examples_in_docs;
pub mod explain;
mod host;
mod http;
pub mod log;
pub mod logging;
pub mod manifests;
mod misspelt;
pub mod nats;
pub mod operator_token;
pub mod port_forward;
pub mod router;
pub mod routing_tests;
pub mod run;
pub mod send;
pub mod service;
pub mod shutdown;
pub mod sources;
pub mod tls;
pub mod traces;
pub mod units;
mod usage;
pub mod validate;

pub use usage::Usage;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use self::{
    controller::ControllerArgs, crds::CrdsArgs, dead_letters::DeadLettersArgs, display::DisplayArgs,
    explain::ExplainArgs, log::LogCommandArgs, operator_token::OperatorTokenArgs,
    port_forward::PortForwardArgs, router::RouterArgs, routing_tests::TestArgs, run::RunArgs, send::SendArgs,
    sources::SourcesArgs, validate::ValidateArgs,
};

/// Routes CloudEvents inside a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Log filter: error, warn, info, debug, trace or off, optionally per module, such as info,weir::router=debug.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG",
        default_value = "info",
        value_name = "FILTER",
        help_heading = "Logging"
    )]
    pub log_level: String,

    /// Format of log messages on stderr.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG_FORMAT",
        default_value = "text",
        value_enum,
        help_heading = "Logging"
    )]
    pub log_format: logging::Format,

    /// Subcommand to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller: watch the resources, resolve them, and serve the routing configuration to the routers.
    Controller(ControllerArgs),
    /// Run a router: accept events, store them durably, and deliver them to the Triggers that match.
    Router(RouterArgs),
    /// Run the Sources of kind kubernetes: watch objects in the cluster, and post their changes to brokers.
    Sources(SourcesArgs),
    /// Run a router without a cluster, from manifests in files. Changed files are applied at once.
    Run(RunArgs),
    /// Receive events over HTTP and print them.
    Display(DisplayArgs),
    /// Create an event and send it to a broker or to any other CloudEvents endpoint over HTTP.
    Send(SendArgs),
    /// List, show, redrive and drop the dead letters that a router keeps.
    DeadLetters(DeadLettersArgs),
    /// Forward the admin port of a router in a cluster to this machine, for weir dead-letters and weir explain.
    PortForward(PortForwardArgs),
    /// Print the token by which operators authenticate to the router with a data directory.
    OperatorToken(OperatorTokenArgs),
    /// Check the event log of a stopped router, and salvage a damaged one.
    Log(LogCommandArgs),
    /// Explain which Triggers an event matches, by manifests in files or by the routing table of a running router.
    Explain(ExplainArgs),
    /// Test routing: check which Triggers in manifests match which events.
    Test(TestArgs),
    /// Validate manifests in files: fields, filters and references.
    Validate(ValidateArgs),
    /// Print the custom resource definitions as YAML, for kubectl apply -f -.
    Crds(CrdsArgs),
}

/// Parses the command line and runs the subcommand.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` also end here; they are not errors.
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
    // Installs one provider for the whole binary; with two, the implicit default would be ambiguous and panic.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        match command {
            Command::Controller(args) => controller::run(args).await,
            Command::Router(args) => router::run(args).await,
            Command::Sources(args) => sources::run(args).await,
            Command::Run(args) => run::run(args).await,
            Command::Display(args) => display::run(args).await,
            Command::Send(args) => send::run(args).await,
            Command::DeadLetters(args) => dead_letters::run(args).await,
            Command::Crds(args) => crds::run(&args),
            Command::PortForward(args) => port_forward::run(args).await,
            Command::OperatorToken(args) => operator_token::run(&args),
            Command::Log(args) => log::run(args).await,
            Command::Explain(args) => explain::run(args).await,
            Command::Test(args) => routing_tests::run(args),
            Command::Validate(args) => validate::run(args),
        }
    });
    // Does not wait for a pending read of stdin.
    runtime.shutdown_background();
    result
}

/// Reports why the process ends: as plain text, or as a log line if logs are JSON.
fn fail(error: &anyhow::Error, format: logging::Format) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader has closed the pipe, as in `weir crds | head`.
        return ExitCode::SUCCESS;
    }
    if let Some(usage) = error.downcast_ref::<Usage>() {
        drop(Cli::command().error(ErrorKind::ValueValidation, usage).print());
        return ExitCode::from(2);
    }
    let error = with_causes(error);
    if format == logging::Format::Json && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(error, "the process exits with an error");
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

/// Formats the error and its causes on one line, skipping causes already contained in the message before.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reports_each_cause_once() {
        let error =
            anyhow::anyhow!("connection refused").context("cannot reach the broker: connection refused");
        assert_eq!(with_causes(&error), "cannot reach the broker: connection refused");
        let error = anyhow::anyhow!("no such\nfile").context("cannot read x");
        assert_eq!(with_causes(&error), "cannot read x: no such file");
    }
}
