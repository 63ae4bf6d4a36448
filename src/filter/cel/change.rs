//! The variables `change`, `object` and `oldObject`: the change of an object that an event is made of.

use std::sync::OnceLock;

use cel::common::{types::CelString, value::Val};
use serde_json::Value;

use super::{DataError, Json};

/// A change of an object, for expressions. The values of its versions are made at most once, when an expression first needs
/// them.
#[derive(Debug)]
pub struct ChangedObject<'a> {
    change: CelString<'static>,
    object: ObjectVersion<'a>,
    old_object: ObjectVersion<'a>,
}

#[derive(Debug)]
struct ObjectVersion<'a> {
    json: &'a Value,
    value: OnceLock<Result<Json, DataError>>,
}

impl<'a> ChangedObject<'a> {
    /// `change` is a word such as `updated`. `old_object` is the version before, if it is known. Expressions on a version with
    /// too many values fail.
    #[must_use]
    pub fn new(change: &str, object: &'a Value, old_object: Option<&'a Value>) -> Self {
        Self {
            change: CelString::from(change.to_owned()),
            object: ObjectVersion::new(object),
            old_object: ObjectVersion::new(old_object.unwrap_or(&Value::Null)),
        }
    }

    /// Returns the word.
    pub(super) fn change(&self) -> &dyn Val {
        &self.change
    }

    /// Returns the object.
    pub(super) fn object(&self) -> Result<&dyn Val, DataError> {
        self.object.value()
    }

    /// Returns the version before; null if it is not known.
    pub(super) fn old_object(&self) -> Result<&dyn Val, DataError> {
        self.old_object.value()
    }
}

impl<'a> ObjectVersion<'a> {
    fn new(json: &'a Value) -> Self {
        Self {
            json,
            value: OnceLock::new(),
        }
    }

    fn value(&self) -> Result<&dyn Val, DataError> {
        match self.value.get_or_init(|| Json::of_value(self.json)) {
            Ok(json) => Ok(json.value()),
            Err(error) => Err(*error),
        }
    }
}
