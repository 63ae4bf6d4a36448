//! Trace and lineage of an attempt: its span, and the headers that it sends.

use http::HeaderMap;

use crate::{
    cloudevents::{Lineage, TraceContext},
    destination::{answer::Answer, verdict::Verdict},
    intake,
    telemetry::{DeliveryAttempt, DeliverySpan, Tracer},
};

/// Trace state of an attempt in flight.
pub(super) struct Traced {
    context: Option<TraceContext>,
    span: Option<DeliverySpan>,
    lineage: Lineage,
}

impl Traced {
    /// Begins an attempt.
    pub(super) fn begin(tracer: &Tracer, attempt: &DeliveryAttempt<'_>) -> Self {
        let span = tracer.delivery(attempt);
        let context = match &span {
            Some(span) => Some(span.context()),
            None => attempt.event.trace_context(),
        };
        Self {
            context,
            span,
            lineage: intake::next(attempt.event),
        }
    }

    /// Sets the headers of the attempt.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.context {
            context.set_headers(headers);
        }
        self.lineage.set_header(headers);
    }

    /// Ends the attempt; the answer carries the context that the Sink continues: the span's or, without a span, the
    /// event's own.
    pub(super) fn end(self, answer: Answer) -> Answer {
        let Self { context, span, .. } = self;
        if let Some(span) = span {
            let failure = (answer.verdict != Verdict::Delivered).then_some(answer.detail.as_str());
            span.end(answer.code, failure);
        }
        Answer { context, ..answer }
    }
}
