//! The expression as a tree. Every node knows its position, and its type unless that depends on the event.

use super::{ParseError, ParseProblem, Scalar, Type, call::Call, pattern::Pattern};

/// A part of an expression's text, as a byte range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start, inclusive.
    pub start: usize,
    /// End, exclusive.
    pub end: usize,
}

impl Span {
    /// Returns the column of the start in the text: in characters, starting at 1.
    #[must_use]
    pub fn column(self, text: &str) -> usize {
        text.get(..self.start).map_or(0, |before| before.chars().count()) + 1
    }

    /// Returns the part of the text.
    #[must_use]
    pub fn of(self, text: &str) -> &str {
        text.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn error(self, text: &str, problem: ParseProblem) -> ParseError {
        ParseError {
            column: self.column(text),
            problem,
        }
    }

    pub(super) fn to(self, last: Self) -> Self {
        Self {
            start: self.start,
            end: last.end,
        }
    }
}

/// A value, an operator with its operands, or a function with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Includes enclosing parentheses.
    pub(super) span: Span,
    /// Number of levels, including its own.
    pub(super) height: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Literal(Scalar<'static>),
    /// Name of an attribute, in lower case.
    Attribute(Box<str>),
    Exists(Box<str>),
    Not(Box<Node>),
    Negate(Box<Node>),
    /// Two or more operands, each evaluated only if the earlier ones do not decide.
    Logic(Logic, Vec<Node>),
    Binary(Binary, Box<Node>, Box<Node>),
    Like {
        operand: Box<Node>,
        pattern: Pattern,
        negated: bool,
    },
    In {
        operand: Box<Node>,
        set: Vec<Node>,
        negated: bool,
    },
    Call(Call),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Equal,
    NotEqual,
    Compare(Comparison),
    Calculate(Arithmetic),
}

/// Of integers only.
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

impl Logic {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::And => "AND",
            Self::Or => "OR",
            Self::Xor => "XOR",
        }
    }
}

impl Binary {
    /// Precedence (section 3.6): the operator with the greater level binds tighter.
    pub(super) fn level(self) -> u8 {
        match self {
            Self::Equal | Self::NotEqual | Self::Compare(_) => 0,
            Self::Calculate(Arithmetic::Add | Arithmetic::Subtract) => 1,
            Self::Calculate(Arithmetic::Multiply | Arithmetic::Divide | Arithmetic::Remainder) => 2,
        }
    }
}

impl Node {
    /// Returns the type of the value; `None` if it depends on an attribute.
    pub(super) fn r#type(&self) -> Option<Type> {
        match &self.kind {
            Kind::Literal(value) => Some(value.r#type()),
            Kind::Attribute(_) => None,
            Kind::Exists(_) | Kind::Not(_) | Kind::Logic(..) | Kind::Like { .. } | Kind::In { .. } => {
                Some(Type::Boolean)
            }
            Kind::Binary(Binary::Equal | Binary::NotEqual | Binary::Compare(_), ..) => Some(Type::Boolean),
            Kind::Binary(Binary::Calculate(_), ..) | Kind::Negate(_) => Some(Type::Integer),
            Kind::Call(call) => Some(call.r#type()),
        }
    }

    /// Calls `see` with the node and its descendants, in source order.
    pub(super) fn for_each<'a>(&'a self, see: &mut impl FnMut(&'a Self)) {
        see(self);
        match &self.kind {
            Kind::Literal(_) | Kind::Attribute(_) | Kind::Exists(_) => {}
            Kind::Not(operand) | Kind::Negate(operand) | Kind::Like { operand, .. } => operand.for_each(see),
            Kind::Logic(_, operands) => operands.iter().for_each(|operand| operand.for_each(see)),
            Kind::Binary(_, left, right) => [left, right].into_iter().for_each(|node| node.for_each(see)),
            Kind::In { operand, set, .. } => {
                operand.for_each(see);
                set.iter().for_each(|element| element.for_each(see));
            }
            Kind::Call(call) => match call {
                Call::Abs(x)
                | Call::Bool(x)
                | Call::Int(x)
                | Call::Length(x)
                | Call::Lower(x)
                | Call::String(x)
                | Call::Trim(x)
                | Call::Upper(x) => x.for_each(see),
                Call::Concat(texts) => texts.iter().for_each(|text| text.for_each(see)),
                Call::ConcatWs { delimiter, texts } => {
                    delimiter.for_each(see);
                    texts.iter().for_each(|text| text.for_each(see));
                }
                Call::Left { text, count } | Call::Right { text, count } => {
                    [text, count].into_iter().for_each(|node| node.for_each(see));
                }
                Call::Substring {
                    text,
                    position,
                    length,
                } => {
                    let nodes = [text, position].into_iter().chain(length);
                    nodes.for_each(|node| node.for_each(see));
                }
            },
        }
    }
}
