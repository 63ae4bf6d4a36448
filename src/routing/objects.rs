//! How the events of a Source of kind kubernetes are made, as plain data. Pure.

use std::collections::BTreeSet;

use crate::transform::Transform;

/// What becomes of the changes of objects. Routers do not get it: another process makes the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEvents {
    /// Changes that become events.
    pub changes: BTreeSet<ChangeKind>,
    /// Data of the events.
    pub data: DataForm,
    /// Changes of the event.
    pub event: Option<Transform>,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It is new, or matches the selectors again.
    Added,
    /// It has another version.
    Updated,
    /// It is gone, or no longer matches the selectors.
    Deleted,
}

impl ChangeKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Added, Self::Updated, Self::Deleted];

    /// Word in types of events, in expressions and in metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }
}

/// What the data of an event is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataForm {
    /// The whole object.
    #[default]
    Object,
    /// For an update, the difference from the version before, if that is known; else the whole object.
    Patch,
    /// A reference to the object.
    Reference,
}
