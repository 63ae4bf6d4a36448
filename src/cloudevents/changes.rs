//! Changes an event's attributes and data: what a Trigger's transform makes of it.

use bytes::Bytes;

use super::{
    Event, Invalid, checks, json,
    parts::{Attribute, Content},
    value::Value,
};

/// Changes of an event. `specversion` and the mode stay.
#[derive(Clone, Debug, Default)]
pub struct EventChanges<'a> {
    /// Attributes that are set or replaced.
    pub set: Vec<(&'a str, Value)>,
    /// Attributes that are removed. Those that the event does not have are ignored.
    pub remove: Vec<&'a str>,
    /// New data; `None` if the data stays.
    pub data: Option<Bytes>,
}

impl Event {
    /// Returns a copy of the event with these changes, in the same mode. Trace context and lineage stay; so do the
    /// bytes of the data unless there is new data or a new content type.
    ///
    /// # Errors
    /// [`Invalid`] if the result is not a valid event.
    pub fn with_changes(&self, changes: EventChanges<'_>) -> Result<Self, Invalid> {
        let EventChanges { set, remove, data } = changes;
        let is_changed =
            |name: &str| set.iter().any(|(changed, _)| *changed == name) || remove.contains(&name);
        let is_retyped = data.is_some() || is_changed("datacontenttype");
        let kept = self.attribute_list().iter();
        let mut attributes: Vec<Attribute> = kept
            .filter(|attribute| !is_changed(attribute.name.as_str()))
            .cloned()
            .collect();
        for (name, value) in set {
            attributes.push(Attribute::new(checks::name(name)?, value));
        }
        let attributes = checks::attributes(attributes)?;
        let body = || {
            let kept = self.data().map(|data| Bytes::copy_from_slice(data.as_bytes()));
            data.or(kept).unwrap_or_default()
        };
        let content = match self.content() {
            Content::Binary { body: kept } if !is_retyped => Content::Binary { body: kept.clone() },
            Content::Binary { .. } => Content::Binary { body: body() },
            Content::Structured { content_type, .. } => {
                let written = if is_retyped {
                    let content = Content::Binary { body: body() };
                    json::write(&Self::from_parts(attributes.clone(), content, None))
                } else {
                    json::write(&Self::from_parts(
                        attributes.clone(),
                        self.content().clone(),
                        None,
                    ))
                };
                let (text, data) = written;
                Content::Structured {
                    content_type: content_type.clone(),
                    text: text.into(),
                    data,
                }
            }
        };
        let event = Self::from_parts(attributes, content, None);
        Ok(event.read_with(self.stored_trace_context().cloned(), self.lineage()))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::*;
    use crate::cloudevents::{Data, EventBuilder, Lineage, Mode, Reason, read_http};

    fn structured(text: &str) -> Event {
        let content_type = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]);
        let received = read_http(&headers, Bytes::copy_from_slice(text.as_bytes())).unwrap();
        received.into_events().pop().unwrap()
    }

    fn binary() -> Event {
        EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t")
            .attribute("secret", "x")
            .data("application/json", r#"{"a": 1.10}"#)
            .build()
            .unwrap()
    }

    /// The event after it was sent and received.
    fn again(event: &Event) -> Event {
        let message = event.to_http(None);
        let received = read_http(&message.headers, message.body).unwrap();
        received.into_events().pop().unwrap()
    }

    #[test]
    fn sets_and_removes_in_both_modes() {
        let text =
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","secret":"x","data":{"a": 1.10}}"#;
        for event in [binary(), structured(text)] {
            let event = event.with_lineage(Lineage::of_origin(7));
            let changes = EventChanges {
                set: vec![("type", "u".into()), ("n", 5.into())],
                remove: vec!["secret", "absent"],
                data: None,
            };
            let changed = event.with_changes(changes).unwrap();
            assert_eq!((changed.r#type(), changed.mode()), ("u", event.mode()));
            assert_eq!(changed.attribute("n"), Some(&5.into()));
            assert_eq!(changed.attribute("secret"), None);
            assert_eq!(changed.data(), event.data(), "{changed:?}");
            assert_eq!(changed.lineage(), event.lineage());
            let received = again(&changed);
            assert_eq!((received.data(), received.r#type()), (event.data(), "u"));
            assert_eq!(
                received.attribute("datacontenttype"),
                event.attribute("datacontenttype")
            );
        }
    }

    #[test]
    fn replaces_the_data() {
        let text = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"AAE="}"#;
        for event in [binary(), structured(text)] {
            let changes = EventChanges {
                set: vec![("datacontenttype", "application/json".into())],
                remove: Vec::new(),
                data: Some(Bytes::from_static(b"[1, 2]")),
            };
            let changed = event.with_changes(changes).unwrap();
            assert_eq!(changed.json_data().unwrap().as_bytes(), b"[1, 2]");
            assert_eq!(again(&changed).json_data().unwrap().as_bytes(), b"[1, 2]");
        }
    }

    #[test]
    fn data_keeps_its_bytes_under_another_content_type() {
        let text = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"a": 1.10}}"#;
        let changes = EventChanges {
            set: vec![("datacontenttype", "text/plain".into())],
            ..EventChanges::default()
        };
        let changed = structured(text).with_changes(changes).unwrap();
        assert_eq!(changed.mode(), Mode::Structured);
        assert_eq!(changed.data(), Some(Data::Text(r#"{"a": 1.10}"#.into())));
        assert_eq!(again(&changed).data(), changed.data());
    }

    #[test]
    fn the_result_is_valid() {
        for (set, remove, reason) in [
            (vec![("time", "soon".into())], vec![], Reason::Value),
            (vec![("Bad", "x".into())], vec![], Reason::Name),
            (vec![("id", "".into())], vec![], Reason::Empty),
            (vec![("subject", 5.into())], vec![], Reason::Type),
            (vec![], vec!["source"], Reason::Missing),
            (
                vec![("specversion", "2.0".into())],
                vec![],
                Reason::UnsupportedVersion,
            ),
        ] {
            let changes = EventChanges {
                set,
                remove,
                data: None,
            };
            assert_eq!(binary().with_changes(changes).unwrap_err().reason(), reason);
        }
    }
}
