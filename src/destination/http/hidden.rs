//! Hides secret values in texts for people. Pure.

use std::sync::Arc;

/// Placeholder for a secret value.
const HIDDEN: &str = "[secret]";

/// Minimum length of a value to be hidden, in bytes. Shorter ones occur in most texts by chance and are easily guessed.
const SHORTEST_SECRET: usize = 4;

/// Secret values, the longest first, so that a value that contains another is hidden as a whole.
#[derive(Clone, Default)]
pub(super) struct HiddenValues(Arc<[String]>);

impl HiddenValues {
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let values = values.into_iter();
        let mut values: Vec<_> = values
            .filter(|value| value.len() >= SHORTEST_SECRET)
            .map(str::to_owned)
            .collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self(values.into())
    }

    /// Length of the longest value, in bytes. A truncated text may end with a part of one.
    pub(super) fn longest(&self) -> usize {
        self.0.first().map(String::len).unwrap_or_default()
    }

    /// Replaces the values in a text. Values of fewer than four bytes stay.
    pub(super) fn hide(&self, text: String) -> String {
        let values = self.0.iter();
        values.fold(text, |text, value| text.replace(value, HIDDEN))
    }
}
