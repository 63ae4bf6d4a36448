//! The data of an event as a CEL value.

use std::{cell::Cell, collections::HashMap, fmt};

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
    value::Val,
};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{MAX_DATA, MAX_VALUES, request::fields};
use crate::cloudevents::{Data, Event};

/// Content type of forms.
const FORM: &str = "application/x-www-form-urlencoded";

/// A JSON value in CEL: a whole number that fits into 64 bits is an int or a uint, any other number a double. Of
/// duplicate names, the last one wins. Nested at most 128 levels, the limit of serde_json.
#[derive(Debug)]
pub(in crate::filter) struct Json(Box<dyn Val>);

/// Why an event's data cannot be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::filter) enum DataError {
    /// There is no data.
    #[error("the event has no data")]
    Absent,
    /// The data is not JSON.
    #[error("the content type of the data is not JSON")]
    NotJson,
    /// The content type is JSON, but the bytes are not valid.
    #[error("the data is not valid JSON")]
    Invalid,
    /// Neither JSON nor text.
    #[error("the data is neither JSON nor text")]
    NotText,
    /// Larger than the limit.
    #[error("the data has more than {MAX_DATA} bytes, the maximum for expressions")]
    TooLarge,
    /// More values than the limit.
    #[error("the data has more than {MAX_VALUES} values, the maximum for expressions")]
    TooManyValues,
}

impl Json {
    pub(in crate::filter) fn of(event: &Event) -> Result<Self, DataError> {
        if event.data().is_none() {
            return Err(DataError::Absent);
        }
        let data = event.json_data().ok_or(DataError::NotJson)?;
        Self::parse(data.as_bytes())
    }

    /// The data of any content type: a form becomes the fields, and a text that is a JSON object or list that value. No data
    /// is an empty text.
    pub(in crate::filter) fn of_body(event: &Event) -> Result<Self, DataError> {
        if let Some(data) = event.json_data() {
            return Self::parse(data.as_bytes());
        }
        let data = event.data();
        let bytes = data.as_ref().map_or(&[][..], Data::as_bytes);
        if bytes.len() > MAX_DATA {
            return Err(DataError::TooLarge);
        }
        let text = str::from_utf8(bytes).map_err(|_| DataError::NotText)?;
        let content_type = event.attribute("datacontenttype").map(ToString::to_string);
        let essence = content_type.as_deref().and_then(|text| text.split(';').next());
        if essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(FORM)) {
            return fields(text).map(Self).ok_or(DataError::TooManyValues);
        }
        if text.trim_start().starts_with(['{', '['])
            && let Ok(json) = Self::parse(bytes)
        {
            return Ok(json);
        }
        Ok(Self(Box::new(CelString::from(text.to_owned()))))
    }

    /// A value that is in memory already.
    pub(super) fn of_value(value: &serde_json::Value) -> Result<Self, DataError> {
        let room = Cell::new(MAX_VALUES);
        let made = Values { room: &room }.deserialize(value);
        made.map_err(|_| DataError::TooManyValues)
    }

    fn parse(text: &[u8]) -> Result<Self, DataError> {
        if text.len() > MAX_DATA {
            return Err(DataError::TooLarge);
        }
        let room = Cell::new(MAX_VALUES);
        let mut reader = serde_json::Deserializer::from_slice(text);
        let parsed = Values { room: &room }.deserialize(&mut reader);
        match parsed.and_then(|value| reader.end().map(|()| value)) {
            Ok(value) => Ok(value),
            Err(_) if room.get() == 0 => Err(DataError::TooManyValues),
            Err(_) => Err(DataError::Invalid),
        }
    }

    pub(super) fn value(&self) -> &dyn Val {
        &*self.0
    }
}

/// Deserializes a value while there is room for it and its nested values.
#[derive(Clone, Copy)]
struct Values<'a> {
    room: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        match self.room.get().checked_sub(1) {
            Some(room) => {
                self.room.set(room);
                deserializer.deserialize_any(self)
            }
            None => Err(D::Error::custom("too many values")),
        }
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json(Box::new(CelNull)))
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Json, E> {
        Ok(Json(Box::new(CelBool::from(boolean))))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json(Box::new(CelInt::from(number))))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json(match i64::try_from(number) {
            Ok(number) => Box::new(CelInt::from(number)),
            Err(_) => Box::new(CelUInt::from(number)),
        }))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json(Box::new(CelDouble::from(number))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json(Box::new(CelString::from(text.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut list: Vec<Box<dyn Val>> = Vec::new();
        while let Some(Json(element)) = elements.next_element_seed(self)? {
            list.push(element);
        }
        Ok(Json(Box::new(CelList::from(list))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut map: HashMap<CelMapKey<'static>, Box<dyn Val>> = HashMap::new();
        while let Some(name) = members.next_key::<String>()? {
            let Json(value) = members.next_value_seed(self)?;
            map.insert(CelMapKey::String(CelString::from(name)), value);
        }
        Ok(Json(Box::new(CelMap::from(map))))
    }
}
