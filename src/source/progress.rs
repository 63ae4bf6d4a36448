//! How a Source of any kind is, for its status. Pure.

use jiff::Timestamp;

use crate::routing::protocol::{REJECTS_FOR, SourceFailure, SourceFailureCause};

/// How a Source is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceProgress {
    /// Time at which its last event was stored.
    pub last_event: Option<Timestamp>,
    /// Time at which something last went well, with an event or without.
    pub last_success: Option<Timestamp>,
    /// What has failed since then.
    pub failure: Option<SourceFailure>,
    /// Oldest scheduled time that is due and has no event yet.
    pub waiting_since: Option<Timestamp>,
    /// Time of the first forged request since something last went well.
    forged_since: Option<Timestamp>,
}

impl SourceProgress {
    /// Notes that an event was stored.
    pub fn stored(&mut self, at: Timestamp) {
        self.last_event = Some(at);
        self.succeeded(at);
    }

    /// Notes that something went well.
    pub fn succeeded(&mut self, at: Timestamp) {
        self.last_success = Some(at);
        (self.failure, self.waiting_since, self.forged_since) = (None, None, None);
    }

    /// Forgets what failed, because the Source has changed.
    pub fn changed(&mut self) {
        (self.failure, self.waiting_since, self.forged_since) = (None, None, None);
    }

    /// Notes a failure. Requests without any proof hide no other failure, and count only while nothing has ever gone
    /// well. Once something has, a forged request counts only if another one came [`REJECTS_FOR`] before: a single one can
    /// be anybody's.
    pub fn failed(&mut self, cause: SourceFailureCause, at: Timestamp, detail: &str) {
        let is_known = |failure: &SourceFailure| failure.cause != SourceFailureCause::Unsigned;
        let is_told = self.last_success.is_some() || self.failure.as_ref().is_some_and(is_known);
        if cause == SourceFailureCause::Unsigned && is_told {
            return;
        }
        if cause == SourceFailureCause::Verification && self.last_success.is_some() {
            let since = *self.forged_since.get_or_insert(at);
            if at.duration_since(since) < REJECTS_FOR {
                return;
            }
        }
        self.failure = Some(SourceFailure {
            cause,
            at,
            detail: detail.into(),
        });
    }

    /// The failure of a Source that receives requests, once nothing has gone well for [`REJECTS_FOR`].
    pub fn lasting_failure(&self, now: Timestamp) -> Option<&SourceFailure> {
        let is_lasting = |success: Timestamp| now.duration_since(success) >= REJECTS_FOR;
        self.failure
            .as_ref()
            .filter(|_| self.last_success.is_none_or(is_lasting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_failure_lasts_until_something_goes_well() {
        let mut progress = SourceProgress::default();
        let cause = |progress: &SourceProgress, second| {
            let failure = progress.lasting_failure(at(second));
            failure.map(|failure| failure.cause)
        };
        progress.failed(SourceFailureCause::Unsigned, at(1), "no header");
        assert_eq!(cause(&progress, 1), Some(SourceFailureCause::Unsigned));
        progress.failed(SourceFailureCause::Verification, at(2), "wrong");
        progress.failed(SourceFailureCause::Unsigned, at(3), "no header");
        assert_eq!(cause(&progress, 3), Some(SourceFailureCause::Verification));
        progress.stored(at(4));
        assert_eq!((progress.last_event, cause(&progress, 100)), (Some(at(4)), None));
        progress.failed(SourceFailureCause::Unsigned, at(5), "no header");
        assert_eq!(cause(&progress, 100), None);
        progress.failed(SourceFailureCause::Storage, at(6), "full");
        assert_eq!(cause(&progress, 63), None, "forged requests come between others");
        assert_eq!(cause(&progress, 64), Some(SourceFailureCause::Storage));
        progress.succeeded(at(65));
        assert_eq!((progress.last_event, cause(&progress, 200)), (Some(at(4)), None));
    }

    #[test]
    fn one_forged_request_tells_nothing_of_a_source_that_works() {
        let mut progress = SourceProgress::default();
        progress.stored(at(0));
        let mut forged_at = |second| {
            progress.failed(SourceFailureCause::Verification, at(second), "wrong");
            progress.lasting_failure(at(second)).is_some()
        };
        assert_eq!([1000, 1059, 1060].map(&mut forged_at), [false, false, true]);
        progress.changed();
        assert_eq!(
            progress.lasting_failure(at(1100)),
            None,
            "the Secret was corrected"
        );
        assert_eq!(progress.last_event, Some(at(0)));
    }
}
