//! The spans that Weir makes, by OpenTelemetry's semantic conventions for CloudEvents, messaging and HTTP.
//!
//! | span | kind | parent |
//! | --- | --- | --- |
//! | `send NAMESPACE/BROKER`, a producer's request | server | the context of the request, or else of the event |
//! | `deliver NAMESPACE/TRIGGER`, one attempt | client | the context that the event was stored with: as a rule the request's span |
//! | `dead-letter NAMESPACE/TRIGGER`, one attempt to a dead-letter Sink | client | likewise |
//!
//! A span links to the context in the event's own extension where that is not its parent: the trace that the event
//! began in. No span is made where a trace is not recorded.

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

/// How many bytes of a text go into an attribute.
const MAX_TEXT: usize = 1024;

/// How many events' own contexts a request's span links to.
const MAX_LINKS: usize = 32;

/// Makes spans; off by default.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<SdkTracer>);

impl Tracer {
    pub(super) fn on(tracer: SdkTracer) -> Self {
        Self(Some(tracer))
    }

    /// Begins to tell of a request that began at `began`, with the context in its headers.
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

    /// A span for an attempt that begins now. `None` if tracing is off, or the event has no context, or its trace is
    /// not recorded.
    #[must_use]
    pub fn delivery(&self, attempt: &Attempt<'_>) -> Option<DeliverySpan> {
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

/// Makes the span of one request, once it is known which broker it is for and which events it has.
#[derive(Debug)]
pub struct Receiver<'a> {
    tracer: &'a Tracer,
    context: Option<TraceContext>,
    began: SystemTime,
    /// Whether the sampler was asked: it is asked once for a request.
    begun: bool,
    span: Option<RequestSpan>,
}

/// The span of a request.
#[derive(Debug)]
pub struct RequestSpan {
    span: Span,
    parent: Option<TraceContext>,
    /// How many events told where their traces began.
    origins: usize,
}

impl Receiver<'_> {
    /// The request is for this broker, `namespace/name`. `continued` tells which context it continues, given that of its
    /// headers. Gives the context that its events continue: the span's, or, where none is made, that of the headers.
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

    /// The request is one event.
    pub fn describe(&mut self, event: &Event) {
        if let Some(RequestSpan { span, .. }) = &mut self.span {
            describe_event(span, event);
        }
        self.link(event);
    }

    /// The request is a batch of so many events.
    pub fn describe_batch(&mut self, events: usize) {
        if let Some(RequestSpan { span, .. }) = &mut self.span {
            let count = i64::try_from(events).unwrap_or(i64::MAX);
            set(span, "messaging.batch.message_count", count);
        }
    }

    /// The request has this event, which may come from another trace.
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
        if let Some(origin) = TraceContext::of_extension(event) {
            *origins += 1;
            if parent.as_ref() != Some(&origin) {
                span.add_link(span_context(&origin), Vec::new());
            }
        }
    }

    /// The request is answered; where it is refused, `reason` is the problem's.
    pub fn end(self, status: StatusCode, reason: Option<&'static str>) {
        let Some(tracer) = &self.tracer.0 else { return };
        let span = match self.span {
            Some(RequestSpan { span, .. }) => Some(span),
            None if self.begun => None,
            // What is refused before its broker is known has no name of its own: anybody could make up names.
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
        set_status_code(&mut span, status);
        if let Some(reason) = reason {
            set(&mut span, "weir.problem", reason);
        }
        // That a producer is wrong is no error of the server's (HTTP conventions).
        if status.is_server_error() {
            let error = reason.unwrap_or("_OTHER");
            set(&mut span, "error.type", error);
            span.set_status(Status::error(error));
        }
        span.end();
    }
}

/// What an attempt to deliver is told by.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The event.
    pub event: &'a Event,
    /// The Trigger as `namespace/name`.
    pub trigger: &'a str,
    /// Its broker as `namespace/name`.
    pub broker: &'a str,
    /// Where the event is posted.
    pub target: &'a Uri,
    /// Which attempt it is; the first is 1.
    pub number: u32,
    /// Whether it goes to the Trigger's dead-letter Sink.
    pub is_dead_letter: bool,
}

/// The span of one attempt to deliver.
#[derive(Debug)]
pub struct DeliverySpan {
    span: Span,
    parent: TraceContext,
}

impl DeliverySpan {
    /// The context that the delivery passes on.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        context(&self.span, Some(&self.parent)).unwrap_or_else(|| self.parent.clone())
    }

    /// The attempt has ended, with the status of an answer if there was one; `failure` tells why the event is not
    /// delivered by it.
    pub fn end(mut self, status: Option<StatusCode>, failure: Option<&str>) {
        if let Some(status) = status {
            set_status_code(&mut self.span, status);
        }
        if let Some(failure) = failure {
            let kind = status.map_or(Cow::Borrowed("no_answer"), |status| {
                status.as_str().to_owned().into()
            });
            set(&mut self.span, "error.type", kind.into_owned());
            self.span.set_status(Status::error(bounded(failure)));
        }
        self.span.end();
    }
}

/// Starts a span, unless its trace is not recorded.
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

/// A context as the SDK has it.
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

/// The context that a span passes on. Weir adds nothing to `tracestate`, so it stays as it came.
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
    if let Some(origin) = TraceContext::of_extension(event).filter(|origin| origin != parent) {
        span.add_link(span_context(&origin), Vec::new());
    }
}

fn set_status_code(span: &mut Span, status: StatusCode) {
    set(span, "http.response.status_code", i64::from(status.as_u16()));
}

fn set(span: &mut Span, name: &'static str, value: impl Attribute) {
    span.set_attribute(KeyValue::new(name, value.value()));
}

/// What an attribute can be; a text is bounded.
trait Attribute {
    fn value(self) -> Value;
}

impl Attribute for &str {
    fn value(self) -> Value {
        bounded(self).into()
    }
}

impl Attribute for String {
    fn value(self) -> Value {
        bounded(&self).into()
    }
}

impl Attribute for i64 {
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

    /// Counts how often it is asked.
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
    fn the_sampler_is_asked_once_for_a_request() {
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
