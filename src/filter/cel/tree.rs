//! The expression as a tree: what is in the crate's, less what a filter may not have, with names and functions looked
//! up and constants made.

use cel::common::{
    ast::LiteralValue,
    types::{CelList, CelString},
};

use super::{network::Network, pattern::Pattern};

#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(LiteralValue),
    /// A list of constants.
    List(CelList<'static>),
    Network(Network),
    /// `event.type`.
    Attribute(Box<str>),
    /// `event.data`.
    Data,
    /// `has(event.type)`.
    HasAttribute(Box<str>),
    /// `has(event.data)`.
    HasData,
    Field(Box<Node>, CelString<'static>),
    HasField(Box<Node>, CelString<'static>),
    Index(Box<[Node; 2]>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    /// The condition, and what holds where it does and where it does not.
    Conditional(Box<[Node; 3]>),
    Equal(Box<[Node; 2]>),
    NotEqual(Box<[Node; 2]>),
    Compare(Comparison, Box<[Node; 2]>),
    In(Box<[Node; 2]>),
    Calculate(Arithmetic, Box<[Node; 2]>),
    Matches(Box<Node>, Box<Pattern>),
    /// A function that is called on a text, with another.
    OfTexts(OfTexts, Box<[Node; 2]>),
    /// A function that is called on a text.
    OfText(OfText, Box<Node>),
    Size(Box<Node>),
    Convert(Conversion, Box<Node>),
    /// A network, and an address.
    ContainsIp(Box<[Node; 2]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfTexts {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfText {
    LowerAscii,
    UpperAscii,
    Trim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    String,
    Int,
    Uint,
    Double,
    Bool,
}

impl Node {
    /// The nodes right below it.
    pub(super) fn children(&self) -> &[Self] {
        match self {
            Self::Literal(_)
            | Self::List(_)
            | Self::Network(_)
            | Self::Attribute(_)
            | Self::Data
            | Self::HasAttribute(_)
            | Self::HasData => &[],
            Self::Field(node, _)
            | Self::HasField(node, _)
            | Self::Not(node)
            | Self::Negate(node)
            | Self::Matches(node, _)
            | Self::OfText(_, node)
            | Self::Size(node)
            | Self::Convert(_, node) => std::slice::from_ref(node),
            Self::Index(nodes)
            | Self::And(nodes)
            | Self::Or(nodes)
            | Self::Equal(nodes)
            | Self::NotEqual(nodes)
            | Self::Compare(_, nodes)
            | Self::In(nodes)
            | Self::Calculate(_, nodes)
            | Self::OfTexts(_, nodes)
            | Self::ContainsIp(nodes) => &**nodes,
            Self::Conditional(nodes) => &**nodes,
        }
    }

    /// How many nodes there are, with the constants of lists.
    pub(super) fn count(&self) -> usize {
        let own = match self {
            Self::List(list) => 1 + list.inner().len(),
            _ => 1,
        };
        own + self.children().iter().map(Self::count).sum::<usize>()
    }

    /// How many bytes the patterns in it take.
    pub(super) fn patterns(&self) -> usize {
        let own = match self {
            Self::Matches(_, pattern) => pattern.size(),
            _ => 0,
        };
        own + self.children().iter().map(Self::patterns).sum::<usize>()
    }
}
