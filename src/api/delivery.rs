//! How events are delivered, as a manifest writes it; the same on a Sink and, over it, on a Trigger.

use std::num::NonZeroU32;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Destination;

/// A duration as it is written in a manifest: `500ms`, `30s`, `1h30m`.
pub type DurationText = kube::core::Duration;

/// How events are delivered. What is left out is taken from the Sink (retry and retryDuration together: one that is set
/// replaces both), and where the Sink says nothing either,
/// from the defaults named here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.backoffDelay) || !has(self.backoffMax) || duration(self.backoffDelay) <= duration(self.backoffMax)", "backoffDelay must not be longer than backoffMax")
)]
pub struct DeliverySpec {
    /// How many times a failed delivery is tried again after the first attempt. Together with retryDuration,
    /// whichever is reached first ends the retries. Default: no limit by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub retry: Option<u32>,

    /// How long a failed delivery is tried again, counted from the first attempt, for example 30m.
    /// 0s is not at all. Default: 24h if retry is not set either, else no limit by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_duration")]
    pub retry_duration: Option<DurationText>,

    /// How the pauses between attempts grow. The schema has the words of the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_policy: Option<BackoffPolicy>,

    /// The pause before the first retry. More than zero. Default: 500ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_positive_duration")]
    pub backoff_delay: Option<DurationText>,

    /// The longest pause between two attempts. More than zero. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_positive_duration")]
    pub backoff_max: Option<DurationText>,

    /// How long one attempt may take, from connecting to the end of the response. More than zero. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_positive_duration")]
    pub timeout: Option<DurationText>,

    /// How many events may be under way at once. 1 delivers one after another. Default: 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: Option<u32>,

    /// The longest Retry-After of a Sink's answer that is obeyed; 0s obeys none. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_duration")]
    pub retry_after_max: Option<DurationText>,

    /// How many attempts may begin in a time. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,

    /// Which events wait for which. The schema has the words of the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering: Option<Ordering>,

    /// Where an event goes whose delivery has ended without success: exactly one of ref, service and uri, of the
    /// namespace of the resource that this is written in. It is sent as it is, with the extension attributes
    /// weirerrordest, weirerrorcode, weirerrordata, weirerrorreason, weirerrorattempts and weirerrortrigger added,
    /// and tried again by the same rules. If that fails too, the router keeps it. Default: the router keeps dead
    /// letters for weir dead-letters to list, redrive and drop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_sink: Option<Destination>,
}

/// How many attempts may begin in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// In the long run.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub per_second: NonZeroU32,

    /// At once, after a pause. Default: as many as perSecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<NonZeroU32>,
}

/// Which events wait for which. ByKey delivers the events of one partitionkey (an extension attribute) one after
/// another, in the order in which they were accepted: a failing one holds those of its key, and no others. Events
/// without a partitionkey wait for none. None delivers all of them side by side. Default: None.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ordering {
    /// None waits.
    None,
    /// Events of one partitionkey go one after another.
    ByKey,
}

/// How the pauses between attempts grow: Exponential doubles them, Linear adds backoffDelay each time. Each pause is
/// drawn at random between zero and the computed one (full jitter). Default: Exponential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackoffPolicy {
    /// Each pause is twice the one before.
    Exponential,
    /// Each pause is longer than the one before by the first.
    Linear,
}
