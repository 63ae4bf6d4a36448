//! Opens the event log of a router. An embedded log belongs to one router. A JetStream log is shared: the router that
//! holds its lease delivers, and the others stand by until they get the lease.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    error::RouterError,
    metrics,
    options::{LogOptions, RouterOptions},
    saved::SavedConfiguration,
};
use crate::{
    delivery::EngineError,
    log::{
        CheckpointKey, Checkpoints, Epoch, LogError, LogProvider,
        embedded::{EmbeddedLog, EmbeddedOptions},
        jetstream::{JetStreamLog, JetStreamOptions, Lease},
    },
    routing::Revision,
    server::{self, Heartbeat, OwnThread, Server},
};

/// Pause between attempts to connect or to take the lease.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// An open log that this router may deliver from.
pub struct OwnedLog {
    pub(super) logs: Arc<dyn LogProvider>,
    /// `None` for an embedded log.
    lease: Option<Lease>,
}

impl OwnedLog {
    /// Opens the log. For a shared log, stands by until this router, `name`, holds the lease, and serves health and
    /// readiness meanwhile. Returns `None` if stopped before.
    ///
    /// # Errors
    /// If the log cannot be opened. Waits for servers that are unavailable.
    pub async fn open(
        options: &RouterOptions,
        name: &str,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, RouterError> {
        match &options.log {
            LogOptions::Embedded(log) => open_embedded(options, log).map(Some),
            LogOptions::JetStream(log) => {
                let state = StandbyState::default();
                let serving = StandbyServer::start(options, state.clone()).await?;
                let opened = stop.run_until_cancelled(stand_by(log, name, &state)).await;
                serving.end().await;
                opened.transpose().map_err(RouterError::Log)
            }
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.lease.as_ref().map(Lease::epoch).unwrap_or_default()
    }

    /// Returns the revision stored in a shared log; `None` for an embedded log.
    pub(super) fn shared_revision(&self) -> Option<SharedRevision> {
        let lease = self.lease.as_ref()?;
        Some(SharedRevision(self.logs.checkpoints(lease.epoch())))
    }

    /// Resolves when this router has lost the lease. Never for an embedded log.
    pub(super) async fn lost(&self) -> LogError {
        match &self.lease {
            Some(lease) => lease.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Converts an error: if a shared log is unavailable or fenced, the router stands by instead of exiting.
    pub(super) fn lost_by(&self, error: RouterError) -> RouterError {
        match error {
            RouterError::Log(reason) | RouterError::Engine(EngineError::Log(reason))
                if self.lease.is_some()
                    && matches!(reason, LogError::Unavailable(_) | LogError::Fenced(_)) =>
            {
                RouterError::LeaseLost(reason)
            }
            error => error,
        }
    }

    /// Gives up the lease to let another router deliver.
    pub(super) async fn give_up(self) {
        if let Some(lease) = self.lease {
            lease.give_up().await;
        }
    }
}

/// Revision of the newest routing configuration that any router on a shared log has applied, stored with the
/// checkpoints. A router that took over with an older saved configuration would treat newer Triggers as deleted.
pub(super) struct SharedRevision(Arc<dyn Checkpoints>);

impl SharedRevision {
    /// Whether this is the revision of the newest configuration.
    pub(super) async fn is_newest(&self, revision: &Revision) -> Result<bool, LogError> {
        let newest = self.0.load(&CheckpointKey::Revision).await?;
        Ok(newest.is_some_and(|newest| newest == revision.0.as_bytes()))
    }

    /// Stores the revision of a configuration that is about to be applied.
    pub(super) async fn set(&self, revision: &Revision) -> Result<(), LogError> {
        let value = Bytes::copy_from_slice(revision.0.as_bytes());
        match self.0.save(vec![(CheckpointKey::Revision, Some(value))]).await {
            // A router that takes over then waits for the controller, since its saved configuration is not the newest.
            Err(LogError::Full(error)) => {
                tracing::warn!(error, "cannot store the revision of the routing configuration");
                Ok(())
            }
            saved => saved,
        }
    }
}

fn open_embedded(options: &RouterOptions, log: &EmbeddedOptions) -> Result<OwnedLog, RouterError> {
    let saved = SavedConfiguration::in_directory(&options.data)?;
    let path = options.data.join("log");
    check_log_is_there(&path, &saved.path(), options.accept_empty_log)?;
    Ok(OwnedLog {
        logs: Arc::new(EmbeddedLog::open(path, log.clone())?),
        lease: None,
    })
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

/// Connects, and waits for the lease.
async fn stand_by(
    options: &JetStreamOptions,
    name: &str,
    state: &StandbyState,
) -> Result<OwnedLog, LogError> {
    let log = loop {
        match JetStreamLog::connect(options.clone()).await {
            Ok(log) => break log,
            Err(LogError::Unavailable(error)) => state.wait(format!("NATS cannot be reached: {error}")).await,
            Err(error) => return Err(error),
        }
    };
    loop {
        match log.take_lease(name).await {
            Ok(lease) => {
                tracing::info!(
                    router = name,
                    "this router delivers: it holds the lease of the log"
                );
                return Ok(OwnedLog {
                    logs: Arc::new(log),
                    lease: Some(lease),
                });
            }
            Err(LogError::Fenced(_)) => {
                let holder = log.lease_holder().await.ok().flatten();
                let why = match holder.as_deref() {
                    Some(holder) if holder == name => {
                        "waiting for the earlier lease of this router to expire".to_owned()
                    }
                    Some(holder) => format!("standing by: {holder} delivers"),
                    None => "standing by: another router delivers".to_owned(),
                };
                state.wait(why).await;
            }
            Err(LogError::Unavailable(error)) => state.wait(format!("NATS does not answer: {error}")).await,
            Err(error) => return Err(error),
        }
    }
}

/// The reason why a router stands by, for its readiness.
#[derive(Clone, Default)]
struct StandbyState(Arc<Mutex<Option<String>>>);

impl StandbyState {
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

/// Serves health and readiness while the router stands by.
struct StandbyServer {
    server: OwnThread,
    stop: CancellationToken,
}

impl StandbyServer {
    async fn start(options: &RouterOptions, state: StandbyState) -> Result<Self, RouterError> {
        let limits = server::admin_limits(options.descriptors.admin);
        let server = Server::bind("admin", options.admin).await?.with_limits(limits);
        let stop = CancellationToken::new();
        let admin = server::admin(metrics::of_every_router(false), Heartbeat::start(), move || {
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
