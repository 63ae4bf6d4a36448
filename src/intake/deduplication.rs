//! Recognizes repeats of events: which brokers do, for how long they remember, and how many repeats there were.
//!
//! An event is a repeat if the broker remembers another one with its `source` and `id` and the same content. Attributes
//! that a producer may set anew when it sends an event again are no part of the content.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use jiff::Timestamp;
use ring::digest::{Context, SHA256};

use super::HOPS;
use crate::{
    cloudevents::Event,
    log::{BrokerName, EventIdentity, IdWindow, LogError, Unique},
};

/// Attributes that are not compared, in alphabetical order.
pub const NOT_COMPARED: [&str; 5] = ["recordedtime", "time", "traceparent", "tracestate", HOPS];

/// Deduplication of all brokers of a router.
#[derive(Debug, Default)]
pub struct Deduplication {
    /// `None` until the first routing table is applied.
    windows: ArcSwapOption<IdWindows>,
    counts: Mutex<BTreeMap<BrokerName, DeduplicationCounts>>,
}

/// The windows of brokers with deduplication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdWindows {
    /// By `namespace/name`. `None`: without deduplication.
    pub brokers: BTreeMap<String, Option<IdWindow>>,
    /// Window of brokers that are not listed.
    pub others: Option<IdWindow>,
}

/// Events that were not stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeduplicationCounts {
    /// Repeats of stored events.
    pub repeats: u64,
    /// Events with the source and id of another one.
    pub conflicts: u64,
}

/// The records of a request that are not repeats of each other.
pub(super) struct DistinctRecords {
    pub(super) records: Vec<Bytes>,
    pub(super) unique: Unique,
    /// Index of each record in the request.
    indexes: Vec<usize>,
}

impl Deduplication {
    /// Sets the windows.
    pub fn set(&self, windows: IdWindows) {
        let is_off = |broker: &BrokerName| windows.of(broker).is_none();
        self.counts().retain(|broker, _| !is_off(broker));
        self.windows.store(Some(windows.into()));
    }

    /// Whether the windows are known.
    pub fn is_set(&self) -> bool {
        self.windows.load().is_some()
    }

    /// The window of a broker; `None` if it has no deduplication.
    pub fn window_of(&self, broker: &BrokerName) -> Option<IdWindow> {
        self.windows.load().as_ref()?.of(broker)
    }

    /// Events that were not stored, by broker. Brokers with a window of their own are listed before there are any.
    pub fn counted(&self) -> BTreeMap<BrokerName, DeduplicationCounts> {
        let mut counted = self.counts().clone();
        if let Some(windows) = &*self.windows.load() {
            let brokers = windows.brokers.iter().filter(|(_, window)| window.is_some());
            for (broker, _) in brokers {
                counted.entry(broker.as_str().into()).or_default();
            }
        }
        counted
    }

    /// Forgets the counts of brokers that are gone.
    pub fn retain(&self, exists: impl Fn(&BrokerName) -> bool) {
        self.counts().retain(|broker, _| exists(broker));
    }

    pub(super) fn count_repeats(&self, broker: &BrokerName, repeats: usize) {
        if repeats > 0 {
            self.counts().entry(broker.clone()).or_default().repeats += repeats as u64;
        }
    }

    pub(super) fn count_conflict(&self, broker: &BrokerName) {
        self.counts().entry(broker.clone()).or_default().conflicts += 1;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<BrokerName, DeduplicationCounts>> {
        // Each count changes by one addition.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdWindows {
    /// The window of a broker; `None` if it has no deduplication.
    pub fn of(&self, broker: &BrokerName) -> Option<IdWindow> {
        match self.brokers.get(broker.as_str()) {
            Some(window) => *window,
            None => self.others,
        }
    }
}

impl DistinctRecords {
    /// Leaves out repeats within a request.
    ///
    /// # Errors
    /// [`LogError::Conflict`] if two events have the same source and id, and are different.
    pub(super) fn of(records: &[Bytes], window: IdWindow, accepted: Timestamp) -> Result<Self, LogError> {
        let mut distinct = Self {
            records: Vec::with_capacity(records.len()),
            unique: Unique {
                identities: Vec::with_capacity(records.len()),
                window,
            },
            indexes: Vec::with_capacity(records.len()),
        };
        let mut seen = HashMap::new();
        for (index, record) in records.iter().enumerate() {
            let identity = identity_of(record);
            match seen.insert(identity.key, identity.digest) {
                None => {
                    distinct.records.push(record.clone());
                    distinct.unique.identities.push(identity);
                    distinct.indexes.push(index);
                }
                Some(digest) if digest == identity.digest => {}
                Some(_) => return Err(LogError::Conflict { index, accepted }),
            }
        }
        Ok(distinct)
    }

    /// Gives a conflict the index of the event in the request.
    pub(super) fn in_request(&self, error: LogError) -> LogError {
        match error {
            LogError::Conflict { index, accepted } => LogError::Conflict {
                index: self.indexes.get(index).copied().unwrap_or(index),
                accepted,
            },
            error => error,
        }
    }
}

/// Returns the identity of the event in a record. Something else is identified by its bytes.
fn identity_of(record: &Bytes) -> EventIdentity {
    let Ok(event) = Event::from_record(record.clone()) else {
        return EventIdentity {
            key: key_of(["", ""], record),
            digest: 0,
        };
    };
    let mut digest = Context::new(&SHA256);
    let mut put = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for (name, value) in event.attributes() {
        if !NOT_COMPARED.contains(&name) {
            put(name.as_bytes());
            put(value.canonical().as_bytes());
        }
    }
    if let Some(data) = event.data() {
        put(data.as_bytes());
    }
    EventIdentity {
        key: key_of([event.source(), event.id()], &[]),
        digest: u64::from_be_bytes(first_bytes(digest)),
    }
}

fn key_of(texts: [&str; 2], rest: &[u8]) -> [u8; 16] {
    let mut hash = Context::new(&SHA256);
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(rest);
    first_bytes(hash)
}

/// Returns the first bytes of a cryptographic hash: nobody can make an event that looks like a repeat of another
/// producer's.
fn first_bytes<const BYTES: usize>(hash: Context) -> [u8; BYTES] {
    let mut first = [0; BYTES];
    for (byte, of_hash) in first.iter_mut().zip(hash.finish().as_ref()) {
        *byte = *of_hash;
    }
    first
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloudevents::{EventBuilder, Lineage, TraceContext};

    fn builder(attributes: &[(&str, &str)], data: &'static str) -> EventBuilder {
        let is_given = |name: &str| attributes.iter().any(|(given, _)| *given == name);
        let required = [("id", "1"), ("source", "/s"), ("type", "t")];
        let required = required.iter().filter(|(name, _)| !is_given(name));
        let add = |builder: EventBuilder, (name, value): &(&str, &str)| builder.attribute(*name, *value);
        let builder = required.chain(attributes).fold(EventBuilder::new(), add);
        builder.data("text/plain", data)
    }

    fn identity(attributes: &[(&str, &str)], data: &'static str) -> EventIdentity {
        identity_of(&builder(attributes, data).build().unwrap().to_record())
    }

    #[test]
    fn what_a_producer_sets_anew_is_not_compared() {
        let one = identity(&[("time", "2026-12-01T00:00:00Z")], "data");
        for same in [
            &[("time", "2026-12-01T00:00:01Z")][..],
            &[("recordedtime", "2026-12-01T00:00:01Z")],
            &[("weirhops", "3")],
            &[(
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            )],
            &[],
        ] {
            assert_eq!(identity(same, "data"), one, "{same:?}");
        }
        let context = TraceContext::new([1; 16], [2; 8], 1).unwrap();
        let event = builder(&[], "data").build().unwrap();
        let event = event
            .with_trace_context(context)
            .with_lineage(Lineage::of_origin(7));
        assert_eq!(identity_of(&event.to_record()), one);
        for (attributes, data) in [
            (&[("subject", "x")][..], "data"),
            (&[("type", "other")], "data"),
            (&[], "other"),
        ] {
            let other = identity(attributes, data);
            assert_eq!(other.key, one.key);
            assert_ne!(other.digest, one.digest, "{attributes:?} {data}");
        }
        for attributes in [[("id", "2")], [("source", "/other")]] {
            assert_ne!(identity(&attributes, "data").key, one.key, "{attributes:?}");
        }
        assert_ne!(
            identity(&[("id", "sx"), ("source", "/")], "").key,
            identity(&[("id", "x"), ("source", "/s")], "").key
        );
    }

    #[test]
    fn the_mode_is_not_compared() {
        let event = builder(&[("number", "5")], "data").build().unwrap();
        let json = event.to_json();
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", "application/cloudevents+json".parse().unwrap());
        let structured = crate::cloudevents::read_http(&headers, json)
            .unwrap()
            .into_events();
        assert_eq!(
            identity_of(&structured[0].to_record()),
            identity_of(&event.to_record())
        );
    }

    #[test]
    fn a_request_has_each_event_once() {
        let window = IdWindow {
            age: Duration::from_secs(60),
            events: 10,
        };
        let record = |id: &str, data| builder(&[("id", id)], data).build().unwrap().to_record();
        let records = [
            record("1", "a"),
            record("2", "a"),
            record("1", "a"),
            record("3", "a"),
        ];
        let distinct = DistinctRecords::of(&records, window, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(distinct.records, [&records[0], &records[1], &records[3]]);
        let conflict = |index| LogError::Conflict {
            index,
            accepted: Timestamp::UNIX_EPOCH,
        };
        let told = distinct.in_request(conflict(2)).to_string();
        assert!(
            matches!(
                distinct.in_request(conflict(2)),
                LogError::Conflict { index: 3, .. }
            ),
            "{told}"
        );
        let records = [record("1", "a"), record("2", "a"), record("2", "b")];
        let refused = DistinctRecords::of(&records, window, Timestamp::UNIX_EPOCH).err();
        assert!(
            matches!(refused, Some(LogError::Conflict { index: 2, .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn counts_are_of_brokers_with_deduplication() {
        let deduplication = Deduplication::default();
        assert!(!deduplication.is_set());
        let window = Some(IdWindow {
            age: Duration::from_secs(60),
            events: 10,
        });
        let windows = |others| IdWindows {
            brokers: [("a/on".to_owned(), window), ("a/off".to_owned(), None)].into(),
            others,
        };
        deduplication.set(windows(window));
        let of = |broker: &str| deduplication.window_of(&broker.into());
        assert_eq!([of("a/on"), of("a/off"), of("a/other")], [window, None, window]);
        for broker in ["a/on", "a/other"] {
            deduplication.count_repeats(&broker.into(), 2);
        }
        deduplication.count_conflict(&"a/on".into());
        deduplication.set(windows(None));
        let counts = DeduplicationCounts {
            repeats: 2,
            conflicts: 1,
        };
        assert_eq!(deduplication.counted(), [("a/on".into(), counts)].into());
    }
}
