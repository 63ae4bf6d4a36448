//! The result of one check of a resource. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api;

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the check passed.
    pub holds: bool,
    /// Stable CamelCase word for machines and columns.
    pub reason: &'static str,
    /// The state, or what is wrong and what to do.
    pub message: String,
}

impl Finding {
    /// Creates a passed check.
    pub fn good(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: true,
            reason,
            message: message.into(),
        }
    }

    /// Creates a failed check.
    pub fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: false,
            reason,
            message: message.into(),
        }
    }

    /// Builds a condition of a resource's status. Its `lastTransitionTime` is that of the condition before, if that has the
    /// same status.
    pub fn condition(&self, r#type: &str, generation: i64, before: &[Condition], now: &Time) -> Condition {
        let status = if self.holds { "True" } else { "False" };
        self.condition_with_status(status, r#type, generation, before, now)
    }

    /// Builds a condition with this status, whether the check passed or not.
    pub fn condition_with_status(
        &self,
        status: &str,
        r#type: &str,
        generation: i64,
        before: &[Condition],
        now: &Time,
    ) -> Condition {
        let since = api::condition(before, r#type).filter(|before| before.status == status);
        Condition {
            type_: r#type.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            observed_generation: Some(generation),
            last_transition_time: since
                .map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
        }
    }
}
