//! Events in a Sink's answer.

use bytes::Bytes;
use http::HeaderMap;

use super::target::HttpTarget;
use crate::{
    cloudevents::{Invalid, Lineage, TraceContext, content_coding, read_http_each, transfer_coding},
    intake::{self, Beyond, Counted, Descendants, HOPS},
    memory::Reservation,
};

/// A Sink's unparsed answer whose headers declare an event or a batch. It is parsed late, because a batch takes more
/// memory as events than as text.
#[derive(Debug)]
pub struct Replies {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Its secrets are hidden in messages about the reply.
    pub(super) target: HttpTarget,
    pub(super) descendants: Descendants,
    /// Memory of the body and of the records made from it.
    pub(super) _memory: Reservation,
}

/// Why a reply yields no records.
#[derive(Debug)]
pub enum UnusableReply {
    /// It is not a valid event or batch.
    Invalid(String),
    /// Too many events descend from the same one.
    BeyondMaxDescendants,
}

impl From<Invalid> for UnusableReply {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid.to_string())
    }
}

impl Replies {
    /// Creates the records of all events, each with its lineage. Events without a trace context continue `context`.
    ///
    /// # Errors
    /// Fails when the answer is not a valid event or batch, or would exceed the limit of descendants of its origin.
    pub async fn records(
        &self,
        next: Lineage,
        context: Option<&TraceContext>,
    ) -> Result<(Vec<Bytes>, Counted), UnusableReply> {
        let records = self.all_records(next, context).await;
        records.map_err(|unusable| match unusable {
            UnusableReply::Invalid(problem) => UnusableReply::Invalid(self.target.hide_secrets(problem)),
            beyond @ UnusableReply::BeyondMaxDescendants => beyond,
        })
    }

    async fn all_records(
        &self,
        next: Lineage,
        context: Option<&TraceContext>,
    ) -> Result<(Vec<Bytes>, Counted), UnusableReply> {
        let headers = &self.headers;
        if let Some(coding) = content_coding(headers).or_else(|| transfer_coding(headers)) {
            return Err(UnusableReply::Invalid(format!(
                "unsupported coding {coding:?}: send the body unencoded"
            )));
        }
        let events = read_http_each(headers, self.body.clone())?;
        let events = events.in_context(TraceContext::from_headers(headers));
        let counted = self.descendants.count(next.origin, events.len());
        let counted = counted.map_err(|_: Beyond| UnusableReply::BeyondMaxDescendants)?;
        let (hops, lineage) = (
            next.hops.to_string(),
            Lineage {
                origin: Some(counted.origin()),
                ..next
            },
        );
        let records = intake::records(events, |_, event| {
            let event = event?.with_extensions([(HOPS, hops.as_str())])?;
            let event = match context {
                Some(context) if event.trace_context().is_none() => event.with_trace_context(context.clone()),
                _ => event,
            };
            Ok::<_, UnusableReply>(event.with_lineage(lineage).to_record())
        });
        Ok((records.await?, counted))
    }
}

#[cfg(test)]
impl Replies {
    /// A batch with which a Sink replied.
    pub fn for_test(client: &crate::destination::Client, body: Bytes, descendants: Descendants) -> Self {
        use crate::{
            destination::Target,
            memory::Pool,
            routing::{Authorities, Destination},
        };
        let destination = Destination::to_uri("http://sink/");
        let Target::Http(target) = client.target("a", &destination, &Authorities::default()).unwrap();
        let format = http::HeaderValue::from_static("application/cloudevents-batch+json");
        Self {
            headers: HeaderMap::from_iter([(http::header::CONTENT_TYPE, format)]),
            body,
            target,
            descendants,
            _memory: Pool::new(1).try_reserve(&"a".into(), 0).unwrap(),
        }
    }
}
