//! A filter as plain data, as it travels in the routing configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One filter expression.
///
/// The dialects are those of the CloudEvents Subscriptions API 1.0, and CEL; comparisons are case-sensitive and, but
/// for `sql` and `cel`, made on the canonical string of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Expression {
    /// Every named attribute has exactly the value.
    Exact(BTreeMap<String, String>),
    /// Every named attribute begins with the value.
    Prefix(BTreeMap<String, String>),
    /// Every named attribute ends with the value.
    Suffix(BTreeMap<String, String>),
    /// Every child holds.
    All(Vec<Expression>),
    /// At least one child holds.
    Any(Vec<Expression>),
    /// The child does not hold.
    Not(Box<Expression>),
    /// The CESQL expression is true, without an error.
    Sql(String),
    /// The CEL expression is true, without an error.
    Cel(String),
}
