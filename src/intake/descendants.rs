//! Ends loops: limits the length of a chain of deliveries, and the number of events that follow from one.
//!
//! Every delivered event carries its [`Lineage`]: the number of hops that led to it, and its origin, the first event of
//! the chain. A Sink that is a broker, of this router or another, passes it on, and a reply inherits it. Hops limit
//! the depth of a loop, but not its breadth: two Triggers that post back double the events with each hop. So routers
//! also count descendants by origin when they store them, and each event carries the highest known count, from which
//! a router that was restarted or has forgotten the origin continues.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::HeaderMap;

use crate::cloudevents::{ChainOrigin, Event, Lineage};

/// Extension attribute of a reply: the number of deliveries that led to it, including the one to its Sink.
pub const HOPS: &str = "weirhops";

/// Maximum chain of deliveries that lead to an event.
pub const MAX_HOPS: u32 = 32;

/// Maximum descendants of an event: replies and deliveries to a broker, together.
pub const MAX_DESCENDANTS: u32 = 4096;

/// Minimum number of remembered origins, and half of the maximum.
const REMEMBERED: usize = 32 * 1024;

/// Counts the descendants of events. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Descendants(Arc<Mutex<DescendantCounts>>);

/// Number of descendants by the origin's ID, in two generations. An origin may be forgotten once [`REMEMBERED`]
/// others have been used since its last use.
#[derive(Debug, Default)]
struct DescendantCounts {
    young: HashMap<u64, u32>,
    old: HashMap<u64, u32>,
}

/// Why an event is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Beyond {
    /// Too many deliveries led to it.
    #[error(
        "a chain of more than {MAX_HOPS} deliveries led to this event: a Sink or dead-letter Sink posts back to its broker"
    )]
    Hops,
    /// Too many events descend from the same one.
    #[error(
        "more than {MAX_DESCENDANTS} events would descend from one original event, as replies or through Sinks that post to a broker"
    )]
    Descendants,
}

/// Counted descendants. Dropping this uncounts them, unless [`Counted::keep`] was called.
#[derive(Debug)]
#[must_use]
pub struct Counted {
    descendants: Descendants,
    id: u64,
    events: u32,
    /// Descendants of the origin including these.
    last: u32,
}

/// Permission to store the events of a request, each within its hops. They count once [`Admission::keep`] is
/// called.
#[derive(Debug)]
pub struct Admission {
    hops: u32,
    counted: Option<Counted>,
}

impl Admission {
    /// Gives an event its lineage: the request's, or else its own.
    ///
    /// # Errors
    /// Fails when too many deliveries led to it.
    pub fn with_lineage(&self, event: Event) -> Result<Event, Beyond> {
        let hops = hops_of_attribute(&event).max(self.hops);
        if hops > MAX_HOPS {
            return Err(Beyond::Hops);
        }
        let origin = match &self.counted {
            Some(counted) => counted.origin(),
            None => new_origin(),
        };
        let origin = Some(origin);
        Ok(event.with_lineage(Lineage { hops, origin }))
    }

    /// Keeps the count, because the events are stored.
    pub fn keep(self) {
        if let Some(counted) = self.counted {
            counted.keep();
        }
    }
}

impl Descendants {
    /// Admits this many events of a request, by the lineage in its headers.
    ///
    /// # Errors
    /// Fails when they exceed the limit together.
    pub fn admit(&self, headers: &HeaderMap, events: usize) -> Result<Admission, Beyond> {
        let sent = Lineage::from_headers(headers).filter(|sent| sent.hops > 0);
        let counted = match sent {
            Some(sent) if events > 0 => Some(self.count(sent.origin, events)?),
            _ => None,
        };
        Ok(Admission {
            hops: sent.map_or(0, |sent| sent.hops),
            counted,
        })
    }

    /// DescendantCounts descendants of an origin, or of an unknown one.
    pub fn count(&self, origin: Option<ChainOrigin>, events: usize) -> Result<Counted, Beyond> {
        let ChainOrigin { id, descendants } = origin.unwrap_or_else(new_origin);
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        let last = self
            .lock()
            .add(id, descendants, events)
            .ok_or(Beyond::Descendants)?;
        Ok(Counted {
            descendants: self.clone(),
            id,
            events,
            last,
        })
    }

    fn lock(&self) -> MutexGuard<'_, DescendantCounts> {
        // No panic under the lock leaves the counts half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DescendantCounts {
    /// Returns the new number of descendants; `None` if that is too many, and then counts nothing.
    fn add(&mut self, id: u64, known: u32, events: u32) -> Option<u32> {
        let before = self.young.get(&id).or_else(|| self.old.get(&id));
        let before = before.copied().unwrap_or(0).max(known);
        let sum = before.saturating_add(events);
        let fits = sum <= MAX_DESCENDANTS;
        // An origin in use is remembered longer, even if its events are rejected.
        self.young.insert(id, if fits { sum } else { before });
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        fits.then_some(sum)
    }

    fn take_back(&mut self, id: u64, events: u32) {
        let Self { young, old } = self;
        if let Some(count) = young.get_mut(&id).or_else(|| old.get_mut(&id)) {
            *count = count.saturating_sub(events);
        }
    }
}

impl Counted {
    /// The origin, with its number of descendants.
    pub fn origin(&self) -> ChainOrigin {
        ChainOrigin {
            id: self.id,
            descendants: self.last,
        }
    }

    /// Keeps the count, because the events are stored.
    pub fn keep(mut self) {
        self.events = 0;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.events > 0 {
            self.descendants.lock().take_back(self.id, self.events);
        }
    }
}

/// Lineage of a delivery of `event`, or of a reply to it.
pub fn next(event: &Event) -> Lineage {
    let Lineage { hops, origin } = event.lineage().unwrap_or_default();
    Lineage {
        hops: hops.max(hops_of_attribute(event)).saturating_add(1),
        origin,
    }
}

fn new_origin() -> ChainOrigin {
    ChainOrigin {
        id: fastrand::u64(..),
        descendants: 0,
    }
}

/// Hops from a reply's attribute, which a consumer may have copied to another event. A value that is not a number was
/// not set by Weir, and counts as zero.
fn hops_of_attribute(event: &Event) -> u32 {
    event
        .attribute(HOPS)
        .and_then(|value| value.canonical().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    fn event(hops: Option<&str>) -> Event {
        let builder = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let builder = match hops {
            Some(hops) => builder.attribute(HOPS, hops),
            None => builder,
        };
        builder.build().unwrap()
    }

    fn delivered(event: &Event) -> HeaderMap {
        let mut headers = HeaderMap::new();
        next(event).set_header(&mut headers);
        headers
    }

    fn receive(descendants: &Descendants, headers: &HeaderMap) -> Result<Event, Beyond> {
        let admission = descendants.admit(headers, 1)?;
        let event = admission.with_lineage(event(None))?;
        admission.keep();
        Ok(event)
    }

    #[test]
    fn a_chain_ends_at_the_hop_limit_and_keeps_its_origin() {
        let descendants = Descendants::default();
        let first = receive(&descendants, &HeaderMap::new()).unwrap();
        assert_eq!(first.lineage().unwrap().hops, 0);
        let mut last = first.clone();
        for hops in 1..=MAX_HOPS {
            last = receive(&descendants, &delivered(&last)).unwrap();
            let lineage = last.lineage().unwrap();
            assert_eq!((lineage.hops, lineage.origin.unwrap().descendants), (hops, hops));
        }
        let id = |event: &Event| event.lineage().unwrap().origin.unwrap().id;
        assert_eq!(id(&first), id(&last));
        assert_eq!(receive(&descendants, &delivered(&last)), Err(Beyond::Hops));
    }

    #[test]
    fn a_loop_that_doubles_with_each_hop_ends_at_the_descendant_limit() {
        let descendants = Descendants::default();
        let first = receive(&descendants, &HeaderMap::new()).unwrap();
        let (mut waiting, mut stored) = (vec![first], 0);
        while let Some(event) = waiting.pop() {
            for _ in 0..2 {
                if let Ok(next) = receive(&descendants, &delivered(&event)) {
                    stored += 1;
                    waiting.push(next);
                }
            }
        }
        assert_eq!(stored, MAX_DESCENDANTS);
    }

    #[test]
    fn a_router_that_forgot_the_origin_continues_from_the_count_in_the_event() {
        let origin = |descendants| Some(ChainOrigin { id: 7, descendants });
        let new = Descendants::default();
        new.count(origin(MAX_DESCENDANTS - 2), 1).unwrap().keep();
        new.count(origin(0), 1).unwrap().keep();
        assert_eq!(new.count(origin(0), 1).unwrap_err(), Beyond::Descendants);
    }

    #[test]
    fn events_that_are_not_stored_do_not_count() {
        let descendants = Descendants::default();
        let origin = Some(ChainOrigin {
            id: 7,
            descendants: 0,
        });
        for _ in 0..10 {
            drop(descendants.count(origin, MAX_DESCENDANTS as usize).unwrap());
        }
        let all = descendants.count(origin, MAX_DESCENDANTS as usize).unwrap();
        all.keep();
        assert!(descendants.count(origin, 1).is_err());
        assert!(descendants.count(None, 1).is_ok(), "another origin");
    }

    #[test]
    fn an_attribute_counts_like_the_header() {
        let descendants = Descendants::default();
        let table = [
            (Some("5"), None, Ok(5)),
            (Some("5"), Some("7"), Ok(7)),
            (Some("7"), Some("5"), Ok(7)),
            (Some("many"), Some("0"), Ok(0)),
            (Some("33"), None, Err(Beyond::Hops)),
            (None, Some("33"), Err(Beyond::Hops)),
            (None, Some("nonsense"), Ok(0)),
        ];
        for (attribute, header, expected) in table {
            let header: HeaderMap = header
                .map(|text| (Lineage::HEADER, http::HeaderValue::from_static(text)))
                .into_iter()
                .collect();
            let admission = descendants.admit(&header, 1).unwrap();
            let received = admission.with_lineage(event(attribute));
            let hops = received.map(|event| event.lineage().unwrap().hops);
            assert_eq!(hops, expected, "{attribute:?} {header:?}");
        }
    }

    #[test]
    fn remembered_origins_are_bounded_and_used_ones_stay() {
        let mut counts = DescendantCounts::default();
        for id in 1..=5 * REMEMBERED as u64 {
            counts.add(id, 0, 1);
            if id % 1000 == 0 {
                counts.add(0, 0, 1);
            }
        }
        assert!(counts.young.len() + counts.old.len() <= 2 * REMEMBERED);
        assert_eq!(counts.add(0, 0, 0), Some(5 * REMEMBERED as u32 / 1000));
    }
}
