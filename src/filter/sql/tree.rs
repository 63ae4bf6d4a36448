//! The expression as a tree. Every node knows its position, and its type unless that depends on the event.

use super::{Scalar, Span, Type, pattern::LikePattern};

/// A value, an operator with its operands, or a function with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SqlNode {
    pub(super) kind: SqlNodeKind,
    /// Includes enclosing parentheses.
    pub(super) span: Span,
    /// Number of levels, including its own.
    pub(super) height: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SqlNodeKind {
    Literal(Scalar<'static>),
    /// Name of an attribute, in lower case.
    Attribute(Box<str>),
    Exists(Box<str>),
    Not(Box<SqlNode>),
    Negate(Box<SqlNode>),
    /// Two or more operands, each evaluated only if the earlier ones do not decide.
    Logic(Logic, Vec<SqlNode>),
    Binary(Binary, Box<SqlNode>, Box<SqlNode>),
    Like {
        operand: Box<SqlNode>,
        pattern: LikePattern,
        negated: bool,
    },
    In {
        operand: Box<SqlNode>,
        set: Vec<SqlNode>,
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
    Compare(SqlComparison),
    Calculate(SqlArithmetic),
}

/// Of integers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SqlComparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SqlArithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// A function call with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Abs(Box<SqlNode>),
    Bool(Box<SqlNode>),
    Concat(Vec<SqlNode>),
    ConcatWs {
        delimiter: Box<SqlNode>,
        texts: Vec<SqlNode>,
    },
    Int(Box<SqlNode>),
    Left {
        text: Box<SqlNode>,
        count: Box<SqlNode>,
    },
    Length(Box<SqlNode>),
    Lower(Box<SqlNode>),
    Right {
        text: Box<SqlNode>,
        count: Box<SqlNode>,
    },
    String(Box<SqlNode>),
    Substring {
        text: Box<SqlNode>,
        position: Box<SqlNode>,
        length: Option<Box<SqlNode>>,
    },
    Trim(Box<SqlNode>),
    Upper(Box<SqlNode>),
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
            Self::Calculate(SqlArithmetic::Add | SqlArithmetic::Subtract) => 1,
            Self::Calculate(SqlArithmetic::Multiply | SqlArithmetic::Divide | SqlArithmetic::Remainder) => 2,
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

impl SqlNode {
    /// Returns the type of the value; `None` if it depends on an attribute.
    pub(super) fn r#type(&self) -> Option<Type> {
        match &self.kind {
            SqlNodeKind::Literal(value) => Some(value.r#type()),
            SqlNodeKind::Attribute(_) => None,
            SqlNodeKind::Exists(_)
            | SqlNodeKind::Not(_)
            | SqlNodeKind::Logic(..)
            | SqlNodeKind::Like { .. }
            | SqlNodeKind::In { .. } => Some(Type::Boolean),
            SqlNodeKind::Binary(Binary::Equal | Binary::NotEqual | Binary::Compare(_), ..) => {
                Some(Type::Boolean)
            }
            SqlNodeKind::Binary(Binary::Calculate(_), ..) | SqlNodeKind::Negate(_) => Some(Type::Integer),
            SqlNodeKind::Call(call) => Some(call.r#type()),
        }
    }

    /// Calls `see` with the node and its descendants, in source order.
    pub(super) fn for_each<'a>(&'a self, see: &mut impl FnMut(&'a Self)) {
        see(self);
        match &self.kind {
            SqlNodeKind::Literal(_) | SqlNodeKind::Attribute(_) | SqlNodeKind::Exists(_) => {}
            SqlNodeKind::Not(operand) | SqlNodeKind::Negate(operand) | SqlNodeKind::Like { operand, .. } => {
                operand.for_each(see)
            }
            SqlNodeKind::Logic(_, operands) => operands.iter().for_each(|operand| operand.for_each(see)),
            SqlNodeKind::Binary(_, left, right) => {
                [left, right].into_iter().for_each(|node| node.for_each(see))
            }
            SqlNodeKind::In { operand, set, .. } => {
                operand.for_each(see);
                set.iter().for_each(|element| element.for_each(see));
            }
            SqlNodeKind::Call(call) => match call {
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
