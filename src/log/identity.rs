//! Identities of events, by which a log recognizes repeats. Pure.

use std::time::Duration;

/// Identity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventIdentity {
    /// Hash of what identifies the event: its source and id.
    pub key: [u8; 16],
    /// Hash of the content, which is the same in a repeat.
    pub digest: u64,
}

/// For how long a broker remembers the ids of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdWindow {
    /// Age up to which an id is remembered; logs may remember it a little longer.
    pub age: Duration,
    /// Number of the newest ids that are remembered, if the log can limit it.
    pub events: u64,
}

/// The ids that a broker goes on remembering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepIds {
    /// Those within the window.
    Within(IdWindow),
    /// Those within the last window that is known: the broker has no deduplication any more.
    WithinLast,
    /// None: the broker is gone.
    Nothing,
}

/// What makes the records of an append unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    /// Identity of each record, all with different keys.
    pub identities: Vec<EventIdentity>,
    /// Window of the broker.
    pub window: IdWindow,
}

/// The ids that a broker remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RememberedIds {
    /// Number of ids.
    pub ids: u64,
    /// Number of ids that were forgotten before the age of the window, because there were too many, since the start.
    pub forgotten_early: u64,
}
