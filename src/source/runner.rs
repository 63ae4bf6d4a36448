//! Runs the Sources: waits for each scheduled time and appends its event to the event log.
//!
//! A run that is less than [`LATE`] overdue is caught up, so that a short stall loses nothing. Runs missed for
//! longer (because the process was suspended or the clock was set forward) are logged and counted. If the log is
//! full, an event is retried until the next one is due.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    clock::{Clock, SystemClock},
    event::event,
};
use crate::{
    cloudevents::Lineage,
    intake::Intake,
    log::{BrokerName, LogError},
    routing::{self, Schedule},
    supervision,
};

/// Maximum delay after which a missed run is still caught up.
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// Maximum time to sleep without checking the clock, which may jump.
const LOOK: Duration = Duration::from_secs(30);

/// Delay before a full log is retried.
const FULL: Duration = Duration::from_secs(1);

/// Maximum number of missed runs that are counted individually.
const COUNTED: u64 = 1_000;

/// The running Sources. Dropping it stops them without waiting; see [`Sources::shutdown`].
pub struct Sources {
    intake: Intake,
    clock: Arc<dyn Clock>,
    running: HashMap<String, Running>,
    statistics: Statistics,
    tasks: TaskTracker,
}

struct Running {
    source: routing::Source,
    stop: CancellationToken,
}

/// Counters of the Sources, for metrics. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Mutex<Counts>>);

/// By namespace and name.
type Counts = BTreeMap<(String, String), Arc<Counters>>;

#[derive(Debug, Default)]
struct Counters {
    produced: AtomicU64,
    missed: AtomicU64,
}

/// Counts of one Source since this process first ran it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceCounts {
    /// Namespace of the Source.
    pub namespace: String,
    /// Name of the Source.
    pub name: String,
    /// Events appended to the log.
    pub produced: u64,
    /// Scheduled times without an event, because the log was full or the time was missed.
    pub missed: u64,
}

impl Statistics {
    /// Returns the counts of the running Sources, ordered by namespace and name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<SourceCounts> {
        self.lock()
            .iter()
            .map(|((namespace, name), counters)| SourceCounts {
                namespace: namespace.clone(),
                name: name.clone(),
                produced: counters.produced.load(Ordering::Relaxed),
                missed: counters.missed.load(Ordering::Relaxed),
            })
            .collect()
    }

    fn of(&self, source: &routing::Source) -> Arc<Counters> {
        let key = (source.namespace.clone(), source.name.clone());
        Arc::clone(self.lock().entry(key).or_default())
    }

    fn keep(&self, sources: &[routing::Source]) {
        self.lock().retain(|(namespace, name), _| {
            sources
                .iter()
                .any(|source| source.namespace == *namespace && source.name == *name)
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // A panic elsewhere cannot leave a map of counters inconsistent.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.stop.cancel();
        }
    }
}

impl Sources {
    /// Creates a runner without Sources. It appends events to `log` and frees space through `room`.
    pub fn new(intake: Intake) -> Self {
        Self::with_clock(intake, Arc::new(SystemClock))
    }

    fn with_clock(intake: Intake, clock: Arc<dyn Clock>) -> Self {
        Self {
            intake,
            clock,
            running: HashMap::new(),
            statistics: Statistics::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Returns the counters, for metrics.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// Replaces the set of running Sources. Must be called within a tokio runtime. Unchanged Sources continue
    /// undisturbed; a changed one continues with its next time from now.
    pub fn apply(&mut self, sources: &[routing::Source]) {
        self.running.retain(|uid, running| {
            let unchanged = sources
                .iter()
                .any(|source| source.uid == *uid && *source == running.source);
            if !unchanged {
                running.stop.cancel();
            }
            unchanged
        });
        self.statistics.keep(sources);
        for source in sources {
            if self.running.contains_key(&source.uid) {
                continue;
            }
            let stop = CancellationToken::new();
            self.running.insert(
                source.uid.clone(),
                Running {
                    source: source.clone(),
                    stop: stop.clone(),
                },
            );
            if let Some(task) = self.task(source, stop) {
                let name = format!("the Source {}/{}", source.namespace, source.name);
                // A Source that panicked produces no more events until the router restarts. The others continue.
                self.tasks
                    .spawn(async move { drop(supervision::caught(&name, task.run()).await) });
            }
        }
    }

    /// Stops all Sources. Waits for appends in progress.
    pub async fn shutdown(mut self) {
        self.apply(&[]);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The controller admits only valid Sources, so a failure here is a bug.
    fn task(&self, source: &routing::Source, stop: CancellationToken) -> Option<Task> {
        let routing::Source {
            namespace,
            name,
            broker,
            cron,
            ..
        } = source;
        let schedule = Schedule::parse(cron)
            .inspect_err(|error| tracing::error!(%namespace, source = %name, %error, "cannot run the Source"))
            .ok()?;
        event(source, Timestamp::UNIX_EPOCH)
            .inspect_err(|error| tracing::error!(%namespace, source = %name, %error, "cannot run the Source"))
            .ok()?;
        tracing::info!(
            %namespace, source = %name, schedule = %cron.schedule, time_zone = %cron.time_zone, "Source runs"
        );
        Some(Task {
            broker: BrokerName::new(namespace, broker),
            source: source.clone(),
            schedule,
            stop,
            intake: self.intake.clone(),
            clock: Arc::clone(&self.clock),
            counters: self.statistics.of(source),
        })
    }
}

/// A running Source.
struct Task {
    source: routing::Source,
    broker: BrokerName,
    schedule: Schedule,
    stop: CancellationToken,
    intake: Intake,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
}

/// Why a wait ended.
enum Wait {
    Due,
    /// The clock was set back far: the schedule restarts from this time.
    Back(Timestamp),
    Stopped,
}

impl Task {
    async fn run(self) {
        let mut next = self.schedule.next_after(self.clock.now());
        while let Some(scheduled) = next {
            match self.wait(scheduled).await {
                Wait::Stopped => return,
                Wait::Back(now) => {
                    next = self.schedule.next_after(now);
                    continue;
                }
                Wait::Due => {}
            }
            let cutoff = self.clock.now().saturating_sub(LATE).unwrap_or(Timestamp::MIN);
            if scheduled < cutoff {
                next = self.skip(scheduled, cutoff);
                continue;
            }
            next = self.schedule.next_after(scheduled);
            if !self.produce(scheduled, next).await {
                return;
            }
        }
        let routing::Source { namespace, name, .. } = &self.source;
        tracing::warn!(%namespace, source = %name, "the schedule has no further times");
    }

    async fn wait(&self, scheduled: Timestamp) -> Wait {
        let mut seen = self.clock.now();
        loop {
            let now = self.clock.now();
            if now < seen.saturating_sub(LATE).unwrap_or(Timestamp::MIN) {
                return Wait::Back(now);
            }
            seen = now;
            let Ok(left) = Duration::try_from(scheduled.duration_since(now)) else {
                return Wait::Due;
            };
            if left.is_zero() {
                return Wait::Due;
            }
            tokio::select! {
                () = self.stop.cancelled() => return Wait::Stopped,
                () = self.clock.sleep(left.min(LOOK)) => {}
            }
        }
    }

    /// Skips the times from `scheduled` to before `cutoff`. Returns the first one after them.
    fn skip(&self, scheduled: Timestamp, cutoff: Timestamp) -> Option<Timestamp> {
        let mut missed = 0;
        let mut next = Some(scheduled);
        while let Some(time) = next.filter(|time| *time < cutoff) {
            if missed == COUNTED {
                next = self.schedule.next_after(cutoff);
                break;
            }
            missed += 1;
            next = self.schedule.next_after(time);
        }
        self.counters.missed.fetch_add(missed, Ordering::Relaxed);
        let routing::Source { namespace, name, .. } = &self.source;
        tracing::warn!(
            %namespace, source = %name, %scheduled, missed, or_more = missed == COUNTED,
            "missed scheduled times"
        );
        next
    }

    /// Appends the event of a scheduled time. Returns false if the Source must stop.
    async fn produce(&self, scheduled: Timestamp, next: Option<Timestamp>) -> bool {
        let routing::Source { namespace, name, .. } = &self.source;
        let record = match event(&self.source, scheduled) {
            Ok(event) => event
                .with_lineage(Lineage::of_origin(fastrand::u64(..)))
                .to_record(),
            Err(error) => {
                self.counters.missed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%namespace, source = %name, %scheduled, %error, "missed a scheduled time");
                return true;
            }
        };
        let mut tried = false;
        loop {
            // Not cancelled on stop, so that every appended event is accounted for.
            let record = std::slice::from_ref(&record);
            let appended = self.intake.accept(&self.broker, record, self.clock.now());
            match appended.await {
                Ok(offset) => {
                    self.counters.produced.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%namespace, source = %name, %scheduled, %offset, "produced an event");
                    return true;
                }
                Err(LogError::Full(reason) | LogError::Limit(reason)) => {
                    if !tried {
                        tracing::warn!(%namespace, source = %name, %scheduled, %reason, "the event log is full; trying again");
                        tried = true;
                    }
                }
                Err(LogError::Unavailable(reason)) => {
                    if !tried {
                        tracing::warn!(%namespace, source = %name, %scheduled, %reason, "the event log is unavailable; trying again");
                        tried = true;
                    }
                }
                Err(
                    error @ (LogError::Failed(_)
                    | LogError::Fenced(_)
                    | LogError::Damaged { .. }
                    | LogError::Open { .. }),
                ) => {
                    tracing::error!(%namespace, source = %name, %scheduled, %error, "cannot store events; stopping the Source");
                    return false;
                }
            }
            let stopped = tokio::select! {
                () = self.stop.cancelled() => true,
                () = self.clock.sleep(FULL) => false,
            };
            if stopped || next.is_some_and(|next| next <= self.clock.now()) {
                self.counters.missed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%namespace, source = %name, %scheduled, "missed a scheduled time: the event log was full");
                return !stopped;
            }
        }
    }
}

#[cfg(test)]
mod tests;
