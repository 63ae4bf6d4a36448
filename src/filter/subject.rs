//! An event under evaluation, with state shared by the filters.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::cel::{ChangedObject, DataError, IncomingRequest, Json};
use crate::cloudevents::Event;

/// An event that filters are evaluated on. Its data is parsed at most once, when a filter first needs it.
#[derive(Debug)]
pub struct Subject<'a> {
    event: &'a Event,
    data: OnceLock<Result<Json, DataError>>,
    /// The request that the event is made of.
    request: Option<&'a IncomingRequest<'a>>,
    /// The change of an object that the event is made of.
    change: Option<&'a ChangedObject<'a>>,
    body: OnceLock<Result<Json, DataError>>,
    steps: AtomicU64,
}

impl<'a> Subject<'a> {
    /// Creates a subject. Parses nothing yet.
    #[must_use]
    pub fn new(event: &'a Event) -> Self {
        Self {
            event,
            data: OnceLock::new(),
            request: None,
            change: None,
            body: OnceLock::new(),
            steps: AtomicU64::new(0),
        }
    }

    /// Creates a subject of an event and the request that it is made of. Parses nothing yet.
    pub(super) fn of_request(event: &'a Event, request: &'a IncomingRequest<'a>) -> Self {
        Self {
            request: Some(request),
            ..Self::new(event)
        }
    }

    /// Creates a subject of an event and the change of an object that it is made of. Parses nothing yet.
    pub(super) fn of_change(event: &'a Event, change: &'a ChangedObject<'a>) -> Self {
        Self {
            change: Some(change),
            ..Self::new(event)
        }
    }

    pub(super) fn change(&self) -> Option<&ChangedObject<'a>> {
        self.change
    }

    pub(super) fn request(&self) -> Option<&IncomingRequest<'a>> {
        self.request
    }

    /// Returns the data of any content type.
    pub(super) fn body(&self) -> Result<&Json, DataError> {
        let body = self.body.get_or_init(|| Json::of_body(self.event));
        body.as_ref().map_err(|error| *error)
    }

    /// Returns the event.
    #[must_use]
    pub fn event(&self) -> &'a Event {
        self.event
    }

    /// Returns the total steps of all filters evaluated on it. A step takes about a nanosecond.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    pub(super) fn took(&self, steps: u64) {
        self.steps.fetch_add(steps, Relaxed);
    }

    /// Returns the data as JSON.
    pub(super) fn data(&self) -> Result<&Json, DataError> {
        let data = self.data.get_or_init(|| Json::of(self.event));
        data.as_ref().map_err(|error| *error)
    }

    /// Whether a filter has read the data.
    #[cfg(test)]
    pub(super) fn has_parsed(&self) -> bool {
        self.data.get().is_some()
    }
}
