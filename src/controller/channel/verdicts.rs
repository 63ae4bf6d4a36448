//! Caches recent verdicts on tokens, so that not every request needs a review. Pure: time is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::callers::{Caller, CallerRejection};

/// Time for which a valid token is not reviewed again.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// Time for which a valid token is accepted while the API server does not respond, so that routers survive its
/// outages.
const GOOD_WITHOUT_ANSWER: Duration = Duration::from_secs(10 * 60);

/// Time for which an invalid token is not reviewed again.
const BAD_FOR: Duration = Duration::from_secs(5);

/// Maximum number of cached tokens of each kind. Beyond it the oldest are dropped. There are as many valid tokens
/// as routers, and twice as many during renewal.
const MAX_REMEMBERED: usize = 4096;

/// SHA-256 of a token, so that tokens do not stay in memory.
pub(super) type Digest = [u8; 32];

/// Cached verdict on a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remembered {
    /// Recent verdict.
    Fresh(Result<Caller, CallerRejection>),
    /// The token was valid some time ago. Used only if the API server does not respond.
    Good(Caller),
    /// No verdict.
    Nothing,
}

/// Cached tokens. Valid and invalid ones are separate, so that many invalid tokens cannot evict valid ones.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    good: HashMap<Digest, (Caller, Instant)>,
    bad: HashMap<Digest, (CallerRejection, Instant)>,
}

impl Verdicts {
    pub(super) fn recall(&self, token: &Digest, now: Instant) -> Remembered {
        let is_within = |since: Instant, time| now.saturating_duration_since(since) < time;
        if let Some((refusal, since)) = self.bad.get(token)
            && is_within(*since, BAD_FOR)
        {
            return Remembered::Fresh(Err(refusal.clone()));
        }
        match self.good.get(token) {
            Some((caller, since)) if is_within(*since, GOOD_FOR) => Remembered::Fresh(Ok(caller.clone())),
            Some((caller, since)) if is_within(*since, GOOD_WITHOUT_ANSWER) => {
                Remembered::Good(caller.clone())
            }
            _ => Remembered::Nothing,
        }
    }

    pub(super) fn remember(&mut self, token: Digest, verdict: Result<Caller, CallerRejection>, now: Instant) {
        match verdict {
            Ok(caller) => {
                self.bad.remove(&token);
                insert(&mut self.good, token, caller, now);
            }
            Err(refusal) => {
                self.good.remove(&token);
                insert(&mut self.bad, token, refusal, now);
            }
        }
    }
}

/// Inserts a verdict. Drops the older half when full: seldom, so the amortized cost is low.
fn insert<T>(verdicts: &mut HashMap<Digest, (T, Instant)>, token: Digest, verdict: T, now: Instant) {
    if verdicts.len() >= MAX_REMEMBERED && !verdicts.contains_key(&token) {
        let mut times: Vec<_> = verdicts.values().map(|(_, since)| *since).collect();
        let (_, median, _) = times.select_nth_unstable(MAX_REMEMBERED / 2);
        let median = *median;
        verdicts.retain(|_, (_, since)| *since > median);
    }
    verdicts.insert(token, (verdict, now));
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

    use super::*;
    use crate::{controller::channel::callers::judge, routing::protocol::TOKEN_AUDIENCE};

    fn caller() -> Caller {
        let status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![TOKEN_AUDIENCE.into()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:a:b".into()),
                ..UserInfo::default()
            }),
            error: None,
        };
        judge(status, &"a/b".parse().unwrap()).unwrap()
    }

    fn digest(number: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    #[test]
    fn cached_verdict_depends_on_its_age() {
        let start = Instant::now();
        let mut verdicts = Verdicts::default();
        let (good, bad, unknown) = (digest(1), digest(2), digest(3));
        verdicts.remember(good, Ok(caller()), start);
        verdicts.remember(bad, Err(CallerRejection::NoToken), start);
        for (token, seconds, expected) in [
            (good, 0, Remembered::Fresh(Ok(caller()))),
            (good, 59, Remembered::Fresh(Ok(caller()))),
            (good, 60, Remembered::Good(caller())),
            (good, 599, Remembered::Good(caller())),
            (good, 600, Remembered::Nothing),
            (bad, 0, Remembered::Fresh(Err(CallerRejection::NoToken))),
            (bad, 4, Remembered::Fresh(Err(CallerRejection::NoToken))),
            (bad, 5, Remembered::Nothing),
            (unknown, 0, Remembered::Nothing),
        ] {
            let found = verdicts.recall(&token, start + Duration::from_secs(seconds));
            assert_eq!(found, expected, "{token:?} after {seconds} s");
        }
    }

    #[test]
    fn last_verdict_wins() {
        let now = Instant::now();
        let mut verdicts = Verdicts::default();
        verdicts.remember(digest(1), Ok(caller()), now);
        verdicts.remember(digest(1), Err(CallerRejection::NoToken), now);
        let later = now + BAD_FOR;
        assert_eq!(
            verdicts.recall(&digest(1), later),
            Remembered::Nothing,
            "not good from before"
        );
        verdicts.remember(digest(1), Ok(caller()), now);
        assert_eq!(verdicts.recall(&digest(1), now), Remembered::Fresh(Ok(caller())));
    }

    #[test]
    fn cache_is_bounded_and_invalid_tokens_do_not_evict_valid_ones() {
        let start = Instant::now();
        let at = |number: usize| start + Duration::from_micros(number.try_into().unwrap());
        let mut verdicts = Verdicts::default();
        verdicts.remember(digest(0), Ok(caller()), start);
        for number in 1..3 * MAX_REMEMBERED {
            verdicts.remember(digest(number), Err(CallerRejection::NoToken), at(number));
        }
        assert!(verdicts.bad.len() <= MAX_REMEMBERED, "{}", verdicts.bad.len());
        let last = digest(3 * MAX_REMEMBERED - 1);
        assert!(verdicts.bad.contains_key(&last));
        assert_eq!(
            verdicts.recall(&digest(0), at(0)),
            Remembered::Fresh(Ok(caller()))
        );
    }
}
