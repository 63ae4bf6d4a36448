//! Delivery settings of a Sink, and of a Trigger, which override the Sink's.

use std::num::NonZeroU32;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Destination;

/// A duration in a manifest, such as `500ms`, `30s` or `1h30m`.
pub type DurationText = kube::core::Duration;

/// Delivery settings. A field that is unset is taken from the Sink and then from the defaults given here. `retry`
/// and `retryDuration` are inherited together: setting either replaces both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.backoffDelay) || !has(self.backoffMax) || duration(self.backoffDelay) <= duration(self.backoffMax)", "backoffDelay must not be longer than backoffMax")
)]
pub struct DeliverySpec {
    /// Maximum number of retries after the first attempt. If retryDuration is also set, retries end at whichever
    /// limit is reached first. Default: no limit on the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub retry: Option<u32>,

    /// Time for which a failed delivery is retried, counted from the first attempt, for example 30m. 0s disables
    /// retries. Default: 24h if retry is not set either, else no time limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_duration")]
    pub retry_duration: Option<DurationText>,

    /// Growth of the delay between attempts. `kubectl explain` shows the doc comment of the type instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_policy: Option<BackoffPolicy>,

    /// Delay before the first retry. Must be greater than zero. Default: 500ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_positive_duration")]
    pub backoff_delay: Option<DurationText>,

    /// Maximum delay between two attempts. Must be greater than zero. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_positive_duration")]
    pub backoff_max: Option<DurationText>,

    /// Timeout of one attempt, from connecting to the end of the response. Must be greater than zero. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_positive_duration")]
    pub timeout: Option<DurationText>,

    /// Maximum number of events in flight at once: per router with embedded logs, in total with JetStream, where the
    /// partitions of the broker share it equally, with at least one each. 1 delivers one event at a time if the broker
    /// has one partition. Default: 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: Option<u32>,

    /// Longest Retry-After of the Sink that is honoured. 0s ignores Retry-After. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_duration")]
    pub retry_after_max: Option<DurationText>,

    /// Maximum rate of delivery attempts: per router with embedded logs, in total with JetStream, where the partitions
    /// of the broker share it equally. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,

    /// Order of delivery. `kubectl explain` shows the doc comment of the type instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering: Option<Ordering>,

    /// Destination for events whose delivery has failed for good: exactly one of ref, service and uri. A reference
    /// is resolved in the namespace of the resource it is written in. The event is sent unchanged except for the
    /// added extension attributes weirerrordest, weirerrorcode, weirerrordata, weirerrorreason, weirerrorattempts
    /// and weirerrortrigger. It is retried by the same rules as any delivery; if that fails too, the router keeps
    /// it. Default: the router keeps dead letters, to be listed, redriven and dropped with weir dead-letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_sink: Option<Destination>,
}

/// Maximum rate of delivery attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Sustained rate, in attempts per second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub per_second: NonZeroU32,

    /// Attempts that may start at once after an idle period. Default: the value of perSecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<NonZeroU32>,
}

/// Order of delivery. None delivers events concurrently, in no particular order. ByKey delivers events with the
/// same partitionkey (an extension attribute) one at a time, in the order in which they were accepted; a failing
/// event blocks only the events with its key. Events without a partitionkey are not ordered. Default: None.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ordering {
    /// No order.
    None,
    /// Events with the same partitionkey are delivered one at a time, in order.
    ByKey,
}

/// Growth of the delay between attempts: Exponential doubles it, Linear adds backoffDelay each time. The actual
/// delay is drawn at random between zero and the computed one (full jitter). Default: Exponential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackoffPolicy {
    /// Doubles the delay each time.
    Exponential,
    /// Adds `backoffDelay` each time.
    Linear,
}
