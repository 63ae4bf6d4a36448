//! Derives a condition that every event matching an expression satisfies.

use super::{
    Scalar,
    tree::{Binary, Logic, SqlNode, SqlNodeKind},
};
use crate::filter::Requirement;

impl SqlNode {
    /// Returns a condition that every event satisfies for which the node is true without an error.
    pub(super) fn requirement(&self) -> Requirement<'_> {
        match &self.kind {
            SqlNodeKind::Logic(Logic::And, operands) => Requirement::All(each(operands)),
            SqlNodeKind::Logic(Logic::Or, operands) => Requirement::Any(each(operands)),
            SqlNodeKind::Binary(Binary::Equal, left, right) => match (&left.kind, &right.kind) {
                // Casts the attribute to String. In the other direction, or with a number, several strings can be
                // equal.
                (SqlNodeKind::Attribute(name), SqlNodeKind::Literal(Scalar::String(text))) => {
                    Requirement::exact(name, &**text)
                }
                _ => Requirement::UNKNOWN,
            },
            SqlNodeKind::Like {
                operand,
                pattern,
                negated: false,
            } => match (&operand.kind, pattern.only()) {
                (SqlNodeKind::Attribute(name), Some(text)) => Requirement::exact(name, text),
                (SqlNodeKind::Attribute(name), None) => Requirement::prefix(name, pattern.beginning()),
                _ => Requirement::UNKNOWN,
            },
            SqlNodeKind::In {
                operand,
                set,
                negated: false,
            } => match &operand.kind {
                SqlNodeKind::Attribute(name) => one_of(name, set),
                _ => Requirement::UNKNOWN,
            },
            _ => Requirement::UNKNOWN,
        }
    }
}

/// `IN` casts the elements to the type of the attribute: several strings can equal one number or Boolean.
fn one_of<'a>(name: &'a str, set: &'a [SqlNode]) -> Requirement<'a> {
    let one = |element: &'a SqlNode| match &element.kind {
        SqlNodeKind::Literal(text @ Scalar::String(value)) if is_only_text(text) => {
            Some(Requirement::exact(name, &**value))
        }
        _ => None,
    };
    set.iter()
        .map(one)
        .collect::<Option<_>>()
        .map_or(Requirement::UNKNOWN, Requirement::Any)
}

/// Whether the value can be cast only to String.
fn is_only_text(value: &Scalar) -> bool {
    value.borrowed().boolean().is_err() && value.borrowed().integer().is_err()
}

fn each(nodes: &[SqlNode]) -> Vec<Requirement<'_>> {
    nodes.iter().map(SqlNode::requirement).collect()
}
