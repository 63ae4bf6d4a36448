//! The result of one check of a resource. Pure.

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the check passed.
    pub holds: bool,
    /// Stable CamelCase word for machines and columns.
    pub reason: &'static str,
    /// The state, or what is wrong and what to do.
    pub message: String,
}

impl Finding {
    /// Creates a passed check.
    pub fn good(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: true,
            reason,
            message: message.into(),
        }
    }

    /// Creates a failed check.
    pub fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: false,
            reason,
            message: message.into(),
        }
    }
}
