//! Copies the logs and checkpoints of another provider into JetStream. A stream can begin at any sequence, so offsets
//! stay the same and checkpoints are copied unchanged. An interrupted copy can resume: the state stream records that a
//! copy has begun, and each batch names the sequence that it must follow.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_nats::header;
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    lease::Lease,
    names::{self, SHARDS},
    patience::Patience,
    publish::{MAX_BATCH, NatsMessage},
    streams::JetStream,
    tracked::Tracked,
};
use crate::log::{
    BrokerName, CheckpointKey, Epoch, Log, LogBounds, LogError, LogName, LogProvider, LogRecord, Offset,
    Ownership, ReadLimit, Shard, record,
};

/// Limits of one batch.
const BATCH: ReadLimit = ReadLimit {
    records: MAX_BATCH,
    bytes: 1024 * 1024,
};

/// Time after which the lease of a killed copy has expired.
const LEASE_ENDS: Duration = Duration::from_secs(12);
/// Pause between attempts to take the lease.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Values of the state of a copy.
const BEGUN: &[u8] = b"begun";
const DONE: &[u8] = b"done";

/// Returns the broker of a checkpoint, if it has one.
pub type BrokerOf = fn(&CheckpointKey, &[u8]) -> Option<BrokerName>;

/// Result of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Copied logs with their bounds.
    pub logs: Vec<(LogName, LogBounds)>,
    /// Number of copied checkpoints.
    pub checkpoints: usize,
}

/// Adds the logs without records whose first one is not at 0: the checkpoints of their Triggers are of that offset, so
/// their streams must begin there.
async fn with_logs_of_checkpoints(
    from: &dyn LogProvider,
    mut names: Vec<LogName>,
    checkpoints: &[(CheckpointKey, Bytes)],
    broker_of: BrokerOf,
) -> Result<Vec<LogName>, LogError> {
    let known: BTreeSet<_> = names.iter().cloned().collect();
    let brokers: BTreeSet<_> = checkpoints
        .iter()
        .filter_map(|(key, value)| broker_of(key, value))
        .collect();
    for broker in brokers {
        for name in [LogName::Events(broker.clone()), LogName::DeadLetters(broker)] {
            if !known.contains(&name) && from.open(&name).bounds().await?.next > Offset(0) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

impl JetStream {
    /// Copies these logs, all checkpoints, and the logs that they are of. The logs must not change meanwhile.
    pub(super) async fn copy_from(
        self: &Arc<Self>,
        from: &dyn LogProvider,
        names: Vec<LogName>,
        broker_of: BrokerOf,
    ) -> Result<CopyReport, LogError> {
        let lease = self.lease_of_copy().await?;
        let copied = tokio::select! {
            copied = self.copy_all(from, names, broker_of) => copied,
            lost = lease.lost() => Err(lost),
        };
        lease.give_up().await;
        copied
    }

    /// Takes the lease. Waits until the lease of an interrupted copy has expired.
    async fn lease_of_copy(self: &Arc<Self>) -> Result<Lease, LogError> {
        let end = Instant::now() + LEASE_ENDS;
        loop {
            match self.take_lease(names::COPYING.to_owned(), Bytes::new()).await {
                Err(LogError::Fenced(_)) if Instant::now() < end => sleep(TRY_AGAIN).await,
                taken => return taken,
            }
        }
    }

    async fn copy_all(
        &self,
        from: &dyn LogProvider,
        names: Vec<LogName>,
        broker_of: BrokerOf,
    ) -> Result<CopyReport, LogError> {
        self.begin().await?;
        let mut report = CopyReport::default();
        let checkpoints = from.checkpoints(Ownership::default()).load_all().await?;
        let names = with_logs_of_checkpoints(from, names, &checkpoints, broker_of).await?;
        // The positions of an embedded log are of whole brokers.
        let brokers: Vec<_> = names.iter().map(|name| name.broker().clone()).collect();
        self.partitions
            .want(brokers.iter().map(|broker| (broker.clone(), 1)).collect());
        self.decide_partitions(brokers).await?;
        for name in names {
            let bounds = self.copy_log(&*from.open(&name)).await?;
            report.logs.push((name, bounds));
        }
        report.checkpoints = checkpoints.len();
        self.copy_checkpoints(&checkpoints, broker_of).await?;
        self.set_copy_state(DONE).await?;
        Ok(report)
    }

    /// Copies each checkpoint to the shard of its broker. One without a broker is of the whole log, or unreadable: all
    /// shards get it, and each decides as the embedded log would.
    async fn copy_checkpoints(
        &self,
        checkpoints: &[(CheckpointKey, Bytes)],
        broker_of: BrokerOf,
    ) -> Result<(), LogError> {
        for shard in Shard::all(SHARDS) {
            let of_shard = checkpoints.iter().filter(|(key, value)| {
                broker_of(key, value).is_none_or(|broker| Shard::of(&broker, SHARDS) == shard)
            });
            let changes: Vec<_> = of_shard
                .map(|(key, value)| (key.clone(), Some(value.clone())))
                .collect();
            let unfenced = Ownership {
                shard,
                epoch: Epoch::default(),
            };
            self.save(&changes, unfenced).await?;
        }
        Ok(())
    }

    /// Records that a copy has begun. Fails if routers use the servers, or have used them.
    async fn begin(&self) -> Result<(), LogError> {
        self.check_no_router_runs().await?;
        self.set_begun().await?;
        // A router that joined meanwhile may not have seen that the copy had begun.
        self.check_no_router_runs().await
    }

    async fn check_no_router_runs(&self) -> Result<(), LogError> {
        let members = self.load_subjects(names::MEMBERS).await?;
        let routers: Vec<_> = members
            .iter()
            .filter_map(|(subject, _)| names::member_of(subject))
            .collect();
        match routers.is_empty() {
            true => Ok(()),
            false => Err(LogError::Fenced(format!(
                "routers use the servers: {}",
                routers.join(", ")
            ))),
        }
    }

    async fn set_begun(&self) -> Result<(), LogError> {
        let refused = |detail: &str| {
            Err(LogError::Open {
                path: self.session.place(),
                detail: detail.to_owned(),
            })
        };
        match self.load_value(names::COPY).await?.as_deref() {
            Some(DONE) => refused(
                "an event log was copied there before, and routers may have used it since. To copy again, delete the streams whose \
                 names begin with weir_, with all events in them",
            ),
            Some(_) => Ok(()),
            None if self.is_in_use().await? => refused(
                "there are events or checkpoints of routers already; copy into a NATS account that no router has used",
            ),
            None => self.set_copy_state(BEGUN).await,
        }
    }

    /// Whether a copy was begun and not finished.
    pub(super) async fn is_copied_in_part(&self) -> Result<bool, LogError> {
        let state = self.load_value(names::COPY).await?;
        Ok(state.is_some_and(|state| state == BEGUN))
    }

    async fn is_in_use(&self) -> Result<bool, LogError> {
        let mut patience = Patience::new(self.options.timeout);
        patience.retry(|wait| self.refresh_all(wait)).await?;
        let has_streams = self.logs().iter().any(|log| log.is_seen());
        let checkpoints = names::checkpoints_of_all();
        Ok(has_streams || !self.load_subjects(&checkpoints).await?.is_empty())
    }

    async fn set_copy_state(&self, state: &'static [u8]) -> Result<(), LogError> {
        let message = NatsMessage::encoded(names::COPY, 0, state);
        self.store_state(&[message], None).await.map(|_| ())
    }

    /// Copies the retained records of one log that its stream does not have yet.
    async fn copy_log(&self, from: &dyn Log) -> Result<LogBounds, LogError> {
        let bounds = from.bounds().await?;
        let log = self.log(from.name());
        let mut at = self.begin_at(from.name(), bounds.first).await?;
        self.check_end(&log, from, bounds, at).await?;
        while at < bounds.next {
            let records = from.read(at, BATCH).await?;
            let Some(last) = records.last() else { break };
            let next = last.offset.plus(1);
            let payloads: Vec<_> = records.iter().map(|record| record.payload.clone()).collect();
            self.check_size(&log, &payloads)?;
            self.store_after(&log.location.subject, at, &records).await?;
            at = next;
        }
        Ok(bounds)
    }

    /// Checks that an interrupted copy was of this log, by the last record that it stored.
    async fn check_end(
        &self,
        log: &Arc<Tracked>,
        from: &dyn Log,
        bounds: LogBounds,
        at: Offset,
    ) -> Result<(), LogError> {
        if at == bounds.first {
            return Ok(());
        }
        let other = || LogError::Open {
            path: self.session.place(),
            detail: format!(
                "the stream {} has records of another log; copy the log that the interrupted copy began with, or delete the \
                 streams whose names begin with weir_",
                log.location.stream
            ),
        };
        if at < bounds.first || at > bounds.next {
            return Err(other());
        }
        let last = Offset(at.0 - 1);
        let one = ReadLimit { records: 1, ..BATCH };
        let (ours, theirs) = (from.read(last, one).await?, self.read(log, last, one).await?);
        match ours.first() == theirs.first() {
            true => Ok(()),
            false => Err(other()),
        }
    }

    /// Creates the stream of a log with this first offset. Returns the offset after its last record.
    async fn begin_at(&self, name: &LogName, first: Offset) -> Result<Offset, LogError> {
        let log = self.log(name);
        let config = self.config_of(&log, first);
        let mut patience = Patience::new(self.options.timeout);
        let create = |wait| self.session.stream_or_new(&config, wait);
        let info = patience.retry(create).await?;
        Ok(info.bounds().next)
    }

    /// Stores records as one batch, if `at` is the end of the stream.
    async fn store_after(&self, subject: &str, at: Offset, records: &[LogRecord]) -> Result<(), LogError> {
        let encode = |of: &LogRecord| NatsMessage::encoded(subject, record::millis(of.accepted), &of.payload);
        let mut messages: Vec<_> = records.iter().map(encode).collect();
        if let Some(first) = messages.first_mut() {
            first
                .headers
                .insert(header::NATS_EXPECTED_LAST_SEQUENCE, at.0.to_string());
        }
        let id = Uuid::new_v4().to_string();
        let mut patience = Patience::new(self.options.timeout);
        loop {
            let attempt = self.session.store(&id, &messages, patience.attempt());
            match patience.within("the stream", attempt).await? {
                Ok(_) => return Ok(()),
                Err(error) => patience.after(error).await?,
            }
        }
    }
}
