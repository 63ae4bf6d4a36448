//! Weir's spans, following OpenTelemetry's semantic conventions for CloudEvents, messaging and HTTP.
//!
//! | span | kind | parent |
//! | --- | --- | --- |
//! | `send NAMESPACE/BROKER`, a producer's request | server | the context of the request, or else of the event |
//! | `deliver NAMESPACE/TRIGGER`, one attempt | client | the context stored with the event: usually the request's span |
//! | `dead-letter NAMESPACE/TRIGGER`, one attempt to a dead-letter Sink | client | likewise |
//!
//! A span links to the context in the event's own extension if that is not its parent: the trace in which the event
//! originated. Traces that are not sampled have no spans.

use std::{borrow::Cow, time::SystemTime};

use http::{StatusCode, Uri};
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
        TraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use crate::cloudevents::{Event, TraceContext};

/// Maximum length of a text in an attribute, in bytes.
const MAX_TEXT: usize = 1024;

/// Maximum number of links from a request's span to contexts of its events.
const MAX_LINKS: usize = 32;

/// Creates spans. Off by default.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<SdkTracer>);

impl Tracer {
    pub(super) fn on(tracer: SdkTracer) -> Self {
        Self(Some(tracer))
    }

    /// Starts to trace a request that began at `began`, with the context in its headers.
    #[must_use]
    pub fn receiver(&self, context: Option<TraceContext>, began: SystemTime) -> Receiver<'_> {
        Receiver {
            tracer: self,
            context,
            began,
            begun: false,
            span: None,
        }
    }

    /// Creates a span for an attempt that starts now. `None` if tracing is off, the event has no context, or its
    /// trace is not sampled.
    #[must_use]
    pub fn delivery(&self, attempt: &DeliveryAttempt<'_>) -> Option<DeliverySpan> {
        let tracer = self.0.as_ref()?;
        let parent = attempt.event.trace_context()?;
        let operation = if attempt.is_dead_letter {
            "dead-letter"
        } else {
            "deliver"
        };
        let name = format!("{operation} {}", attempt.trigger);
        let mut span = start(tracer, name.into(), SpanKind::Client, None, Some(&parent))?;
        describe(&mut span, operation, attempt.broker);
        describe_event(&mut span, attempt.event);
        link_origin(&mut span, attempt.event, &parent);
        set(
            &mut span,
            "messaging.destination.subscription.name",
            attempt.trigger,
        );
        set(&mut span, "weir.trigger", attempt.trigger);
        set(&mut span, "weir.attempt", i64::from(attempt.number));
        if attempt.number > 1 {
            set(
                &mut span,
                "http.request.resend_count",
                i64::from(attempt.number - 1),
            );
        }
        describe_target(&mut span, attempt.target);
        Some(DeliverySpan { span, parent })
    }
}

/// Creates the span of a request once its broker and its events are known.
#[derive(Debug)]
pub struct Receiver<'a> {
    tracer: &'a Tracer,
    context: Option<TraceContext>,
    began: SystemTime,
    /// Whether the sampler was asked. It is asked only once per request.
    begun: bool,
    span: Option<RequestSpan>,
}

/// The span of a request.
#[derive(Debug)]
pub struct RequestSpan {
    span: Span,
    parent: Option<TraceContext>,
    /// Number of events that have a context of their own.
    origins: usize,
}

impl Receiver<'_> {
    /// Starts the span of a request to this broker, `namespace/name`. `continued` returns the context that the
    /// request continues, given that of its headers. Returns the context for its events: that of the span or, if
    /// there is none, that of the headers.
    pub fn begin(
        &mut self,
        continued: impl FnOnce(Option<TraceContext>) -> Option<TraceContext>,
        broker: &str,
    ) -> Option<TraceContext> {
        let of_headers = self.context.clone();
        let Some(tracer) = &self.tracer.0 else {
            return of_headers;
        };
        self.begun = true;
        let parent = continued(of_headers.clone());
        let name = format!("send {broker}");
        let started = start(
            tracer,
            name.into(),
            SpanKind::Server,
            Some(self.began),
            parent.as_ref(),
        );
        let Some(mut span) = started else {
            return of_headers;
        };
        describe(&mut span, "send", broker);
        let context = context(&span, parent.as_ref());
        self.span = Some(RequestSpan {
            span,
            parent,
            origins: 0,
        });
        context
    }

    /// Describes a request with a single event.
    pub fn describe(&mut self, event: &Event) {
        if let Some(RequestSpan { span, .. }) = &mut self.span {
            describe_event(span, event);
        }
        self.link(event);
    }

    /// Describes a request with a batch of events.
    pub fn describe_batch(&mut self, events: usize) {
        if let Some(RequestSpan { span, .. }) = &mut self.span {
            let count = i64::try_from(events).unwrap_or(i64::MAX);
            set(span, "messaging.batch.message_count", count);
        }
    }

    /// Links to the event's own trace, if it differs.
    pub fn link(&mut self, event: &Event) {
        let Some(RequestSpan {
            span,
            parent,
            origins,
        }) = &mut self.span
        else {
            return;
        };
        if *origins >= MAX_LINKS {
            return;
        }
        if let Some(origin) = event.extension_trace_context() {
            *origins += 1;
            if parent.as_ref() != Some(&origin) {
                span.add_link(span_context(&origin), Vec::new());
            }
        }
    }

    /// Ends the span with the status of the response. `reason` is that of the problem, if the request was rejected.
    pub fn end(self, status: StatusCode, reason: Option<&'static str>) {
        let Some(tracer) = &self.tracer.0 else { return };
        let span = match self.span {
            Some(RequestSpan { span, .. }) => Some(span),
            None if self.begun => None,
            // A request rejected before its broker is known gets no specific name, since anybody could make up
            // names.
            None => start(
                tracer,
                "send".into(),
                SpanKind::Server,
                Some(self.began),
                self.context.as_ref(),
            ),
        };
        let Some(mut span) = span else { return };
        set(&mut span, "http.request.method", "POST");
        set(&mut span, "http.route", "/{namespace}/{broker}");
        set(&mut span, "url.scheme", "http");
        set_status_code(&mut span, status.as_u16());
        if let Some(reason) = reason {
            set(&mut span, "weir.problem", reason);
        }
        // A client error is not an error of the server (HTTP conventions).
        if status.is_server_error() {
            let error = reason.unwrap_or("_OTHER");
            set(&mut span, "error.type", error);
            span.set_status(Status::error(error));
        }
        span.end();
    }
}

/// Description of a delivery attempt.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryAttempt<'a> {
    /// The event.
    pub event: &'a Event,
    /// The Trigger, as `namespace/name`.
    pub trigger: &'a str,
    /// Its broker, as `namespace/name`.
    pub broker: &'a str,
    /// URI that the event is posted to.
    pub target: &'a Uri,
    /// Number of the attempt, starting at 1.
    pub number: u32,
    /// Whether it goes to the Trigger's dead-letter Sink.
    pub is_dead_letter: bool,
}

/// The span of a delivery attempt.
#[derive(Debug)]
pub struct DeliverySpan {
    span: Span,
    parent: TraceContext,
}

impl DeliverySpan {
    /// Returns the context to propagate to the Sink.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        context(&self.span, Some(&self.parent)).unwrap_or_else(|| self.parent.clone())
    }

    /// Ends the span with the status code of the response, if there was one. `failure` is the cause if the attempt did
    /// not deliver the event.
    pub fn end(mut self, status: Option<u16>, failure: Option<&str>) {
        if let Some(status) = status {
            set_status_code(&mut self.span, status);
        }
        if let Some(failure) = failure {
            let kind = status.map_or(Cow::Borrowed("no_answer"), |status| status.to_string().into());
            set(&mut self.span, "error.type", kind.into_owned());
            self.span.set_status(Status::error(bounded(failure)));
        }
        self.span.end();
    }
}

/// Starts a span, unless its trace is not sampled.
fn start(
    tracer: &SdkTracer,
    name: Cow<'static, str>,
    kind: SpanKind,
    began: Option<SystemTime>,
    parent: Option<&TraceContext>,
) -> Option<Span> {
    let mut builder = SpanBuilder::from_name(name).with_kind(kind);
    builder.start_time = began;
    let around = match parent {
        Some(parent) => Context::new().with_remote_span_context(span_context(parent)),
        None => Context::new(),
    };
    let span = tracer.build_with_context(builder, &around);
    span.is_recording().then_some(span)
}

/// Converts a context to the SDK's type.
fn span_context(context: &TraceContext) -> SpanContext {
    let state = context.state().and_then(|state| state.parse::<TraceState>().ok());
    SpanContext::new(
        TraceId::from_bytes(context.trace_id()),
        SpanId::from_bytes(context.parent_id()),
        TraceFlags::new(context.flags()),
        true,
        state.unwrap_or_default(),
    )
}

/// Returns the context that a span propagates. Weir adds nothing to `tracestate`, so it stays the same.
fn context(span: &Span, parent: Option<&TraceContext>) -> Option<TraceContext> {
    let own = span.span_context();
    let (trace_id, span_id) = (own.trace_id().to_bytes(), own.span_id().to_bytes());
    let context = TraceContext::new(trace_id, span_id, own.trace_flags().to_u8())?;
    Some(match parent.and_then(TraceContext::state) {
        Some(state) => context.with_state(state),
        None => context,
    })
}

fn describe(span: &mut Span, operation: &'static str, broker: &str) {
    set(span, "messaging.system", "weir");
    set(span, "messaging.operation.name", operation);
    set(span, "messaging.operation.type", "send");
    set(span, "messaging.destination.name", broker);
}

fn describe_event(span: &mut Span, event: &Event) {
    set(span, "messaging.message.id", event.id());
    set(span, "cloudevents.event_id", event.id());
    set(span, "cloudevents.event_source", event.source());
    set(span, "cloudevents.event_spec_version", "1.0");
    set(span, "cloudevents.event_type", event.r#type());
    if let Some(subject) = event.attribute("subject") {
        set(span, "cloudevents.event_subject", &*subject.canonical());
    }
}

fn describe_target(span: &mut Span, target: &Uri) {
    set(span, "http.request.method", "POST");
    let (scheme, host) = (target.scheme_str().unwrap_or("http"), target.host().unwrap_or(""));
    set(span, "server.address", host);
    let port = target
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    set(span, "server.port", i64::from(port));
    // Without user and query, which may be secret.
    set(
        span,
        "url.full",
        format!("{scheme}://{host}:{port}{}", target.path()),
    );
}

fn link_origin(span: &mut Span, event: &Event, parent: &TraceContext) {
    if let Some(origin) = event.extension_trace_context().filter(|origin| origin != parent) {
        span.add_link(span_context(&origin), Vec::new());
    }
}

fn set_status_code(span: &mut Span, status: u16) {
    set(span, "http.response.status_code", i64::from(status));
}

fn set(span: &mut Span, name: &'static str, value: impl AttributeValue) {
    span.set_attribute(KeyValue::new(name, value.value()));
}

/// Values of attributes. Text is truncated.
trait AttributeValue {
    fn value(self) -> Value;
}

impl AttributeValue for &str {
    fn value(self) -> Value {
        bounded(self).into()
    }
}

impl AttributeValue for String {
    fn value(self) -> Value {
        bounded(&self).into()
    }
}

impl AttributeValue for i64 {
    fn value(self) -> Value {
        self.into()
    }
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use opentelemetry::trace::{Link, TracerProvider as _};
    use opentelemetry_sdk::trace::{
        SamplingDecision::{self, Drop, RecordAndSample},
        SamplingResult, SdkTracerProvider, ShouldSample,
    };

    use super::*;

    /// Counts its calls.
    #[derive(Clone, Debug)]
    struct Counting {
        decision: SamplingDecision,
        asked: Arc<AtomicU32>,
    }

    impl ShouldSample for Counting {
        fn should_sample(
            &self,
            _: Option<&Context>,
            _: TraceId,
            _: &str,
            _: &SpanKind,
            _: &[KeyValue],
            _: &[Link],
        ) -> SamplingResult {
            self.asked.fetch_add(1, Relaxed);
            SamplingResult {
                decision: self.decision.clone(),
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            }
        }
    }

    #[test]
    fn asks_the_sampler_once_per_request() {
        for (decision, is_begun) in [
            (Drop, true),
            (Drop, false),
            (RecordAndSample, true),
            (RecordAndSample, false),
        ] {
            let asked = Arc::<AtomicU32>::default();
            let sampler = Counting {
                decision: decision.clone(),
                asked: asked.clone(),
            };
            let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
            let tracer = Tracer::on(provider.tracer("test"));
            let mut receiver = tracer.receiver(None, SystemTime::now());
            if is_begun {
                let context = receiver.begin(|context| context, "shop/default");
                assert_eq!(context.is_some(), decision == RecordAndSample);
            }
            receiver.end(StatusCode::ACCEPTED, None);
            assert_eq!(asked.load(Relaxed), 1, "{decision:?}, begun: {is_begun}");
        }
    }
}
