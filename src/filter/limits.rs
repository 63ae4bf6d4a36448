//! What a Trigger's filters may be, all together.

use super::{Expression, compiled::CompileProblem};

/// How many parts they may have: attributes that are compared, operators, calls, constants.
pub const MAX_PARTS: usize = 4096;

/// How many bytes of text they may have: names, values and expressions.
pub const MAX_TEXT: usize = 64 * 1024;

/// How many bytes they may take compiled.
pub const MAX_SIZE: usize = 512 * 1024;

/// What a part takes besides its texts: a node of a tree, and its places in a table's index.
const PART: usize = 256;

/// What has been compiled of a Trigger's filters so far.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    parts: usize,
    bytes: usize,
}

impl Sizes {
    /// Looks at the texts alone, before anything is compiled.
    pub(super) fn check(expressions: &[Expression]) -> Result<(), CompileProblem> {
        if text_of(expressions) > MAX_TEXT {
            return Err(CompileProblem::TooMuchText);
        }
        Ok(())
    }

    /// Adds what was compiled: its parts, its text, and what else it takes.
    pub(super) fn add(&mut self, parts: usize, text: usize, bytes: usize) -> Result<(), CompileProblem> {
        self.parts += parts;
        // The text is there as it was written, and in the parts.
        self.bytes += parts * PART + 2 * text + bytes;
        if self.parts > MAX_PARTS {
            return Err(CompileProblem::TooManyParts);
        }
        if self.bytes > MAX_SIZE {
            return Err(CompileProblem::TooLarge);
        }
        Ok(())
    }

    /// How many bytes that is, about; the same on every machine.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The bytes of all names, values and expressions.
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
