//! Decides the next step for the certificates from what is stored and the time. Pure.
//!
//! A new authority is published beside the previous one and signs nothing until routers have it. So the serving
//! certificate is always signed by an authority that routers trust.

use jiff::{SignedDuration, Timestamp};

/// Validity of an authority.
pub(super) const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);

/// Validity of a serving certificate. An authority remains valid for longer than this when its successor is
/// created.
pub(super) const SERVING_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);

/// Backdating of certificates, to allow for clock skew.
pub(super) const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);

/// Time for which a new authority signs nothing. The kubelet brings it to routers within minutes.
const SETTLING: SignedDuration = SignedDuration::from_hours(24);

/// Validity period of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

impl Validity {
    /// Starts slightly before now, and ends no later than the issuer's.
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

    /// Whether two thirds of it have passed. The last third allows for failing renewals.
    fn is_old(self, now: Timestamp) -> bool {
        now.duration_since(self.from) >= self.until.duration_since(self.from) * 2 / 3
    }
}

/// Summary of the stored material.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StoredMaterial {
    /// The signing authority; `None` if it or its key is unusable.
    pub(super) authority: Option<Validity>,
    /// The serving certificate; `None` if it or its key is unusable, or no stored authority signed it.
    pub(super) serving: Option<ServingCertificate>,
}

/// Summary of a serving certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServingCertificate {
    pub(super) validity: Validity,
    /// DNS names that it is valid for.
    pub(super) names: Vec<String>,
}

/// The next step. Each step except [`RenewalStep::Keep`] has its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RenewalStep {
    /// Nothing to do.
    Keep,
    /// Create an authority and a serving certificate, and discard the old ones.
    MakeAll(&'static str),
    /// Create an authority beside the present one, and keep the serving certificate.
    RenewAuthority(&'static str),
    /// Create a serving certificate.
    RenewServing(&'static str),
}

/// Returns the next step for the controller to serve under these names.
pub(super) fn next_step(stored: &StoredMaterial, names: &[String], now: Timestamp) -> RenewalStep {
    let StoredMaterial { authority, serving } = stored;
    let Some(authority) = authority else {
        return RenewalStep::MakeAll("no usable authority");
    };
    if !authority.covers(now) {
        return RenewalStep::MakeAll("the authority is not currently valid");
    }
    let Some(ServingCertificate {
        validity,
        names: present,
    }) = serving
    else {
        return RenewalStep::RenewServing("no usable serving certificate");
    };
    if present != names {
        return RenewalStep::RenewServing("the serving certificate is for other names");
    }
    if !validity.covers(now) {
        return RenewalStep::RenewServing("the serving certificate is not currently valid");
    }
    // Order matters: a certificate signed by the old authority is usable at once, one signed by a new authority
    // only later.
    let is_settled = now.duration_since(authority.from) >= SETTLING;
    if validity.is_old(now) && is_settled {
        return RenewalStep::RenewServing("the serving certificate has passed two thirds of its lifetime");
    }
    if authority.is_old(now) {
        return RenewalStep::RenewAuthority("the authority has passed two thirds of its lifetime");
    }
    RenewalStep::Keep
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

    fn stored(authority: Validity, serving: Validity) -> StoredMaterial {
        StoredMaterial {
            authority: Some(authority),
            serving: Some(ServingCertificate {
                validity: serving,
                names: names(),
            }),
        }
    }

    fn names() -> Vec<String> {
        vec!["weir-controller".into(), "weir-controller.weir-system".into()]
    }

    #[test]
    fn next_step_depends_on_the_time() {
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
    fn next_step_replaces_missing_material_and_changed_names() {
        let whole = stored(days(0, 365), days(0, 90));
        let without_authority = StoredMaterial {
            authority: None,
            ..whole.clone()
        };
        let without_serving = StoredMaterial {
            serving: None,
            ..whole.clone()
        };
        let others = vec!["other".to_owned()];
        for (stored, names, step) in [
            (&StoredMaterial::default(), &names(), "MakeAll"),
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
    fn certificate_does_not_outlive_its_issuer() {
        let validity = Validity::new(day(10), SERVING_LIFE, Some(days(0, 20)));
        assert_eq!(validity.until, day(20));
        assert!(validity.covers(day(10)) && validity.from < day(10));
        assert_eq!(Validity::new(day(10), SERVING_LIFE, None).until, day(100));
    }

    proptest! {
        /// However irregular the checks, as long as they are at most three weeks apart, the serving certificate is
        /// valid, and routers have had its authority for a day before it is used.
        #[test]
        fn routers_can_always_connect(pauses in prop::collection::vec(1_u64..24 * 21, 1..400)) {
            let mut now = day(0);
            let mut stored = StoredMaterial::default();
            let mut given_out = now;
            for (number, pause) in pauses.into_iter().enumerate() {
                for _ in 0..3 {
                    match next_step(&stored, &names(), now) {
                        RenewalStep::Keep => {}
                        RenewalStep::MakeAll(why) if number > 0 => prop_assert!(false, "{now}: {why}"),
                        RenewalStep::MakeAll(_) | RenewalStep::RenewAuthority(_) => {
                            stored.authority = Some(Validity::new(now, AUTHORITY_LIFE, None));
                            given_out = now;
                            if number == 0 {
                                stored.serving = Some(served(now, stored.authority));
                            }
                        }
                        RenewalStep::RenewServing(why) => {
                            let settled = now.duration_since(given_out) >= SignedDuration::from_hours(23);
                            prop_assert!(settled, "{}: {}", now, why);
                            stored.serving = Some(served(now, stored.authority));
                        }
                    }
                }
                prop_assert_eq!(next_step(&stored, &names(), now), RenewalStep::Keep);
                now += SignedDuration::from_hours(i64::try_from(pause).unwrap());
                let serving = stored.serving.as_ref().unwrap().validity;
                prop_assert!(serving.covers(now), "{} is not in {:?}", now, serving);
            }
        }
    }

    fn served(now: Timestamp, issuer: Option<Validity>) -> ServingCertificate {
        ServingCertificate {
            validity: Validity::new(now, SERVING_LIFE, issuer),
            names: names(),
        }
    }
}
