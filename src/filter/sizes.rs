//! How large a Trigger's filters are, all together.

use super::{
    Expression,
    error::CompileProblem,
    limits::{MAX_PARTS, MAX_SIZE, MAX_TEXT},
};

/// Size of a part apart from its texts: a node of a tree, and its entries in a table's index.
const PART: usize = 256;

/// Totals of a Trigger's filters compiled so far.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    parts: usize,
    bytes: usize,
}

impl Sizes {
    /// Checks the length of the texts, before anything is compiled.
    pub(super) fn check(expressions: &[Expression]) -> Result<(), CompileProblem> {
        if text_of(expressions) > MAX_TEXT {
            return Err(CompileProblem::TooMuchText);
        }
        Ok(())
    }

    /// Adds a compiled expression: its parts, its text, and additional bytes.
    pub(super) fn add(&mut self, parts: usize, text: usize, bytes: usize) -> Result<(), CompileProblem> {
        self.parts += parts;
        // The text is stored verbatim, and again in the parts.
        self.bytes += parts * PART + 2 * text + bytes;
        if self.parts > MAX_PARTS {
            return Err(CompileProblem::TooManyParts);
        }
        if self.bytes > MAX_SIZE {
            return Err(CompileProblem::TooLarge);
        }
        Ok(())
    }

    /// Approximate size in bytes. The same on every machine.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Returns the bytes of all names, values and expressions.
fn text_of(expressions: &[Expression]) -> usize {
    let of = |expression: &Expression| match expression {
        Expression::Exact(map) | Expression::Prefix(map) | Expression::Suffix(map) => {
            map.iter().map(|(name, value)| name.len() + value.len()).sum()
        }
        Expression::All(list) | Expression::Any(list) => text_of(list),
        Expression::Not(child) => text_of(std::slice::from_ref(child)),
        Expression::Sql(text) | Expression::Cel(text) => text.len(),
    };
    expressions.iter().map(of).sum()
}
