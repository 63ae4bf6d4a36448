//! Derives a condition that every event matching an expression satisfies.

use cel::common::{ast::LiteralValue, types::CelString};

use super::{
    CelExpression,
    tree::{CelNode, OfTexts},
};
use crate::filter::Requirement;

impl CelExpression {
    /// Returns a condition that every matching event satisfies.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        requirement(&self.root)
    }
}

/// A string equals no value of another type, so `event.x == 'text'` requires one canonical string.
fn requirement(node: &CelNode) -> Requirement<'_> {
    match node {
        CelNode::And(nodes) => Requirement::All(nodes.iter().map(requirement).collect()),
        CelNode::Or(nodes) => Requirement::Any(nodes.iter().map(requirement).collect()),
        CelNode::Equal(nodes) => match &**nodes {
            [CelNode::Attribute(name), other] | [other, CelNode::Attribute(name)] => {
                text(other).map_or(Requirement::UNKNOWN, |text| Requirement::exact(name, text))
            }
            _ => Requirement::UNKNOWN,
        },
        CelNode::In(nodes) => match &**nodes {
            [CelNode::Attribute(name), CelNode::List(list)] => {
                let texts = list.iter().map(|element| element.downcast_ref::<CelString>());
                let terms = texts.map(|text| Some(Requirement::exact(name, text?.inner())));
                let terms = terms.collect::<Option<_>>();
                terms.map_or(Requirement::UNKNOWN, Requirement::Any)
            }
            _ => Requirement::UNKNOWN,
        },
        CelNode::OfTexts(OfTexts::StartsWith, nodes) => match &**nodes {
            [CelNode::Attribute(name), prefix] => {
                text(prefix).map_or(Requirement::UNKNOWN, |prefix| Requirement::prefix(name, prefix))
            }
            _ => Requirement::UNKNOWN,
        },
        _ => Requirement::UNKNOWN,
    }
}

fn text(node: &CelNode) -> Option<&str> {
    match node {
        CelNode::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
