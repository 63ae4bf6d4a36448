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
//! Each log has a stream, created by its first append. The state stream has the checkpoints, the routers and the
//! owners. `names.rs` has the names of streams and subjects, `layout.rs` the layout of a message. An offset is the
//! sequence minus one. Streams never delete records by themselves: trimming purges them, and a full stream rejects
//! appends. Each installation of Weir needs its own NATS account.
//!
//! # Reading order
//! `connect.rs` connects and checks the servers (`credentials.rs`, `options.rs`). `session.rs` makes requests and
//! classifies failures as permanent or retryable (`patience.rs` retries); `api.rs` has the JSON. `streams.rs` and
//! `tracked.rs` cache the state of each stream, and `health.rs` that of the servers; `watch.rs` updates both.
//! `append.rs` and `unique.rs` (on `publish.rs`), `reads.rs` (with `recent.rs`) and `upkeep.rs` are the operations of a log,
//! and `windows.rs` (on `stream_windows.rs`) sets for how long repeats are recognized. `state.rs` and `saves.rs` are the
//! operations of checkpoints. `decide.rs` (on `partitions.rs`) decides into how many partitions the events of a broker are
//! divided. `members.rs` has the routers and the shards that they own, by leases (`lease.rs`); `turn.rs` is the
//! period for which this router may deliver. `copy.rs` copies the logs of another provider, and `ask.rs` lets routers
//! ask each other.
//!
//! # Limits
//! - An append has at most 1,000 records. A save of more checkpoints is stored in several batches, each fenced.
//! - [`Log::retained`] includes the headers that the server stores.
//! - Times in a log can decrease by the difference between the clocks of routers, so a search by time is only as exact.

mod api;
mod append;
mod ask;
mod connect;
mod copy;
mod credentials;
mod decide;
mod health;
mod layout;
mod lease;
mod members;
mod names;
mod options;
mod partitions;
mod patience;
mod publish;
mod reads;
mod recent;
mod refused;
mod saves;
mod session;
mod state;
mod stream_windows;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod tracked;
mod turn;
mod unique;
mod upkeep;
mod watch;
mod windows;

pub use copy::{BrokerOf, CopyReport};
pub use members::{Membership, Seen};
pub use names::SHARDS;
pub use options::{JetStreamOptions, NatsAuth, NatsTls};

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch as watching},
    task::JoinSet,
    time::Instant,
};

use self::{saves::SaveRequest, streams::JetStream, tracked::Tracked};
use super::{
    Append, Appended, BrokerName, CheckpointChange, CheckpointKey, Checkpoints, IdWindow, Log, LogBounds,
    LogError, LogHealth, LogName, LogProvider, LogRecord, Offset, Ownership, Partition, ReadLimit, Shard,
};

/// The logs in a JetStream account. The connection and the background tasks end once this and all handles of its logs
/// are dropped.
pub struct JetStreamLog(Arc<Connected>);

struct Connected {
    streams: Arc<JetStream>,
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
        Ok(Self(Arc::new(Connected {
            _tasks: watch::start(&streams),
            streams,
        })))
    }

    /// Makes this connection the owner of the first shard, without a membership.
    #[cfg(test)]
    async fn take_over(&self, owner: &str) -> Result<Ownership, LogError> {
        let (streams, shard) = (&self.0.streams, Shard::default());
        let (before, _) = streams.load_with_sequence(&names::owner(shard)).await?;
        let epoch = streams.set_owner(shard, owner.as_bytes(), before).await?;
        Ok(Ownership { shard, epoch })
    }

    /// Copies these logs of another provider, and all of its checkpoints. Offsets stay the same. To resume an
    /// interrupted copy, call this again. The source must not change meanwhile. Until the copy is complete, no router
    /// can join. `broker_of` finds the shard of a checkpoint.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if routers or another copy use the servers; [`LogError::Open`] if routers have used this log
    /// already; otherwise as [`Log::append`] and [`Log::read`].
    pub async fn copy_from(
        &self,
        from: &dyn LogProvider,
        names: Vec<LogName>,
        broker_of: BrokerOf,
    ) -> Result<CopyReport, LogError> {
        self.0.streams.copy_from(from, names, broker_of).await
    }

    /// Tries once to make this router a member, which may own shards. Every earlier membership of this connection must
    /// have ended.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if a router of this name is a member; [`LogError::Open`] if an embedded log was copied here
    /// only in part; [`LogError::Unavailable`] if NATS does not respond.
    pub async fn join(&self, router: &str) -> Result<Membership, LogError> {
        self.0.streams.join(router).await
    }

    /// Asks another router that shares the log, and waits for its answer.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the router or NATS does not answer in time; [`LogError::TooLarge`] if the question is
    /// larger than a message.
    pub async fn ask(&self, router: &str, question: Bytes, wait: Duration) -> Result<Bytes, LogError> {
        self.0.streams.ask(router, question, wait).await
    }

    /// Answers the questions of other routers to this one. Never ends.
    pub async fn answer<F>(&self, router: String, answer: impl Fn(Bytes) -> F)
    where
        F: Future<Output = Bytes>,
    {
        self.0.streams.clone().answer(router, answer).await;
    }

    /// Returns the number of partitions of a broker, if this router knows it. See [`JetStreamLog::decide_partitions`].
    pub fn partitions_of(&self, broker: &BrokerName) -> Option<u16> {
        self.0.streams.partitions.get(broker)
    }

    /// Sets the numbers of partitions for those brokers that no router has used yet, in place of
    /// [`JetStreamOptions::partitions`].
    pub fn want_partitions(&self, wanted: BTreeMap<BrokerName, u16>) {
        self.0.streams.partitions.want(wanted);
    }

    /// Sets the windows of brokers by the present configuration. The streams of brokers of which this router owns the first
    /// shard get them within a few seconds, as far as the servers accept them.
    pub fn want_id_windows(
        &self,
        window_of: impl Fn(&BrokerName) -> Option<IdWindow> + Send + Sync + 'static,
    ) {
        self.0.streams.windows.want(Arc::new(window_of));
    }

    /// Decides the numbers of partitions of those brokers that no router has used yet. They never change afterwards.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if NATS does not respond.
    pub async fn decide_partitions(&self, brokers: Vec<BrokerName>) -> Result<(), LogError> {
        self.0.streams.decide_partitions(brokers).await
    }

    /// Returns the checkpoints with this key, by shard. They may be stale.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if NATS does not respond.
    pub async fn checkpoint_of_all(&self, key: &CheckpointKey) -> Result<BTreeMap<Shard, Bytes>, LogError> {
        let seen = self.0.streams.glance(&[&names::checkpoint_of_all(key)]).await?;
        let by_shard = seen.into_iter().filter_map(|(subject, value)| {
            let (shard, _) = names::checkpoint_key(&subject)?;
            Some((shard, value))
        });
        Ok(by_shard.collect())
    }
}

impl LogProvider for JetStreamLog {
    fn open(&self, name: &LogName) -> Arc<dyn Log> {
        Arc::new(StreamLog {
            log: self.0.streams.log(name),
            connected: self.0.clone(),
        })
    }

    /// Opens the checkpoints of a shard. An owner opens them once; see `saves.rs`. Saves with the default epoch are not
    /// fenced.
    fn checkpoints(&self, ownership: Ownership) -> Arc<dyn Checkpoints> {
        let (saves, requests) = mpsc::channel(saves::QUEUE);
        // Ends once the sender is dropped and its saves are stored.
        tokio::spawn(saves::run(self.0.streams.clone(), ownership, requests));
        Arc::new(StateCheckpoints {
            connected: self.0.clone(),
            shard: ownership.shard,
            saves,
        })
    }

    fn remembers_by_records(&self) -> bool {
        true
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

    fn health(&self) -> Option<LogHealth> {
        let JetStream { session, health, .. } = &*self.0.streams;
        Some(health.get(session.is_connected(), Instant::now()))
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

    fn partition(&self) -> Partition {
        Partition::WHOLE
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, LogError>> {
        Box::pin(self.connected.streams.append(&self.log, append))
    }

    fn append_once<'a>(&'a self, id: &'a str, append: Append) -> BoxFuture<'a, Result<Appended, LogError>> {
        Box::pin(self.connected.streams.append_once(&self.log, id, append))
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

/// Checkpoints of a shard, for its owner.
struct StateCheckpoints {
    connected: Arc<Connected>,
    shard: Shard,
    saves: mpsc::Sender<SaveRequest>,
}

impl StateCheckpoints {
    async fn request_save(&self, changes: Vec<CheckpointChange>) -> Result<(), LogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let gone = || LogError::Unavailable("the task that saves checkpoints has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        let request = SaveRequest { changes, reply };
        self.saves.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Checkpoints for StateCheckpoints {
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>> {
        Box::pin(self.connected.streams.load_all(self.shard))
    }

    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        Box::pin(self.connected.streams.load(self.shard, key))
    }

    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(self.request_save(changes))
    }
}
