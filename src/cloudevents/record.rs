//! Serialization of an event in the event log.
//!
//! ```text
//! version  1 byte   1; 2 with a trace context and no lineage; 3 with a lineage, with or without a trace context
//! kind     1 byte   0 binary, 1 structured
//! lineage  version 3: flags, 1 byte: 1 context, 2 origin, 3 both; the hops, a varint;
//!                   for an origin the id, 8 bytes, little-endian, and the descendants, a varint
//! context  version 2, and 3 if flagged: the trace id, 16 bytes; the parent id, 8 bytes; the flags, 1 byte;
//!                   the tracestate, a text, empty if there is none
//! count    varint   number of attributes; then for each, sorted by name:
//!   name   1 byte   the code of a well-known name, or 0 and a text
//!   value  1 byte   0 string: a text; 1 true; 2 false; 3 integer: 4 bytes, little-endian;
//!                   4 string with its original header value: two texts
//! binary:           the body, to the end
//! structured:       the content type, a text
//!   data   1 byte   0 absent, 1 JSON, 2 text, 3 Base64; unless absent, its start and end as varints
//!                   the JSON text, to the end
//! ```
//! A text is its length as a varint (LEB128) and its bytes. Body and JSON text remain slices of the record.

use bytes::Bytes;
use http::HeaderValue;

use super::{
    ChainOrigin, Event, Lineage, TraceContext, checks,
    name::Name,
    parts::{Attribute, Content, Member},
    value::Value,
};

/// Version of an event without a trace context or lineage.
const PLAIN: u8 = 1;

/// Version of an event with a trace context and no lineage.
const TRACED: u8 = 2;

/// Version of an event with a lineage.
const DESCENDED: u8 = 3;

/// Flags of what follows in a lineage.
const HAS_CONTEXT: u8 = 1;
const HAS_ORIGIN: u8 = 2;

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer version of Weir wrote it.
    #[error("the record has version {0}, but this version of Weir reads only up to {DESCENDED}")]
    Version(u8),
    /// No version of Weir wrote it.
    #[error("the record is damaged: {0}")]
    Damaged(&'static str),
}

impl Event {
    /// Serializes the event for the event log; see `record.rs`.
    #[must_use]
    pub fn to_record(&self) -> Bytes {
        self.stored_record().cloned().unwrap_or_else(|| write(self))
    }

    /// Reads a record that [`Event::to_record`] wrote, in this or an earlier version of Weir. Body and text remain
    /// slices of the record.
    ///
    /// # Errors
    /// [`RecordError`] if a newer version wrote the record, or it is damaged.
    pub fn from_record(record: Bytes) -> Result<Self, RecordError> {
        read(record)
    }
}

fn write(event: &Event) -> Bytes {
    let attributes = event.attribute_list();
    let rest = match event.content() {
        Content::Binary { body } => body,
        Content::Structured { text, .. } => text,
    };
    let mut record = Vec::with_capacity(rest.len() + 32 * attributes.len() + 32);
    let context = event.stored_trace_context();
    record.push(match (event.lineage(), context) {
        (Some(_), _) => DESCENDED,
        (None, Some(_)) => TRACED,
        (None, None) => PLAIN,
    });
    record.push(u8::from(matches!(event.content(), Content::Structured { .. })));
    if let Some(lineage) = event.lineage() {
        put_lineage(&mut record, lineage, context.is_some());
    }
    if let Some(context) = context {
        put_context(&mut record, context);
    }
    put_number(&mut record, attributes.len());
    for attribute in attributes {
        put_attribute(&mut record, attribute);
    }
    if let Content::Structured {
        content_type, data, ..
    } = event.content()
    {
        put_text(&mut record, content_type.as_bytes());
        put_member(&mut record, data);
    }
    record.extend_from_slice(rest);
    // A batch has many small records, and memory is accounted by their length, so spare capacity must go.
    record.into_boxed_slice().into()
}

fn put_lineage(record: &mut Vec<u8>, Lineage { hops, origin }: Lineage, has_context: bool) {
    let context = if has_context { HAS_CONTEXT } else { 0 };
    record.push(context | origin.map_or(0, |_| HAS_ORIGIN));
    put_number(record, hops as usize);
    if let Some(ChainOrigin { id, descendants }) = origin {
        record.extend_from_slice(&id.to_le_bytes());
        put_number(record, descendants as usize);
    }
}

fn put_context(record: &mut Vec<u8>, context: &TraceContext) {
    record.extend_from_slice(&context.trace_id());
    record.extend_from_slice(&context.parent_id());
    record.push(context.flags());
    put_text(record, context.state().unwrap_or_default().as_bytes());
}

fn put_attribute(record: &mut Vec<u8>, attribute: &Attribute) {
    match &attribute.name {
        Name::Known(known) => record.push(known.code),
        Name::Other(name) => {
            record.push(0);
            put_text(record, name.as_bytes());
        }
    }
    match (&attribute.value, &attribute.raw) {
        (Value::String(text), None) => {
            record.push(0);
            put_text(record, text.as_bytes());
        }
        (Value::Boolean(true), _) => record.push(1),
        (Value::Boolean(false), _) => record.push(2),
        (Value::Integer(integer), _) => {
            record.push(3);
            record.extend_from_slice(&integer.to_le_bytes());
        }
        (Value::String(text), Some(raw)) => {
            record.push(4);
            put_text(record, text.as_bytes());
            put_text(record, raw.as_bytes());
        }
    }
}

fn put_member(record: &mut Vec<u8>, member: &Member) {
    let (code, range) = match member {
        Member::Absent => return record.push(0),
        Member::Json(range) => (1, range),
        Member::Text(range) => (2, range),
        Member::Base64(range) => (3, range),
    };
    record.push(code);
    put_number(record, range.start);
    put_number(record, range.end);
}

fn put_text(record: &mut Vec<u8>, text: &[u8]) {
    put_number(record, text.len());
    record.extend_from_slice(text);
}

fn put_number(record: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        // The low seven bits.
        record.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    record.push(number as u8);
}

fn read(record: Bytes) -> Result<Event, RecordError> {
    let mut reader = RecordReader {
        record: &record,
        at: 0,
    };
    let version = match reader.byte()? {
        version @ PLAIN..=DESCENDED => version,
        other => return Err(RecordError::Version(other)),
    };
    let structured = match reader.byte()? {
        0 => false,
        1 => true,
        _ => return Err(RecordError::Damaged("it is neither binary nor structured")),
    };
    let (lineage, has_context) = match version {
        DESCENDED => {
            let (lineage, has_context) = reader.lineage()?;
            (Some(lineage), has_context)
        }
        version => (None, version == TRACED),
    };
    let context = has_context.then(|| reader.context()).transpose()?;
    let attributes = reader.attributes()?;
    let content = if structured {
        let content_type = HeaderValue::from_bytes(reader.bytes()?)
            .map_err(|_| RecordError::Damaged("its content type is invalid"))?;
        let data = reader.member()?;
        let text = record.slice(reader.at..);
        let end = match &data {
            Member::Absent => 0,
            Member::Json(range) | Member::Text(range) | Member::Base64(range) => range.end,
        };
        if end > text.len() {
            return Err(RecordError::Damaged("its data ends after its text"));
        }
        Content::Structured {
            content_type,
            text,
            data,
        }
    } else {
        Content::Binary {
            body: record.slice(reader.at..),
        }
    };
    Ok(Event::from_parts(attributes, content, Some(record.clone())).read_with(context, lineage))
}

struct RecordReader<'a> {
    record: &'a [u8],
    at: usize,
}

impl<'a> RecordReader<'a> {
    fn byte(&mut self) -> Result<u8, RecordError> {
        let byte = self
            .record
            .get(self.at)
            .copied()
            .ok_or(RecordError::Damaged("it is truncated"))?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<usize, RecordError> {
        let mut number = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(RecordError::Damaged("a number is too long"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.number()?;
        let end = self
            .at
            .checked_add(length)
            .ok_or(RecordError::Damaged("a length is too large"))?;
        let bytes = self
            .record
            .get(self.at..end)
            .ok_or(RecordError::Damaged("it is truncated"))?;
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Damaged("a text is not UTF-8"))
    }

    /// Reads the lineage. Returns it, and whether a context follows.
    fn lineage(&mut self) -> Result<(Lineage, bool), RecordError> {
        let follows = self.byte()?;
        if follows & !(HAS_CONTEXT | HAS_ORIGIN) != 0 {
            return Err(RecordError::Damaged("its lineage has an unknown form"));
        }
        let hops = self.small_number()?;
        let origin = if follows & HAS_ORIGIN == 0 {
            None
        } else {
            Some(ChainOrigin {
                id: u64::from_le_bytes(self.array()?),
                descendants: self.small_number()?,
            })
        };
        Ok((Lineage { hops, origin }, follows & HAS_CONTEXT != 0))
    }

    fn small_number(&mut self) -> Result<u32, RecordError> {
        u32::try_from(self.number()?).map_err(|_| RecordError::Damaged("a number is too large"))
    }

    fn context(&mut self) -> Result<TraceContext, RecordError> {
        let damaged = RecordError::Damaged("its trace context is invalid");
        let (trace_id, parent_id) = (self.array()?, self.array()?);
        let context = TraceContext::new(trace_id, parent_id, self.byte()?).ok_or(damaged)?;
        let state = self.text()?;
        let context = context.with_state(state);
        match context.state().unwrap_or_default() == state {
            true => Ok(context),
            false => Err(damaged),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let bytes = self.record.get(self.at..).and_then(<[u8]>::first_chunk);
        self.at += N;
        bytes.copied().ok_or(RecordError::Damaged("it is truncated"))
    }

    fn attributes(&mut self) -> Result<Box<[Attribute]>, RecordError> {
        let count = self.number()?;
        if count > checks::MAX_ATTRIBUTES {
            return Err(RecordError::Damaged("it has too many attributes"));
        }
        let mut attributes: Vec<Attribute> = Vec::with_capacity(count.min(32));
        for _ in 0..count {
            let attribute = self.attribute()?;
            if attributes.last().is_some_and(|last| last.name >= attribute.name) {
                return Err(RecordError::Damaged("its attributes are not in order"));
            }
            attributes.push(attribute);
        }
        Ok(attributes.into())
    }

    fn attribute(&mut self) -> Result<Attribute, RecordError> {
        let name = match self.byte()? {
            0 => {
                let text = self.text()?;
                if !checks::is_name(text.as_bytes()) || text.len() > checks::MAX_NAME {
                    return Err(RecordError::Damaged("a name is invalid"));
                }
                Name::from_valid(text)
            }
            code => Name::from_code(code).ok_or(RecordError::Damaged("a name is unknown"))?,
        };
        let mut raw = None;
        let value = match self.byte()? {
            0 => Value::from(self.text()?),
            1 => Value::Boolean(true),
            2 => Value::Boolean(false),
            3 => Value::Integer(i32::from_le_bytes(self.array()?)),
            4 => {
                let value = Value::from(self.text()?);
                let header = HeaderValue::from_bytes(self.bytes()?);
                raw = Some(header.map_err(|_| RecordError::Damaged("a header value is invalid"))?);
                value
            }
            _ => return Err(RecordError::Damaged("a value has an unknown type")),
        };
        Ok(Attribute { name, value, raw })
    }

    fn member(&mut self) -> Result<Member, RecordError> {
        let code = self.byte()?;
        if code == 0 {
            return Ok(Member::Absent);
        }
        let range = self.number()?..self.number()?;
        match code {
            _ if range.start > range.end => Err(RecordError::Damaged("its data ends before its start")),
            1 => Ok(Member::Json(range)),
            2 => Ok(Member::Text(range)),
            3 => Ok(Member::Base64(range)),
            _ => Err(RecordError::Damaged("its data has an unknown form")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn event() -> Event {
        let builder = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        builder.data("text/plain", "hi").build().unwrap()
    }

    #[test]
    fn reads_records_of_earlier_versions() {
        let version_1 =
            b"\x01\x00\x05\x07\x00\x0atext/plain\x02\x00\x011\x03\x00\x02/s\x01\x00\x031.0\x04\x00\x01thi";
        let read = Event::from_record(Bytes::from_static(version_1)).unwrap();
        assert_eq!((&read, read.trace_context()), (&event(), None));
        assert_eq!(
            event().to_record(),
            &version_1[..],
            "and is still written where no context is"
        );
    }

    #[test]
    fn stores_trace_context_with_the_event() {
        let context = PARENT.parse::<TraceContext>().unwrap();
        for context in [context.clone(), context.with_state("a=1, b=2")] {
            let traced = event().with_trace_context(context.clone());
            let record = traced.to_record();
            assert_eq!(record[0], TRACED);
            let read = Event::from_record(record.clone()).unwrap();
            assert_eq!((&read, read.trace_context()), (&event(), Some(context.clone())));
            assert_eq!(read.to_http(None), event().to_http(None));
            assert_eq!(read.to_record(), record);
            let marked = read.with_extensions([("weirhops", "1")]).unwrap();
            assert_eq!(marked.trace_context(), Some(context));
        }
    }

    #[test]
    fn reports_damaged_trace_context() {
        let context = PARENT.parse::<TraceContext>().unwrap().with_state("a=1");
        let record = event().with_trace_context(context).to_record();
        for (at, byte) in [(28, b'A'), (29, b'-')] {
            let mut damaged = record.to_vec();
            damaged[at] = byte;
            let error = Event::from_record(damaged.into()).unwrap_err();
            assert_eq!(error, RecordError::Damaged("its trace context is invalid"));
        }
        let zeros = [vec![TRACED, 0], vec![0; 24], record[26..].to_vec()].concat();
        assert!(Event::from_record(zeros.into()).is_err());
        assert_eq!(
            Event::from_record(Bytes::from_static(&[4, 0])),
            Err(RecordError::Version(4))
        );
    }

    #[test]
    fn stores_lineage_with_the_event() {
        let context = PARENT.parse::<TraceContext>().unwrap();
        let origins = [None, Some((0, 0)), Some((u64::MAX, u32::MAX))];
        for (hops, origin) in [0, 1, u32::MAX]
            .into_iter()
            .flat_map(|hops| origins.map(|origin| (hops, origin)))
        {
            let origin = origin.map(|(id, descendants)| ChainOrigin { id, descendants });
            let lineage = Lineage { hops, origin };
            for event in [event(), event().with_trace_context(context.clone())] {
                let descended = event.clone().with_lineage(lineage);
                let record = descended.to_record();
                let read = Event::from_record(record.clone()).unwrap();
                assert_eq!((&read, read.lineage()), (&event, Some(lineage)));
                assert_eq!(read.trace_context(), event.trace_context());
                assert_eq!(read.to_http(None), event.to_http(None));
                let marked = read.with_extensions([("a", "1")]).unwrap();
                assert_eq!(marked.lineage(), Some(lineage));
                // A body that is cut short is detected by the log's checksums.
                for length in 0..record.len() - "hi".len() {
                    assert!(Event::from_record(record.slice(..length)).is_err(), "{length}");
                }
            }
        }
        let unknown = Bytes::from_static(&[DESCENDED, 0, 4, 0]);
        assert_eq!(
            Event::from_record(unknown),
            Err(RecordError::Damaged("its lineage has an unknown form"))
        );
    }
}
