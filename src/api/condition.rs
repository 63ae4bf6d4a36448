//! Conditions as every Weir resource carries them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Finds a condition by its type.
pub fn condition<'a>(conditions: &'a [Condition], r#type: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == r#type)
}
