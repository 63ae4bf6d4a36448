//! The routing configuration: what the controller computed, as plain data that knows no Kubernetes.
//!
//! It travels from the controller to the routers as JSON and is kept on each router's disk.

use std::{borrow::Cow, collections::BTreeSet, fmt, num::NonZeroU32, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Authorities, AuthoritiesDigest};
use crate::filter::Expression;

/// Names one routing configuration by its content: the same resources give the same revision, whichever
/// controller computed it and however often it was restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub String);

/// Everything a router needs to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// The name of this content.
    pub revision: Revision,
    /// The namespaces that exist; each has a broker `default`.
    pub namespaces: BTreeSet<String>,
    /// Every Trigger, also those that cannot be delivered at present: they keep their place in the log.
    pub triggers: Vec<Trigger>,
    /// Every Source that is valid and not suspended.
    pub sources: Vec<Source>,
    /// What the destinations' [`Destination::ca_certs`] name.
    #[serde(default, skip_serializing_if = "Authorities::is_empty")]
    pub authorities: Authorities,
    /// The UIDs of Triggers that are there and that the controller cannot read, as another version of Weir wrote them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unread: BTreeSet<String>,
}

impl Configuration {
    /// Takes over, of the Triggers that there were `before`, those that could not be read this time. They keep their
    /// place, and their events wait until somebody can read them again. Those that were taken over already stay.
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

/// A Trigger, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// Progress belongs to this: a re-created Trigger has another.
    pub uid: String,
    /// The namespace of the Trigger and of its broker.
    pub namespace: String,
    /// The Trigger's name.
    pub name: String,
    /// The generation of the resource that this was made from.
    pub generation: i64,
    /// The broker's name, in the Trigger's namespace.
    pub broker: String,
    /// All of them must hold; none lets every event pass.
    pub filters: Vec<Expression>,
    /// Where it delivers to; `None` while its Sink cannot be resolved: events wait.
    pub destination: Option<Destination>,
    /// How it delivers.
    pub delivery: Delivery,
    /// Where a new Trigger begins.
    pub start: Start,
    /// Whether somebody asked for that: it then also begins there where one of its name was before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub start_is_set: bool,
    /// Events wait while this is set.
    pub suspend: bool,
    /// Why the controller did not admit it: its filters are left out, and its events wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Trigger {
    /// Leaves out its filters, which are not to be compiled; in their place is one that lets nothing pass in any
    /// version of Weir.
    pub fn refuse(&mut self, reason: String) {
        self.filters = vec![Expression::Any(Vec::new())];
        self.refused = Some(reason);
    }

    /// Where events and dead letters go, as far as that is known.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.destination.iter().chain(&self.delivery.dead_letter_sink)
    }

    /// The same without secret values, as far as it has any.
    pub fn without_secrets(&self) -> Cow<'_, Self> {
        if self
            .destinations()
            .all(|destination| destination.headers.is_empty())
        {
            return Cow::Borrowed(self);
        }
        let mut bare = self.clone();
        let destinations = [&mut bare.destination, &mut bare.delivery.dead_letter_sink];
        for destination in destinations.into_iter().flatten() {
            for header in &mut destination.headers {
                header.value = Secret::default();
            }
        }
        Cow::Owned(bare)
    }
}

/// Where a Trigger delivers to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// An absolute `http` or `https` URI.
    pub uri: String,
    /// The Service behind it, if it is one, so that a router outside the cluster can be told where it is.
    pub service: Option<ServiceName>,
    /// The mode that the Sink asks for.
    pub content_mode: ContentMode,
    /// The authorities that are trusted instead of the public ones, of those in [`Configuration::authorities`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certs: Option<AuthoritiesDigest>,
    /// What each request has besides the event's headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
}

/// A header with a secret value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Its name, in lower case.
    pub name: String,
    /// Its value.
    pub value: Secret,
    /// What is another one whenever the value is, and tells nothing of it: a revision is made from this, since it is
    /// logged and shown in metrics, and a hash of a value could be used to guess it.
    pub version: String,
}

/// A value that is shown to nobody. It is written as it is where it is serialised: the way to a router, and a router's
/// disk.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The value, for what it is meant for.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The mode in which events are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentMode {
    /// Binary or structured as the event came in; an event of a batch leaves structured.
    #[default]
    AsReceived,
    /// HTTP binary mode.
    Binary,
    /// HTTP structured mode in the JSON event format.
    Structured,
}

/// Where a new Trigger begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// With the next event that is accepted.
    #[default]
    Latest,
    /// With the oldest event that is retained.
    Earliest,
    /// With the first retained event that was accepted at this time or later.
    At(Timestamp),
}

/// How a Trigger delivers: the Trigger's own settings over its Sink's over the defaults.
///
/// What is absent takes its default, so that a router can start with what an earlier version kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delivery {
    /// How long a failing event is tried again.
    pub retry: Retry,
    /// How the pauses between attempts grow.
    pub backoff_policy: BackoffPolicy,
    /// The first pause; full jitter takes between zero and the computed pause.
    pub backoff_delay: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// How long one attempt may take, from connecting to the response's end.
    pub timeout: Duration,
    /// The longest `Retry-After` that is obeyed.
    pub retry_after_max: Duration,
    /// How many events are under way to the Sink at once.
    pub concurrency: u32,
    /// How many attempts may begin in a time.
    pub rate_limit: Option<RateLimit>,
    /// Which events wait for which.
    pub ordering: Ordering,
    /// Where dead letters go; `None` if the router keeps them.
    pub dead_letter_sink: Option<Destination>,
}

/// How many attempts may begin in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// In the long run.
    pub per_second: NonZeroU32,
    /// At once, after a pause.
    pub burst: NonZeroU32,
}

/// Which events wait for which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ordering {
    /// None.
    #[default]
    None,
    /// An event waits until those before it with the same `partitionkey` are settled.
    ByKey,
}

/// When to give an event up: whichever of the two comes first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts after the first.
    pub attempts: Option<u32>,
    /// Time since the first attempt.
    pub duration: Option<Duration>,
}

/// How the pauses between attempts grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackoffPolicy {
    /// Twice as long each time.
    #[default]
    Exponential,
    /// Longer by the first pause each time.
    Linear,
}

impl Default for Delivery {
    /// Attempts for a day, pauses from half a second to five minutes, 30 seconds an attempt, 32 at once.
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

/// A Source, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The resource's UID.
    pub uid: String,
    /// Its namespace, and its broker's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The generation of the resource that this was made from.
    pub generation: i64,
    /// The broker that its events are posted to.
    pub broker: String,
    /// What it makes events from.
    pub cron: Cron,
}

/// A schedule, and the event that each of its times makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cron {
    /// Five fields: minute, hour, day of month, month, day of week.
    pub schedule: String,
    /// An IANA time zone.
    pub time_zone: String,
    /// The events' attributes in order, without `id`, `time` and `specversion`.
    pub attributes: Vec<(String, String)>,
    /// The events' data.
    pub data: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_of_an_earlier_version_has_no_credentials() {
        let text = r#"{"uri":"http://a/","service":null,"contentMode":"AsReceived"}"#;
        let destination: Destination = serde_json::from_str(text).unwrap();
        assert_eq!((&destination.ca_certs, &*destination.headers), (&None, &[][..]));
        assert_eq!(serde_json::to_string(&destination).unwrap(), text);
    }

    #[test]
    fn a_trigger_that_cannot_be_read_stays_as_it_was_and_waits() {
        let trigger = |uid: &str| Trigger {
            uid: uid.into(),
            namespace: "n".into(),
            name: uid.into(),
            generation: 1,
            broker: "b".into(),
            filters: vec![],
            destination: Some(Destination {
                uri: "http://a/".into(),
                service: None,
                content_mode: ContentMode::AsReceived,
                ca_certs: None,
                headers: vec![],
            }),
            delivery: Delivery::default(),
            start: Start::Latest,
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
    fn a_secret_is_written_but_not_shown() {
        let secret = Secret::from("s3cret".to_owned());
        assert_eq!(format!("{secret:?}"), "[secret]");
        let json = serde_json::to_string(&secret).unwrap();
        assert_eq!(json, "\"s3cret\"");
        assert_eq!(serde_json::from_str::<Secret>(&json).unwrap(), secret);
    }
}
