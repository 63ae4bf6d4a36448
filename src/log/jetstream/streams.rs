//! The streams of an installation: one for each log, made by its first append, and one for the state. Every operation
//! of a log goes through here; `append.rs`, `reads.rs`, `upkeep.rs` and `state.rs` continue.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use super::{
    JetStreamOptions,
    api::StreamInfo,
    layout,
    names::{self, Location},
    session::{NatsError, Session},
    tracked::Tracked,
    turn::Turn,
};
use crate::log::{LogError, LogName, Offset};

/// Key of the number of partitions in a stream's metadata.
const PARTITIONS: &str = "weir.dev/partitions";
/// Number of partitions of each log.
const ONE: &str = "1";
/// Unit of the room for appends.
pub(super) const PERMIT_BYTES: usize = 1024;
/// For how long the server knows the ids of messages, in timeouts of operations: they are retried for one. The ids of
/// 10,000 messages a second take a few ten MB of the server's memory.
const ID_TIMEOUTS: u32 = 3;
const LEAST_ID_WINDOW: Duration = Duration::from_secs(30);

/// All streams, and what is known of them.
pub(super) struct JetStream {
    pub(super) session: Session,
    pub(super) options: JetStreamOptions,
    /// Room for the payloads of appends, in units of [`PERMIT_BYTES`].
    pub(super) room: Semaphore,
    /// The lease of this router, if it delivers.
    pub(super) turn: Turn,
    /// Number of failed attempts to read.
    pub(super) read_errors: AtomicU64,
    /// Logs that grew since other routers were told.
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
            read_errors: AtomicU64::new(0),
            grown: Mutex::default(),
            growth: Notify::new(),
            logs: Mutex::default(),
        }
    }

    pub(super) fn log(&self, name: &LogName) -> Arc<Tracked> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Tracked::new(name.clone()));
        logs.entry(name.clone()).or_insert_with(new).clone()
    }

    pub(super) fn logs(&self) -> Vec<Arc<Tracked>> {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.values().cloned().collect()
    }

    /// Other routers are to be told of a log's end.
    pub(super) fn grew(&self, name: &LogName) {
        if self.grown().insert(name.clone()) {
            self.growth.notify_one();
        }
    }

    /// Takes the logs that other routers are to be told of.
    pub(super) fn take_grown(&self) -> BTreeSet<LogName> {
        std::mem::take(&mut self.grown())
    }

    fn grown(&self) -> MutexGuard<'_, BTreeSet<LogName>> {
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the streams of all logs; the error is of the last one that is not as it should be.
    pub(super) async fn look(&self, wait: Duration) -> Result<(), NatsError> {
        let mut looked = Ok(());
        for info in self.session.streams(wait).await? {
            let Some(name) = names::log_of(&info.config.name) else {
                continue;
            };
            match check_partitions(&info) {
                Ok(()) => self.log(&name).observe(&info),
                wrong => looked = wrong,
            }
        }
        looked
    }

    /// Looks at the stream of a log, if there is one.
    pub(super) async fn look_at(
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

    /// Makes the stream of a log if there is none, and finds out the newest time in it.
    pub(super) async fn make(&self, log: &Tracked, wait: Duration) -> Result<(), NatsError> {
        let waited = tokio::time::timeout(wait, log.making.lock()).await;
        let _making = waited.map_err(|_| NatsError::NoAnswer("the stream is still looked up".to_owned()))?;
        if log.is_ready() {
            return Ok(());
        }
        let mut config = self.config_of(log);
        let known = log.bounds().next;
        if known > Offset(0) {
            // The stream was deleted. Its offsets are not used again: Triggers have passed them.
            config["first_seq"] = (known.0 + 1).into();
        }
        let info = self.session.stream_or_new(&config, wait).await?;
        check_partitions(&info)?;
        log.observe(&info);
        log.set_ready(self.newest(log, &info, wait).await?.unwrap_or(i64::MIN));
        Ok(())
    }

    /// Newest time in a log: that of its last record, or else the one kept when it was trimmed whole.
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

    pub(super) fn config_of(&self, log: &Tracked) -> Value {
        let Location { stream, subject } = &log.location;
        let (subjects, max_bytes) = match log.name {
            LogName::Events(_) => {
                let partitions = subject.rsplit_once('.').map_or(&**subject, |(all, _)| all);
                (format!("{partitions}.*"), self.options.max_bytes)
            }
            LogName::DeadLetters(_) => (subject.clone(), self.options.dead_letters_max_bytes),
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
            "metadata": { PARTITIONS: ONE },
        })
    }

    /// Makes the stream of the state if there is none.
    pub(super) async fn make_state(&self, wait: Duration) -> Result<StreamInfo, NatsError> {
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
            "allow_direct": false,
            "duplicate_window": self.id_window(),
        });
        self.session.stream_or_new(&config, wait).await
    }

    /// Nanoseconds for which the server knows ids.
    fn id_window(&self) -> u64 {
        let window = self.options.timeout.saturating_mul(ID_TIMEOUTS);
        u64::try_from(window.max(LEAST_ID_WINDOW).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The error of a damaged record.
    pub(super) fn damaged(&self, stream: &str, detail: &str) -> LogError {
        LogError::Damaged {
            path: self.session.place().join(stream),
            detail: detail.to_owned(),
        }
    }
}

fn check_partitions(info: &StreamInfo) -> Result<(), NatsError> {
    let partitions = info.config.metadata.get(PARTITIONS).map(String::as_str);
    if partitions == Some(ONE) {
        return Ok(());
    }
    Err(NatsError::Unexpected(format!(
        "the stream {} has {} in its metadata for {PARTITIONS}, and this Weir knows {ONE}; upgrade Weir, or delete the stream if Weir \
         did not make it",
        info.config.name,
        partitions.unwrap_or("nothing")
    )))
}
