//! Values as JSON, as text, and as the value of an attribute: what templates make of them.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cel::common::{
    types::{CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString},
    value::Val,
};

use super::{
    CelExpression, CelFailure, ChangedObject, IncomingRequest,
    evaluate::{CelScope, ELEMENT, type_of},
    scalar::scalar_text,
    time::CelTime,
};
use crate::{
    cloudevents,
    filter::{Subject, fuel::Fuel},
};

/// Evaluates expressions on one event, all within one budget.
#[derive(Debug)]
pub struct CelEvaluation<'a> {
    subject: Subject<'a>,
    fuel: Fuel,
}

impl<'a> CelEvaluation<'a> {
    /// Starts with a full budget.
    #[must_use]
    pub fn new(event: &'a cloudevents::Event) -> Self {
        Self {
            subject: Subject::new(event),
            fuel: Fuel::new(),
        }
    }

    /// Starts with a full budget, on an event and the request that it is made of.
    #[must_use]
    pub fn of_request(event: &'a cloudevents::Event, request: &'a IncomingRequest<'a>) -> Self {
        Self {
            subject: Subject::of_request(event, request),
            fuel: Fuel::new(),
        }
    }

    /// Starts with a full budget, on an event and the change of an object that it is made of.
    #[must_use]
    pub fn of_change(event: &'a cloudevents::Event, change: &'a ChangedObject<'a>) -> Self {
        Self {
            subject: Subject::of_change(event, change),
            fuel: Fuel::new(),
        }
    }

    /// Appends the value of an expression as JSON. Whole numbers, other numbers and the members of objects, sorted by
    /// name, are as in the data that they come from; a timestamp is a string, and bytes are one in Base64.
    ///
    /// # Errors
    /// If the evaluation fails, or the value is none of JSON. Then part of it may have been appended.
    pub fn json(&self, expression: &CelExpression, out: &mut Vec<u8>) -> Result<(), CelFailure> {
        let value = CelScope::new(&self.subject, &self.fuel).value(&expression.root)?;
        self.push_json(&*value, out)
    }

    /// Appends the value of an expression as text. A number, a Boolean and a timestamp are written as by `string()`.
    ///
    /// # Errors
    /// If the evaluation fails, or the value is a list, a map or null.
    pub fn text(&self, expression: &CelExpression, out: &mut String) -> Result<(), CelFailure> {
        let value = CelScope::new(&self.subject, &self.fuel).value(&expression.root)?;
        self.push_text(&*value, out)
    }

    /// Returns the value of an expression as that of an extension attribute: a Boolean, an integer of 32 bits, or else
    /// the text.
    ///
    /// # Errors
    /// As [`CelEvaluation::text`].
    pub fn attribute(&self, expression: &CelExpression) -> Result<cloudevents::Value, CelFailure> {
        let value = CelScope::new(&self.subject, &self.fuel).value(&expression.root)?;
        if let Some(boolean) = value.downcast_ref::<CelBool>() {
            return Ok((*boolean.inner()).into());
        }
        let integer = value.downcast_ref::<CelInt>().map(|number| *number.inner());
        if let Some(integer) = integer.and_then(|integer| i32::try_from(integer).ok()) {
            return Ok(integer.into());
        }
        let mut text = String::new();
        self.push_text(&*value, &mut text)?;
        Ok(text.into())
    }

    fn push_text(&self, value: &dyn Val, out: &mut String) -> Result<(), CelFailure> {
        if let Some(text) = value.downcast_ref::<CelString>() {
            self.fuel.read(text.inner().len(), 1)?;
            out.push_str(text.inner());
            return Ok(());
        }
        self.fuel.spend(ELEMENT)?;
        let text = scalar_text(value).ok_or_else(|| CelFailure::NotText(type_of(value)))?;
        out.push_str(&text);
        Ok(())
    }

    fn push_json(&self, value: &dyn Val, out: &mut Vec<u8>) -> Result<(), CelFailure> {
        self.fuel.spend(ELEMENT)?;
        if let Some(text) = value.downcast_ref::<CelString>() {
            return self.push_string(text.inner(), out);
        }
        if let Some(list) = value.downcast_ref::<CelList>() {
            out.push(b'[');
            for (index, element) in list.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                self.push_json(&**element, out)?;
            }
            out.push(b']');
        } else if let Some(map) = value.downcast_ref::<CelMap>() {
            self.push_object(map, out)?;
        } else if let Some(bytes) = value.downcast_ref::<CelBytes>() {
            self.fuel.read(bytes.inner().len(), 2)?;
            self.push_string(&BASE64.encode(bytes.inner()), out)?;
        } else if let Some(time) = value.downcast_ref::<CelTime>() {
            self.push_string(&time.to_string(), out)?;
        } else if value.downcast_ref::<CelNull>().is_some() {
            out.extend_from_slice(b"null");
        } else if let Some(number) = value.downcast_ref::<CelDouble>() {
            let number = serde_json::Number::from_f64(*number.inner()).ok_or(CelFailure::NotFinite)?;
            out.extend_from_slice(number.to_string().as_bytes());
        } else {
            let mut text = String::new();
            let written = self.push_text(value, &mut text);
            written.map_err(|failure| match failure {
                CelFailure::NotText(r#type) => CelFailure::NotJson(r#type),
                failure => failure,
            })?;
            out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }

    fn push_object(&self, map: &CelMap<'_>, out: &mut Vec<u8>) -> Result<(), CelFailure> {
        self.fuel.read(map.len(), 3 * ELEMENT)?;
        let mut members: Vec<(&CelMapKey<'_>, _)> = map.iter().collect();
        members.sort_unstable_by_key(|(name, _)| *name);
        out.push(b'{');
        for (index, (name, value)) in members.into_iter().enumerate() {
            let CelMapKey::String(name) = name else {
                return Err(CelFailure::NotJson(type_of(name.inner())));
            };
            if index > 0 {
                out.push(b',');
            }
            self.push_string(name.inner(), out)?;
            out.push(b':');
            self.push_json(&**value, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn push_string(&self, text: &str, out: &mut Vec<u8>) -> Result<(), CelFailure> {
        self.fuel.read(text.len(), 2)?;
        // Serializing a string to a vector cannot fail.
        let written = serde_json::to_writer(&mut *out, text);
        debug_assert!(written.is_ok());
        Ok(())
    }
}
