//! What a transform makes of an event, field by field: plain data, for humans and for `--output json`.

use serde::{Deserialize, Serialize};

use super::{
    CompiledTransform,
    apply::{attribute, leaf},
    compile::TemplateNode,
    error::Cause,
    path::{DATA, REMOVE, TemplatePath},
};
use crate::{cloudevents::Event, filter::cel::CelEvaluation};

/// Maximum number of characters shown of a value.
const MAX_SHOWN: usize = 256;

/// What a transform makes of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransformExplanation {
    /// Every field of the transform that changes the event: attributes, then the values of the data template.
    pub fields: Vec<TransformedField>,
    /// The transformed event in the JSON format, if no field fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<serde_json::Value>,
    /// Why the event cannot be transformed, so that it becomes a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A field of a transform, evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransformedField {
    /// Path, for example `attributes.set.type` or `data.order.id`.
    pub path: String,
    /// The value as JSON, shortened. `None` if it fails, or if the field removes an attribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why it cannot be evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CompiledTransform {
    /// Explains what the transform makes of an event. The result is that of [`CompiledTransform::apply`].
    #[must_use]
    pub fn explain(&self, event: &Event) -> TransformExplanation {
        let evaluation = CelEvaluation::new(event);
        let (mut fields, set_path) = (Vec::new(), self.owner.set());
        for (name, text) in &self.set {
            let value = attribute(&evaluation, name, text);
            let value = value.map(|value| serde_json::Value::from(value.to_string()).to_string());
            fields.push(TransformedField::new(&set_path.member(name), value));
        }
        fields.extend(self.remove.iter().map(|name| TransformedField {
            path: REMOVE.member(name).to_string(),
            value: None,
            error: None,
        }));
        if let Some(node) = &self.data {
            leaves(&evaluation, node, &DATA, &mut fields);
        }
        let applied = self.apply(event);
        TransformExplanation {
            fields,
            event: applied
                .as_ref()
                .ok()
                .and_then(|event| serde_json::from_slice(&event.to_json()).ok()),
            error: applied.err().map(|failure| failure.to_string()),
        }
    }
}

fn leaves(
    evaluation: &CelEvaluation<'_>,
    node: &TemplateNode,
    path: &TemplatePath<'_>,
    fields: &mut Vec<TransformedField>,
) {
    match node {
        TemplateNode::List(nodes) if !nodes.is_empty() => {
            for (index, node) in nodes.iter().enumerate() {
                leaves(evaluation, node, &path.item(index), fields);
            }
        }
        TemplateNode::Object(members) if !members.is_empty() => {
            for (name, node) in members {
                leaves(evaluation, node, &path.member(name), fields);
            }
        }
        TemplateNode::List(_) => fields.push(TransformedField::new(path, Ok("[]".to_owned()))),
        TemplateNode::Object(_) => fields.push(TransformedField::new(path, Ok("{}".to_owned()))),
        TemplateNode::Literal(_) | TemplateNode::Text(_) => {
            let mut out = Vec::new();
            let value = leaf(evaluation, node, &mut out);
            let value = value.map(|()| String::from_utf8_lossy(&out).into_owned());
            fields.push(TransformedField::new(path, value));
        }
    }
}

impl TransformedField {
    fn new(path: &TemplatePath<'_>, value: Result<String, Cause>) -> Self {
        let shortened = |value: String| match value.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        let (value, error) = match value {
            Ok(value) => (Some(shortened(value)), None),
            Err(cause) => (None, Some(cause.to_string())),
        };
        Self {
            path: path.to_string(),
            value,
            error,
        }
    }
}
