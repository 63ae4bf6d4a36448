//! `weir log`: checks, salvages and copies the event log of a stopped router.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

use super::{nats::NatsArgs, units::Size};
use crate::{
    delivery,
    log::{
        BrokerName, CheckpointKey, LogBounds, LogError,
        embedded::{self, EmbeddedLog, EmbeddedOptions, Report},
        jetstream::JetStreamLog,
    },
    source,
};

/// Maximum event size that the NATS servers are checked for.
const MAX_EVENT: Size = Size(1024 * 1024);

/// Folder of the event log in a router's data directory, next to its last configuration.
const LOG: &str = "log";
const CONFIGURATION: &str = "configuration.json";

/// Arguments of `weir log`.
#[derive(Debug, clap::Args)]
pub struct LogCommandArgs {
    /// Action to perform.
    #[command(subcommand)]
    command: LogAction,
}

#[derive(Debug, clap::Subcommand)]
enum LogAction {
    /// Read a whole event log and report what is intact and what is lost. Changes nothing. Exits with 1 if anything
    /// is damaged.
    Check {
        /// Data directory of a stopped router (its --data), or the log's directory in it.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Write everything readable from a damaged event log to a new data directory, which a router can start with.
    /// The old one is not changed.
    Salvage {
        /// Data directory of a stopped router (its --data), or the log's directory in it.
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// New data directory. Must be empty or not exist.
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
    /// Copy the event log of a stopped router into NATS JetStream: events, dead letters and checkpoints. The old log is
    /// not changed. If the copy is interrupted, run it again. Then start routers with --log jetstream.
    Copy {
        /// Data directory of a stopped router (its --data), or the log's directory in it.
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// Connection to NATS.
        #[command(flatten)]
        nats: Box<NatsArgs>,
    },
}

/// Checks, salvages or copies an event log.
///
/// # Errors
/// If the log cannot be read or written, or the check found damage.
pub async fn run(args: LogCommandArgs) -> anyhow::Result<()> {
    match args.command {
        LogAction::Check { directory } => {
            let log = log_in(&directory)?;
            let report = embedded::check(&log)?;
            print(&report.to_string())?;
            if !report.is_whole() {
                bail!("{}", damaged(&log, &report));
            }
            print("the log is intact\n")
        }
        LogAction::Salvage { directory, out } => {
            let log = log_in(&directory)?;
            let is_empty = !out.exists() || fs::read_dir(&out)?.next().is_none();
            ensure!(is_empty, "{} is not empty: choose a new directory", out.display());
            let report = embedded::salvage(&log, out.join(LOG))?;
            copy_configuration(&log, &out)?;
            print(&report.to_string())?;
            let lost = report.lost_records();
            print(&format!(
                "{lost} records are lost. The rest is in {}: start the router with --data set to this directory\n",
                out.display()
            ))
        }
        LogAction::Copy { directory, nats } => copy(&log_in(&directory)?, *nats).await,
    }
}

async fn copy(log: &Path, nats: NatsArgs) -> anyhow::Result<()> {
    let options = nats.into_options(MAX_EVENT)?;
    let from = EmbeddedLog::open(log, EmbeddedOptions::default())?;
    let to = JetStreamLog::connect(options).await?;
    let report = match to.copy_from(&from, from.names(), broker_of_checkpoint).await {
        Err(LogError::Fenced(reason)) => bail!("{reason}: stop all routers and other copies, then retry"),
        report => report?,
    };
    for (name, LogBounds { first, next }) in &report.logs {
        print(&format!(
            "{name}: {} records, from offset {first}\n",
            next.0 - first.0
        ))?;
    }
    print(&format!(
        "{} checkpoints\ncopied: start the routers with --log jetstream, and keep {} until they deliver\n",
        report.checkpoints,
        log.display()
    ))
}

/// Returns the broker that a checkpoint belongs to; `None` if it has none or cannot be decoded.
fn broker_of_checkpoint(key: &CheckpointKey, value: &[u8]) -> Option<BrokerName> {
    match key {
        CheckpointKey::LastRun(_) => source::broker_of_last_run(value),
        key => delivery::broker_of_checkpoint(key, value),
    }
}

fn log_in(directory: &Path) -> anyhow::Result<PathBuf> {
    let candidates = [directory.join(LOG), directory.to_owned()];
    let found = candidates.into_iter().find(|log| EmbeddedLog::exists_in(log));
    found.with_context(|| format!("there is no event log in {}", directory.display()))
}

fn damaged(log: &Path, report: &Report) -> String {
    let (log, lost) = (log.display(), report.lost_records());
    format!(
        "the event log in {log} is damaged, and {lost} records are lost: restore it from a backup, or recover the \
         rest with weir log salvage"
    )
}

/// Copies the saved configuration, with which the router can start without the controller. Keeps the file mode, since
/// the file contains credentials.
fn copy_configuration(log: &Path, out: &Path) -> anyhow::Result<()> {
    let Some(from) = log.parent().map(|data| data.join(CONFIGURATION)) else {
        return Ok(());
    };
    match fs::copy(&from, out.join(CONFIGURATION)) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot copy {}", from.display())),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")
}
