//! Filters as plain data, as in the routing configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A filter expression.
///
/// The dialects are those of the CloudEvents Subscriptions API 1.0, and CEL. Comparisons are case-sensitive and,
/// except in `sql` and `cel`, made on the canonical string of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Expression {
    /// Every named attribute equals its value.
    Exact(BTreeMap<String, String>),
    /// Every named attribute starts with its value.
    Prefix(BTreeMap<String, String>),
    /// Every named attribute ends with its value.
    Suffix(BTreeMap<String, String>),
    /// Every child matches.
    All(Vec<Expression>),
    /// At least one child matches.
    Any(Vec<Expression>),
    /// The child does not match.
    Not(Box<Expression>),
    /// The CESQL expression evaluates to true, without an error.
    Sql(String),
    /// The CEL expression evaluates to true, without an error.
    Cel(String),
}
