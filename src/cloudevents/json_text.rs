//! JSON texts, apart from events.

use std::borrow::Cow;

use serde_json::value::RawValue;

/// Decodes a JSON string.
pub(super) fn string(text: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match inner {
        // The text of a parsed value cannot contain bare control characters or quotes.
        Some(inner)
            if inner
                .bytes()
                .all(|byte| byte != b'\\' && byte != b'"' && byte >= 0x20) =>
        {
            Ok(inner.into())
        }
        _ => serde_json::from_str::<String>(text).map(Into::into),
    }
}

/// Whether a text is a single JSON value.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}
