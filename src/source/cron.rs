//! Sources of kind cron: waits for each scheduled time and stores its event.
//!
//! A run that is less than [`LATE`] overdue is caught up, so that a short stall loses nothing. Runs missed for
//! longer (because the process was suspended or the clock was set forward) are logged and counted. If the log is
//! full, an event is retried until the next one is due.

use std::{sync::atomic::Ordering, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{context::Context, event::event};
use crate::{
    cloudevents::Lineage,
    log::LogError,
    routing::{self, Schedule},
};

/// Maximum delay after which a missed run is still caught up.
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// Maximum time to sleep without checking the clock, which may jump.
pub(super) const LOOK: Duration = Duration::from_secs(30);

/// Delay before a full log is retried.
const FULL: Duration = Duration::from_secs(1);

/// Maximum number of missed runs that are counted individually.
const COUNTED: u64 = 1_000;

/// A running schedule.
struct Task {
    source: routing::Source,
    cron: routing::Cron,
    schedule: Schedule,
    context: Context,
}

/// Produces an event at each scheduled time until told to stop. The controller admits only valid Sources, so one that
/// cannot run is a bug.
pub(super) async fn run(source: routing::Source, cron: routing::Cron, context: Context) {
    let routing::Source { namespace, name, .. } = &source;
    let schedule = match Schedule::parse(&cron) {
        Ok(schedule) => schedule,
        Err(error) => {
            tracing::error!(%namespace, source = %name, %error, "cannot run the Source");
            return;
        }
    };
    if let Err(error) = event(&source.uid, &cron, Timestamp::UNIX_EPOCH) {
        tracing::error!(%namespace, source = %name, %error, "cannot run the Source");
        return;
    }
    tracing::info!(
        %namespace, source = %name, schedule = %cron.schedule, time_zone = %cron.time_zone, "Source runs"
    );
    let task = Task {
        source,
        cron,
        schedule,
        context,
    };
    task.run().await;
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
        let mut next = self.schedule.next_after(self.context.begins);
        while let Some(scheduled) = next {
            match self.wait(scheduled).await {
                Wait::Stopped => return,
                Wait::Back(now) => {
                    next = self.schedule.next_after(now);
                    continue;
                }
                Wait::Due => {}
            }
            let cutoff = self
                .context
                .clock
                .now()
                .saturating_sub(LATE)
                .unwrap_or(Timestamp::MIN);
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
        let mut seen = self.context.clock.now();
        loop {
            let now = self.context.clock.now();
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
                () = self.context.stop.cancelled() => return Wait::Stopped,
                () = self.context.clock.sleep(left.min(LOOK)) => {}
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
        self.context.counters.missed.fetch_add(missed, Ordering::Relaxed);
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
        let (id, record) = match event(&self.source.uid, &self.cron, scheduled) {
            Ok(event) => {
                let event = event.with_lineage(Lineage::of_origin(fastrand::u64(..)));
                (event.id().to_owned(), event.to_record())
            }
            Err(error) => {
                self.context.counters.missed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%namespace, source = %name, %scheduled, %error, "missed a scheduled time");
                return true;
            }
        };
        let mut tried = false;
        loop {
            // Not cancelled on stop, so that every appended event is accounted for.
            let Context {
                broker,
                clock,
                intake,
                ..
            } = &self.context;
            let appended = intake.accept_once(broker, &id, &record, clock.now());
            match appended.await {
                Ok(offset) => {
                    self.context.counters.produced.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%namespace, source = %name, %scheduled, %offset, "produced an event");
                    return true;
                }
                Err(
                    LogError::Full(reason)
                    | LogError::Quota(reason)
                    | LogError::BrokerQuota(reason)
                    | LogError::Limit(reason)
                    | LogError::TooLarge(reason),
                ) => {
                    if !tried {
                        tracing::warn!(%namespace, source = %name, %scheduled, %reason, "the event log does not take the event; trying again");
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
                () = self.context.stop.cancelled() => true,
                () = self.context.clock.sleep(FULL) => false,
            };
            if stopped || next.is_some_and(|next| next <= self.context.clock.now()) {
                self.context.counters.missed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%namespace, source = %name, %scheduled, "missed a scheduled time: the event log was full");
                return !stopped;
            }
        }
    }
}
