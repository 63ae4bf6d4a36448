//! Why an event matches a filter or not: plain data, for humans and for `--output json`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cloudevents::{Event, Value};

/// Result of one clause of a filter, and of its nested clauses.
///
/// Displays as one line, without the nested clauses: `exact type = "a": the event has "b"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The clause: its dialect and condition, or the text of that part of a `sql` expression.
    pub clause: String,
    /// Result of the clause.
    pub outcome: ClauseOutcome,
    /// Attributes that it read, if it has no nested clauses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saw: Vec<ReadAttribute>,
    /// Why a `sql` or `cel` clause failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Nested clauses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clauses: Vec<Explanation>,
}

/// Result of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClauseOutcome {
    /// It holds.
    Holds,
    /// It does not hold, or failed with an error.
    Fails,
    /// Not evaluated, because earlier clauses of a `sql` expression decided.
    NotReached,
}

/// An attribute that a clause read, or a field of the data in a `cel` expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadAttribute {
    /// Name of the attribute, or path of the field, such as `data.order.id`.
    pub attribute: String,
    /// Canonical string; `None` if the event does not have it.
    pub value: Option<String>,
}

impl Explanation {
    pub(super) fn new(clause: impl Into<String>, holds: bool) -> Self {
        Self {
            clause: clause.into(),
            outcome: if holds {
                ClauseOutcome::Holds
            } else {
                ClauseOutcome::Fails
            },
            saw: Vec::new(),
            error: None,
            clauses: Vec::new(),
        }
    }

    /// Whether the clause holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.outcome == ClauseOutcome::Holds
    }
}

impl ReadAttribute {
    pub(super) fn new(attribute: &str, event: &Event) -> Self {
        Self {
            attribute: attribute.to_owned(),
            value: event.attribute(attribute).map(Value::to_string),
        }
    }
}

/// Puts an expression's text on a single line.
pub(super) fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\t'], " ")
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.clause)?;
        if !self.clauses.is_empty() {
            return Ok(());
        }
        if let Some(error) = &self.error {
            return write!(f, ": {error}");
        }
        for (index, ReadAttribute { attribute, value }) in self.saw.iter().enumerate() {
            f.write_str(if index == 0 { ": the event has " } else { ", " })?;
            match value {
                None => write!(f, "no {attribute}")?,
                Some(value) if self.saw.len() == 1 => write!(f, "{value:?}")?,
                Some(value) => write!(f, "{attribute} {value:?}")?,
            }
        }
        Ok(())
    }
}
