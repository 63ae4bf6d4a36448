//! Sources of kind cron: waits for each scheduled time and stores its event.
//!
//! A run that is less than [`LATE`] overdue is always caught up, so that a short stall loses nothing. Of the runs missed for
//! longer (because no router ran, the process was suspended or the clock was set forward), those are made up for that the
//! Source's [`CatchUp`] says; the others are logged and counted. Such a Source stores how far it has come (`last_runs.rs`).
//! If the log is full, an event is retried until the next one is due, or as long as it would be made up for.

use std::{sync::atomic::Ordering, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{context::Context, event::event};
use crate::{
    cloudevents::Lineage,
    filter::CompiledFilter,
    log::LogError,
    routing::{self, CatchUp, Schedule, protocol::SourceFailureCause},
};

/// Maximum delay after which a missed run is still caught up.
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// Maximum time to sleep without checking the clock, which may jump.
pub(super) const LOOK: Duration = Duration::from_secs(30);

/// Delay before a full log is retried.
const FULL: Duration = Duration::from_secs(1);

/// Maximum number of missed runs that are counted individually.
const COUNTED: u64 = 1_000;

/// Maximum number of missed runs that are made up for.
pub(super) const CAUGHT_UP: usize = 100;

/// Maximum time for which a router that starts waits for the controller before it makes up for missed runs, because the
/// Source may have been suspended or deleted meanwhile.
pub(super) const CONFIRMED_WITHIN: Duration = Duration::from_secs(30);

/// A running schedule.
struct Task {
    source: routing::Source,
    cron: routing::Cron,
    schedule: Schedule,
    filter: CompiledFilter,
    context: Context,
}

/// Produces an event at each scheduled time until told to stop. The controller admits only valid Sources, so one that
/// cannot run is a bug.
pub(super) async fn run(source: routing::Source, cron: routing::Cron, context: Context) {
    let routing::Source { namespace, name, .. } = &source;
    let (schedule, filter) = match prepared(&source, &cron) {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!(%namespace, source = %name, error, "cannot run the Source");
            let now = context.clock.now();
            let detail = format!("this version cannot run it: {error}");
            context
                .counters
                .failed(SourceFailureCause::Ended, now, &detail, None);
            return;
        }
    };
    tracing::info!(
        %namespace, source = %name, schedule = %cron.schedule, time_zone = %cron.time_zone, "Source runs"
    );
    let task = Task {
        source,
        cron,
        schedule,
        filter,
        context,
    };
    task.run().await;
}

fn prepared(source: &routing::Source, cron: &routing::Cron) -> Result<(Schedule, CompiledFilter), String> {
    let schedule = Schedule::parse(cron).map_err(|error| error.to_string())?;
    let filter = CompiledFilter::compile(&source.filters).map_err(|error| error.to_string())?;
    event(&source.uid, cron, Timestamp::UNIX_EPOCH).map_err(|error| error.to_string())?;
    Ok((schedule, filter))
}

/// Whether the router is about to end because of an error of the log, and the Source with it.
fn ends_source(error: &LogError) -> bool {
    match error {
        LogError::Failed(_) | LogError::Fenced(_) | LogError::Damaged { .. } | LogError::Open { .. } => true,
        LogError::Full(_)
        | LogError::Quota(_)
        | LogError::TooManyBrokers(_)
        | LogError::BrokerQuota(_)
        | LogError::Limit(_)
        | LogError::TooLarge(_)
        | LogError::Conflict { .. }
        | LogError::Unavailable(_) => false,
    }
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
        let Some(mut next) = self.first().await else {
            return;
        };
        while let Some(scheduled) = next {
            match self.wait(scheduled).await {
                Wait::Stopped => return,
                Wait::Back(now) => {
                    if !self.settle(now).await {
                        return;
                    }
                    next = self.schedule.next_after(now);
                    continue;
                }
                Wait::Due => {}
            }
            let now = self.context.clock.now();
            let is_overdue = scheduled < before(now, LATE);
            if is_overdue && let Some(cutoff) = self.cutoff(scheduled, now) {
                next = self.skip(scheduled, cutoff);
                continue;
            }
            let is_late = is_overdue || scheduled <= self.context.begins;
            if !self.produce(scheduled, is_late).await {
                return;
            }
            next = self.schedule.next_after(scheduled);
        }
        let routing::Source { namespace, name, .. } = &self.source;
        let detail = "the schedule has no further times";
        tracing::warn!(%namespace, source = %name, "{detail}");
        self.failed(SourceFailureCause::Ended, detail, None);
    }

    fn failed(&self, cause: SourceFailureCause, detail: &str, waiting_since: Option<Timestamp>) {
        let Context { clock, counters, .. } = &self.context;
        counters.failed(cause, clock.now(), detail, waiting_since);
    }

    /// Returns the first scheduled time, which may have passed while no router ran the Source; `None` if the Source must
    /// stop.
    async fn first(&self) -> Option<Option<Timestamp>> {
        let Context {
            begins, last_runs, ..
        } = &self.context;
        let last = match self.caught_up() {
            0 => None,
            _ => last_runs.of(&self.source),
        };
        let Some(last) = last else {
            return self
                .settle(*begins)
                .await
                .then(|| self.schedule.next_after(*begins));
        };
        if !self.confirmed().await {
            return None;
        }
        let now = self.context.clock.now();
        if last > now.saturating_add(LATE).unwrap_or(Timestamp::MAX) {
            // Stored when the clock was wrong.
            return self.settle(now).await.then(|| self.schedule.next_after(now));
        }
        let next = self.schedule.next_after(last);
        let first = self.schedule.first_of_last(self.caught_up(), last, now);
        Some(match (next, first) {
            (Some(next), Some(first)) if next < first => self.skip(next, first),
            _ => next,
        })
    }

    /// Waits until the Sources are known to be the present ones, or the controller does not answer. Returns false if the
    /// Source must stop.
    async fn confirmed(&self) -> bool {
        let Context {
            confirmed,
            clock,
            stop,
            ..
        } = &self.context;
        let mut confirmed = confirmed.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            _ = confirmed.wait_for(|is_confirmed| *is_confirmed) => true,
            () = clock.sleep(CONFIRMED_WITHIN) => true,
        }
    }

    /// Maximum number of missed runs that are made up for.
    fn caught_up(&self) -> usize {
        match self.cron.catch_up {
            CatchUp::None => 0,
            CatchUp::Last => 1,
            CatchUp::All => CAUGHT_UP,
        }
    }

    /// Returns the time before which overdue times are skipped, if this one is.
    fn cutoff(&self, overdue: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (late, after) = (before(now, LATE), before(overdue, SignedDuration::from_secs(1)));
        let first = self.schedule.first_of_last(self.caught_up(), after, now);
        let cutoff = first.map_or(late, |first| first.min(late));
        (overdue < cutoff).then_some(cutoff)
    }

    /// Stores that all scheduled times up to this one have their events, or are given up. Returns false if the Source must
    /// stop. After another problem, the next time that is stored makes up for it.
    async fn settle(&self, until: Timestamp) -> bool {
        if self.caught_up() == 0 {
            return true;
        }
        let routing::Source { namespace, name, .. } = &self.source;
        match self.context.last_runs.save(&self.source, until).await {
            Ok(()) => true,
            Err(error) if ends_source(&error) => {
                tracing::error!(%namespace, source = %name, %error, "cannot store when the Source ran; stopping it");
                self.context.counters.ended(self.context.clock.now(), &error);
                false
            }
            Err(error) => {
                tracing::warn!(%namespace, source = %name, %error, "cannot store when the Source ran: its last event may be repeated");
                let detail = format!("cannot store when the Source ran: {error}");
                self.failed(SourceFailureCause::Storage, &detail, None);
                true
            }
        }
    }

    async fn wait(&self, scheduled: Timestamp) -> Wait {
        let mut seen = self.context.clock.now();
        loop {
            let now = self.context.clock.now();
            if now < before(seen, LATE) {
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
    async fn produce(&self, scheduled: Timestamp, is_late: bool) -> bool {
        let routing::Source { namespace, name, .. } = &self.source;
        let (id, record) = match event(&self.source.uid, &self.cron, scheduled) {
            Ok(event) => match self.filter.try_matches(&event) {
                Ok(true) => {
                    let event = event.with_lineage(Lineage::of_origin(fastrand::u64(..)));
                    (event.id().to_owned(), event.to_record())
                }
                Ok(false) => {
                    let Context { clock, counters, .. } = &self.context;
                    counters.filtered.fetch_add(1, Ordering::Relaxed);
                    counters.succeeded(clock.now());
                    return self.settle(scheduled).await;
                }
                Err(error) => {
                    self.context.counters.missed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%namespace, source = %name, %scheduled, error, "missed a scheduled time: a filter failed");
                    self.failed(SourceFailureCause::Event, &format!("spec.filters: {error}"), None);
                    return self.settle(scheduled).await;
                }
            },
            Err(error) => {
                self.context.counters.missed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%namespace, source = %name, %scheduled, %error, "missed a scheduled time");
                self.failed(SourceFailureCause::Event, &error.to_string(), None);
                return self.settle(scheduled).await;
            }
        };
        let mut expires = None;
        loop {
            // Not cancelled on stop, so that every appended event is accounted for.
            let Context {
                broker,
                clock,
                intake,
                counters,
                ..
            } = &self.context;
            let appended = intake.accept_once(broker, &id, &record, clock.now());
            match appended.await {
                Ok(offset) => {
                    counters.stored(clock.now());
                    counters
                        .caught_up
                        .fetch_add(u64::from(is_late), Ordering::Relaxed);
                    tracing::debug!(%namespace, source = %name, %scheduled, %offset, is_late, "produced an event");
                    return self.settle(scheduled).await;
                }
                Err(error) if ends_source(&error) => {
                    tracing::error!(%namespace, source = %name, %scheduled, %error, "cannot store events; stopping the Source");
                    counters.ended(clock.now(), &error);
                    return false;
                }
                Err(error @ LogError::Conflict { .. }) => {
                    counters.missed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%namespace, source = %name, %scheduled, %error, "missed a scheduled time");
                    self.failed(SourceFailureCause::Event, &error.to_string(), None);
                    return self.settle(scheduled).await;
                }
                Err(LogError::TooLarge(reason)) => {
                    counters.missed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%namespace, source = %name, %scheduled, %reason, "missed a scheduled time: the event is too large for the event log");
                    let detail = format!("the event is too large for the event log: {reason}");
                    self.failed(SourceFailureCause::Storage, &detail, None);
                    return self.settle(scheduled).await;
                }
                Err(error) => {
                    if expires.is_none() {
                        tracing::warn!(%namespace, source = %name, %scheduled, %error, "the event log does not take the event; trying again");
                    }
                    self.failed(SourceFailureCause::Storage, &error.to_string(), Some(scheduled));
                }
            }
            let expires = *expires.get_or_insert_with(|| self.expires(scheduled));
            let stopped = tokio::select! {
                () = self.context.stop.cancelled() => true,
                () = self.context.clock.sleep(FULL) => false,
            };
            if stopped && self.caught_up() > 0 {
                return false;
            }
            if stopped || expires.is_some_and(|expires| expires <= self.context.clock.now()) {
                self.context.counters.missed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%namespace, source = %name, %scheduled, "missed a scheduled time: the event log was full");
                return !stopped && self.settle(scheduled).await;
            }
        }
    }

    /// Returns the scheduled time at which the event of this one is given up.
    fn expires(&self, scheduled: Timestamp) -> Option<Timestamp> {
        let next = |time: &Timestamp| self.schedule.next_after(*time);
        std::iter::successors(Some(scheduled), next).nth(self.caught_up().max(1))
    }
}

fn before(time: Timestamp, duration: SignedDuration) -> Timestamp {
    time.saturating_sub(duration).unwrap_or(Timestamp::MIN)
}
