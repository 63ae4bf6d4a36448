//! Starts and stops the Sources, and counts what they do. Each kind has a module of its own, which [`run`] calls.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    LastRuns, Statistics,
    clock::{Clock, SystemClock},
    context::Context,
    cron,
};
use crate::{
    intake::Intake,
    log::{BrokerName, REMEMBERED},
    routing::{self, protocol::SourceFailureCause},
    supervision,
};

/// Time that a router has to continue the Sources of one that was killed. Shorter than [`REMEMBERED`], so that no event is
/// stored twice.
const OVERLAP: Duration = Duration::from_secs(20);
const _: () = assert!(OVERLAP.as_secs() < REMEMBERED.as_secs());

/// The running Sources. Dropping it stops them without waiting; see [`Sources::shutdown`].
pub struct Sources {
    intake: Intake,
    clock: Arc<dyn Clock>,
    running: HashMap<String, RunningSource>,
    /// Cancelled once the runs have ended that were told to stop, by UID.
    ending: HashMap<String, CancellationToken>,
    statistics: Statistics,
    /// Whether the Sources are those of a configuration that is not from an earlier run.
    confirmed: watch::Sender<bool>,
    tasks: TaskTracker,
}

/// Where a Source runs.
pub struct SourcePlace {
    /// Whether it ran at another router until recently.
    pub continues: bool,
    /// The last runs of the Sources of its shard.
    pub last_runs: Arc<LastRuns>,
}

/// Runs a Source until it is told to stop.
async fn run(source: routing::Source, context: Context) {
    match source.kind.clone() {
        routing::SourceKind::Cron(cron) => cron::run(source, cron, context).await,
        // Every router receives webhooks: see `router/hooks.rs`. They do not run.
        routing::SourceKind::Webhook(_) => {}
        // The process `weir sources` posts them: see `src/cluster_sources`.
        routing::SourceKind::Kubernetes(_) => {}
    }
}

struct RunningSource {
    source: routing::Source,
    stop: CancellationToken,
    /// Cancelled once the run has ended.
    ended: CancellationToken,
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.stop();
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
            ending: HashMap::new(),
            statistics: Statistics::default(),
            confirmed: watch::Sender::new(false),
            tasks: TaskTracker::new(),
        }
    }

    /// Returns the counters, for metrics.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// Runs those of the Sources that have a place here, and no others. Must be called within a tokio runtime. Unchanged
    /// Sources continue undisturbed; a changed one continues with its next time from now. For one that
    /// [continues](SourcePlace::continues), what was due in the last [`OVERLAP`] is produced too, unless the other router has.
    /// `is_saved`: they are those of an earlier run, so that some may have been changed or deleted since.
    pub fn apply(
        &mut self,
        sources: &[routing::Source],
        is_saved: bool,
        place: impl Fn(&routing::Source) -> Option<SourcePlace>,
    ) {
        let placed = sources.iter().filter_map(|source| Some((source, place(source)?)));
        let placed: Vec<_> = placed.collect();
        let Self { running, ending, .. } = self;
        ending.retain(|_, ended| !ended.is_cancelled());
        running.retain(|uid, running| {
            let unchanged = placed
                .iter()
                .any(|(source, _)| source.uid == *uid && *source == &running.source);
            if !unchanged {
                running.stop.cancel();
                ending.insert(uid.clone(), running.ended.clone());
            }
            unchanged
        });
        let present = placed.iter().map(|(source, _)| *source);
        self.statistics.keep(present);
        self.confirmed.send_replace(!is_saved);
        for (source, place) in placed {
            if self.running.contains_key(&source.uid) {
                continue;
            }
            let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
            let earlier = self.ending.get(&source.uid).cloned();
            self.running.insert(
                source.uid.clone(),
                RunningSource {
                    source: source.clone(),
                    stop: stop.clone(),
                    ended: ended.clone(),
                },
            );
            let now = self.clock.now();
            let SourcePlace { continues, last_runs } = place;
            let begins = match continues {
                true => now.saturating_sub(OVERLAP).unwrap_or(now),
                false => now,
            };
            let context = Context {
                begins,
                last_runs,
                confirmed: self.confirmed.subscribe(),
                broker: BrokerName::new(&source.namespace, &source.broker),
                intake: self.intake.clone(),
                clock: Arc::clone(&self.clock),
                counters: self.statistics.of(source),
                stop,
            };
            let (counters, clock) = (context.counters.clone(), self.clock.clone());
            let name = format!("the Source {}/{}", source.namespace, source.name);
            let running = run(source.clone(), context);
            // A Source that panicked produces no more events until the router restarts. The others continue.
            self.tasks.spawn(async move {
                let _ended = ended.drop_guard();
                // Otherwise the earlier run could store an older last run after this one has stored its own.
                if let Some(earlier) = earlier {
                    earlier.cancelled().await;
                }
                if let Err(panicked) = supervision::caught(&name, running).await {
                    let detail = format!("{panicked}; restart the router, and report it");
                    counters.failed(SourceFailureCause::Ended, clock.now(), &detail, None);
                }
            });
        }
    }

    fn stop(&self) {
        for running in self.running.values() {
            running.stop.cancel();
        }
    }

    /// Stops all Sources. Waits for appends in progress.
    pub async fn shutdown(self) {
        self.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
