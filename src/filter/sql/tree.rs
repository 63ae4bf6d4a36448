//! The expression as a tree. Every node knows its position, and its type unless that depends on the event.

use super::{Scalar, Span, Type, pattern::Pattern};

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

/// A function call with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Abs(Box<Node>),
    Bool(Box<Node>),
    Concat(Vec<Node>),
    ConcatWs {
        delimiter: Box<Node>,
        texts: Vec<Node>,
    },
    Int(Box<Node>),
    Left {
        text: Box<Node>,
        count: Box<Node>,
    },
    Length(Box<Node>),
    Lower(Box<Node>),
    Right {
        text: Box<Node>,
        count: Box<Node>,
    },
    String(Box<Node>),
    Substring {
        text: Box<Node>,
        position: Box<Node>,
        length: Option<Box<Node>>,
    },
    Trim(Box<Node>),
    Upper(Box<Node>),
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

impl Call {
    /// Names of the functions, in alphabetical order.
    pub(super) const NAMES: [&str; 13] = [
        "ABS",
        "BOOL",
        "CONCAT",
        "CONCAT_WS",
        "INT",
        "LEFT",
        "LENGTH",
        "LOWER",
        "RIGHT",
        "STRING",
        "SUBSTRING",
        "TRIM",
        "UPPER",
    ];

    /// Returns the type of the result.
    pub(super) fn r#type(&self) -> Type {
        match self {
            Self::Bool(_) => Type::Boolean,
            Self::Abs(_) | Self::Int(_) | Self::Length(_) => Type::Integer,
            Self::Concat(_)
            | Self::ConcatWs { .. }
            | Self::Left { .. }
            | Self::Lower(_)
            | Self::Right { .. }
            | Self::String(_)
            | Self::Substring { .. }
            | Self::Trim(_)
            | Self::Upper(_) => Type::String,
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
