//! The built-in functions (section 3.5): names, arguments and results.

use std::borrow::Cow;

use super::{
    Failure, ParseProblem, Problem, Scalar, Span, Type,
    evaluate::{Scope, boolean, integer, string, too_expensive},
    tree::Node,
};

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

/// Cost per byte of a function's text.
const TEXT: u64 = 2;

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

impl Call {
    /// Returns the call of the function with this name, in any case, if it exists and takes this many arguments.
    pub(super) fn new(name: &str, arguments: Vec<Node>) -> Result<Self, ParseProblem> {
        let name = name.to_ascii_uppercase();
        let given = arguments.len();
        let wrong = |takes| ParseProblem::Arguments {
            function: name.clone(),
            takes,
            given,
        };
        let mut arguments = arguments.into_iter();
        let mut next = || arguments.next().map(Box::new);
        let one = |call: fn(Box<Node>) -> Self, argument: Option<Box<Node>>| match argument {
            Some(argument) if given == 1 => Ok(call(argument)),
            _ => Err(wrong("one argument")),
        };
        match name.as_str() {
            "ABS" => one(Self::Abs, next()),
            "BOOL" => one(Self::Bool, next()),
            "INT" => one(Self::Int, next()),
            "LENGTH" => one(Self::Length, next()),
            "LOWER" => one(Self::Lower, next()),
            "STRING" => one(Self::String, next()),
            "TRIM" => one(Self::Trim, next()),
            "UPPER" => one(Self::Upper, next()),
            "LEFT" | "RIGHT" => match (next(), next()) {
                (Some(text), Some(count)) if given == 2 && name == "LEFT" => Ok(Self::Left { text, count }),
                (Some(text), Some(count)) if given == 2 => Ok(Self::Right { text, count }),
                _ => Err(wrong("two arguments")),
            },
            "SUBSTRING" => match (next(), next(), next()) {
                (Some(text), Some(position), length) if given <= 3 => Ok(Self::Substring {
                    text,
                    position,
                    length,
                }),
                _ => Err(wrong("two or three arguments")),
            },
            "CONCAT_WS" => match next() {
                Some(delimiter) => Ok(Self::ConcatWs {
                    delimiter,
                    texts: arguments.collect(),
                }),
                None => Err(wrong("one argument or more")),
            },
            "CONCAT" => Ok(Self::Concat(arguments.collect())),
            _ => Err(ParseProblem::UnknownFunction { name }),
        }
    }

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

    /// Evaluates the call on an event. `span` is that of the call.
    pub(super) fn evaluate<'a>(
        &'a self,
        span: Span,
        scope: Scope<'a, '_>,
    ) -> Result<Scalar<'a>, Failure<'a>> {
        let failed = |problem| Failure { span, problem };
        // Each of these traverses the text a few times, and may copy it.
        let text_of = |node: &'a Node| {
            let text = string(node, scope)?;
            scope.fuel.read(text.len(), TEXT).map_err(too_expensive(span))?;
            Ok(text)
        };
        Ok(match self {
            Self::Abs(x) => Scalar::Integer(
                integer(x, scope)?
                    .checked_abs()
                    .ok_or_else(|| failed(Problem::AbsoluteOverflow))?,
            ),
            Self::Bool(x) => Scalar::Boolean(boolean(x, scope)?),
            Self::Int(x) => Scalar::Integer(integer(x, scope)?),
            Self::Length(x) => {
                let text = string(x, scope)?;
                scope.fuel.pass(text.len()).map_err(too_expensive(span))?;
                Scalar::Integer(integer_of(text.chars().count()))
            }
            Self::Concat(texts) => Scalar::String(join("", texts, span, scope)?.into()),
            Self::ConcatWs { delimiter, texts } => {
                let delimiter = string(delimiter, scope)?;
                Scalar::String(join(&delimiter, texts, span, scope)?.into())
            }
            Self::Left { text, count } => {
                let (text, count) = (text_of(text)?, integer(count, scope)?);
                Scalar::String(left(text, count).map_err(failed)?)
            }
            Self::Right { text, count } => {
                let (text, count) = (text_of(text)?, integer(count, scope)?);
                Scalar::String(right(text, count).map_err(failed)?)
            }
            Self::Lower(x) => {
                let changes = |character: char| !character.is_ascii() || character.is_ascii_uppercase();
                Scalar::String(convert(text_of(x)?, changes, str::to_lowercase))
            }
            Self::Upper(x) => {
                let changes = |character: char| !character.is_ascii() || character.is_ascii_lowercase();
                Scalar::String(convert(text_of(x)?, changes, str::to_uppercase))
            }
            Self::String(x) => Scalar::String(string(x, scope)?),
            Self::Trim(x) => Scalar::String(part(text_of(x)?, str::trim)),
            Self::Substring {
                text,
                position,
                length,
            } => {
                let (text, position) = (text_of(text)?, integer(position, scope)?);
                let length = length.as_ref().map(|length| integer(length, scope)).transpose()?;
                Scalar::String(substring(text, position, length).map_err(failed)?)
            }
        })
    }
}

/// Converts a count. No event has enough characters to overflow it.
fn integer_of(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn join<'a>(
    delimiter: &str,
    texts: &'a [Node],
    span: Span,
    scope: Scope<'a, '_>,
) -> Result<String, Failure<'a>> {
    let mut joined = String::new();
    for (index, text) in texts.iter().enumerate() {
        let text = string(text, scope)?;
        let delimiter = if index > 0 { delimiter } else { "" };
        let added = delimiter.len() + text.len();
        scope.fuel.read(added, 1).map_err(too_expensive(span))?;
        joined.push_str(delimiter);
        joined.push_str(&text);
    }
    Ok(joined)
}

/// Converts a text, without copying it if no character changes.
fn convert<'a>(
    text: Cow<'a, str>,
    may_change: fn(char) -> bool,
    convert: fn(&str) -> String,
) -> Cow<'a, str> {
    if text.contains(may_change) {
        Cow::Owned(convert(&text))
    } else {
        text
    }
}

/// Returns a part of a text, borrowed if the text is.
fn part<'a>(text: Cow<'a, str>, of: impl Fn(&str) -> &str) -> Cow<'a, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(of(text)),
        Cow::Owned(text) => Cow::Owned(of(&text).to_owned()),
    }
}

/// Returns the byte offset of a character, counted from 0, or of the end of the text if it is shorter.
fn offset(text: &str, characters: usize) -> usize {
    text.char_indices()
        .nth(characters)
        .map_or(text.len(), |(offset, _)| offset)
}

/// Checks that a character count is not negative.
fn count_of<'a>(text: &Cow<'a, str>, count: i32) -> Result<usize, Problem<'a>> {
    usize::try_from(count).map_err(|_| Problem::NegativeCount {
        text: text.clone(),
        count,
    })
}

fn left(text: Cow<'_, str>, count: i32) -> Result<Cow<'_, str>, Problem<'_>> {
    let count = count_of(&text, count)?;
    Ok(part(text, |text| text.split_at(offset(text, count)).0))
}

fn right(text: Cow<'_, str>, count: i32) -> Result<Cow<'_, str>, Problem<'_>> {
    let count = count_of(&text, count)?;
    Ok(part(text, |text| {
        let skipped = text.chars().count().saturating_sub(count);
        text.split_at(offset(text, skipped)).1
    }))
}

fn substring(text: Cow<'_, str>, position: i32, length: Option<i32>) -> Result<Cow<'_, str>, Problem<'_>> {
    let length = match length {
        None => usize::MAX,
        Some(length) => usize::try_from(length).map_err(|_| Problem::NegativeLength(length))?,
    };
    if position == 0 {
        return Ok(Cow::Borrowed(""));
    }
    let characters = text.chars().count();
    let distance = position.unsigned_abs() as usize;
    if distance > characters {
        return Err(Problem::Position {
            position,
            length: characters,
        });
    }
    let start = if position > 0 {
        distance - 1
    } else {
        characters - distance
    };
    Ok(part(text, |text| {
        let rest = text.split_at(offset(text, start)).1;
        rest.split_at(offset(rest, length)).0
    }))
}
