//! What was found out about tokens a short while ago, so that not every request asks the API server. Time comes in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::callers::{Caller, Refusal};

/// How long a token that was good is not asked about again.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// How long a token that was good is taken for good while the API server does not answer: routers outlive an outage
/// of it.
const GOOD_WITHOUT_ANSWER: Duration = Duration::from_secs(10 * 60);

/// How long a token that was bad is not asked about again.
const BAD_FOR: Duration = Duration::from_secs(5);

/// How many tokens of each kind are remembered; beyond it the oldest are forgotten. There are as many good ones as
/// routers, and as many again while they are renewed.
const MAX_REMEMBERED: usize = 4096;

/// A token by its SHA-256, so that no token lies about in memory.
pub(super) type Digest = [u8; 32];

/// What is remembered of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remembered {
    /// This was found out just now.
    Fresh(Result<Caller, Refusal>),
    /// It was good some time ago: for use if the API server does not answer.
    Good(Caller),
    /// Nothing.
    Nothing,
}

/// The tokens. Good and bad ones apart, so that whoever tries many bad ones drives out no good one.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    good: HashMap<Digest, (Caller, Instant)>,
    bad: HashMap<Digest, (Refusal, Instant)>,
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

    pub(super) fn remember(&mut self, token: Digest, verdict: Result<Caller, Refusal>, now: Instant) {
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

/// Inserts, and forgets the older half when there are too many: seldom, so that it costs little on the whole.
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
    fn what_is_remembered_depends_on_the_time() {
        let start = Instant::now();
        let mut verdicts = Verdicts::default();
        let (good, bad, unknown) = (digest(1), digest(2), digest(3));
        verdicts.remember(good, Ok(caller()), start);
        verdicts.remember(bad, Err(Refusal::NoToken), start);
        for (token, seconds, expected) in [
            (good, 0, Remembered::Fresh(Ok(caller()))),
            (good, 59, Remembered::Fresh(Ok(caller()))),
            (good, 60, Remembered::Good(caller())),
            (good, 599, Remembered::Good(caller())),
            (good, 600, Remembered::Nothing),
            (bad, 0, Remembered::Fresh(Err(Refusal::NoToken))),
            (bad, 4, Remembered::Fresh(Err(Refusal::NoToken))),
            (bad, 5, Remembered::Nothing),
            (unknown, 0, Remembered::Nothing),
        ] {
            let found = verdicts.recall(&token, start + Duration::from_secs(seconds));
            assert_eq!(found, expected, "{token:?} after {seconds} s");
        }
    }

    #[test]
    fn the_last_verdict_counts() {
        let now = Instant::now();
        let mut verdicts = Verdicts::default();
        verdicts.remember(digest(1), Ok(caller()), now);
        verdicts.remember(digest(1), Err(Refusal::NoToken), now);
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
    fn only_so_many_are_remembered_and_bad_ones_drive_out_no_good_one() {
        let start = Instant::now();
        let at = |number: usize| start + Duration::from_micros(number.try_into().unwrap());
        let mut verdicts = Verdicts::default();
        verdicts.remember(digest(0), Ok(caller()), start);
        for number in 1..3 * MAX_REMEMBERED {
            verdicts.remember(digest(number), Err(Refusal::NoToken), at(number));
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
