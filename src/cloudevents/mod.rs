//! Events on the wire: CloudEvents 1.0 over HTTP, in binary, structured and batched mode. Pure.
//!
//! The ingress and the reply path call [`read_http`], Sources and the command line build events with
//! [`EventBuilder`], the event log stores [`Event::to_record`] and reads [`Event::from_record`], delivery sends
//! [`Event::to_http`], and filters read [`Event::attribute`].
//!
//! Guarantees:
//! - **What came in goes out.** An event sent in its original mode keeps its bytes: raw header values and body in
//!   binary mode, content type and JSON text in structured mode. An event from a batch keeps its exact slice of the
//!   batch's text. Decoded values serve only [`Event::attribute`] and changes of mode.
//! - **Invalid input is explained.** Every rule that rejects an event is in `checks.rs`, and an [`Invalid`] names
//!   the attribute, the event in the batch, and what to do about it.
//! - **No input panics.** Neither a message nor a damaged record, nor deep nesting.
//!
//! Everything here is a pure function of its arguments.

mod builder;
mod changes;
mod checks;
mod data;
mod event;
mod extensions;
mod http;
mod invalid;
mod json;
mod json_text;
mod lineage;
mod media_type;
mod name;
mod parts;
#[cfg(test)]
mod properties;
mod record;
mod syntax;
mod trace_context;
mod value;

pub use builder::EventBuilder;
pub use changes::EventChanges;
pub use checks::{MAX_ATTRIBUTES, MAX_NAME, clean_text};
pub use data::Data;
pub use event::{Event, Mode};
pub use http::{
    HttpMessage, ReceivedEvents, Unread, content_coding, is_batch, is_event, read_http, read_http_each,
    transfer_coding,
};
pub use invalid::{Invalid, Reason};
pub use lineage::{ChainOrigin, Lineage};
pub use record::RecordError;
pub use trace_context::{MAX_TRACESTATE, SAMPLED, TraceContext, TraceparentError};
pub use value::Value;
