//! The streams of an installation: one for each log, created by its first append, and the state stream. `append.rs`,
//! `reads.rs`, `upkeep.rs` and `state.rs` implement the operations on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{
    JetStreamOptions,
    api::{StreamInfo, StreamPage},
    health::ServerHealth,
    layout,
    names::{self, Location, SHARDS},
    partitions::KnownPartitions,
    recent::RecentRecords,
    session::{NatsError, Session},
    stream_windows::{StreamWindows, nanos},
    tracked::Tracked,
    turn::Turn,
};
use crate::log::{IdWindow, LogError, LogName, Offset, REMEMBERED};

/// Metadata key of a stream for its number of partitions.
const PARTITIONS: &str = "weir.dev/partitions";
/// Bytes of one permit for appends in flight.
pub(super) const PERMIT_BYTES: usize = 1024;
/// Time for which the server remembers ids, as a multiple of the timeout of operations, which limits retries. At 10,000
/// messages a second the ids take tens of megabytes of the server's memory.
const ID_TIMEOUTS: u32 = 3;

/// The connection, and the cached state of all streams.
pub(super) struct JetStream {
    pub(super) session: Session,
    pub(super) options: JetStreamOptions,
    /// Limits the payloads of appends in flight, in units of [`PERMIT_BYTES`].
    pub(super) room: Semaphore,
    /// The period for which this router may deliver.
    pub(super) turn: Turn,
    /// Highest sequence of the state stream that this router knows. A replica that does not have it is behind.
    pub(super) state_end: AtomicU64,
    /// Notified when another router announces changed owners.
    pub(super) owners_changed: Notify,
    /// The numbers of partitions of brokers.
    pub(super) partitions: KnownPartitions,
    /// The windows of streams.
    pub(super) windows: StreamWindows,
    /// Bytes of the recent records that are kept of all logs.
    recent_bytes: Arc<AtomicUsize>,
    /// Number of failed attempts to read.
    pub(super) read_errors: AtomicU64,
    /// Health of the servers and all streams, as last polled.
    pub(super) health: ServerHealth,
    /// Logs that grew since their ends were last announced.
    grown: Mutex<BTreeSet<LogName>>,
    pub(super) growth: Notify,
    logs: Mutex<BTreeMap<LogName, Arc<Tracked>>>,
}

impl JetStream {
    pub(super) fn new(session: Session, options: JetStreamOptions) -> Self {
        Self {
            room: Semaphore::new(options.in_flight_bytes.div_ceil(PERMIT_BYTES)),
            session,
            options,
            turn: Turn::default(),
            state_end: AtomicU64::new(0),
            owners_changed: Notify::new(),
            partitions: KnownPartitions::default(),
            windows: StreamWindows::default(),
            recent_bytes: Arc::default(),
            read_errors: AtomicU64::new(0),
            health: ServerHealth::default(),
            grown: Mutex::default(),
            growth: Notify::new(),
            logs: Mutex::default(),
        }
    }

    pub(super) fn log(&self, name: &LogName) -> Arc<Tracked> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = || RecentRecords::new(self.recent_bytes.clone());
        let new = || Arc::new(Tracked::new(name.clone(), recent()));
        logs.entry(name.clone()).or_insert_with(new).clone()
    }

    pub(super) fn logs(&self) -> Vec<Arc<Tracked>> {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.values().cloned().collect()
    }

    /// Schedules the announcement of a log's end to other routers.
    pub(super) fn grew(&self, name: &LogName) {
        if self.grown().insert(name.clone()) {
            self.growth.notify_one();
        }
    }

    /// Takes the logs whose ends are to be announced.
    pub(super) fn take_grown(&self) -> BTreeSet<LogName> {
        std::mem::take(&mut self.grown())
    }

    fn grown(&self) -> MutexGuard<'_, BTreeSet<LogName>> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the cached state of all logs, and the health of all streams. If streams are invalid, returns the error of
    /// the last one.
    pub(super) async fn refresh_all(&self, wait: Duration) -> Result<(), NatsError> {
        let streams = self.list(wait).await?;
        self.health.update(&streams, Instant::now());
        let mut outcome = Ok(());
        for info in streams.into_values().flatten() {
            let Some(name) = names::log_of(&info.config.name) else {
                continue;
            };
            match check_partitions(&info) {
                Ok(()) => self.log(&name).observe(&info),
                invalid => outcome = invalid,
            }
        }
        outcome
    }

    /// Lists all streams by name, with `None` for those whose leader did not respond. Each page gets this timeout.
    async fn list(&self, wait: Duration) -> Result<BTreeMap<String, Option<StreamInfo>>, NatsError> {
        let mut listed = BTreeMap::new();
        loop {
            let StreamPage { total, streams } = self.session.streams(listed.len(), wait).await?;
            self.health.responded(Instant::now());
            let is_last = streams.is_empty() || listed.len() + streams.len() >= total;
            listed.extend(streams);
            if is_last {
                return Ok(listed);
            }
        }
    }

    /// Updates the cached state of a log. Returns its stream, if it exists.
    pub(super) async fn refresh(
        &self,
        log: &Tracked,
        wait: Duration,
    ) -> Result<Option<StreamInfo>, NatsError> {
        let info = self.session.stream(&log.location.stream, wait).await?;
        if let Some(info) = &info {
            check_partitions(info)?;
            log.observe(info);
        }
        Ok(info)
    }

    /// Creates the stream of a log if it does not exist, for a broker with this window, and reads the newest time in it.
    pub(super) async fn create(
        &self,
        log: &Tracked,
        window: Option<IdWindow>,
        wait: Duration,
    ) -> Result<(), NatsError> {
        let waited = tokio::time::timeout(wait, log.creating.lock()).await;
        let _creating = waited
            .map_err(|_| NatsError::NoAnswer("timed out waiting for the stream to be created".to_owned()))?;
        if log.is_ready() {
            return Ok(());
        }
        let info = self.stream_with_window(log, window, wait).await?;
        check_partitions(&info)?;
        log.observe(&info);
        log.set_ready(self.newest(log, &info, wait).await?.unwrap_or(i64::MIN));
        Ok(())
    }

    /// Returns the newest time in a log: that of its last record, or the one stored when it was trimmed to empty.
    pub(super) async fn newest(
        &self,
        log: &Tracked,
        info: &StreamInfo,
        wait: Duration,
    ) -> Result<Option<i64>, NatsError> {
        let Location { stream, subject } = &log.location;
        let time =
            |subject: &str, content: &Bytes| layout::decode(subject, content).ok().map(|(millis, _)| millis);
        let last = json!({ "seq": info.state.last_seq });
        if info.state.messages > 0
            && let Some(message) = self.session.message(stream, &last, wait).await?
        {
            return Ok(time(subject, &message));
        }
        let kept = names::newest(stream);
        let message = json!({ "last_by_subj": kept });
        let message = self.session.message(names::STATE, &message, wait).await?;
        Ok(message.and_then(|message| time(&kept, &message)))
    }

    /// Configuration of the stream of a log. If it is created, its first record has this offset.
    pub(super) fn config_of(&self, log: &Tracked, first: Offset) -> Value {
        let Location { stream, subject } = &log.location;
        let (subjects, max_bytes, partitions) = match &log.name {
            LogName::Events(broker) => {
                let all = subject.rsplit_once('.').map_or(&**subject, |(all, _)| all);
                let partitions = self.partitions.get(broker).unwrap_or(1);
                (format!("{all}.*"), self.options.max_bytes, partitions)
            }
            LogName::DeadLetters(_) => (subject.clone(), self.options.dead_letters_max_bytes, 1),
        };
        json!({
            "name": stream,
            "subjects": [subjects],
            "storage": "file",
            "retention": "limits",
            "num_replicas": self.options.replicas,
            "max_bytes": max_bytes,
            "discard": "new",
            "deny_delete": true,
            "allow_atomic": true,
            "allow_direct": true,
            "duplicate_window": self.id_window(),
            "first_seq": first.plus(1).0,
            "metadata": { PARTITIONS: partitions.to_string() },
        })
    }

    /// Creates the state stream if it does not exist.
    pub(super) async fn create_state(&self, wait: Duration) -> Result<StreamInfo, NatsError> {
        let config = json!({
            "name": names::STATE,
            "subjects": [names::STATE_SUBJECTS],
            "storage": "file",
            "retention": "limits",
            "num_replicas": self.options.replicas,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "deny_delete": true,
            "allow_atomic": true,
            "allow_msg_ttl": true,
            "allow_direct": true,
            "duplicate_window": self.id_window(),
        });
        self.session.stream_or_new(&config, wait).await
    }

    /// Returns the nanoseconds for which the server remembers ids, at least.
    pub(super) fn id_window(&self) -> u64 {
        let window = self.options.timeout.saturating_mul(ID_TIMEOUTS);
        nanos(window.max(REMEMBERED))
    }

    /// Returns the error for a damaged record.
    pub(super) fn damaged(&self, stream: &str, detail: &str) -> LogError {
        LogError::Damaged {
            path: self.session.place().join(stream),
            detail: detail.to_owned(),
        }
    }
}

fn check_partitions(info: &StreamInfo) -> Result<(), NatsError> {
    let partitions = info.config.metadata.get(PARTITIONS).map(String::as_str);
    let number = partitions.and_then(|partitions| partitions.parse().ok());
    if number.is_some_and(|number| (1..=SHARDS).contains(&number)) {
        return Ok(());
    }
    Err(NatsError::Unexpected(format!(
        "the stream {} has {} as {PARTITIONS} in its metadata, and this Weir supports 1 to {SHARDS}; upgrade Weir, or delete \
         the stream if Weir did not create it",
        info.config.name,
        partitions.unwrap_or("nothing")
    )))
}
