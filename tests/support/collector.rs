//! A real OpenTelemetry collector, as far as a test needs one: it takes OTLP over HTTP and keeps the spans.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;

use super::{Answer, Consumer, PATIENCE, Received};

/// Listens on a loopback port of its own.
pub(crate) struct Collector(Consumer);

/// A span as it was exported.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    pub(crate) span: Span,
    /// The attributes of whoever exported it.
    pub(crate) resource: Vec<KeyValue>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let consumer = Consumer::start();
        consumer.answer(Answer::status(200).header("content-type", "application/x-protobuf"));
        Self(consumer)
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    /// Refuses connections from here on.
    pub(crate) fn stop(&mut self) {
        self.0.stop();
    }

    /// Takes spans again.
    pub(crate) fn restart(&mut self) {
        self.0.restart();
    }

    /// The requests that it got.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.0.received()
    }

    /// Waits until spans have come that satisfy the condition, and returns all that have.
    #[track_caller]
    pub(crate) fn wait_until(&self, holds: impl Fn(&[Exported]) -> bool) -> Vec<Exported> {
        let received = self.0.wait_until(PATIENCE, |requests| holds(&spans(requests)));
        spans(&received)
    }

    /// The spans that have come so far.
    pub(crate) fn spans(&self) -> Vec<Exported> {
        self.0.look(spans)
    }
}

impl Exported {
    /// An attribute of the span, as text.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        text(&self.span.attributes, name)
    }

    /// An attribute of whoever exported it, as text.
    pub(crate) fn resource(&self, name: &str) -> Option<String> {
        text(&self.resource, name)
    }

    /// Its id, in hexadecimal digits.
    pub(crate) fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// The id of its parent.
    pub(crate) fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// The id of its trace.
    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// The ids of the spans that it links to.
    pub(crate) fn links(&self) -> Vec<String> {
        self.span.links.iter().map(|link| hex(&link.span_id)).collect()
    }
}

fn spans(requests: &[Received]) -> Vec<Exported> {
    let mut spans = Vec::new();
    for request in requests {
        let request = ExportTraceServiceRequest::decode(request.body.clone()).expect("it is no OTLP");
        for resource_spans in request.resource_spans {
            let resource = resource_spans.resource.unwrap_or_default().attributes;
            let of_scopes = resource_spans
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            spans.extend(of_scopes.map(|span| Exported {
                span,
                resource: resource.clone(),
            }));
        }
    }
    spans
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()? {
        AnyValue {
            value: Some(Value::StringValue(text)),
        } => Some(text.clone()),
        AnyValue {
            value: Some(Value::IntValue(number)),
        } => Some(number.to_string()),
        other => panic!("{name} is neither text nor number: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
