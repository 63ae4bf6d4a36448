//! Applies a transform to an event.

use bytes::Bytes;

use super::{
    CompiledTransform, TemplateOwner,
    compile::{CONTENT_TYPE, TemplateNode, TemplateText, TextPart},
    error::{Cause, TransformFailure},
    limits::{MAX_ATTRIBUTE, MAX_WRITTEN},
    path::{ATTRIBUTES, DATA, TemplatePath},
};
use crate::{
    cloudevents::{Event, EventChanges, Invalid, Reason, Value},
    filter::cel::{CelEvaluation, CelExpression, ChangedObject, IncomingRequest},
};

/// Attributes that are text, whatever the type of the expression.
const CORE: &[&str] = &[
    "id",
    "source",
    "type",
    "subject",
    "time",
    "dataschema",
    CONTENT_TYPE,
];

impl CompiledTransform {
    /// Returns the event with the changes. Equal arguments give equal results, in every router and at every attempt.
    ///
    /// # Errors
    /// The field that cannot be evaluated, or whose value the event cannot have.
    pub fn apply(&self, event: &Event) -> Result<Event, TransformFailure> {
        self.evaluate(&CelEvaluation::new(event), event)
    }

    /// Returns the event that is made of a request, with the changes.
    ///
    /// # Errors
    /// As [`CompiledTransform::apply`].
    pub fn apply_to_request(
        &self,
        event: &Event,
        request: &IncomingRequest<'_>,
    ) -> Result<Event, TransformFailure> {
        self.evaluate(&CelEvaluation::of_request(event, request), event)
    }

    /// Returns the event that is made of the change of an object, with the changes.
    ///
    /// # Errors
    /// As [`CompiledTransform::apply`].
    pub fn apply_to_change(
        &self,
        event: &Event,
        change: &ChangedObject<'_>,
    ) -> Result<Event, TransformFailure> {
        self.evaluate(&CelEvaluation::of_change(event, change), event)
    }

    fn evaluate(&self, evaluation: &CelEvaluation<'_>, event: &Event) -> Result<Event, TransformFailure> {
        let (owner, set_path) = (self.owner, self.owner.set());
        let mut set = Vec::with_capacity(self.set.len() + 1);
        for (name, text) in &self.set {
            let value = attribute(evaluation, name, text);
            let value = value.map_err(|cause| failure(owner, &set_path.member(name), cause))?;
            set.push((&**name, value));
        }
        let data = match &self.data {
            None => None,
            Some(node) => {
                let mut out = Vec::new();
                write(owner, evaluation, node, &DATA, &mut out)?;
                Some(Bytes::from(out))
            }
        };
        if data.is_some() && set.iter().all(|(name, _)| *name != CONTENT_TYPE) {
            set.push((CONTENT_TYPE, "application/json".into()));
        }
        let changes = EventChanges {
            set,
            remove: self.remove.iter().map(|name| &**name).collect(),
            data,
        };
        event
            .with_changes(changes)
            .map_err(|invalid| self.refused(&invalid))
    }

    fn refused(&self, invalid: &Invalid) -> TransformFailure {
        let name = invalid.attribute().unwrap_or_default();
        let cause = Cause::Value(problem(invalid, name));
        if self.set.iter().any(|(set, _)| **set == *name) {
            return failure(self.owner, &self.owner.set().member(name), cause);
        }
        failure(self.owner, &ATTRIBUTES, cause)
    }
}

fn failure(owner: TemplateOwner, path: &TemplatePath<'_>, cause: Cause) -> TransformFailure {
    TransformFailure {
        field: owner.field(),
        path: path.to_string(),
        cause,
    }
}

/// Says what is wrong with the value of an attribute, without the value.
fn problem(invalid: &Invalid, name: &str) -> &'static str {
    match (invalid.reason(), name) {
        (Reason::Empty, _) => "the value is empty",
        (Reason::TooMany, _) => "the event has too many attributes",
        (Reason::Value, "time") => "the value is not a timestamp such as 2026-11-24T08:00:00Z",
        (Reason::Value, "source" | "dataschema") => "the value is not a URI-reference",
        (Reason::Value, CONTENT_TYPE) => "the value is not a media type",
        (Reason::Value, _) => "the value has a control character or another that attributes cannot have",
        (reason, _) => reason.label(),
    }
}

/// Evaluates an attribute.
pub(super) fn attribute(
    evaluation: &CelEvaluation<'_>,
    name: &str,
    text: &TemplateText,
) -> Result<Value, Cause> {
    let value = match text {
        TemplateText::Literal(text) => (&**text).into(),
        TemplateText::Value(expression) => {
            let value = evaluation.attribute(expression).map_err(Cause::Expression)?;
            if CORE.contains(&name) {
                value.to_string().into()
            } else {
                value
            }
        }
        TemplateText::Parts(parts) => joined(evaluation, parts)?.into(),
    };
    if value.canonical().len() > MAX_ATTRIBUTE {
        return Err(Cause::TooLong);
    }
    Ok(value)
}

fn joined(evaluation: &CelEvaluation<'_>, parts: &[TextPart]) -> Result<String, Cause> {
    let mut text = String::new();
    for part in parts {
        match part {
            TextPart::Literal(literal) => text.push_str(literal),
            TextPart::Expression(expression) => {
                evaluation
                    .text(expression, &mut text)
                    .map_err(Cause::Expression)?;
            }
        }
        if text.len() > MAX_WRITTEN {
            return Err(Cause::TooLarge);
        }
    }
    Ok(text)
}

/// Appends a value of the data template as JSON.
fn write(
    owner: TemplateOwner,
    evaluation: &CelEvaluation<'_>,
    node: &TemplateNode,
    path: &TemplatePath<'_>,
    out: &mut Vec<u8>,
) -> Result<(), TransformFailure> {
    match node {
        TemplateNode::Literal(_) | TemplateNode::Text(_) => {
            leaf(evaluation, node, out).map_err(|cause| failure(owner, path, cause))?;
        }
        TemplateNode::List(nodes) => {
            out.push(b'[');
            for (index, node) in nodes.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(owner, evaluation, node, &path.item(index), out)?;
            }
            out.push(b']');
        }
        TemplateNode::Object(members) => {
            out.push(b'{');
            for (index, (name, node)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                push_json(name, out);
                out.push(b':');
                write(owner, evaluation, node, &path.member(name), out)?;
            }
            out.push(b'}');
        }
    }
    if out.len() > MAX_WRITTEN {
        return Err(failure(owner, path, Cause::TooLarge));
    }
    Ok(())
}

/// Appends a value without members of its own in the template.
pub(super) fn leaf(
    evaluation: &CelEvaluation<'_>,
    node: &TemplateNode,
    out: &mut Vec<u8>,
) -> Result<(), Cause> {
    match node {
        TemplateNode::Literal(value) => push_json(value, out),
        TemplateNode::Text(TemplateText::Literal(text)) => push_json(text, out),
        TemplateNode::Text(TemplateText::Value(expression)) => json(evaluation, expression, out)?,
        TemplateNode::Text(TemplateText::Parts(parts)) => push_json(&joined(evaluation, parts)?, out),
        TemplateNode::List(_) | TemplateNode::Object(_) => {}
    }
    if out.len() > MAX_WRITTEN {
        return Err(Cause::TooLarge);
    }
    Ok(())
}

fn json(evaluation: &CelEvaluation<'_>, expression: &CelExpression, out: &mut Vec<u8>) -> Result<(), Cause> {
    evaluation.json(expression, out).map_err(Cause::Expression)
}

fn push_json(value: &(impl serde::Serialize + ?Sized), out: &mut Vec<u8>) {
    // Serializing a text or a JSON value to a vector cannot fail.
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok());
}
