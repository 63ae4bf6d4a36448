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
    /// The `event` of a Source of kind kubernetes. Its expressions also have the variables `change`, `object` and
    /// `oldObject`.
    Objects,
}

impl TemplateOwner {
    /// Path of the template in `spec`.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Trigger => "transform",
            Self::Webhook => "webhook.event",
            Self::Objects => "kubernetes.event",
        }
    }

    /// Path of the attributes that are set.
    pub(super) const fn set(self) -> TemplatePath<'static> {
        match self {
            Self::Trigger => SET,
            Self::Webhook | Self::Objects => ATTRIBUTES,
        }
    }

    pub(super) fn parse(self, expression: &str) -> Result<CelExpression, CelParseError> {
        match self {
            Self::Trigger => CelExpression::parse_value(expression),
            Self::Webhook => CelExpression::parse_request_value(expression),
            Self::Objects => CelExpression::parse_change_value(expression),
        }
    }
}
