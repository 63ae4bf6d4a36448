//! What is to be done about the certificates, given what is stored and the time. Pure.
//!
//! A new authority is given out beside the one before it, and signs nothing until routers have it. So at every
//! moment the certificate that the controller serves is signed by an authority that routers trust.

use jiff::{SignedDuration, Timestamp};

/// How long an authority is valid.
pub(super) const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);

/// How long a serving certificate is valid. An authority has more than that before it when its successor is made.
pub(super) const SERVING_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);

/// How long before it is made a certificate is already valid: clocks differ.
pub(super) const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);

/// How long a new authority signs nothing. The kubelet brings it to routers within minutes.
const SETTLING: SignedDuration = SignedDuration::from_hours(24);

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

impl Validity {
    /// From a little before now on, and not longer than its issuer.
    pub(super) fn new(now: Timestamp, life: SignedDuration, issuer: Option<Self>) -> Self {
        let until = now.saturating_add(life).unwrap_or(Timestamp::MAX);
        Self {
            from: now.saturating_sub(CLOCK_SKEW).unwrap_or(now),
            until: issuer.map_or(until, |issuer| until.min(issuer.until)),
        }
    }

    pub(super) fn covers(self, now: Timestamp) -> bool {
        (self.from..self.until).contains(&now)
    }

    /// Whether two thirds of it are over: the last third is for whatever keeps it from being renewed.
    fn is_old(self, now: Timestamp) -> bool {
        now.duration_since(self.from) >= self.until.duration_since(self.from) * 2 / 3
    }
}

/// What is known of what is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// The authority that signs; none if it or its key cannot be used.
    pub(super) authority: Option<Validity>,
    /// The serving certificate; none if it or its key cannot be used, or no stored authority has signed it.
    pub(super) serving: Option<Serving>,
}

/// What is known of a serving certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) validity: Validity,
    /// The DNS names that it is for.
    pub(super) names: Vec<String>,
}

/// What is to be done next; each step but [`Step::Keep`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All is well.
    Keep,
    /// Make an authority and a serving certificate, and forget what was there.
    MakeAll(&'static str),
    /// Make an authority beside the one that is there, and keep the serving certificate.
    RenewAuthority(&'static str),
    /// Make a serving certificate.
    RenewServing(&'static str),
}

/// What is to be done so that the controller can serve under these names.
pub(super) fn next_step(stored: &Stored, names: &[String], now: Timestamp) -> Step {
    let Stored { authority, serving } = stored;
    let Some(authority) = authority else {
        return Step::MakeAll("there is no usable authority");
    };
    if !authority.covers(now) {
        return Step::MakeAll("the authority is not valid now");
    }
    let Some(Serving {
        validity,
        names: present,
    }) = serving
    else {
        return Step::RenewServing("there is no usable serving certificate");
    };
    if present != names {
        return Step::RenewServing("the serving certificate is for other names");
    }
    if !validity.covers(now) {
        return Step::RenewServing("the serving certificate is not valid now");
    }
    // In this order: with an old authority the new certificate can be used at once, with a new one only later.
    let is_settled = now.duration_since(authority.from) >= SETTLING;
    if validity.is_old(now) && is_settled {
        return Step::RenewServing("two thirds of the serving certificate's life are over");
    }
    if authority.is_old(now) {
        return Step::RenewAuthority("two thirds of the authority's life are over");
    }
    Step::Keep
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn day(day: i64) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start + SignedDuration::from_hours(24 * day)
    }

    fn days(from: i64, until: i64) -> Validity {
        Validity {
            from: day(from),
            until: day(until),
        }
    }

    fn stored(authority: Validity, serving: Validity) -> Stored {
        Stored {
            authority: Some(authority),
            serving: Some(Serving {
                validity: serving,
                names: names(),
            }),
        }
    }

    fn names() -> Vec<String> {
        vec!["weir-controller".into(), "weir-controller.weir-system".into()]
    }

    #[test]
    fn what_is_to_be_done_by_time() {
        let made = stored(days(0, 365), days(0, 90));
        let overlapping = stored(days(243, 608), days(200, 290));
        let just_before = stored(days(243, 608), days(183, 273));
        for (stored, day_now, step) in [
            (&made, -1, "MakeAll"),
            (&made, 0, "Keep"),
            (&made, 59, "Keep"),
            (&made, 60, "RenewServing"),
            (&made, 89, "RenewServing"),
            (&made, 90, "RenewServing"),
            (&made, 242, "RenewServing"),
            (&made, 364, "RenewServing"),
            (&made, 365, "MakeAll"),
            (&made, 4000, "MakeAll"),
            (&stored(days(0, 365), days(200, 290)), 243, "Keep"),
            (&stored(days(0, 365), days(200, 290)), 244, "RenewAuthority"),
            (&stored(days(0, 365), days(200, 290)), 280, "RenewServing"),
            (&stored(days(0, 365), days(280, 365)), 280, "RenewAuthority"),
            (&overlapping, 244, "Keep"),
            (&overlapping, 260, "RenewServing"),
            (&just_before, 243, "Keep"),
            (&just_before, 244, "RenewServing"),
            (&stored(days(243, 608), days(100, 190)), 243, "RenewServing"),
        ] {
            let found = format!("{:?}", next_step(stored, &names(), day(day_now)));
            assert!(found.starts_with(step), "{stored:?} on day {day_now}: {found}");
        }
    }

    #[test]
    fn what_is_to_be_done_when_something_is_missing_or_of_another_name() {
        let whole = stored(days(0, 365), days(0, 90));
        let without_authority = Stored {
            authority: None,
            ..whole.clone()
        };
        let without_serving = Stored {
            serving: None,
            ..whole.clone()
        };
        let others = vec!["other".to_owned()];
        for (stored, names, step) in [
            (&Stored::default(), &names(), "MakeAll"),
            (&without_authority, &names(), "MakeAll"),
            (&without_serving, &names(), "RenewServing"),
            (&whole, &others, "RenewServing"),
            (&whole, &names(), "Keep"),
        ] {
            let found = format!("{:?}", next_step(stored, names, day(1)));
            assert!(found.starts_with(step), "{stored:?} for {names:?}: {found}");
        }
    }

    #[test]
    fn a_certificate_does_not_outlive_its_issuer() {
        let validity = Validity::new(day(10), SERVING_LIFE, Some(days(0, 20)));
        assert_eq!(validity.until, day(20));
        assert!(validity.covers(day(10)) && validity.from < day(10));
        assert_eq!(Validity::new(day(10), SERVING_LIFE, None).until, day(100));
    }

    proptest! {
        /// However irregularly a controller looks, as long as it does so within three weeks: the certificate that is
        /// served is valid, and routers had its authority a day before it was used.
        #[test]
        fn routers_can_always_connect(pauses in prop::collection::vec(1_u64..24 * 21, 1..400)) {
            let mut now = day(0);
            let mut stored = Stored::default();
            let mut given_out = now;
            for (number, pause) in pauses.into_iter().enumerate() {
                for _ in 0..3 {
                    match next_step(&stored, &names(), now) {
                        Step::Keep => {}
                        Step::MakeAll(why) if number > 0 => prop_assert!(false, "{now}: {why}"),
                        Step::MakeAll(_) | Step::RenewAuthority(_) => {
                            stored.authority = Some(Validity::new(now, AUTHORITY_LIFE, None));
                            given_out = now;
                            if number == 0 {
                                stored.serving = Some(served(now, stored.authority));
                            }
                        }
                        Step::RenewServing(why) => {
                            let settled = now.duration_since(given_out) >= SignedDuration::from_hours(23);
                            prop_assert!(settled, "{}: {}", now, why);
                            stored.serving = Some(served(now, stored.authority));
                        }
                    }
                }
                prop_assert_eq!(next_step(&stored, &names(), now), Step::Keep);
                now += SignedDuration::from_hours(i64::try_from(pause).unwrap());
                let serving = stored.serving.as_ref().unwrap().validity;
                prop_assert!(serving.covers(now), "{} is not in {:?}", now, serving);
            }
        }
    }

    fn served(now: Timestamp, issuer: Option<Validity>) -> Serving {
        Serving {
            validity: Validity::new(now, SERVING_LIFE, issuer),
            names: names(),
        }
    }
}
