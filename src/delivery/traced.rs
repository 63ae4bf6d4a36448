//! An attempt's part in the trace of its event, and in the event's lineage: what it passes on, and its span.

use http::HeaderMap;

use super::{client::Answer, verdict::Verdict};
use crate::{
    cloudevents::{Lineage, TraceContext},
    intake,
    telemetry::{Attempt, DeliverySpan, Tracer},
};

/// An attempt under way.
pub(super) struct Traced {
    context: Option<TraceContext>,
    span: Option<DeliverySpan>,
    lineage: Lineage,
}

impl Traced {
    /// The attempt begins.
    pub(super) fn begin(tracer: &Tracer, attempt: &Attempt<'_>) -> Self {
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

    /// What the Sink continues: the span, or without one what the event came with.
    pub(super) fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Sets the headers of the attempt.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.context {
            context.set_headers(headers);
        }
        self.lineage.set_header(headers);
    }

    /// The attempt has ended.
    pub(super) fn end(self, answer: &Answer) {
        if let Some(span) = self.span {
            let failure = (answer.verdict != Verdict::Delivered).then_some(answer.detail.as_str());
            span.end(answer.status, failure);
        }
    }
}
