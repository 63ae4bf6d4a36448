//! `weir log`: checks and salvages the event log of a router that does not run.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

use crate::log::embedded::{self, EmbeddedLog, Report};

/// The router's folder of the event log in its data directory, and its last configuration beside that.
const LOG: &str = "log";
const CONFIGURATION: &str = "configuration.json";

/// The flags of `weir log`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read all of an event log, and tell what is whole and what is lost. Nothing is changed. Exits with 1 if anything is
    /// damaged.
    Check {
        /// The data directory of a router that does not run (its --data), or the directory of the log in it.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Write all that can be read of a damaged event log to a new data directory, with which a router can start. The old
    /// one is not changed.
    Salvage {
        /// The data directory of a router that does not run (its --data), or the directory of the log in it.
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// The new data directory. It must not exist, or be empty.
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
}

/// Checks or salvages.
///
/// # Errors
/// When the log cannot be read, or the check found damage.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check { directory } => {
            let log = log_in(&directory)?;
            let report = embedded::check(&log)?;
            print(&report.to_string())?;
            if !report.is_whole() {
                bail!("{}", damaged(&log, &report));
            }
            print("the log is whole\n")
        }
        Command::Salvage { directory, out } => {
            let log = log_in(&directory)?;
            let is_empty = !out.exists() || fs::read_dir(&out)?.next().is_none();
            ensure!(is_empty, "{} is not empty: name a new directory", out.display());
            let report = embedded::salvage(&log, out.join(LOG))?;
            copy_configuration(&log, &out)?;
            print(&report.to_string())?;
            let lost = report.lost_records();
            print(&format!(
                "{lost} records are lost; the rest is in {}: start the router with it as its --data\n",
                out.display()
            ))
        }
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
        "the event log in {log} is damaged, and {lost} records are lost: restore it from a copy, or save the rest with \
         weir log salvage"
    )
}

/// With it the router starts also when the controller is away. It keeps its mode: it has credentials in it.
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
