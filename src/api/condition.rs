//! Status conditions, common to every Weir resource.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Returns the condition of the given type, if present.
pub fn condition<'a>(conditions: &'a [Condition], r#type: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == r#type)
}
