//! Decides where a Trigger starts: at its own checkpoint, at that of a deleted Trigger of the same name, or at its
//! `start`. A new position is stored before the Trigger runs, so that an event accepted afterwards reaches it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    EngineError, TriggerView,
    deleted_triggers::{self, DeletedTriggers, RetiredTrigger, StoredCheckpoint},
    position::BrokerLogs,
    progress::Progress,
    retained::{Identity, OwnerRecord, removal},
    settings::Settings,
};
use crate::{
    log::{
        BrokerName, CheckpointChange, CheckpointKey, Checkpoints, Log, LogBounds, LogError, LogProvider,
        Offset,
    },
    routing::{RoutingTable, Start, Trigger},
};

/// Pause before another attempt to find a start position.
const FIND_AGAIN: Duration = Duration::from_secs(1);

/// Start position of a Trigger.
pub(super) struct StartPosition {
    pub(super) progress: Progress,
    /// Error that prevented finding the start position. Until it is found, nothing is delivered and everything retained
    /// is held for the Trigger: until the log can be read again or, for damage, until the router restarts.
    pub(super) unknown: Option<LogError>,
    /// Whether the Trigger resumes from the checkpoint of a deleted Trigger: its own or another of its name.
    pub(super) resumed: bool,
}

impl StartPosition {
    fn known(progress: Progress) -> Self {
        Self {
            progress,
            unknown: None,
            resumed: false,
        }
    }
}

/// Stored checkpoints of Triggers that do not run.
pub(super) struct Placement {
    logs: Arc<dyn LogProvider>,
    checkpoints: Arc<dyn Checkpoints>,
    deleted_triggers: Arc<DeletedTriggers>,
    /// Checkpoints loaded at startup, until their Triggers appear.
    stored: HashMap<String, StoredCheckpoint>,
}

impl Placement {
    pub(super) fn new(
        logs: Arc<dyn LogProvider>,
        checkpoints: Arc<dyn Checkpoints>,
        deleted_triggers: Arc<DeletedTriggers>,
        stored: HashMap<String, StoredCheckpoint>,
    ) -> Self {
        Self {
            logs,
            checkpoints,
            deleted_triggers,
            stored,
        }
    }

    /// Places each Trigger of the table that does not run yet; keyed by UID. All positions are durable on return.
    pub(super) async fn place_new(
        &mut self,
        table: &RoutingTable,
        runs: impl Fn(&str) -> bool,
    ) -> Result<HashMap<String, StartPosition>, EngineError> {
        let (mut positions, mut changed) = (HashMap::new(), Vec::new());
        for (broker, routes) in table.brokers() {
            let logs = BrokerLogs::open(&*self.logs, &BrokerName::from(broker.as_str()));
            // Read once: a broker may have thousands of Triggers, and the log may be on other machines.
            let mut bounds = None;
            for trigger in routes.routes().iter().map(|route| &route.trigger) {
                let uid = &trigger.uid;
                if runs(uid) || positions.contains_key(uid) {
                    continue;
                }
                let bounds = match &bounds {
                    Some(bounds) => bounds,
                    None => bounds.insert(PresentBounds::read(&logs).await),
                };
                let found = self.found(trigger, broker).await?;
                let (mut position, is_new) = match &found {
                    Some(found) => restored(&logs, bounds, &found.stored.cursor, trigger)?,
                    None => (
                        beginning(&*logs.events, &bounds.events, trigger.start).await?,
                        true,
                    ),
                };
                position.resumed = found.as_ref().is_some_and(|found| found.was_gone);
                if position.unknown.is_none() {
                    let found = found.as_ref();
                    changed.extend(changes(trigger, broker, &position.progress, is_new, found));
                }
                positions.insert(uid.clone(), position);
            }
        }
        if !changed.is_empty() {
            self.save(changed).await?;
        }
        Ok(positions)
    }

    /// Retains the checkpoints of Triggers that ended or were loaded, and that are not `present` in the table.
    pub(super) async fn retire(
        &mut self,
        ended: Vec<TriggerView>,
        present: &HashSet<&str>,
        table: &RoutingTable,
    ) -> Result<(), LogError> {
        let mut gone: Vec<_> = ended.iter().map(RetiredTrigger::ended).collect();
        let is_gone = |uid: &str| !present.contains(uid) && !table.is_unread(uid);
        let stored = self.stored.extract_if(|uid, _| is_gone(uid));
        gone.extend(stored.map(|(uid, checkpoint)| RetiredTrigger::found(uid, checkpoint)));
        let unread = gone.extract_if(.., |gone| table.is_unread(&gone.uid));
        let mut unread: Vec<_> = unread.map(|gone| gone.uid).collect();
        unread.extend(self.deleted_triggers.take_unread(|uid| table.is_unread(uid)));
        for uid in unread {
            let key = CheckpointKey::Trigger(uid.clone());
            if let Some(cursor) = self.checkpoints.load(&key).await? {
                let checkpoint = StoredCheckpoint { cursor, record: None };
                self.stored.insert(uid, checkpoint);
            }
        }
        self.deleted_triggers.retain(gone).await
    }

    /// Stores checkpoints and syncs them to disk.
    pub(super) async fn save(&self, changes: Vec<CheckpointChange>) -> Result<(), LogError> {
        match self.checkpoints.save(changes).await {
            // A disk too full for checkpoints is too full for events, so a new Trigger misses none.
            Err(LogError::Full(error)) => {
                tracing::warn!(
                    error,
                    "disk full: cannot store the start positions of new Triggers; they are stored with their first checkpoints"
                );
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => self.logs.sync().await,
        }
    }

    /// Views of Triggers that do not run, so that the log retains what they have not settled.
    pub(super) fn views(&self) -> Vec<TriggerView> {
        let mut views = Vec::new();
        for (uid, checkpoint) in &self.stored {
            match deleted_triggers::view(&*self.logs, uid, None, &checkpoint.cursor) {
                Ok(view) => views.push(view),
                Err(error) => {
                    tracing::error!(uid, %error, "cannot decode the stored checkpoint of a Trigger; nothing is held for it");
                }
            }
        }
        views
    }

    /// Finds the stored checkpoint of a Trigger that does not run yet, or of the one it resumes.
    async fn found(&mut self, trigger: &Trigger, broker: &str) -> Result<Option<FoundCheckpoint>, LogError> {
        if let Some(stored) = self.stored.remove(&trigger.uid) {
            let was_gone = stored
                .record
                .as_ref()
                .is_some_and(|record| record.gone_at().is_some());
            return Ok(Some(FoundCheckpoint {
                uid: trigger.uid.clone(),
                stored,
                was_gone,
            }));
        }
        let taken_up = self.deleted_triggers.resume(trigger, broker).await?;
        Ok(taken_up.map(|(uid, cursor)| FoundCheckpoint {
            uid,
            stored: StoredCheckpoint { cursor, record: None },
            was_gone: true,
        }))
    }
}

/// Stored checkpoint of a Trigger.
struct FoundCheckpoint {
    /// UID it is stored under; differs from the Trigger's when it resumes another.
    uid: String,
    stored: StoredCheckpoint,
    /// Whether the stored Trigger had been deleted.
    was_gone: bool,
}

/// The bounds of a broker's logs, as its new Triggers are placed.
struct PresentBounds {
    /// First offset that the log of events ever had.
    start: Offset,
    events: Result<LogBounds, LogError>,
    letters: Result<LogBounds, LogError>,
}

impl PresentBounds {
    async fn read(logs: &BrokerLogs) -> Self {
        let (events, letters) = tokio::join!(logs.events.bounds(), logs.letters.bounds());
        Self {
            start: logs.events.start(),
            events,
            letters,
        }
    }
}

/// Restores the progress, clamped to the ends of the logs, since a damaged log may have lost its tail. Also returns
/// whether clamping changed it.
fn restored(
    logs: &BrokerLogs,
    bounds: &PresentBounds,
    stored: &Bytes,
    trigger: &Trigger,
) -> Result<(StartPosition, bool), EngineError> {
    let mut progress = Progress::decode(stored, Instant::now()).map_err(|error| EngineError::Cursor {
        uid: trigger.uid.clone(),
        detail: error.to_string(),
    })?;
    let end = bounds.events.clone()?.next;
    let dead_letters = bounds.letters.clone()?.next;
    let (position, dropped) = (progress.next(), progress.counts().dropped);
    let is_beyond = progress.keep_within(end, dead_letters);
    if is_beyond {
        tracing::warn!(
            trigger = format!("{}/{}", trigger.namespace, trigger.name),
            broker = %logs.broker(),
            %position,
            %end,
            dropped = progress.counts().dropped - dropped,
            "the log has lost its tail: the Trigger's position was beyond its end and is set to the end; its unsettled \
             events beyond are dropped"
        );
    }
    let is_behind = progress.next() < bounds.start;
    if is_behind {
        // No event was missed in between: the log has begun further on since the Trigger was placed.
        progress.advance(bounds.start);
    }
    Ok((StartPosition::known(progress), is_beyond || is_behind))
}

async fn beginning(
    log: &dyn Log,
    bounds: &Result<LogBounds, LogError>,
    start: Start,
) -> Result<StartPosition, LogError> {
    match find_start(log, bounds.clone(), start).await {
        Ok(offset) => Ok(StartPosition::known(Progress::starting_at(offset))),
        Err(error @ (LogError::Damaged { .. } | LogError::Unavailable(_))) => Ok(StartPosition {
            unknown: Some(error),
            ..StartPosition::known(Progress::starting_at(log.cached_bounds().first))
        }),
        Err(error) => Err(error),
    }
}

/// Changes that store the Trigger's position. They go into one commit, so that no checkpoint exists twice.
fn changes(
    trigger: &Trigger,
    broker: &str,
    progress: &Progress,
    is_new: bool,
    found: Option<&FoundCheckpoint>,
) -> Vec<CheckpointChange> {
    let mut changes = Vec::new();
    let others = found.map(|found| &*found.uid).filter(|uid| *uid != trigger.uid);
    if is_new || others.is_some() {
        changes.push((
            CheckpointKey::Trigger(trigger.uid.clone()),
            Some(progress.encode(broker, Instant::now()).into()),
        ));
    }
    let record = OwnerRecord::present(Identity::of(trigger, broker));
    if found.and_then(|found| found.stored.record.as_ref()) != Some(&record) {
        changes.push(record.change(&trigger.uid));
    }
    changes.extend(others.into_iter().flat_map(removal));
    changes
}

async fn find_start(
    log: &dyn Log,
    bounds: Result<LogBounds, LogError>,
    start: Start,
) -> Result<Offset, LogError> {
    match start {
        Start::Latest => Ok(bounds?.next),
        Start::Earliest => Ok(bounds?.first),
        Start::At(time) => log.offset_at(time).await,
    }
}

/// Finds the start position of a Trigger after a first failure; retries while the log is unavailable. Returns `None`
/// when the Trigger is deleted or delivery stops.
pub(super) async fn find_start_later(
    mut error: LogError,
    trigger: &str,
    log: &dyn Log,
    start: Start,
    settings: &mut watch::Receiver<Settings>,
    stop: &CancellationToken,
) -> Option<Result<Offset, LogError>> {
    while let LogError::Unavailable(reason) = &error {
        tracing::warn!(
            trigger,
            reason,
            "cannot find the Trigger's start position: the event log is unavailable; retrying"
        );
        let again = async {
            tokio::time::sleep(FIND_AGAIN).await;
            find_start(log, log.bounds().await, start).await
        };
        let gone = async { while settings.changed().await.is_ok() {} };
        tokio::select! {
            found = again => match found {
                Ok(offset) => return Some(Ok(offset)),
                Err(again) => error = again,
            },
            () = stop.cancelled() => return None,
            () = gone => return None,
        }
    }
    Some(Err(error))
}
