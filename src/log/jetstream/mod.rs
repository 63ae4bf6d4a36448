//! The event log in NATS JetStream, shared by several routers and replicated by the NATS servers.
//!
//! # Guarantees
//! - An append succeeds once a quorum of the stream's replicas has acknowledged it. With `sync_interval: always` they
//!   have then synced it to disk. A client cannot check this setting; operators must set it.
//! - A retry stores nothing twice: each append has an id, which the server remembers for longer than retries last.
//! - The records of one append are stored atomically and at consecutive offsets.
//! - Each record has a checksum of Weir's own. JetStream can return damaged records; this log does not.
//! - Saves of checkpoints with an epoch are fenced once another owner has taken over.
//! - Operations time out after [`JetStreamOptions::timeout`], with [`LogError::Unavailable`] if NATS is unavailable.
//! - Nothing is buffered while NATS is unavailable. Memory is bounded by [`JetStreamOptions::in_flight_bytes`] and by
//!   the reads in flight.
//!
//! # Layout
//! Each log has a stream, created by its first append. The state stream has the checkpoints and the lease. `names.rs`
//! has the names of streams and subjects, `layout.rs` the layout of a message. A log has one partition, so its stream
//! has one subject, and an offset is the sequence minus one. Streams never delete records by themselves: trimming
//! purges them, and a full stream rejects appends. Each installation of Weir needs its own NATS account.
//!
//! # Reading order
//! `connect.rs` connects and checks the servers (`credentials.rs`, `options.rs`). `session.rs` makes requests and
//! classifies failures as permanent or retryable (`patience.rs` retries); `api.rs` has the JSON. `streams.rs` and
//! `tracked.rs` cache the state of each stream, and `watch.rs` updates it. `append.rs` (on `publish.rs`), `reads.rs`
//! and `upkeep.rs` are the operations of a log, `state.rs` and `saves.rs` those of checkpoints. `lease.rs` is the lease
//! of the router that delivers, `turn.rs` the period for which it may, and `copy.rs` copies the logs of another
//! provider.
//!
//! # Limits
//! - An append has at most 1,000 records. A save of more checkpoints is stored in several batches, each fenced.
//! - [`Log::retained`] includes the headers that the server stores.
//! - Times in a log can decrease by the difference between the clocks of routers, so a search by time is only as exact.

mod api;
mod append;
mod connect;
mod copy;
mod credentials;
mod layout;
mod lease;
mod names;
mod options;
mod patience;
mod publish;
mod reads;
mod saves;
mod session;
mod state;
mod streams;
#[cfg(test)]
mod tests;
mod tracked;
mod turn;
mod upkeep;
mod watch;

pub use copy::CopyReport;
pub use lease::Lease;
pub use options::{JetStreamOptions, NatsAuth, NatsTls};

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch as watching},
    task::JoinSet,
};

use self::{saves::SaveRequest, streams::JetStream, tracked::Tracked};
use super::{
    Append, CheckpointChange, CheckpointKey, Checkpoints, Epoch, Log, LogBounds, LogError, LogName,
    LogProvider, LogRecord, Offset, ReadLimit,
};

/// The logs in a JetStream account. The connection and the background tasks end once this and all handles of its logs
/// are dropped.
pub struct JetStreamLog(Arc<Connected>);

struct Connected {
    streams: Arc<JetStream>,
    saves: mpsc::Sender<SaveRequest>,
    _tasks: JoinSet<()>,
}

impl JetStreamLog {
    /// Connects to the servers, checks them, and creates the state stream. Needs a tokio runtime and, for TLS, an
    /// installed default rustls provider.
    ///
    /// # Errors
    /// [`LogError::Open`] if a setting of the router or of the servers is wrong, with how to fix it;
    /// [`LogError::Unavailable`] if no server can be reached, for which a retry may help; [`LogError::Full`] if the
    /// servers have no room for the state stream.
    pub async fn connect(options: JetStreamOptions) -> Result<Self, LogError> {
        let streams = Arc::new(connect::connect(options).await?);
        let (saves, requests) = mpsc::channel(saves::QUEUE);
        // Ends once all senders are dropped and their saves are stored.
        tokio::spawn(saves::run(streams.clone(), requests));
        Ok(Self(Arc::new(Connected {
            _tasks: watch::start(&streams),
            streams,
            saves,
        })))
    }

    /// Makes this router the owner of all checkpoints without the lease, and returns its epoch.
    #[cfg(test)]
    async fn take_over(&self, owner: &str) -> Result<Epoch, LogError> {
        self.0.streams.take_over(owner, None).await
    }

    /// Copies these logs of another provider, and all of its checkpoints. Offsets stay the same. To resume an
    /// interrupted copy, call this again. The source must not change meanwhile. The copy holds the lease, so no router
    /// can deliver.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if a router holds the lease; [`LogError::Open`] if routers have used this log already;
    /// otherwise as [`Log::append`] and [`Log::read`].
    pub async fn copy_from(
        &self,
        from: &dyn LogProvider,
        names: Vec<LogName>,
    ) -> Result<CopyReport, LogError> {
        self.0.streams.copy_from(from, names).await
    }

    /// Tries once to take the lease of the router that delivers, and to take over all checkpoints.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another router holds it; [`LogError::Open`] if an embedded log was copied here only in
    /// part; otherwise as [`Checkpoints::save`].
    pub async fn take_lease(&self, router: &str) -> Result<Lease, LogError> {
        self.0.streams.take_lease(router).await
    }

    /// Returns the name of the router that holds the lease, if any.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if NATS does not respond.
    pub async fn lease_holder(&self) -> Result<Option<String>, LogError> {
        self.0.streams.lease_holder().await
    }
}

impl LogProvider for JetStreamLog {
    fn open(&self, name: &LogName) -> Arc<dyn Log> {
        Arc::new(StreamLog {
            log: self.0.streams.log(name),
            connected: self.0.clone(),
        })
    }

    /// Returns the checkpoints for saves with an epoch. Saves with the default epoch are not fenced.
    fn checkpoints(&self, epoch: Epoch) -> Arc<dyn Checkpoints> {
        Arc::new(StateCheckpoints {
            connected: self.0.clone(),
            epoch,
        })
    }

    fn usage(&self) -> Vec<(LogName, u64)> {
        let logs = self.0.streams.logs().into_iter();
        logs.filter(|log| log.bounds().first < log.bounds().next)
            .map(|log| (log.name.clone(), log.bytes()))
            .collect()
    }

    /// Does nothing: acknowledged records are durable.
    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }

    fn read_errors(&self) -> u64 {
        self.0.streams.read_errors.load(Ordering::Relaxed)
    }

    /// Never resolves: no failure of the servers requires a restart of this process.
    fn failed(&self) -> BoxFuture<'_, LogError> {
        Box::pin(std::future::pending())
    }
}

/// One log, in its stream.
struct StreamLog {
    connected: Arc<Connected>,
    log: Arc<Tracked>,
}

impl Log for StreamLog {
    fn name(&self) -> &LogName {
        &self.log.name
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Offset, LogError>> {
        Box::pin(self.connected.streams.append(&self.log, append))
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<LogRecord>, LogError>> {
        Box::pin(self.connected.streams.read(&self.log, from, limit))
    }

    fn bounds(&self) -> BoxFuture<'_, Result<LogBounds, LogError>> {
        Box::pin(self.connected.streams.bounds(&self.log))
    }

    fn cached_bounds(&self) -> LogBounds {
        self.log.bounds()
    }

    fn retained(&self) -> u64 {
        self.log.bytes()
    }

    fn offset_at(&self, time: Timestamp) -> BoxFuture<'_, Result<Offset, LogError>> {
        Box::pin(self.connected.streams.offset_at(&self.log, time))
    }

    fn follow(&self) -> watching::Receiver<Offset> {
        self.log.follow()
    }

    fn trim(&self, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(self.connected.streams.trim(&self.log, before))
    }
}

/// Checkpoints, saved with an epoch.
struct StateCheckpoints {
    connected: Arc<Connected>,
    epoch: Epoch,
}

impl StateCheckpoints {
    async fn request_save(&self, changes: Vec<CheckpointChange>) -> Result<(), LogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let gone = || LogError::Unavailable("the task that saves checkpoints has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        let request = SaveRequest {
            changes,
            epoch: self.epoch,
            reply,
        };
        self.connected.saves.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Checkpoints for StateCheckpoints {
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>> {
        Box::pin(self.connected.streams.load_all())
    }

    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        Box::pin(self.connected.streams.load(key))
    }

    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(self.request_save(changes))
    }
}
