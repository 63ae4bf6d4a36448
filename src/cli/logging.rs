//! Where log messages go: to stderr, as text or as JSON lines.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt};

use super::Usage;

/// What the storage library says of its daily work is for its developers; a filter that names it can ask for it.
const QUIET: &str = "fjall=warn,lsm_tree=warn";

/// How log messages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people; in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the whole process.
///
/// # Errors
/// [`Usage`] when the filter cannot be read.
pub fn init(filter: &str, format: Format) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| {
        Usage(format!(
            "--log-level {filter:?}: {error}; use for example info, or info,weir::router=debug"
        ))
    })?;
    // Told where logs go: where that cannot be written, as on a full disk, telling of it would panic.
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .log_internal_errors(false);
    let result = match format {
        Format::Text => {
            let colour =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            builder.with_ansi(colour).with_target(false).try_init()
        }
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
