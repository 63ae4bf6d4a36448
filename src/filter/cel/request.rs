//! The variable `request`: the HTTP request that an event is made of.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::OnceLock,
};

use cel::common::{
    types::{CelMap, CelMapKey, CelString},
    value::Val,
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;

use super::{MAX_VALUES, time::CelTime};

/// A request, for expressions: its path, its query, its headers, and when it was received. Its value is made at most once, when
/// an expression first needs it.
#[derive(Debug)]
pub struct IncomingRequest<'a> {
    path: &'a str,
    query: Cow<'a, str>,
    headers: Vec<(&'a str, &'a str)>,
    received: Timestamp,
    value: OnceLock<Option<Box<dyn Val>>>,
}

impl<'a> IncomingRequest<'a> {
    /// `query` is as in the URI, without the question mark. Of a header that occurs several times, the values are joined.
    /// Expressions on a request with too many fields in the query fail.
    #[must_use]
    pub fn new(
        path: &'a str,
        query: impl Into<Cow<'a, str>>,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        received: Timestamp,
    ) -> Self {
        Self {
            path,
            query: query.into(),
            headers: headers.into_iter().collect(),
            received,
            value: OnceLock::new(),
        }
    }

    /// Returns the request; `None` if the query has too many fields.
    pub(super) fn value(&self) -> Option<&dyn Val> {
        self.value.get_or_init(|| self.make()).as_deref()
    }

    fn make(&self) -> Option<Box<dyn Val>> {
        let members: [(&str, Box<dyn Val>); 4] = [
            ("path", text(self.path.to_owned())),
            ("query", fields(&self.query)?),
            ("headers", self.joined_headers()),
            ("received", Box::new(CelTime::of(self.received))),
        ];
        Some(map(members.map(|(name, value)| (name.to_owned(), value))))
    }

    fn joined_headers(&self) -> Box<dyn Val> {
        let mut joined = BTreeMap::<String, String>::new();
        for (name, value) in &self.headers {
            joined
                .entry(name.to_ascii_lowercase())
                .and_modify(|values| {
                    values.push_str(", ");
                    values.push_str(value);
                })
                .or_insert_with(|| (*value).to_owned());
        }
        map(joined.into_iter().map(|(name, value)| (name, text(value))))
    }
}

/// Parses a query, or a form: of a field that occurs several times, the first value counts. Returns `None` if the fields
/// and the map of them are more than [`MAX_VALUES`].
pub(super) fn fields(text_of_fields: &str) -> Option<Box<dyn Val>> {
    let decoded = |part: &str| {
        let part = part.replace('+', " ");
        percent_decode_str(&part).decode_utf8_lossy().into_owned()
    };
    let pairs = text_of_fields.split('&').filter(|pair| !pair.is_empty());
    let mut first = BTreeMap::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        first.entry(decoded(name)).or_insert_with(|| decoded(value));
        if first.len() == MAX_VALUES {
            return None;
        }
    }
    Some(map(first.into_iter().map(|(name, value)| (name, text(value)))))
}

fn text(text: String) -> Box<dyn Val> {
    Box::new(CelString::from(text))
}

fn map(members: impl IntoIterator<Item = (String, Box<dyn Val>)>) -> Box<dyn Val> {
    let members = members
        .into_iter()
        .map(|(name, value)| (CelMapKey::String(CelString::from(name)), value));
    let members: HashMap<CelMapKey<'static>, Box<dyn Val>> = members.collect();
    Box::new(CelMap::from(members))
}
