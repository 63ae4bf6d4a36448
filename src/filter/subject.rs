//! An event while filters are tried on it, with what they share.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::cel::{DataError, Json};
use crate::cloudevents::Event;

/// An event that filters are tried on. Its data is parsed when the first of them asks for it, and only once.
#[derive(Debug)]
pub struct Subject<'a> {
    event: &'a Event,
    data: OnceLock<Result<Json, DataError>>,
    steps: AtomicU64,
}

impl<'a> Subject<'a> {
    /// Nothing of the event is read yet.
    #[must_use]
    pub fn new(event: &'a Event) -> Self {
        Self {
            event,
            data: OnceLock::new(),
            steps: AtomicU64::new(0),
        }
    }

    /// The event.
    #[must_use]
    pub fn event(&self) -> &'a Event {
        self.event
    }

    /// How many steps were taken on it, by every filter that was tried. A step is about a nanosecond.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    pub(super) fn took(&self, steps: u64) {
        self.steps.fetch_add(steps, Relaxed);
    }

    /// The data as JSON.
    pub(super) fn data(&self) -> Result<&Json, DataError> {
        let data = self.data.get_or_init(|| Json::of(self.event));
        data.as_ref().map_err(|error| *error)
    }

    /// Whether a filter has asked for the data.
    #[cfg(test)]
    pub(super) fn has_parsed(&self) -> bool {
        self.data.get().is_some()
    }
}
