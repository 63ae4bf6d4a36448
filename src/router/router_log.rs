//! Opens the event log of a router. An embedded log belongs to one router; a JetStream log is shared by several.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    error::RouterError,
    metrics,
    options::{LogOptions, RouterOptions},
    saved::SavedConfiguration,
};
use crate::{
    log::{
        LogError, LogProvider,
        embedded::{EmbeddedLog, EmbeddedOptions},
        jetstream::{JetStreamLog, JetStreamOptions},
    },
    server::{self, Heartbeat, OwnThread, Server},
};

/// Pause between attempts to connect.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// An open log.
pub enum RouterLog {
    /// A log of this router alone.
    Embedded(Arc<EmbeddedLog>),
    /// A log that several routers share.
    JetStream(Arc<JetStreamLog>),
}

impl RouterLog {
    /// Opens the log. Waits for servers that are unavailable, and serves health and readiness meanwhile. Returns `None`
    /// if stopped before.
    ///
    /// # Errors
    /// If the log cannot be opened.
    pub async fn open(
        options: &RouterOptions,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, RouterError> {
        match &options.log {
            LogOptions::Embedded(log) => open_embedded(options, log).map(Some),
            LogOptions::JetStream(log) => {
                let state = WaitingState::default();
                let serving = WaitingServer::start(options, state.clone()).await?;
                let opened = stop.run_until_cancelled(connect(log, &state)).await;
                serving.end().await;
                opened.transpose().map_err(RouterError::Log)
            }
        }
    }

    /// Whether other routers take over this router's work when it ends.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::JetStream(_) => true,
        }
    }

    pub(super) fn provider(&self) -> Arc<dyn LogProvider> {
        match self {
            Self::Embedded(log) => log.clone(),
            Self::JetStream(log) => log.clone(),
        }
    }
}

fn open_embedded(options: &RouterOptions, log: &EmbeddedOptions) -> Result<RouterLog, RouterError> {
    let saved = SavedConfiguration::in_directory(&options.data)?;
    let path = options.data.join("log");
    check_log_is_there(&path, &saved.path(), options.accept_empty_log)?;
    Ok(RouterLog::Embedded(Arc::new(EmbeddedLog::open(
        path,
        log.clone(),
    )?)))
}

/// Checks that a router that has had a configuration still has its log: without it, acknowledged events would be lost
/// silently.
fn check_log_is_there(log: &Path, configuration: &Path, accept: bool) -> Result<(), RouterError> {
    let is_gone = configuration.exists() && !EmbeddedLog::exists_in(log);
    let (path, flag) = (log.display(), "--accept-empty-log");
    match (is_gone, accept) {
        (true, false) => {
            return Err(RouterError::LogGone {
                log: log.to_owned(),
                configuration: configuration.to_owned(),
            });
        }
        (true, true) => {
            tracing::warn!(%path, "the event log is missing; starting with an empty one because of {flag}")
        }
        (false, true) => {
            tracing::warn!(%path, "remove {flag}: it is not needed, and it hides the loss of an event log")
        }
        (false, false) => {}
    }
    Ok(())
}

async fn connect(options: &JetStreamOptions, state: &WaitingState) -> Result<RouterLog, LogError> {
    loop {
        match JetStreamLog::connect(options.clone()).await {
            Ok(log) => return Ok(RouterLog::JetStream(Arc::new(log))),
            Err(LogError::Unavailable(error)) => state.wait(format!("NATS cannot be reached: {error}")).await,
            Err(error) => return Err(error),
        }
    }
}

/// The reason why a router waits, for its readiness.
#[derive(Clone, Default)]
struct WaitingState(Arc<Mutex<Option<String>>>);

impl WaitingState {
    /// Sets the reason, and pauses.
    async fn wait(&self, why: String) {
        self.say(why);
        tokio::time::sleep(TRY_AGAIN).await;
    }

    /// Sets the reason, and logs it if it has changed.
    fn say(&self, why: String) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() != Some(&why) {
            tracing::info!("{why}");
            *known = Some(why);
        }
    }

    fn why(&self) -> String {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.unwrap_or_else(|| "connecting to NATS".to_owned())
    }
}

/// Serves health and readiness while the router waits for NATS.
struct WaitingServer {
    server: OwnThread,
    stop: CancellationToken,
}

impl WaitingServer {
    async fn start(options: &RouterOptions, state: WaitingState) -> Result<Self, RouterError> {
        let limits = server::admin_limits(options.descriptors.admin);
        let server = Server::bind("admin", options.admin).await?.with_limits(limits);
        let stop = CancellationToken::new();
        let admin = server::admin(metrics::while_waiting(), Heartbeat::start(), move || {
            Err(state.why())
        });
        Ok(Self {
            server: OwnThread::serve(server, admin, stop.clone())?,
            stop,
        })
    }

    /// Ends the server and frees its address for the router.
    async fn end(self) {
        self.stop.cancel();
        self.server.ended().await;
    }
}
