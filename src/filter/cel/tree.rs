//! The expression as a tree: the crate's tree without what filters may not use, with names and functions resolved
//! and constants compiled.

use cel::common::{
    ast::LiteralValue,
    types::{CelList, CelString},
};

use super::{network::Network, pattern::RegexPattern, time::CelTime};

#[derive(Clone, Debug)]
pub(super) enum CelNode {
    Literal(LiteralValue),
    /// A list of constants.
    List(CelList<'static>),
    /// A list with elements that have to be evaluated.
    NewList(Box<[CelNode]>),
    /// A map: its keys, and the value of each.
    NewMap(Box<[CelString<'static>]>, Box<[CelNode]>),
    Network(Network),
    Time(CelTime),
    /// The variable of the loop so many loops outward; 0 is the innermost.
    Variable(usize),
    /// `event.type`.
    Attribute(Box<str>),
    /// `event.data`.
    Data,
    /// `request`.
    Request,
    /// `body`.
    Body,
    /// `change`.
    Change,
    /// `object`.
    Object,
    /// `oldObject`.
    OldObject,
    /// `has(event.type)`.
    HasAttribute(Box<str>),
    /// `has(event.data)`.
    HasData,
    Field(Box<CelNode>, CelString<'static>),
    HasField(Box<CelNode>, CelString<'static>),
    Index(Box<[CelNode; 2]>),
    Not(Box<CelNode>),
    Negate(Box<CelNode>),
    And(Box<[CelNode; 2]>),
    Or(Box<[CelNode; 2]>),
    /// The condition, and the results if it is true and if it is false.
    Conditional(Box<[CelNode; 3]>),
    Equal(Box<[CelNode; 2]>),
    NotEqual(Box<[CelNode; 2]>),
    Compare(CelComparison, Box<[CelNode; 2]>),
    In(Box<[CelNode; 2]>),
    Calculate(CelArithmetic, Box<[CelNode; 2]>),
    Matches(Box<CelNode>, Box<RegexPattern>),
    /// A function of a text and an argument text.
    OfTexts(OfTexts, Box<[CelNode; 2]>),
    /// A function of a text.
    OfText(OfText, Box<CelNode>),
    Size(Box<CelNode>),
    Convert(Conversion, Box<CelNode>),
    /// A network and an address.
    ContainsIp(Box<[CelNode; 2]>),
    /// `timestamp` of what is not constant.
    ToTime(Box<CelNode>),
    /// A list or map, and a condition on its elements or keys.
    Quantify(Quantifier, Box<[CelNode; 2]>),
    /// A list or map, a condition, and the value collected for each element or key that meets it.
    Collect(Box<[CelNode; 3]>),
}

/// Macros whose value is a Boolean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantifier {
    Exists,
    All,
    ExistsOne,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CelComparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CelArithmetic {
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

impl CelNode {
    /// The direct children.
    pub(super) fn children(&self) -> &[Self] {
        match self {
            Self::Literal(_)
            | Self::List(_)
            | Self::Network(_)
            | Self::Time(_)
            | Self::Variable(_)
            | Self::Attribute(_)
            | Self::Request
            | Self::Body
            | Self::Change
            | Self::Object
            | Self::OldObject
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
            | Self::Convert(_, node)
            | Self::ToTime(node) => std::slice::from_ref(node),
            Self::Index(nodes)
            | Self::And(nodes)
            | Self::Or(nodes)
            | Self::Equal(nodes)
            | Self::NotEqual(nodes)
            | Self::Compare(_, nodes)
            | Self::In(nodes)
            | Self::Calculate(_, nodes)
            | Self::OfTexts(_, nodes)
            | Self::ContainsIp(nodes)
            | Self::Quantify(_, nodes) => &**nodes,
            Self::Conditional(nodes) | Self::Collect(nodes) => &**nodes,
            Self::NewList(nodes) | Self::NewMap(_, nodes) => nodes,
        }
    }

    /// Whether it has the variable `oldObject`.
    pub(super) fn reads_old_object(&self) -> bool {
        matches!(self, Self::OldObject) || self.children().iter().any(Self::reads_old_object)
    }

    /// Number of nodes, including the constants in lists.
    pub(super) fn count(&self) -> usize {
        let own = match self {
            Self::List(list) => 1 + list.inner().len(),
            _ => 1,
        };
        own + self.children().iter().map(Self::count).sum::<usize>()
    }

    /// Size of its patterns, in bytes.
    pub(super) fn patterns(&self) -> usize {
        let own = match self {
            Self::Matches(_, pattern) => pattern.size(),
            _ => 0,
        };
        own + self.children().iter().map(Self::patterns).sum::<usize>()
    }
}
