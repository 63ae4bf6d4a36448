//! The form in which the event log keeps an event.
//!
//! ```text
//! version  1 byte   1
//! kind     1 byte   0 binary, 1 structured
//! count    varint   attributes, then for each, in order of their names:
//!   name   1 byte   the code of a well-known name, or 0 and a text
//!   value  1 byte   0 string: a text; 1 true; 2 false; 3 integer: 4 bytes, little-endian;
//!                   4 string with the header value that it came in: two texts
//! binary:           the body, to the end
//! structured:       the content type, a text
//!   data   1 byte   0 absent, 1 JSON, 2 text, 3 Base64; unless absent, its start and end as varints
//!                   the JSON text, to the end
//! ```
//! A text is its length as a varint (LEB128) and its bytes. Body and JSON text stay slices of the record.

use bytes::Bytes;
use http::HeaderValue;

use super::{
    Event, checks,
    event::{Attribute, Content, Member},
    name::Name,
    value::Value,
};

const VERSION: u8 = 1;

/// Why a record is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer Weir wrote it.
    #[error("the record has version {0}, and this Weir reads version {VERSION}")]
    Version(u8),
    /// It is not what any Weir wrote.
    #[error("the record is damaged: {0}")]
    Damaged(&'static str),
}

pub(super) fn write(event: &Event) -> Bytes {
    let attributes = event.attribute_list();
    let rest = match event.content() {
        Content::Binary { body } => body,
        Content::Structured { text, .. } => text,
    };
    let mut record = Vec::with_capacity(rest.len() + 32 * attributes.len() + 32);
    record.push(VERSION);
    record.push(u8::from(matches!(event.content(), Content::Structured { .. })));
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
    record.into()
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

pub(super) fn read(record: Bytes) -> Result<Event, RecordError> {
    let mut reader = Reader {
        record: &record,
        at: 0,
    };
    match reader.byte()? {
        VERSION => {}
        newer => return Err(RecordError::Version(newer)),
    }
    let structured = match reader.byte()? {
        0 => false,
        1 => true,
        _ => return Err(RecordError::Damaged("it is neither binary nor structured")),
    };
    let attributes = reader.attributes()?;
    let content = if structured {
        let content_type =
            HeaderValue::from_bytes(reader.bytes()?).map_err(|_| RecordError::Damaged("its content type"))?;
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
    Ok(Event::from_parts(attributes, content, Some(record.clone())))
}

struct Reader<'a> {
    record: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, RecordError> {
        let byte = self
            .record
            .get(self.at)
            .copied()
            .ok_or(RecordError::Damaged("it breaks off"))?;
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
            .ok_or(RecordError::Damaged("it breaks off"))?;
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Damaged("a text is not UTF-8"))
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
                    return Err(RecordError::Damaged("a name is none"));
                }
                Name::from_valid(text)
            }
            code => Name::from_code(code).ok_or(RecordError::Damaged("a name is not known"))?,
        };
        let mut raw = None;
        let value = match self.byte()? {
            0 => Value::from(self.text()?),
            1 => Value::Boolean(true),
            2 => Value::Boolean(false),
            3 => {
                let bytes = [self.byte()?, self.byte()?, self.byte()?, self.byte()?];
                Value::Integer(i32::from_le_bytes(bytes))
            }
            4 => {
                let value = Value::from(self.text()?);
                let header = HeaderValue::from_bytes(self.bytes()?);
                raw = Some(header.map_err(|_| RecordError::Damaged("a header value"))?);
                value
            }
            _ => return Err(RecordError::Damaged("a value has no known type")),
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
            _ if range.start > range.end => Err(RecordError::Damaged("its data ends before it begins")),
            1 => Ok(Member::Json(range)),
            2 => Ok(Member::Text(range)),
            3 => Ok(Member::Base64(range)),
            _ => Err(RecordError::Damaged("its data has no known form")),
        }
    }
}
