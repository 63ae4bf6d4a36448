//! Explains the result of an expression on an event, and the fields that it read.

use std::collections::BTreeSet;

use cel::common::{
    types::{CelNull, CelString},
    value::Val,
};

use super::{CelExpression, CelFailure, check::DATA, evaluate::CelScope, scalar::scalar_text, tree::CelNode};
use crate::filter::{
    Subject,
    explanation::{Explanation, ReadAttribute, one_line},
    fuel::Fuel,
};

/// Maximum number of characters shown of a text in the data.
const MAX_SHOWN: usize = 256;

impl CelExpression {
    /// Explains the result of the expression: the fields that it references, including those of the data, and the
    /// error if it failed.
    #[must_use]
    pub fn explain(&self, subject: &Subject) -> Explanation {
        self.explain_within(subject, &Fuel::new())
    }

    /// Explains within the remaining budget.
    pub(in crate::filter) fn explain_within(&self, subject: &Subject, fuel: &Fuel) -> Explanation {
        let result = self.decide(subject, fuel);
        let clause = format!("cel {}", one_line(self.text.trim()));
        let mut explanation = Explanation::new(clause, result == Ok(true));
        explanation.error = result.err().map(|failure| failure.to_string());
        let (scope, mut told) = (CelScope::new(subject, fuel), BTreeSet::new());
        for_each_field(&self.root, &mut |path, shown| {
            if told.insert(path.clone()) {
                let value = match shown {
                    // For `has(event.field)`, the field is shown too.
                    Shown::Part(node) => scope.value(node).map(|value| text(&*value)),
                    Shown::Attribute(name) => scope.attribute(name).map(|value| text(&*value)),
                    Shown::Data => scope.data().map(|value| text(&*value)),
                    Shown::Field(operand, name) => scope.value(operand).map(|value| {
                        let field = value.as_indexer()?.get(name).ok()?;
                        text(&*field)
                    }),
                };
                let value: Result<_, CelFailure> = value;
                explanation.saw.push(ReadAttribute {
                    attribute: path,
                    value: value.ok().flatten(),
                });
            }
        });
        explanation
    }
}

/// Formats a scalar as its value, and anything else as its type.
fn text(value: &dyn Val) -> Option<String> {
    Some(if let Some(text) = value.downcast_ref::<CelString>() {
        text.inner().chars().take(MAX_SHOWN).collect()
    } else if let Some(text) = scalar_text(value) {
        text
    } else if value.downcast_ref::<CelNull>().is_some() {
        "null".to_owned()
    } else {
        format!("a {}", value.get_type().name())
    })
}

/// How a field is shown.
enum Shown<'a> {
    Part(&'a CelNode),
    Attribute(&'a str),
    Data,
    Field(&'a CelNode, &'a CelString<'static>),
}

/// Calls `see` with the event fields that a part of an expression references, with the longest path.
fn for_each_field<'a>(node: &'a CelNode, see: &mut impl FnMut(String, Shown<'a>)) {
    match (node, path(node)) {
        (CelNode::HasAttribute(name), Some(path)) => see(path, Shown::Attribute(name)),
        (CelNode::HasData, Some(path)) => see(path, Shown::Data),
        (CelNode::HasField(operand, name), Some(path)) => see(path, Shown::Field(operand, name)),
        (node, Some(path)) => see(path, Shown::Part(node)),
        (node, None) => node
            .children()
            .iter()
            .for_each(|child| for_each_field(child, see)),
    }
}

/// Returns `data.order.id` for `event.data.order.id`.
fn path(node: &CelNode) -> Option<String> {
    match node {
        CelNode::Attribute(name) | CelNode::HasAttribute(name) => Some(name.to_string()),
        CelNode::Data | CelNode::HasData => Some(DATA.to_owned()),
        CelNode::Field(operand, name) | CelNode::HasField(operand, name) => {
            Some(format!("{}.{}", path(operand)?, name.inner()))
        }
        _ => None,
    }
}
