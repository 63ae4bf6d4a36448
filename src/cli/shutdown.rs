//! Termination signals.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal ends the process immediately.
///
/// # Errors
/// If signal handlers cannot be installed.
pub fn token() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot receive SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot receive SIGINT")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 15),
                _ = interrupt.recv() => ("SIGINT", 2),
            }
        };
        let (name, _) = next().await;
        tracing::info!(signal = name, "shutting down; a second signal exits immediately");
        cancel.cancel();
        let (name, number) = next().await;
        tracing::warn!(signal = name, "exiting immediately");
        std::process::exit(128 + number);
    });
    Ok(token)
}
