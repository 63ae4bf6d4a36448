//! Checks a transform and compiles its expressions.

use serde_json::Value;

use super::{
    TemplateOwner, Transform,
    error::{TransformError, TransformProblem},
    limits::MAX_DEPTH,
    path::{DATA, REMOVE, TemplatePath},
    text::{TextPiece, pieces},
};
use crate::{
    cloudevents::{EventBuilder, EventChanges, Invalid},
    filter::{
        MAX_PARTS, MAX_SIZE, MAX_TEXT,
        cel::{CelExpression, CelParseError},
    },
};

/// Size of a part apart from its texts.
const PART: usize = 256;

/// The content type of the data.
pub(super) const CONTENT_TYPE: &str = "datacontenttype";

/// Attributes with their values.
type TemplateAttributes = Box<[(Box<str>, TemplateText)]>;

/// A transform whose expressions are compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledTransform {
    pub(super) owner: TemplateOwner,
    pub(super) set: TemplateAttributes,
    pub(super) remove: Box<[Box<str>]>,
    pub(super) data: Option<TemplateNode>,
    reads_old_object: bool,
    size: usize,
}

/// A text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TemplateText {
    Literal(Box<str>),
    /// A single expression.
    Value(CelExpression),
    Parts(Box<[TextPart]>),
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TextPart {
    Literal(Box<str>),
    Expression(CelExpression),
}

/// A value of the data template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TemplateNode {
    /// A value without expressions.
    Literal(Value),
    Text(TemplateText),
    List(Box<[TemplateNode]>),
    Object(Box<[(Box<str>, TemplateNode)]>),
}

impl CompiledTransform {
    /// Compiles the transform of a Trigger.
    ///
    /// # Errors
    /// The first problem, with the field.
    pub fn compile(transform: &Transform) -> Result<Self, TransformError> {
        Self::compile_of(TemplateOwner::Trigger, transform)
    }

    /// Compiles a transform.
    ///
    /// # Errors
    /// The first problem, with the field.
    pub fn compile_of(owner: TemplateOwner, transform: &Transform) -> Result<Self, TransformError> {
        let Transform { set, remove, data } = transform;
        let root = |problem| TransformError {
            path: owner.field().to_owned(),
            problem,
        };
        if set.is_empty() && remove.is_empty() && data.is_none() {
            return Err(root(TransformProblem::Nothing));
        }
        let texts = set.iter().map(|(name, value)| name.len() + value.len());
        let names = remove.iter().map(String::len);
        let text = texts.chain(names).sum::<usize>() + data.as_ref().map_or(0, text_of);
        if text > MAX_TEXT {
            return Err(root(TransformProblem::TooMuchText));
        }
        let mut compiler = Compiler {
            owner,
            parts: 0,
            patterns: 0,
            reads_old_object: false,
        };
        let compiled = Self {
            owner,
            set: compiler.set(transform)?,
            remove: compiler.removed(transform)?,
            data: data
                .as_ref()
                .map(|data| compiler.node(data, &DATA, 0))
                .transpose()?,
            reads_old_object: compiler.reads_old_object,
            size: compiler.parts * PART + 2 * text + compiler.patterns,
        };
        if compiler.parts > MAX_PARTS {
            return Err(root(TransformProblem::TooManyParts));
        }
        if compiled.size > MAX_SIZE {
            return Err(root(TransformProblem::TooLarge));
        }
        Ok(compiled)
    }

    /// Whether an expression has the variable `oldObject`.
    #[must_use]
    pub fn reads_old_object(&self) -> bool {
        self.reads_old_object
    }

    /// Approximate size in bytes. The same on every machine.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Bytes of the names and values of a template.
fn text_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_of).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| name.len() + text_of(value))
            .sum(),
    }
}

/// Checks that an attribute may be changed.
fn check_name(name: &str) -> Result<(), TransformProblem> {
    let is_reserved =
        matches!(name, "specversion" | "traceparent" | "tracestate") || name.starts_with("weir");
    if is_reserved {
        return Err(TransformProblem::Reserved(name.to_owned()));
    }
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !is_name || name == "data" {
        return Err(TransformProblem::AttributeName(name.to_owned()));
    }
    Ok(())
}

struct Compiler {
    owner: TemplateOwner,
    parts: usize,
    patterns: usize,
    reads_old_object: bool,
}

impl Compiler {
    fn at(&self, path: &TemplatePath<'_>, problem: TransformProblem) -> TransformError {
        TransformError {
            path: format!("{}.{path}", self.owner.field()),
            problem,
        }
    }

    /// Checks the names of attributes that are removed.
    fn removed(&mut self, transform: &Transform) -> Result<Box<[Box<str>]>, TransformError> {
        for name in &transform.remove {
            let is_required = ["id", "source", "type"].contains(&name.as_str());
            let problem = match check_name(name) {
                Err(problem) => problem,
                Ok(()) if is_required => TransformProblem::Required(name.clone()),
                Ok(()) if transform.set.contains_key(name) => TransformProblem::SetAndRemoved(name.clone()),
                Ok(()) if name == CONTENT_TYPE && transform.data.is_some() => {
                    TransformProblem::RemovedContentType
                }
                Ok(()) => continue,
            };
            return Err(self.at(&REMOVE, problem));
        }
        self.parts += transform.remove.len();
        Ok(transform.remove.iter().map(|name| name.as_str().into()).collect())
    }

    fn set(&mut self, transform: &Transform) -> Result<TemplateAttributes, TransformError> {
        let mut set = Vec::with_capacity(transform.set.len());
        let set_path = self.owner.set();
        for (name, value) in &transform.set {
            check_name(name).map_err(|problem| self.at(&set_path, problem))?;
            let path = set_path.member(name);
            let text = self.text(value, &path)?;
            if let TemplateText::Literal(value) = &text {
                check_value(name, value).map_err(|invalid| {
                    self.at(&path, TransformProblem::AttributeValue(invalid.to_string()))
                })?;
            }
            set.push((name.as_str().into(), text));
        }
        Ok(set.into())
    }

    fn node(
        &mut self,
        value: &Value,
        path: &TemplatePath<'_>,
        depth: usize,
    ) -> Result<TemplateNode, TransformError> {
        if depth > MAX_DEPTH {
            return Err(self.at(path, TransformProblem::TooDeep));
        }
        self.parts += 1;
        Ok(match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => TemplateNode::Literal(value.clone()),
            Value::String(text) => TemplateNode::Text(self.text(text, path)?),
            Value::Array(items) => {
                let nodes = items.iter().enumerate();
                let nodes = nodes.map(|(index, item)| self.node(item, &path.item(index), depth + 1));
                TemplateNode::List(nodes.collect::<Result<_, _>>()?)
            }
            Value::Object(members) => {
                let nodes = members.iter().map(|(name, member)| {
                    let node = self.node(member, &path.member(name), depth + 1)?;
                    Ok((name.as_str().into(), node))
                });
                TemplateNode::Object(nodes.collect::<Result<_, _>>()?)
            }
        })
    }

    fn text(&mut self, text: &str, path: &TemplatePath<'_>) -> Result<TemplateText, TransformError> {
        let found = pieces(text).map_err(|start| {
            let (line, column) = position(text, start);
            self.at(path, TransformProblem::Unclosed { line, column })
        })?;
        let mut parts = Vec::with_capacity(found.len());
        for piece in found {
            parts.push(match piece {
                TextPiece::Literal(literal) => TextPart::Literal(literal.into()),
                TextPiece::Expression(expression, start) => {
                    let parsed = self.owner.parse(expression);
                    let expression = parsed.map_err(|error| self.at(path, located(text, start, error)))?;
                    self.parts += expression.parts();
                    self.patterns += expression.patterns();
                    self.reads_old_object |= expression.reads_old_object();
                    TextPart::Expression(expression)
                }
            });
        }
        self.parts += parts.len();
        Ok(match <[TextPart; 1]>::try_from(parts) {
            Ok([TextPart::Literal(literal)]) => TemplateText::Literal(literal),
            Ok([TextPart::Expression(expression)]) => TemplateText::Value(expression),
            Err(parts) => TemplateText::Parts(parts.into()),
        })
    }
}

/// Checks a constant value by the rules of its attribute.
fn check_value(name: &str, value: &str) -> Result<(), Invalid> {
    let any = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/")
        .attribute("type", "t")
        .build()?;
    let changes = EventChanges {
        set: vec![(name, value.into())],
        ..EventChanges::default()
    };
    any.with_changes(changes).map(|_| ())
}

/// Returns the line and the column of a position in a text, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (1 + before.matches('\n').count(), 1 + line.chars().count())
}

/// Places the error of an expression that begins at `start` in the text around it.
fn located(text: &str, start: usize, error: CelParseError) -> TransformProblem {
    let (line, column) = position(text, start);
    match error {
        CelParseError::Syntax {
            line: below,
            column: right,
            message,
        } if below > 0 => TransformProblem::Expression {
            line: line + below - 1,
            column: if below == 1 {
                column + right.saturating_sub(1)
            } else {
                right
            },
            message,
        },
        CelParseError::Syntax { message, .. } => TransformProblem::Expression {
            line,
            column,
            message,
        },
        CelParseError::Refused(problem) => TransformProblem::Expression {
            line,
            column,
            message: problem.to_string(),
        },
    }
}
