//! An event on the wire: CloudEvents 1.0 over HTTP, in binary, structured and batched mode.
//!
//! The ingress calls [`open_http`], the reply path [`read_http`], sources and the command line build events with
//! [`EventBuilder`], the event log stores [`Event::to_record`] and reads [`Event::from_record`], delivery sends
//! [`Event::to_http`], and filters see [`Event::attribute`].
//!
//! What this room promises:
//! - **What came in goes out.** An event that leaves in the mode it came in leaves with the same bytes: raw header
//!   values and body in binary mode, content type and JSON text in structured mode. An event of a batch keeps
//!   exactly its slice of the batch's text. Decoded values serve [`Event::attribute`] and changes of mode only.
//! - **What is invalid is said.** Every rule that can refuse an event is in `checks.rs`, and an [`Invalid`]
//!   names the attribute, the event of the batch, and what to do about it.
//! - **No input panics.** Neither a message nor a damaged record, nor deep nesting.
//!
//! Everything here is a pure function of its arguments.

mod builder;
mod checks;
mod data;
mod event;
mod http;
mod invalid;
mod json;
mod media_type;
mod name;
#[cfg(test)]
mod properties;
mod record;
mod syntax;
mod trace_context;
mod value;

pub use builder::EventBuilder;
pub use checks::{MAX_ATTRIBUTES, MAX_NAME, clean_text};
pub use data::Data;
pub use event::{Event, Mode};
pub use http::{
    Batch, HttpMessage, Opened, Received, content_coding, is_event, open_http, read_http, transfer_coding,
};
pub use invalid::{Invalid, Reason};
pub use record::RecordError;
pub use trace_context::{MAX_TRACESTATE, SAMPLED, TraceContext, TraceparentError};
pub use value::Value;
