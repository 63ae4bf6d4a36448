//! The routing configuration computed by the controller: plain data, independent of Kubernetes.
//!
//! The controller sends it to routers as JSON, and each router keeps it on disk.

use std::{borrow::Cow, collections::BTreeSet, fmt, num::NonZeroU32, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    Authorities, CredentialDigest, Deduplicated, Destination, Producer, ProducerRules, Quota, Source,
    UnlistedBrokers, WhenFull,
};
use crate::{filter::Expression, transform::Transform};

/// Identifies a routing configuration by its content. The same resources give the same revision, whichever
/// controller computes it, and after any restart, unless a Sink is sent a token: each controller requests its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub String);

impl Revision {
    /// Whether it is the revision of no configuration.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything a router needs to know.
///
/// A Trigger or a Source that a router cannot decode, because a newer controller wrote it, fails alone: see
/// [`Configuration::undecodable`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "RawConfiguration")]
pub struct Configuration {
    /// Revision of this content.
    pub revision: Revision,
    /// Existing namespaces. Each has a broker `default`.
    pub namespaces: BTreeSet<String>,
    /// Brokers that a Broker, a Trigger or a Source names. They exist even on a router that cannot decode what names them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub brokers: BTreeSet<Broker>,
    /// Valid Brokers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<BrokerPolicy>,
    /// Quota of each broker without a Broker.
    #[serde(default, skip_serializing_if = "Quota::is_unlimited")]
    pub quota: Quota,
    /// Deduplication of each broker without a Broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<Deduplicated>,
    /// All Triggers, including those without a destination, which keep their position in the log.
    pub triggers: Vec<Trigger>,
    /// Valid Sources that are not suspended.
    pub sources: Vec<Source>,
    /// Authorities referenced by [`HttpEndpoint::ca_certs`](super::HttpEndpoint::ca_certs).
    #[serde(default, skip_serializing_if = "Authorities::is_empty")]
    pub authorities: Authorities,
    /// Rules about producers; `None` where nobody checks them, as in local mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producers: Option<ProducerRules>,
    /// Brokers whose Broker cannot be decoded, so that nobody knows who may post to them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub closed: BTreeSet<Broker>,
    /// UIDs of existing Triggers that the controller cannot decode because another version of Weir wrote them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unread: BTreeSet<String>,
    /// Items that this version cannot decode. The Triggers among them are in `unread` as well: their events wait.
    #[serde(skip)]
    pub undecodable: Vec<Undecodable>,
}

impl Configuration {
    /// Carries over the Triggers among `before` that could not be read this time. They keep their position, and
    /// their events wait until they can be read again. Triggers carried over earlier are kept.
    pub fn keep_unread<'a>(&mut self, before: impl IntoIterator<Item = &'a Trigger>) {
        let is_there = |uid: &str| self.triggers.iter().any(|trigger| trigger.uid == uid);
        let unread = before
            .into_iter()
            .filter(|trigger| self.unread.contains(&trigger.uid) && !is_there(&trigger.uid));
        let kept: Vec<_> = unread
            .map(|trigger| Trigger {
                destination: None,
                delivery: Delivery {
                    dead_letter_sink: None,
                    ..trigger.delivery.clone()
                },
                suspend: true,
                ..trigger.clone()
            })
            .collect();
        self.triggers.extend(kept);
    }
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Broker {
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace.
    pub name: String,
}

impl Broker {
    /// Returns the key of the broker: `namespace/name`.
    pub fn key(&self) -> String {
        broker_key(&self.namespace, &self.name)
    }
}

/// The settings of a broker, from a Broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BrokerPolicy {
    /// UID of the resource.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name of the Broker and of its broker.
    pub name: String,
    /// Generation of the resource.
    pub generation: i64,
    /// Maximum age of settled events; `None` for the router's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_age: Option<Duration>,
    /// Bytes of the broker's log beyond which settled events are removed; `None` for the router's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// Number of partitions, if no router has used the broker yet; `None` for the router's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u16>,
    /// Producers that may post; `None` if the installation's rule holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producers: Option<Vec<Producer>>,
    /// Limits of what producers may post, within those of the installation.
    #[serde(default, skip_serializing_if = "Quota::is_unlimited")]
    pub quota: Quota,
    /// Policy for new events when the quota or the namespace's share is used up; `None` for the router's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
    /// Deduplication of its events; `None` if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<Deduplicated>,
}

impl BrokerPolicy {
    /// Returns the policy without the digests of secrets, which could be guessed from them.
    pub fn without_secrets(&self) -> Self {
        let mut bare = self.clone();
        let producers = bare.producers.iter_mut().flatten();
        for secret in producers.filter_map(|producer| producer.identity.secret_mut()) {
            secret.digest = CredentialDigest::default();
        }
        bare
    }
}

/// Returns the key of a broker: `namespace/name`.
pub fn broker_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// A resolved Trigger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// UID of the resource. Progress is tied to it: a re-created Trigger has a different UID.
    pub uid: String,
    /// Namespace of the Trigger and of its broker.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Generation of the resource.
    pub generation: i64,
    /// Name of the broker, in the Trigger's namespace.
    pub broker: String,
    /// Filters that an event must all match. An empty list matches every event.
    pub filters: Vec<Expression>,
    /// Changes made to each event before it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transform>,
    /// Destination; `None` while the Sink is unresolved, in which case events wait.
    pub destination: Option<Destination>,
    /// Delivery settings.
    pub delivery: Delivery,
    /// Position at which a new Trigger starts.
    pub start: Start,
    /// Whether `start` is explicit. If it is not, a new Trigger resumes from the position of a deleted one with its
    /// name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub start_is_set: bool,
    /// Whether delivery is paused; events wait.
    pub suspend: bool,
    /// Why the controller rejected it. Its filters and its transform are omitted, and its events wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Trigger {
    /// Marks the Trigger as rejected. Replaces its filters, which must not be compiled, by one that matches nothing
    /// in any version of Weir. Removes its transform.
    pub fn reject(&mut self, reason: String) {
        self.filters = vec![Expression::Any(Vec::new())];
        self.transform = None;
        self.refused = Some(reason);
    }

    /// Iterates over the resolved destinations of events and dead letters.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.destination.iter().chain(&self.delivery.dead_letter_sink)
    }

    /// Returns the Trigger without secret values, cloning only if it has any.
    pub fn without_secrets(&self) -> Cow<'_, Self> {
        if !self.destinations().any(Destination::has_secrets) {
            return Cow::Borrowed(self);
        }
        let mut bare = self.clone();
        let destinations = [&mut bare.destination, &mut bare.delivery.dead_letter_sink];
        destinations
            .into_iter()
            .flatten()
            .for_each(Destination::clear_secrets);
        Cow::Owned(bare)
    }
}

/// Position at which a new Trigger starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// The next accepted event.
    #[default]
    Latest,
    /// The oldest retained event.
    Earliest,
    /// The first retained event accepted at or after this time.
    At(Timestamp),
}

/// Delivery settings: the Trigger's override its Sink's, which override the defaults.
///
/// Absent fields take their default, so that a router can start with a configuration stored by an earlier version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delivery {
    /// Limits of retries.
    pub retry: Retry,
    /// Growth of the delay between attempts.
    pub backoff_policy: BackoffPolicy,
    /// First delay. With full jitter, the actual delay is between zero and the computed one.
    pub backoff_delay: Duration,
    /// Maximum delay.
    pub backoff_max: Duration,
    /// Timeout of one attempt, from connecting to the end of the response.
    pub timeout: Duration,
    /// Longest `Retry-After` that is honoured.
    pub retry_after_max: Duration,
    /// Maximum number of events in flight to the Sink.
    pub concurrency: u32,
    /// Maximum rate of attempts.
    pub rate_limit: Option<RateLimit>,
    /// Order of delivery.
    pub ordering: Ordering,
    /// Destination of dead letters; `None` if the router keeps them.
    pub dead_letter_sink: Option<Destination>,
}

/// Maximum rate of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Sustained rate, in attempts per second.
    pub per_second: NonZeroU32,
    /// Attempts that may start at once after an idle period.
    pub burst: NonZeroU32,
}

/// Order of delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ordering {
    /// No order.
    #[default]
    None,
    /// An event waits until earlier events with the same `partitionkey` are settled.
    ByKey,
}

/// Limits of retries. The first limit reached ends them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Maximum number of attempts after the first.
    pub attempts: Option<u32>,
    /// Maximum time since the first attempt.
    pub duration: Option<Duration>,
}

/// Growth of the delay between attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackoffPolicy {
    /// Doubles each time.
    #[default]
    Exponential,
    /// Grows by the first delay each time.
    Linear,
}

impl Default for Delivery {
    /// Retries for a day, with delays of half a second to five minutes, a timeout of 30 seconds, and 32 events in
    /// flight.
    fn default() -> Self {
        Self {
            retry: Retry {
                attempts: None,
                duration: Some(Duration::from_secs(24 * 60 * 60)),
            },
            backoff_policy: BackoffPolicy::Exponential,
            backoff_delay: Duration::from_millis(500),
            backoff_max: Duration::from_secs(5 * 60),
            timeout: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(5 * 60),
            concurrency: 32,
            rate_limit: None,
            ordering: Ordering::None,
            dead_letter_sink: None,
        }
    }
}

/// An item of the routing configuration that this version cannot decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// UID.
    pub uid: String,
    /// `Broker`, `Trigger`, `Source` or `ProducerRules`.
    pub kind: &'static str,
    /// `namespace/name`.
    pub name: String,
    /// The error.
    pub error: String,
}

impl Undecodable {
    /// The broker that has its name.
    fn broker(&self) -> Option<Broker> {
        let (namespace, name) = self.name.split_once('/')?;
        Some(Broker {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            uid: _,
            kind,
            name,
            error,
        } = self;
        write!(f, "{kind} {name}: {error}")
    }
}

/// A configuration with undecoded items.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfiguration {
    revision: Revision,
    namespaces: BTreeSet<String>,
    #[serde(default)]
    brokers: BTreeSet<Broker>,
    #[serde(default)]
    policies: Vec<Box<RawValue>>,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    deduplication: Option<Deduplicated>,
    triggers: Vec<Box<RawValue>>,
    sources: Vec<Box<RawValue>>,
    #[serde(default)]
    authorities: Authorities,
    #[serde(default)]
    producers: Option<Box<RawValue>>,
    #[serde(default)]
    closed: BTreeSet<Broker>,
    #[serde(default)]
    unread: BTreeSet<String>,
}

/// Name of an item, which every version can decode.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ItemName {
    uid: String,
    namespace: String,
    name: String,
}

impl From<RawConfiguration> for Configuration {
    fn from(received: RawConfiguration) -> Self {
        let RawConfiguration {
            revision,
            namespaces,
            brokers,
            policies,
            quota,
            deduplication,
            triggers,
            sources,
            authorities,
            producers,
            mut closed,
            mut unread,
        } = received;
        let mut undecodable = Vec::new();
        let triggers = decode("Trigger", triggers, |item| {
            unread.insert(item.uid.clone());
            undecodable.push(item);
        });
        let sources = decode("Source", sources, |item| undecodable.push(item));
        let policies = decode("Broker", policies, |item| {
            closed.extend(item.broker());
            undecodable.push(item);
        });
        let producers = producers.map(|rules| decode_rules(&rules, &mut undecodable));
        Self {
            revision,
            namespaces,
            brokers,
            policies,
            quota,
            deduplication,
            triggers,
            sources,
            authorities,
            producers,
            closed,
            unread,
            undecodable,
        }
    }
}

/// Decodes the rules about producers. Rules that cannot be decoded let nobody in where they could matter.
fn decode_rules(rules: &RawValue, undecodable: &mut Vec<Undecodable>) -> ProducerRules {
    serde_json::from_str(rules.get()).unwrap_or_else(|error: serde_json::Error| {
        undecodable.push(Undecodable {
            uid: String::new(),
            kind: "ProducerRules",
            name: "of the installation".to_owned(),
            error: error.to_string(),
        });
        ProducerRules {
            others: UnlistedBrokers::Deny,
            ..ProducerRules::default()
        }
    })
}

/// Decodes items. Calls `failed` with those that cannot be decoded.
fn decode<T: DeserializeOwned>(
    kind: &'static str,
    items: Vec<Box<RawValue>>,
    mut failed: impl FnMut(Undecodable),
) -> Vec<T> {
    let mut decoded = Vec::with_capacity(items.len());
    for item in items {
        match serde_json::from_str(item.get()) {
            Ok(item) => decoded.push(item),
            Err(error) => {
                let ItemName { uid, namespace, name } = serde_json::from_str(item.get()).unwrap_or_default();
                let name = format!("{namespace}/{name}");
                let error = error.to_string();
                failed(Undecodable {
                    uid,
                    kind,
                    name,
                    error,
                });
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn unreadable_trigger_is_carried_over_and_waits() {
        let trigger = |uid: &str| Trigger {
            uid: uid.into(),
            namespace: "n".into(),
            name: uid.into(),
            generation: 1,
            broker: "b".into(),
            filters: vec![],
            destination: Some(Destination::to_uri("http://a/")),
            delivery: Delivery::default(),
            start: Start::Latest,
            transform: None,
            start_is_set: false,
            suspend: false,
            refused: None,
        };
        let before = ["unread", "read", "deleted"].map(trigger);
        let mut configuration = Configuration {
            triggers: vec![trigger("read")],
            unread: ["unread".to_owned(), "unknown".to_owned()].into(),
            ..Configuration::default()
        };
        configuration.keep_unread(&before);
        configuration.keep_unread(&before);
        let waiting = Trigger {
            destination: None,
            suspend: true,
            ..trigger("unread")
        };
        assert_eq!(configuration.triggers, [trigger("read"), waiting]);
    }

    #[test]
    fn undecodable_items_of_a_newer_controller_fail_alone() {
        let trigger = |name: &str, mode: &str| {
            json!({
                "uid": name, "namespace": "n", "name": name, "generation": 1, "broker": "b", "filters": [],
                "destination": {"uri": "http://a/", "service": null, "contentMode": mode},
                "delivery": Delivery::default(), "start": "Latest", "suspend": false,
            })
        };
        let with_transform = |name: &str, transform: Value| {
            let mut trigger = trigger(name, "Binary");
            trigger["transform"] = transform;
            trigger
        };
        let source = |name: &str, kind: &str, value: Value| json!({"uid": name, "namespace": "n", "name": name, "generation": 1, "broker": "b", kind: value});
        let cron = json!({"schedule": "* * * * *", "timeZone": "UTC", "attributes": [], "data": null});
        let configuration = json!({
            "revision": "1", "namespaces": ["n"], "brokers": [{"namespace": "n", "name": "b"}],
            "triggers": [
                trigger("old", "Binary"), trigger("new", "Newer"),
                with_transform("known", json!({"set": {"type": "t"}})),
                with_transform("newer", json!({"set": {"type": "t"}, "rename": {}})),
            ],
            "sources": [source("clock", "cron", cron), source("hook", "queue", json!({}))],
        });
        let configuration: Configuration = serde_json::from_str(&configuration.to_string()).unwrap();
        let names: Vec<_> = configuration
            .triggers
            .iter()
            .map(|trigger| &*trigger.name)
            .collect();
        assert_eq!(names, ["old", "known"]);
        assert_eq!(
            configuration.unread,
            ["new".to_owned(), "newer".to_owned()].into()
        );
        assert_eq!(configuration.sources.len(), 1);
        let errors: Vec<_> = configuration
            .undecodable
            .iter()
            .map(Undecodable::to_string)
            .collect();
        assert!(
            errors[0].starts_with("Trigger n/new: unknown variant `Newer`"),
            "{errors:?}"
        );
        assert!(
            errors[1].starts_with("Trigger n/newer: unknown field `rename`"),
            "{errors:?}"
        );
        assert!(
            errors[2].starts_with("Source n/hook: unknown field `queue`"),
            "{errors:?}"
        );
    }
}
