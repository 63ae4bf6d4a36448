//! Builds Weir's own events, with the same checks as for received events.

use bytes::Bytes;

use super::{
    Event, Invalid, Value, checks,
    name::Name,
    parts::{Attribute, Content},
};

/// Builds an event in binary mode. `specversion` defaults to `1.0`; the caller sets everything else.
///
/// ```
/// # fn main() -> Result<(), weir::cloudevents::Invalid> {
/// use weir::cloudevents::EventBuilder;
///
/// let event = EventBuilder::new()
///     .attribute("id", "1")
///     .attribute("source", "/mycontext")
///     .attribute("type", "com.example.someevent")
///     .data("application/json", r#"{"a":1}"#)
///     .build()?;
/// assert_eq!(event.source(), "/mycontext");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct EventBuilder {
    attributes: Vec<(String, Value)>,
    body: Bytes,
}

impl EventBuilder {
    /// Creates a builder without attributes or data.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets an attribute. This includes `datacontenttype`, for data set without a type.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    /// Sets the data and its content type.
    pub fn data(self, content_type: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.attribute("datacontenttype", Value::from(content_type.into()))
            .untyped_data(data)
    }

    /// Sets the data without a content type, which [`EventBuilder::attribute`] may set.
    pub fn untyped_data(mut self, data: impl Into<Bytes>) -> Self {
        self.body = data.into();
        self
    }

    /// Validates and builds the event.
    ///
    /// # Errors
    /// [`Invalid`], with the attribute concerned, if the event is invalid or an attribute was set twice.
    pub fn build(self) -> Result<Event, Invalid> {
        let mut attributes = Vec::with_capacity(self.attributes.len() + 1);
        for (name, value) in self.attributes {
            attributes.push(Attribute::new(checks::name(&name)?, value));
        }
        let specversion = Name::from_valid("specversion");
        if !attributes.iter().any(|attribute| attribute.name == specversion) {
            attributes.push(Attribute::new(specversion, "1.0".into()));
        }
        Ok(Event::from_parts(
            checks::attributes(attributes)?,
            Content::Binary { body: self.body },
            None,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::{Data, Mode, Reason};

    fn minimal() -> EventBuilder {
        EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t")
    }

    #[test]
    fn builds_in_binary_mode() {
        let event = minimal()
            .attribute("n", 5)
            .data("text/plain", "hi")
            .build()
            .unwrap();
        assert_eq!(event.mode(), Mode::Binary);
        assert_eq!((event.id(), event.source(), event.r#type()), ("1", "/s", "t"));
        assert_eq!(event.attribute("specversion"), Some(&"1.0".into()));
        assert_eq!(event.attribute("datacontenttype"), Some(&"text/plain".into()));
        assert_eq!(event.attribute("n"), Some(&5.into()));
        assert_eq!(event.attribute("missing"), None);
        assert_eq!(event.data(), Some(Data::Binary("hi".into())));
        assert_eq!(minimal().build().unwrap().data(), None);
    }

    #[test]
    fn rejects_by_the_same_checks() {
        for (builder, reason, attribute) in [
            (
                EventBuilder::new().attribute("id", "1"),
                Reason::Missing,
                "source",
            ),
            (
                minimal().attribute("specversion", "0.3"),
                Reason::UnsupportedVersion,
                "specversion",
            ),
            (minimal().attribute("id", "2"), Reason::Duplicate, "id"),
            (minimal().attribute("data", "x"), Reason::Name, "data"),
            (minimal().attribute("fooBar", "x"), Reason::Name, "fooBar"),
            (minimal().attribute("x", "a\nb"), Reason::Value, "x"),
            (minimal().data("json", "{}"), Reason::Value, "datacontenttype"),
            (
                minimal().attribute("datacontenttype", "a/b").data("a/b", ""),
                Reason::Duplicate,
                "datacontenttype",
            ),
        ] {
            let invalid = builder.build().unwrap_err();
            assert_eq!((invalid.reason(), invalid.attribute()), (reason, Some(attribute)));
        }
        assert!(
            minimal()
                .attribute("specversion", "1.0")
                .untyped_data("x")
                .build()
                .is_ok()
        );
    }

    #[test]
    fn reads_valid_expiry_times() {
        let expires = |text: Value| minimal().attribute("expirytime", text).build().unwrap().expires();
        assert_eq!(
            expires("2030-01-01T00:00:00+01:00".into()),
            Some("2029-12-31T23:00:00Z".parse().unwrap())
        );
        assert_eq!(expires("soon".into()), None);
        assert_eq!(expires(5.into()), None);
        assert_eq!(minimal().build().unwrap().expires(), None);
    }
}
