//! Where a part of an expression is in its text.

/// A part of an expression's text, as a byte range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start, inclusive.
    pub start: usize,
    /// End, exclusive.
    pub end: usize,
}

impl Span {
    /// Returns the column of the start in the text: in characters, starting at 1.
    #[must_use]
    pub fn column(self, text: &str) -> usize {
        text.get(..self.start).map_or(0, |before| before.chars().count()) + 1
    }

    /// Returns the part of the text.
    #[must_use]
    pub fn of(self, text: &str) -> &str {
        text.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn to(self, last: Self) -> Self {
        Self {
            start: self.start,
            end: last.end,
        }
    }
}
