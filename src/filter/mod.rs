//! The filter dialects of the CloudEvents Subscriptions API.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One filter expression, as plain data.
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
}
