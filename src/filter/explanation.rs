//! Why a filter lets an event pass or not: plain data, for people and for `--output json`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cloudevents::{Event, Value};

/// What became of one clause of a filter, and of those in it.
///
/// Displayed it is one line without those in it: `exact type = "a": the event has "b"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The clause: its dialect and what it asks for, or in a `sql` expression the text of that part.
    pub clause: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The attributes that it looked at, if there are no clauses in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saw: Vec<Seen>,
    /// Why a `sql` or `cel` clause has no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The clauses in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clauses: Vec<Explanation>,
}

/// What became of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not hold, or ended in an error.
    Fails,
    /// The clauses before it in a `sql` expression had decided.
    NotReached,
}

/// An attribute that a clause looked at, or in a `cel` expression a field of the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Its name; of a field of the data the path, such as `data.order.id`.
    pub attribute: String,
    /// Its canonical string; `None` if the event does not have it.
    pub value: Option<String>,
}

impl Explanation {
    pub(super) fn new(clause: impl Into<String>, holds: bool) -> Self {
        Self {
            clause: clause.into(),
            outcome: if holds { Outcome::Holds } else { Outcome::Fails },
            saw: Vec::new(),
            error: None,
            clauses: Vec::new(),
        }
    }

    /// Whether the clause holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.outcome == Outcome::Holds
    }
}

impl Seen {
    pub(super) fn new(attribute: &str, event: &Event) -> Self {
        Self {
            attribute: attribute.to_owned(),
            value: event.attribute(attribute).map(Value::to_string),
        }
    }
}

/// An expression's text for a single line.
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
        for (index, Seen { attribute, value }) in self.saw.iter().enumerate() {
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
