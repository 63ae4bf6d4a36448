//! Compiles Brokers: the settings of brokers. Pure.

use std::{num::NonZeroU32, time::Duration};

use super::{
    diagnosis::{BrokerDiagnosis, ResourceId},
    finding::Finding,
    observed::ProducerCheck,
    producers::{self, ListedProducers},
    resolver::Resolver,
};
use crate::{
    api,
    routing::{self, Bounds, BrokerPolicy, DeduplicationSettings, InstallationQuotas, Quota, broker_key},
};

/// Maximum length of a broker's name, which is a DNS label.
const MAX_NAME: usize = 63;

/// Units of sizes, and their bytes.
const UNITS: [(&str, u64); 9] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

/// Compiles a Broker. An invalid one reaches the routers only if it lists producers, without which everyone could post, or
/// has deduplication, without which repeats would be stored.
/// Without a cluster, a list of ServiceAccounts only is left out, since nothing can verify their tokens.
pub(super) fn compile(
    resolver: &Resolver<'_>,
    subject: ResourceId,
    spec: &api::BrokerSpec,
    quotas: InstallationQuotas,
    check: Option<&ProducerCheck>,
    bounds: &mut Bounds,
) -> (Option<BrokerPolicy>, BrokerDiagnosis) {
    let broker = broker_key(&subject.namespace, &subject.name);
    let listed = match &spec.producers {
        Some(listed) => producers::listed(resolver, &subject.namespace, listed, bounds).map(Some),
        None => Ok(None),
    };
    let is_checked = |listed: &ListedProducers| check.is_some() || !listed.has_accounts_only();
    let listed = listed.map(|listed| listed.filter(is_checked));
    let (policy, valid) = match (policy(&subject, spec), listed) {
        (Ok(policy), Ok(listed)) => {
            let mut valid = accepts(&broker, listed.as_ref(), check);
            valid.message.push_str(&lowered(policy.quota, quotas.limits));
            valid.message.push_str(&said_of_deduplication(spec, quotas));
            let quota = policy.quota.or(quotas.defaults).within(quotas.limits);
            let policy = BrokerPolicy {
                producers: listed.map(|listed| listed.producers),
                quota,
                deduplication: quotas.deduplication.of(wanted_deduplication(spec)),
                ..policy
            };
            (Some(policy), valid)
        }
        (Err(finding), Ok(None)) => {
            let has_deduplication = spec.deduplication.is_some() && is_valid_name(&subject.name);
            let policy = has_deduplication.then(|| policy_of_invalid(&subject, spec, None, quotas));
            (policy, finding)
        }
        (Err(finding), Ok(Some(listed))) => {
            let policy = policy_of_invalid(&subject, spec, Some(listed.producers), quotas);
            (Some(policy), finding)
        }
        (_, Err(finding)) => {
            let policy = policy_of_invalid(&subject, spec, Some(Vec::new()), quotas);
            (Some(policy), finding)
        }
    };
    (
        policy,
        BrokerDiagnosis {
            subject,
            valid,
            broker,
        },
    )
}

fn accepts(broker: &str, listed: Option<&ListedProducers>, check: Option<&ProducerCheck>) -> Finding {
    let Some(listed) = listed else {
        return Finding::good("Ready", format!("events are accepted for broker {broker}"));
    };
    let no_keys = check.and_then(|check| check.issuer.as_ref().err());
    match (&listed.unusable, no_keys, listed.producers.len()) {
        (_, Some(problem), _) if listed.has_account() => Finding::bad(
            "NoSigningKeys",
            format!(
                "no token of a ServiceAccount can be verified, so those that are listed cannot post: {problem}"
            ),
        ),
        (Some(unusable), ..) => unusable.clone(),
        (None, _, 0) => Finding::good(
            "Ready",
            format!("nobody may post to broker {broker}, since spec.producers is empty"),
        ),
        (None, _, count) => Finding::good(
            "Ready",
            format!("events of {count} listed producers are accepted for broker {broker}"),
        ),
    }
}

fn is_valid_name(name: &str) -> bool {
    name.len() <= MAX_NAME && !name.contains('.')
}

/// The policy of an invalid Broker.
fn policy_of_invalid(
    subject: &ResourceId,
    spec: &api::BrokerSpec,
    producers: Option<Vec<routing::Producer>>,
    quotas: InstallationQuotas,
) -> BrokerPolicy {
    BrokerPolicy {
        uid: subject.uid.clone(),
        namespace: subject.namespace.clone(),
        name: subject.name.clone(),
        generation: subject.generation,
        retention_age: None,
        retention_bytes: None,
        partitions: None,
        producers,
        quota: quotas.of_others(),
        when_full: None,
        deduplication: quotas.deduplication.of(wanted_deduplication(spec)),
    }
}

fn policy(subject: &ResourceId, spec: &api::BrokerSpec) -> Result<BrokerPolicy, Finding> {
    let api::BrokerSpec {
        retention,
        partitions,
        producers: _,
        quota,
        deduplication: _,
        when_full,
    } = spec;
    let api::BrokerQuota {
        events_per_second,
        event_size,
        bytes,
    } = quota.clone().unwrap_or_default();
    let api::BrokerRetention { age, size } = retention.clone().unwrap_or_default();
    if !is_valid_name(&subject.name) {
        return Err(Finding::bad(
            "InvalidName",
            format!(
                "{} cannot be the name of a broker, since it is part of a URL: use at most {MAX_NAME} lower-case \
                 letters, digits and hyphens",
                subject.name
            ),
        ));
    }
    let events_per_second = events_per_second.map(|events| {
        NonZeroU32::new(events).ok_or_else(|| {
            let message = "spec.quota.eventsPerSecond: must be at least 1";
            Finding::bad("InvalidQuota", message)
        })
    });
    Ok(BrokerPolicy {
        uid: subject.uid.clone(),
        namespace: subject.namespace.clone(),
        name: subject.name.clone(),
        generation: subject.generation,
        retention_age: age.map(Duration::from),
        retention_bytes: optional_bytes("spec.retention.size", size.as_deref())?,
        partitions: *partitions,
        producers: None,
        quota: Quota {
            events_per_second: events_per_second.transpose()?,
            event_size: optional_bytes("spec.quota.eventSize", event_size.as_deref())?,
            bytes: optional_bytes("spec.quota.bytes", bytes.as_deref())?,
        },
        when_full: when_full.map(|when_full| match when_full {
            api::WhenFull::Reject => routing::WhenFull::Reject,
            api::WhenFull::DropOldest => routing::WhenFull::DropOldest,
        }),
        deduplication: None,
    })
}

fn wanted_deduplication(spec: &api::BrokerSpec) -> Option<DeduplicationSettings> {
    let api::BrokerDeduplication { window, events } = spec.deduplication.clone()?;
    Some(DeduplicationSettings {
        window: window.map(Duration::from),
        events: events.map(u64::from),
    })
}

/// What to say of deduplication that exceeds the installation's limits.
fn said_of_deduplication(spec: &api::BrokerSpec, quotas: InstallationQuotas) -> String {
    let (Some(wanted), Some(held)) = (
        wanted_deduplication(spec),
        quotas.deduplication.of(wanted_deduplication(spec)),
    ) else {
        return String::new();
    };
    let mut said = String::new();
    if wanted.window.is_some_and(|wanted| held.window < wanted) {
        let held = api::DurationText::from(held.window);
        said += &format!("; spec.deduplication.window: the installation's limit of {held} holds");
    }
    if wanted.events.is_some_and(|wanted| held.events < wanted) {
        let held = held.events;
        said += &format!("; spec.deduplication.events: the installation's limit of {held} holds");
    }
    said
}

/// What to say of a quota that exceeds the installation's limits.
fn lowered(wanted: Quota, limits: Quota) -> String {
    let held = wanted.within(limits);
    let mut lowered = String::new();
    if let (Some(wanted), Some(held)) = (wanted.events_per_second, held.events_per_second)
        && held < wanted
    {
        lowered += &format!("; spec.quota.eventsPerSecond: the installation's limit of {held} holds");
    }
    for (field, wanted, held) in [
        ("eventSize", wanted.event_size, held.event_size),
        ("bytes", wanted.bytes, held.bytes),
    ] {
        if let (Some(wanted), Some(held)) = (wanted, held)
            && held < wanted
        {
            lowered += &format!("; spec.quota.{field}: the installation's limit of {held} bytes holds");
        }
    }
    lowered
}

fn optional_bytes(field: &str, size: Option<&str>) -> Result<Option<u64>, Finding> {
    let parsed = size.map(|size| {
        bytes(size).ok_or_else(|| {
            let message = format!("{field}: {size:?} is not a size; use for example 512Mi or 10Gi");
            Finding::bad("InvalidSize", message)
        })
    });
    parsed.transpose()
}

/// Parses a size in the format of Kubernetes quantities.
fn bytes(text: &str) -> Option<u64> {
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = number.parse::<u64>().ok()?;
    // More than any log is as good as no limit.
    Some(number.saturating_mul(factor))
}

#[cfg(test)]
mod tests {
    use super::{super::observed::Observed, *};

    #[test]
    fn sizes_are_parsed() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1500", Some(1500)),
            ("2k", Some(2000)),
            ("512Mi", Some(512 << 20)),
            ("10Gi", Some(10 << 30)),
            ("3T", Some(3_000_000_000_000)),
            ("", None),
            ("Gi", None),
            ("+1Gi", None),
            ("1.5Gi", None),
            ("1gb", None),
            ("99999999999Ti", Some(u64::MAX)),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_broker_with_an_invalid_name_or_size_is_left_out() {
        let observed = Observed::default();
        let resolver = Resolver::new(&observed, "cluster.local");
        let subject = |name: &str| ResourceId {
            uid: "u".into(),
            namespace: "shop".into(),
            name: name.into(),
            generation: 1,
        };
        let spec = |size: &str| api::BrokerSpec {
            retention: Some(api::BrokerRetention {
                age: None,
                size: Some(size.to_owned()),
            }),
            partitions: Some(4),
            producers: None,
            quota: None,
            deduplication: None,
            when_full: Some(api::WhenFull::DropOldest),
        };
        for (name, size, reason) in [
            ("orders", "1Gi", "Ready"),
            ("orders", "1 GB", "InvalidSize"),
            ("my.orders", "1Gi", "InvalidName"),
            (&"o".repeat(64), "1Gi", "InvalidName"),
        ] {
            let (policy, diagnosis) = compile(
                &resolver,
                subject(name),
                &spec(size),
                InstallationQuotas::default(),
                None,
                &mut Bounds::default(),
            );
            assert_eq!(diagnosis.valid.reason, reason, "{name} {size}");
            let when_full = policy.map(|policy| policy.when_full);
            let expected = (reason == "Ready").then_some(Some(routing::WhenFull::DropOldest));
            assert_eq!(when_full, expected);
        }
    }

    #[test]
    fn a_mistake_elsewhere_does_not_turn_deduplication_off() {
        let observed = Observed::default();
        let resolver = Resolver::new(&observed, "cluster.local");
        let compiled = |name: &str, deduplication| {
            let subject = ResourceId {
                uid: "u".into(),
                namespace: "shop".into(),
                name: name.into(),
                generation: 1,
            };
            let spec = api::BrokerSpec {
                retention: Some(api::BrokerRetention {
                    age: None,
                    size: Some("1 GB".to_owned()),
                }),
                partitions: None,
                producers: None,
                quota: None,
                deduplication,
                when_full: None,
            };
            let quotas = InstallationQuotas::default();
            let (policy, diagnosis) =
                compile(&resolver, subject, &spec, quotas, None, &mut Bounds::default());
            assert!(!diagnosis.valid.holds);
            policy.map(|policy| (policy.producers, policy.deduplication.map(|held| held.events)))
        };
        let deduplication = || {
            Some(api::BrokerDeduplication {
                window: None,
                events: Some(5),
            })
        };
        assert_eq!(compiled("orders", deduplication()), Some((None, Some(5))));
        assert_eq!(compiled("orders", None), None);
        assert_eq!(compiled("my.orders", deduplication()), None);
    }

    #[test]
    fn the_installations_limits_hold_and_are_said() {
        let observed = Observed::default();
        let resolver = Resolver::new(&observed, "cluster.local");
        let subject = ResourceId {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "orders".into(),
            generation: 1,
        };
        let quota = |events, event_size| Quota {
            events_per_second: NonZeroU32::new(events),
            event_size,
            bytes: event_size.map(|size| size * 1024),
        };
        let limits = quota(100, Some(1024));
        let quotas = InstallationQuotas {
            limits,
            defaults: quota(80, None),
            ..InstallationQuotas::default()
        };
        for (events_per_second, event_size, expected, said) in [
            (
                None,
                None,
                quota(80, Some(1024)),
                "accepted for broker shop/orders",
            ),
            (
                Some(50),
                Some("512"),
                quota(50, Some(512)),
                "accepted for broker shop/orders",
            ),
            (
                Some(500),
                None,
                limits,
                "eventsPerSecond: the installation's limit of 100 holds",
            ),
            (
                None,
                Some("1Mi"),
                quota(80, Some(1024)),
                "eventSize: the installation's limit of 1024 bytes holds; spec.quota.bytes: the installation's limit of \
                 1048576 bytes holds",
            ),
            (Some(0), None, Quota::default(), "must be at least 1"),
            (
                None,
                Some("1MB"),
                Quota::default(),
                "spec.quota.eventSize: \"1MB\" is not a size",
            ),
        ] {
            let spec = api::BrokerSpec {
                producers: None,
                retention: None,
                partitions: None,
                quota: Some(api::BrokerQuota {
                    events_per_second,
                    event_size: event_size.map(str::to_owned),
                    bytes: event_size.map(|size| size.replace("512", "512Ki").replace("1Mi", "1Gi")),
                }),
                deduplication: None,
                when_full: None,
            };
            let (policy, diagnosis) = compile(
                &resolver,
                subject.clone(),
                &spec,
                quotas,
                None,
                &mut Bounds::default(),
            );
            let message = diagnosis.valid.message;
            assert!(message.contains(said), "{message}");
            assert_eq!(
                policy.map(|policy| policy.quota).unwrap_or_default(),
                expected,
                "{said}"
            );
        }
    }

    #[test]
    fn deduplication_is_held_within_the_installations_limits() {
        let observed = Observed::default();
        let resolver = Resolver::new(&observed, "cluster.local");
        let mut quotas = InstallationQuotas::default();
        quotas.deduplication.limits = DeduplicationSettings {
            window: Some(Duration::from_secs(3600)),
            events: Some(1000),
        };
        let deduplication = |window: Option<&str>, events| api::BrokerDeduplication {
            window: window.map(|window| window.parse().unwrap()),
            events,
        };
        let held = |window, events| {
            let window = Duration::from_secs(window);
            Some(routing::Deduplicated { window, events })
        };
        for (wanted, expected, said) in [
            (None, None, "accepted for broker shop/orders"),
            (
                Some(deduplication(None, None)),
                held(600, 1000),
                "accepted for broker shop/orders",
            ),
            (
                Some(deduplication(Some("0s"), None)),
                None,
                "accepted for broker shop/orders",
            ),
            (
                Some(deduplication(Some("2h"), Some(5000))),
                held(3600, 1000),
                "spec.deduplication.window: the installation's limit of 3600s holds; spec.deduplication.events: the \
                 installation's limit of 1000 holds",
            ),
        ] {
            let spec = api::BrokerSpec {
                producers: None,
                retention: None,
                partitions: None,
                quota: None,
                deduplication: wanted,
                when_full: None,
            };
            let subject = ResourceId {
                uid: "u".into(),
                namespace: "shop".into(),
                name: "orders".into(),
                generation: 1,
            };
            let mut bounds = Bounds::default();
            let (policy, diagnosis) = compile(&resolver, subject, &spec, quotas, None, &mut bounds);
            let message = diagnosis.valid.message;
            assert!(message.ends_with(said), "{message}");
            assert_eq!(policy.unwrap().deduplication, expected, "{said}");
        }
    }
}
