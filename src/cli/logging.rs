//! Logging to stderr, as text or as JSON lines.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt};

use super::Usage;

/// Default levels of the libraries of the logs, whose info messages are meant for their developers. The user's filter
/// can override them.
const QUIET: &str = "fjall=warn,lsm_tree=warn,async_nats=warn";

/// Format of log messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Human-readable lines, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Parses a filter. The error says what is wrong with it.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    // A single unknown word would be taken for a module name and silence everything else.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    if let Some(word) = filter
        .split(',')
        .map(str::trim)
        .find(|word| !word.is_empty() && !word.contains('=') && !is_level(word))
    {
        return Err(format!(
            "{word:?} is not one of error, warn, info, debug, trace and off"
        ));
    }
    EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| error.to_string())
}

/// Initializes logging for the whole process.
///
/// # Errors
/// [`Usage`] if the filter is invalid.
pub fn init(filter: &str, format: Format) -> anyhow::Result<()> {
    let filter = parse(filter).map_err(|detail| {
        Usage(format!(
            "--log-level {filter:?}: {detail}; for example, use info or info,weir::router=debug"
        ))
    })?;
    // Reporting a failed write to stderr (such as on a full disk) would write to stderr again and panic.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_levels_and_modules_with_levels() {
        for (filter, wrong) in [
            ("info", None),
            ("OFF", None),
            ("info,weir::router=debug", None),
            ("weir::delivery=trace, warn", None),
            ("", None),
            ("verbose", Some("\"verbose\" is not one of error")),
            ("info,weir::router", Some("\"weir::router\" is not one of error")),
            ("info,weir::router=loud", Some("level filter")),
        ] {
            let error = parse(filter).err();
            assert_eq!(error.is_some(), wrong.is_some(), "{filter}: {error:?}");
            assert!(
                error.unwrap_or_default().contains(wrong.unwrap_or_default()),
                "{filter}"
            );
        }
    }
}
