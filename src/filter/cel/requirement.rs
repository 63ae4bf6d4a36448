//! Derives a condition that every event matching an expression satisfies.

use cel::common::{ast::LiteralValue, types::CelString};

use super::{
    Expression,
    tree::{Node, OfTexts},
};
use crate::filter::Requirement;

impl Expression {
    /// Returns a condition that every matching event satisfies.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        requirement(&self.root)
    }
}

/// A string equals no value of another type, so `event.x == 'text'` requires one canonical string.
fn requirement(node: &Node) -> Requirement<'_> {
    match node {
        Node::And(nodes) => Requirement::All(nodes.iter().map(requirement).collect()),
        Node::Or(nodes) => Requirement::Any(nodes.iter().map(requirement).collect()),
        Node::Equal(nodes) => match &**nodes {
            [Node::Attribute(name), other] | [other, Node::Attribute(name)] => {
                text(other).map_or(Requirement::UNKNOWN, |text| Requirement::exact(name, text))
            }
            _ => Requirement::UNKNOWN,
        },
        Node::In(nodes) => match &**nodes {
            [Node::Attribute(name), Node::List(list)] => {
                let texts = list.iter().map(|element| element.downcast_ref::<CelString>());
                let terms = texts.map(|text| Some(Requirement::exact(name, text?.inner())));
                let terms = terms.collect::<Option<_>>();
                terms.map_or(Requirement::UNKNOWN, Requirement::Any)
            }
            _ => Requirement::UNKNOWN,
        },
        Node::OfTexts(OfTexts::StartsWith, nodes) => match &**nodes {
            [Node::Attribute(name), prefix] => {
                text(prefix).map_or(Requirement::UNKNOWN, |prefix| Requirement::prefix(name, prefix))
            }
            _ => Requirement::UNKNOWN,
        },
        _ => Requirement::UNKNOWN,
    }
}

fn text(node: &Node) -> Option<&str> {
    match node {
        Node::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
