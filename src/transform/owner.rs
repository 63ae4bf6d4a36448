//! What a template belongs to.

use super::path::{ATTRIBUTES, SET, TemplatePath};
use crate::filter::cel::{CelExpression, CelParseError};

/// The resource that a template belongs to, which decides how its fields are called and which variables its expressions
/// have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateOwner {
    /// The `transform` of a Trigger.
    Trigger,
    /// The `event` of a webhook. Its expressions also have the variables `request` and `body`.
    Webhook,
}

impl TemplateOwner {
    /// Path of the template in `spec`.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Trigger => "transform",
            Self::Webhook => "webhook.event",
        }
    }

    /// Path of the attributes that are set.
    pub(super) const fn set(self) -> TemplatePath<'static> {
        match self {
            Self::Trigger => SET,
            Self::Webhook => ATTRIBUTES,
        }
    }

    pub(super) fn parse(self, expression: &str) -> Result<CelExpression, CelParseError> {
        match self {
            Self::Trigger => CelExpression::parse_value(expression),
            Self::Webhook => CelExpression::parse_request_value(expression),
        }
    }
}
