//! A transform as plain data, as in the routing configuration.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes of an event. Texts may contain `${expression}`, an expression in CEL; `$${` stands for `${`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Transform {
    /// Attributes that are set, with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Attributes that are removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub remove: BTreeSet<String>,
    /// Template of the new data; `None` if the data stays. A text that is a single `${expression}` becomes its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}
