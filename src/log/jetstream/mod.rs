//! The event log of several routers: streams of NATS JetStream, replicated by its servers.
//!
//! # Guarantees
//! - An append is answered once the stream's servers have acknowledged it: a quorum of its replicas, which have synced
//!   it with `sync_interval: always`. A client cannot see that setting; operators have to make it.
//! - A retry stores nothing twice: each append has an id that the server remembers for longer than it is retried.
//! - The records of one append are one atomic batch: all of them or none, and next to each other.
//! - Each record has a checksum of ours. JetStream returns damaged records; this log does not.
//! - A save of checkpoints with an epoch is refused once another owner has taken over.
//! - No operation waits longer than [`JetStreamOptions::timeout`]: NATS away is [`LogError::Unavailable`].
//! - Nothing waits here for NATS to come back but the requests whose callers wait: memory is bounded by
//!   [`JetStreamOptions::in_flight_bytes`] and by the reads under way.
//!
//! # Layout
//! A stream for each log, made by its first append, and one for the state; `names.rs` has their names, `layout.rs` the
//! content of a message. Each log has one partition, so its stream has one subject, and an offset is the sequence
//! minus one. No stream deletes anything by itself: it is trimmed by purging below a sequence, and refuses appends when
//! it is full. Two installations of Weir need two accounts of NATS.
//!
//! # Reading order
//! `connect.rs` connects and checks the servers (`credentials.rs`, `options.rs`), `session.rs` makes requests and
//! knows which failures last (`patience.rs` retries the others), `api.rs` has the JSON. `streams.rs` and `tracked.rs`
//! hold what is known of each stream, and `watch.rs` keeps it up to date. `append.rs` (on `publish.rs`), `reads.rs` and
//! `upkeep.rs` are the operations of a log, `state.rs` and `saves.rs` those of checkpoints. `lease.rs`
//! is the lease of the one router that delivers (`turn.rs` says for how long), and `copy.rs` moves the logs of another provider here.
//!
//! # Limits
//! - 1,000 records in an append; more checkpoints in one save are stored in several batches, each fenced.
//! - The bytes of [`Log::retained`] are those that the server stores, headers included.
//! - Times in a log decrease by as much as the clocks of routers differ, and a search by time is as exact.

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

/// The logs in a JetStream account. Dropping the last handle of it and of its logs ends its tasks and its connection.
pub struct JetStreamLog(Arc<Connected>);

struct Connected {
    streams: Arc<JetStream>,
    saves: mpsc::Sender<SaveRequest>,
    _tasks: JoinSet<()>,
}

impl JetStreamLog {
    /// Connects to the servers, checks them, and makes the stream of the state. Needs a tokio runtime and, for TLS, an
    /// installed default provider of rustls.
    ///
    /// # Errors
    /// [`LogError::Open`] if a setting here or of the servers is wrong, with what to do about it;
    /// [`LogError::Unavailable`] if no server can be reached, which a later call may change; [`LogError::Full`] if the
    /// servers have no room for the stream of the state.
    pub async fn connect(options: JetStreamOptions) -> Result<Self, LogError> {
        let streams = Arc::new(connect::connect(options).await?);
        let (saves, requests) = mpsc::channel(saves::QUEUE);
        // Ends once all senders are dropped, after what they sent is saved.
        tokio::spawn(saves::run(streams.clone(), requests));
        Ok(Self(Arc::new(Connected {
            _tasks: watch::start(&streams),
            streams,
            saves,
        })))
    }

    /// Makes this router the owner of all checkpoints, and returns its epoch: saves with earlier epochs are refused
    /// from now on. `owner` is the router's name, for people who look.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub async fn take_over(&self, owner: &str) -> Result<Epoch, LogError> {
        self.0.streams.take_over(owner).await
    }

    /// Copies these logs of another provider, and all of its checkpoints. Offsets stay the same. An interrupted copy can
    /// be called again. Nobody may append to the logs meanwhile; the lease keeps routers away from this one.
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

    /// Takes the lease of the router that delivers, and owns all checkpoints from then on. Makes one attempt.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another router holds it; else as [`Checkpoints::save`].
    pub async fn take_lease(&self, router: &str) -> Result<Lease, LogError> {
        self.0.streams.take_lease(router).await
    }

    /// Returns the name of the router that holds the lease, if there is one.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if it is unknown for now.
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

    /// With the default epoch, saves are not fenced.
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

    /// What was acknowledged is durable.
    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }

    fn read_errors(&self) -> u64 {
        self.0.streams.read_errors.load(Ordering::Relaxed)
    }

    /// Never: the servers repair their storage, and this process needs no restart.
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

/// Checkpoints of the owner at an epoch.
struct StateCheckpoints {
    connected: Arc<Connected>,
    epoch: Epoch,
}

impl StateCheckpoints {
    async fn request_save(&self, changes: Vec<CheckpointChange>) -> Result<(), LogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let gone = || LogError::Unavailable("checkpoints are no longer saved".to_owned());
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
