//! Status conditions, common to every Weir resource.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Type of the condition that tells whether the events of a Source arrive. Absent while the Source is suspended or invalid.
pub const CONNECTED: &str = "Connected";

/// Returns the condition of the given type, if present.
pub fn condition<'a>(conditions: &'a [Condition], r#type: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == r#type)
}

/// Returns the time without the fraction of its second, as Kubernetes stores it.
#[must_use]
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
