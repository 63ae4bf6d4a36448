//! Retains the checkpoints of deleted Triggers for a configured time. Their events stay in the log, and a Trigger that
//! is re-created, or that replaces a deleted one of its name, resumes from the checkpoint.
//!
//! A retained checkpoint is the cursor as its dispatcher last saved it. An [`OwnerRecord`] beside it names its owner
//! and the time of deletion. When the log is full, checkpoints are discarded before new events are rejected.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Hold, TriggerStats, TriggerView,
    holds::Holds,
    progress::{Progress, ProgressError},
    retained::{
        Identity, OwnerRecord, RetainedCheckpoint, RetainedCheckpoints, RunningTime, has_explicit_start,
        removal,
    },
};
use crate::{
    log::{BrokerName, CheckpointChange, CheckpointKey, Checkpoints, LogError, LogName, LogProvider, Offset},
    routing::Trigger,
};

/// Retained checkpoint of a deleted Trigger.
#[derive(Clone, Debug)]
pub struct RetainedTrigger {
    /// View of the Trigger when it ended.
    pub view: TriggerView,
    /// Time until it expires.
    pub left: Duration,
}

/// A stored cursor, and its owner if known.
#[derive(Clone, Debug)]
pub(super) struct StoredCheckpoint {
    pub(super) cursor: Bytes,
    pub(super) record: Option<OwnerRecord>,
}

/// A Trigger that no longer exists.
pub(super) struct RetiredTrigger {
    pub(super) uid: String,
    /// `None` if an earlier version stored the cursor; then only a Trigger with the same UID can resume from it.
    pub(super) identity: Option<Identity>,
    /// Its cursor and the time of its deletion, if found at startup.
    pub(super) found: Option<(Bytes, Option<Duration>)>,
}

impl RetiredTrigger {
    /// A Trigger whose delivery has just ended.
    pub(super) fn ended(view: &TriggerView) -> Self {
        Self {
            uid: view.uid.clone(),
            identity: Some(Identity {
                namespace: view.namespace.clone(),
                name: view.name.clone(),
                broker: view.broker().to_string(),
            }),
            found: None,
        }
    }

    /// A Trigger with a stored cursor that is not in the configuration.
    pub(super) fn found(uid: String, StoredCheckpoint { cursor, record }: StoredCheckpoint) -> Self {
        let gone_at = record.as_ref().and_then(OwnerRecord::gone_at);
        Self {
            uid,
            identity: record.map(|record| record.identity),
            found: Some((cursor, gone_at)),
        }
    }
}

pub(super) struct DeletedTriggers {
    logs: Arc<dyn LogProvider>,
    checkpoints: Arc<dyn Checkpoints>,
    window: Duration,
    time: RunningTime,
    retained: Mutex<RetainedCheckpoints>,
    /// Held from reading `retained` until the change is stored; otherwise a removal could delete a newer
    /// checkpoint.
    turn: tokio::sync::Mutex<()>,
    /// UIDs whose stored data is still to be removed because the disk was full.
    unremoved: Mutex<Vec<String>>,
    dropped: AtomicU64,
}

impl DeletedTriggers {
    /// Retains checkpoints for `window`; `ran_before` is the time that routers ran on this data before.
    pub(super) fn new(
        logs: Arc<dyn LogProvider>,
        checkpoints: Arc<dyn Checkpoints>,
        window: Duration,
        ran_before: Duration,
    ) -> Self {
        Self {
            logs,
            checkpoints,
            window,
            time: RunningTime::new(ran_before, Instant::now()),
            retained: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            unremoved: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Keeps checkpoints from expiring. Hold it from adding or resuming checkpoints until the change is stored.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Matched but unsettled events dropped because the checkpoints of their deleted Triggers were discarded.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// As [`RetainedCheckpoints::count`].
    pub(super) fn count(&self) -> usize {
        self.retained().count()
    }

    /// Retained checkpoints, the oldest first.
    pub(super) fn triggers(&self) -> Vec<RetainedTrigger> {
        let now = self.now();
        let checkpoints = self.retained().oldest_first().into_iter();
        let triggers = checkpoints.map(|RetainedCheckpoint { view, gone_at }| RetainedTrigger {
            view,
            left: self.window.saturating_sub(now.saturating_sub(gone_at)),
        });
        triggers.collect()
    }

    /// All holds: the retained ones plus those of `others`. A checkpoint is always in one of the two, also during a
    /// hand-over.
    pub(super) fn with_retained(&self, others: impl FnOnce() -> Arc<Holds>) -> Arc<Holds> {
        let retained = self.retained();
        let others = others();
        if retained.views().next().is_none() {
            return others;
        }
        Arc::new(others.with(retained.views().map(TriggerView::hold_on_broker)))
    }

    /// Runs `publish`, after which the new owners hold the events of resumed checkpoints, and forgets these.
    pub(super) fn hand_over(&self, publish: impl FnOnce()) {
        let mut retained = self.retained();
        publish();
        retained.forget_taken();
    }

    /// Retains the checkpoints of deleted Triggers, or removes them if the window is zero.
    ///
    /// # Errors
    /// Fails when the log fails.
    pub(super) async fn retain(&self, gone: Vec<RetiredTrigger>) -> Result<(), LogError> {
        let now = self.now();
        self.mark(&gone, now).await?;
        let (mut discarded, mut unknown) = (Vec::new(), Vec::new());
        for RetiredTrigger { uid, identity, found } in gone {
            let (cursor, gone_at) = match found {
                Some((cursor, gone_at)) => (Some(cursor), gone_at),
                None => {
                    let key = CheckpointKey::Trigger(uid.clone());
                    (self.checkpoints.load(&key).await?, None)
                }
            };
            let view = cursor
                .as_ref()
                .map(|cursor| view(&*self.logs, &uid, identity.as_ref(), cursor));
            match view {
                None => {
                    let identity = identity.as_ref();
                    tracing::info!(
                        trigger = trigger_name(identity, &uid),
                        "Trigger deleted before it had a checkpoint"
                    );
                }
                Some(Err(error)) => {
                    tracing::error!(uid, %error, "removing the unreadable checkpoint of a deleted Trigger");
                    unknown.push(uid);
                }
                Some(Ok(view)) => {
                    let gone_at = gone_at.unwrap_or(now);
                    let checkpoint = RetainedCheckpoint { view, gone_at };
                    if identity.is_none() || self.window.is_zero() {
                        self.report_discarded(&checkpoint, "not retained");
                        unknown.push(uid);
                    } else {
                        self.log_retained(&checkpoint);
                        discarded.extend(self.retained().retain(checkpoint));
                    }
                }
            }
        }
        for checkpoint in &discarded {
            self.report_discarded(
                checkpoint,
                "replaced by a newer one of its name, or over the limit",
            );
        }
        unknown.extend(discarded.into_iter().map(|checkpoint| checkpoint.view.uid));
        self.remove(unknown).await
    }

    /// Durably stores the owners of retained checkpoints and the time of their deletion.
    async fn mark(&self, gone: &[RetiredTrigger], now: Duration) -> Result<(), LogError> {
        if self.window.is_zero() {
            return Ok(());
        }
        let unmarked = gone
            .iter()
            .filter(|gone| !matches!(gone.found, Some((_, Some(_)))));
        let marks = unmarked.filter_map(|gone| {
            let identity = gone.identity.clone()?;
            Some(OwnerRecord::gone(identity, now).change(&gone.uid))
        });
        let mut changes: Vec<_> = marks.collect();
        if changes.is_empty() {
            return Ok(());
        }
        changes.push(self.time.change(Instant::now()));
        match self.checkpoints.save(changes).await {
            // At the next startup they are found to be deleted.
            Err(LogError::Full(error)) => {
                tracing::warn!(
                    error,
                    "disk full: cannot store when these Triggers were deleted; after a restart their retention starts over"
                );
                Ok(())
            }
            marked => marked,
        }
    }

    /// Returns the checkpoint that a new Trigger resumes from, as the UID it is stored under and the cursor: its own
    /// or, unless its start is explicit, that of a deleted Trigger of the same name and broker. Its events are held
    /// until [`DeletedTriggers::hand_over`].
    ///
    /// # Errors
    /// Fails when the log fails.
    pub(super) async fn resume(
        &self,
        trigger: &Trigger,
        broker: &str,
    ) -> Result<Option<(String, Bytes)>, LogError> {
        lock(&self.unremoved).retain(|uid| *uid != trigger.uid);
        let identity = Identity::of(trigger, broker);
        let own = self.retained().take(&trigger.uid);
        let checkpoint = match own {
            Some(checkpoint) => Some(checkpoint),
            None if has_explicit_start(trigger) => {
                let unwanted = self.retained().remove_named(&identity);
                if let Some(checkpoint) = unwanted {
                    self.report_discarded(&checkpoint, "a new Trigger of its name has a spec.start");
                    self.remove(vec![checkpoint.view.uid]).await?;
                }
                None
            }
            None => self.retained().take_named(&identity),
        };
        let Some(checkpoint) = checkpoint else {
            return Ok(None);
        };
        let uid = checkpoint.view.uid;
        let cursor = self
            .checkpoints
            .load(&CheckpointKey::Trigger(uid.clone()))
            .await?;
        Ok(cursor.map(|cursor| (uid, cursor)))
    }

    /// Removes and returns the checkpoints of Triggers that exist but cannot be decoded; the caller holds their events
    /// meanwhile.
    pub(super) fn take_unread(&self, is_unread: impl Fn(&str) -> bool) -> Vec<String> {
        let mut retained = self.retained();
        let unread: Vec<_> = retained
            .uids()
            .filter(|uid| is_unread(uid))
            .map(str::to_owned)
            .collect();
        for uid in &unread {
            drop(retained.take(uid));
        }
        unread
    }

    /// Removes expired checkpoints, and stores the running time.
    ///
    /// # Errors
    /// Fails when the log fails.
    pub(super) async fn tick(&self) -> Result<(), LogError> {
        let _turn = self.turn().await;
        let expired = self.retained().expire(self.now(), self.window);
        for checkpoint in &expired {
            self.report_discarded(checkpoint, "retention expired");
        }
        let mut uids: Vec<_> = std::mem::take(&mut *lock(&self.unremoved));
        uids.extend(expired.into_iter().map(|checkpoint| checkpoint.view.uid));
        self.remove(uids).await?;
        if self.count() == 0 {
            return Ok(());
        }
        match self
            .checkpoints
            .save(vec![self.time.change(Instant::now())])
            .await
        {
            // If the time is not saved, checkpoints are only retained longer after the next startup.
            Err(LogError::Full(_)) => Ok(()),
            saved => saved,
        }
    }

    /// Discards the oldest checkpoint that holds events nothing else holds, and returns its UID. `others` as in
    /// [`RetainedCheckpoints::discard_for_room`].
    ///
    /// # Errors
    /// Fails when the log fails.
    pub(super) async fn discard_for_room(
        &self,
        others: impl Fn(&BrokerName) -> Offset,
    ) -> Result<Option<String>, LogError> {
        let _turn = self.turn().await;
        let discarded = self.retained().discard_for_room(others);
        let Some(checkpoint) = discarded else {
            return Ok(None);
        };
        self.report_discarded(&checkpoint, "room is needed in the event log");
        self.remove(vec![checkpoint.view.uid.clone()]).await?;
        Ok(Some(checkpoint.view.uid))
    }

    /// Removes stored checkpoints. On a full disk the removal is retried later; after a crash in between, the
    /// checkpoint is retained again.
    async fn remove(&self, uids: Vec<String>) -> Result<(), LogError> {
        if uids.is_empty() {
            return Ok(());
        }
        let changes: Vec<CheckpointChange> = uids.iter().flat_map(|uid| removal(uid)).collect();
        match self.checkpoints.save(changes).await {
            Err(LogError::Full(_)) => {
                lock(&self.unremoved).extend(uids);
                Ok(())
            }
            removed => removed,
        }
    }

    fn report_discarded(&self, RetainedCheckpoint { view, .. }: &RetainedCheckpoint, why: &'static str) {
        let (pending, backlog) = (view.stats.pending(), view.backlog());
        self.dropped.fetch_add(pending, Relaxed);
        let trigger = view_name(view);
        if pending + backlog == 0 {
            tracing::info!(trigger, why, "discarded the checkpoint of a deleted Trigger");
        } else {
            tracing::warn!(
                trigger,
                why,
                dropped = pending,
                backlog,
                "discarded the checkpoint of a deleted Trigger, and with it its undelivered events"
            );
        }
    }

    fn log_retained(&self, RetainedCheckpoint { view, gone_at }: &RetainedCheckpoint) {
        let (pending, backlog) = (view.stats.pending(), view.backlog());
        let left = self.window.saturating_sub(self.now().saturating_sub(*gone_at));
        let (trigger, seconds) = (view_name(view), left.as_secs());
        if pending + backlog == 0 {
            tracing::info!(
                trigger,
                seconds,
                "Trigger deleted; its checkpoint is retained for this many seconds"
            );
        } else {
            tracing::warn!(
                trigger,
                seconds,
                pending,
                backlog,
                "Trigger deleted, or its namespace no longer watched; its undelivered events are retained for this many \
                 seconds, for a Trigger of its name"
            );
        }
    }

    fn now(&self) -> Duration {
        self.time.at(Instant::now())
    }

    fn retained(&self) -> MutexGuard<'_, RetainedCheckpoints> {
        lock(&self.retained)
    }
}

/// Pairs stored cursors with their owner records. Also returns the UIDs of owner records without a cursor.
pub(super) fn pair_with_owners(
    cursors: HashMap<String, Bytes>,
    mut records: HashMap<String, Option<OwnerRecord>>,
) -> (HashMap<String, StoredCheckpoint>, Vec<String>) {
    let stored = cursors.into_iter().map(|(uid, cursor)| {
        let record = records.remove(&uid).flatten();
        (uid, StoredCheckpoint { cursor, record })
    });
    let stored = stored.collect();
    (stored, records.into_keys().collect())
}

/// View of a Trigger that does not run, from its cursor.
pub(super) fn view(
    logs: &dyn LogProvider,
    uid: &str,
    identity: Option<&Identity>,
    cursor: &[u8],
) -> Result<TriggerView, ProgressError> {
    let (broker, progress) = Progress::decode_with_broker(cursor, Instant::now())?;
    let stats = Arc::<TriggerStats>::default();
    stats.show(&progress);
    let (namespace, name) = identity.map_or(("", ""), |identity| (&identity.namespace, &identity.name));
    Ok(TriggerView {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        log: logs.open(&LogName::Events(broker.as_str().into())),
        stats,
        hold: Arc::new(Hold::new(progress.low(), Arc::default())),
        sink: Arc::default(),
    })
}

fn trigger_name(identity: Option<&Identity>, uid: &str) -> String {
    identity.map_or_else(
        || format!("UID {uid}"),
        |Identity { namespace, name, .. }| format!("{namespace}/{name}"),
    )
}

fn view_name(view: &TriggerView) -> String {
    match view.name.as_str() {
        "" => format!("UID {}", view.uid),
        name => format!("{}/{name}", view.namespace),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No panic under the lock leaves what it guards half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
