//! What a Source's status shows of its events. Pure: the present status and the time are arguments.
//!
//! Events may come all the time, and each change of a status is a write to the API server. So a time is written when the
//! one before it is a while ago, and the last one before a Source rests a while later.

use jiff::{SignedDuration, Timestamp};

use super::sources_seen::SourceSeen;
use crate::{
    api::{SourceRejectionStatus, SourceStatus, whole_seconds},
    routing::protocol::SourceRejection,
};

/// Shortest time between two writes for one Source.
const EVERY: SignedDuration = SignedDuration::from_secs(60);

/// Number of writes in a second for all Sources together, above which each is written less often.
const WRITES_A_SECOND: i64 = 10;

/// Time between two writes for one of so many Sources.
pub(super) fn shown_every(sources: usize) -> SignedDuration {
    let sources = i64::try_from(sources).unwrap_or(i64::MAX);
    EVERY.max(SignedDuration::from_secs(sources / WRITES_A_SECOND))
}

/// What a status shows of a Source's events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShownActivity {
    pub(super) last_event_time: Option<String>,
    pub(super) last_rejection: Option<SourceRejectionStatus>,
    pub(super) waiting_since: Option<String>,
}

impl ShownActivity {
    /// Returns what to show next.
    pub(super) fn next(
        seen: &SourceSeen,
        present: Option<&SourceStatus>,
        now: Timestamp,
        every: SignedDuration,
    ) -> Self {
        let shown = present.map(Self::of).unwrap_or_default();
        let is_due = |shown: Option<&str>, seen: Timestamp| match shown.and_then(time) {
            None => true,
            // A clock that was set back does not stop updates.
            Some(shown) => seen > shown && (now.duration_since(shown) >= every || now < shown),
        };
        let event = seen
            .last_event
            .filter(|&event| is_due(shown.last_event_time.as_deref(), event));
        let rejected_at = shown.last_rejection.as_ref().map(|rejection| &*rejection.time);
        let rejection = seen.last_rejection.as_ref();
        let rejection = rejection.filter(|rejection| is_due(rejected_at, whole_seconds(rejection.at)));
        Self {
            last_event_time: event.map(|event| event.to_string()).or(shown.last_event_time),
            last_rejection: rejection.map(shown_rejection).or(shown.last_rejection),
            waiting_since: match (seen.waiting_since, shown.waiting_since) {
                (None, shown) => shown.filter(|_| !seen.is_known),
                (Some(since), Some(shown)) if !moved(&shown, since, every) => Some(shown),
                (Some(since), _) => Some(since.to_string()),
            },
        }
    }

    fn of(status: &SourceStatus) -> Self {
        Self {
            last_event_time: status.last_event_time.clone(),
            last_rejection: status.last_rejection.clone(),
            waiting_since: status.waiting_since.clone(),
        }
    }
}

/// Time of the last event that a status shows.
pub(super) fn last_event(status: &SourceStatus) -> Option<Timestamp> {
    time(status.last_event_time.as_deref()?)
}

fn moved(shown: &str, since: Timestamp, every: SignedDuration) -> bool {
    time(shown).is_none_or(|shown| since.duration_since(shown).abs() >= every)
}

fn shown_rejection(SourceRejection { at, reason, detail }: &SourceRejection) -> SourceRejectionStatus {
    SourceRejectionStatus {
        time: whole_seconds(*at).to_string(),
        reason: reason.as_str().to_owned(),
        message: detail.as_str().to_owned(),
    }
}

fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::sources_seen::SourceRuns;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn seen(event: Option<i64>, rejected: Option<i64>, waits: Option<i64>) -> SourceSeen {
        SourceSeen {
            runs: SourceRuns::Somewhere,
            is_known: true,
            last_event: event.map(at),
            last_success: None,
            failure: None,
            last_rejection: rejected.map(|second| SourceRejection {
                at: at(second),
                reason: "invalid_signature".into(),
                detail: "wrong".into(),
            }),
            waiting_since: waits.map(at),
        }
    }

    fn status(shown: ShownActivity) -> SourceStatus {
        let ShownActivity {
            last_event_time,
            last_rejection,
            waiting_since,
        } = shown;
        SourceStatus {
            last_event_time,
            last_rejection,
            waiting_since,
            ..SourceStatus::default()
        }
    }

    #[test]
    fn many_events_are_few_writes_and_the_last_one_is_shown() {
        let (mut present, mut writes) = (SourceStatus::default(), 0);
        for second in 0..=400 {
            // An event a second for five minutes, and a rejected request each time.
            let last = second.min(299);
            let seen = seen(Some(last), Some(last), None);
            let next = status(ShownActivity::next(&seen, Some(&present), at(second), EVERY));
            writes += usize::from(next != present);
            present = next;
        }
        assert_eq!(last_event(&present), Some(at(299)));
        assert_eq!(present.last_rejection.unwrap().time, at(299).to_string());
        assert!((5..=7).contains(&writes), "{writes}");
        assert_eq!((shown_every(600), shown_every(6_000)), (EVERY, EVERY * 10));
    }

    #[test]
    fn what_routers_forget_stays() {
        let shown = ShownActivity::next(&seen(Some(5), Some(6), Some(7)), None, at(8), EVERY);
        let present = status(shown.clone());
        let unknown = SourceSeen {
            is_known: false,
            ..seen(None, None, None)
        };
        let next = |seen: &SourceSeen| ShownActivity::next(seen, Some(&present), at(500), EVERY);
        assert_eq!(next(&unknown), shown);
        let waits_no_longer = ShownActivity {
            waiting_since: None,
            ..shown.clone()
        };
        assert_eq!(next(&seen(None, None, None)), waits_no_longer);
        assert_eq!(
            next(&seen(Some(4), None, Some(30))),
            shown,
            "older, or a little later"
        );
        assert_eq!(
            next(&seen(None, None, Some(100))).waiting_since,
            Some(at(100).to_string())
        );
    }
}
