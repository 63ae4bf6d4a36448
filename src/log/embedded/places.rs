//! The places of logs in the store: keyspaces of their own for the first ones, then ids in shared keyspaces. Pure.
//!
//! A log gives its place back once it is empty and nobody wants it. Its keyspace goes to a later log, whose offsets
//! must be above those in it; ids in shared keyspaces are used once.
//!
//! A broker with a place for its events always has one for its dead letters: it is reserved with the first.
//!
//! The places are divided among namespaces like the bytes of the log (`shares.rs`), so that a namespace with ever new
//! brokers leaves places to others.

use std::collections::{BTreeMap, HashSet};

use super::{
    layout::{GivenBack, SHARED_IDS},
    request::Purpose,
    shares::{Shares, Shortfall},
};
use crate::log::LogName;

/// Default number of places, counting those reserved for dead letters.
pub(super) const MAX_PLACES: u32 = 65_536;

/// Number of keyspaces of one log that the storage library can open: its queues have room for 1000 of all kinds.
pub(super) const MAX_OWN: u32 = 900;

/// A place in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A keyspace that another log gave back.
    Reused(u32),
    /// A new keyspace.
    Own(u32),
    /// An id in a shared keyspace.
    Shared(u32),
}

/// Which logs of a broker have a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BrokerPlaces {
    pub(super) events: bool,
    pub(super) letters: bool,
}

impl BrokerPlaces {
    /// All places of a broker.
    pub(super) const ALL: Self = Self {
        events: true,
        letters: true,
    };

    /// Places that are taken or reserved.
    fn count(self) -> u64 {
        match self {
            Self { events: true, .. } => 2,
            Self { letters: true, .. } => 1,
            Self { .. } => 0,
        }
    }

    fn with(self, log: &LogName) -> Self {
        match log {
            LogName::Events(_) => Self { events: true, ..self },
            LogName::DeadLetters(_) => Self {
                letters: true,
                ..self
            },
        }
    }
}

/// The places, taken and free.
#[derive(Debug)]
pub(super) struct Places {
    own_limit: u32,
    next_own: u32,
    /// Keyspaces that logs gave back, and the first offset that the next log in each may have.
    free: BTreeMap<u32, u64>,
    given_back: GivenBack,
    /// The places taken and reserved, by namespace.
    shares: Shares,
    short: ShortOfPlaces,
}

/// Who is about to run out of places.
#[derive(Clone, Debug, Default)]
pub(super) struct ShortOfPlaces {
    /// All namespaces together.
    all: bool,
    namespaces: HashSet<Box<str>>,
}

impl ShortOfPlaces {
    pub(super) fn has(&self, namespace: &str) -> bool {
        self.all || self.namespaces.contains(namespace)
    }
}

/// Whether more than three quarters are taken.
fn is_nearly_full(taken: u64, most: u64) -> bool {
    taken > most - most / 4
}

impl Places {
    /// Divides `most` places; `percent` is the largest share of one namespace. The first `own_limit` logs get a keyspace
    /// of their own.
    pub(super) fn new(
        (most, percent): (u32, u8),
        own_limit: u32,
        free: BTreeMap<u32, u64>,
        given_back: GivenBack,
    ) -> Self {
        Self {
            own_limit: own_limit.min(MAX_OWN),
            next_own: free.last_key_value().map_or(0, |(id, _)| id + 1),
            free,
            given_back: GivenBack {
                next_shared: given_back.next_shared.max(SHARED_IDS),
                ..given_back
            },
            shares: Shares::without_reserve(most.into(), percent),
            short: ShortOfPlaces::default(),
        }
    }

    /// Notes a log that is in the store.
    pub(super) fn found(&mut self, id: u32) {
        if id >= SHARED_IDS {
            self.given_back.next_shared = self.given_back.next_shared.max(id + 1);
        } else {
            self.next_own = self.next_own.max(id + 1);
        }
    }

    /// Counts the places of a broker that is in the store.
    pub(super) fn count(&mut self, namespace: &str, broker: BrokerPlaces) {
        self.shares.found(namespace, broker.count());
        self.note_short(namespace);
    }

    /// Checks whether another log can have a place. Dead letters always can.
    pub(super) fn check(&self, log: &LogName, broker: BrokerPlaces) -> Result<(), Shortfall> {
        match log {
            LogName::DeadLetters(_) => Ok(()),
            LogName::Events(name) => {
                let more = broker.with(log).count() - broker.count();
                self.shares.check(name.namespace(), Purpose::NewEvents, more)
            }
        }
    }

    /// Number of brokers in all that can have places.
    pub(super) fn most_brokers(&self) -> u64 {
        self.shares.capacity() / 2
    }

    /// Who is about to run out of places.
    pub(super) fn short(&self) -> &ShortOfPlaces {
        &self.short
    }

    fn note_short(&mut self, namespace: &str) {
        self.short.all = is_nearly_full(self.shares.retained(), self.shares.capacity());
        let (held, limit) = self.shares.usage(namespace);
        if !is_nearly_full(held, limit) {
            self.short.namespaces.remove(namespace);
        } else if !self.short.namespaces.contains(namespace) {
            self.short.namespaces.insert(namespace.into());
        }
    }

    /// Takes a place for a log whose first offset is `start`. A new keyspace that turns out to be in use stays
    /// unused.
    pub(super) fn take(&mut self, log: &LogName, broker: BrokerPlaces, start: u64) -> Place {
        let namespace = log.broker().namespace();
        let more = broker.with(log).count() - broker.count();
        self.shares.found(namespace, more);
        self.note_short(namespace);
        let reusable = self.free.iter().find(|(_, from)| **from <= start);
        if let Some(id) = reusable.map(|(id, _)| *id) {
            self.free.remove(&id);
            return Place::Reused(id);
        }
        self.take_new()
    }

    /// Takes a place that was never used.
    pub(super) fn take_new(&mut self) -> Place {
        if self.next_own < self.own_limit {
            self.next_own += 1;
            return Place::Own(self.next_own - 1);
        }
        self.given_back.next_shared += 1;
        Place::Shared(self.given_back.next_shared - 1)
    }

    /// Gives back the place of a log that had the records from `start` to `next`; `broker` is without it.
    pub(super) fn give_back(&mut self, log: &LogName, broker: BrokerPlaces, id: u32, start: u64, next: u64) {
        let namespace = log.broker().namespace();
        let less = broker.with(log).count() - broker.count();
        self.shares.give_back(namespace, less);
        self.note_short(namespace);
        let from = match log {
            LogName::Events(_) => &mut self.given_back.events_from,
            LogName::DeadLetters(_) => &mut self.given_back.letters_from,
        };
        *from = next.max(*from);
        self.given_back.records += next - start;
        if id < SHARED_IDS {
            self.free.insert(id, next);
        }
    }

    pub(super) fn given_back(&self) -> GivenBack {
        self.given_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: BrokerPlaces = BrokerPlaces {
        events: false,
        letters: false,
    };

    fn events() -> LogName {
        LogName::from_key("n/b")
    }

    fn letters() -> LogName {
        LogName::from_key("n/b.dead-letters")
    }

    fn places(own_limit: u32) -> Places {
        with_most(MAX_PLACES, own_limit)
    }

    fn with_most(most: u32, own_limit: u32) -> Places {
        Places::new((most, 50), own_limit, BTreeMap::new(), GivenBack::default())
    }

    #[test]
    fn the_first_logs_have_keyspaces_of_their_own() {
        let mut places = places(2);
        let taken = [(); 4].map(|()| places.take(&events(), NONE, 0));
        let shared = |number| Place::Shared(SHARED_IDS + number);
        assert_eq!(taken, [Place::Own(0), Place::Own(1), shared(0), shared(1)]);
    }

    #[test]
    fn a_keyspace_goes_to_a_log_with_higher_offsets() {
        let mut places = places(1);
        places.take(&events(), NONE, 0);
        places.give_back(&events(), NONE, 0, 0, 10);
        assert_eq!(places.take(&events(), NONE, 9), Place::Shared(SHARED_IDS));
        assert_eq!(places.take(&events(), NONE, 10), Place::Reused(0));
        assert_eq!(places.take(&events(), NONE, 10), Place::Shared(SHARED_IDS + 1));
    }

    #[test]
    fn an_id_in_a_shared_keyspace_is_used_once() {
        let mut places = places(0);
        places.take(&events(), NONE, 0);
        places.give_back(&events(), NONE, SHARED_IDS, 0, 5);
        places.take(&letters(), NONE, 0);
        places.give_back(&letters(), NONE, SHARED_IDS + 1, 2, 3);
        let given_back = places.given_back();
        assert_eq!(
            given_back,
            GivenBack {
                events_from: 5,
                letters_from: 3,
                records: 6,
                next_shared: SHARED_IDS + 2
            }
        );
        let mut opened = Places::new((MAX_PLACES, 50), 0, BTreeMap::new(), given_back);
        opened.found(SHARED_IDS);
        assert_eq!(opened.take_new(), Place::Shared(SHARED_IDS + 2));
        opened.found(SHARED_IDS + 7);
        assert_eq!(opened.take_new(), Place::Shared(SHARED_IDS + 8));
    }

    #[test]
    fn dead_letters_have_a_place_with_their_events() {
        let mut places = with_most(8, 0);
        let with_events = BrokerPlaces {
            events: true,
            letters: false,
        };
        let with_letters = BrokerPlaces {
            events: false,
            letters: true,
        };
        let has_room = |places: &Places, log: &LogName, broker| places.check(log, broker).is_ok();
        for _ in 0..2 {
            assert!(has_room(&places, &events(), NONE));
            places.take(&events(), NONE, 0);
        }
        assert!(!has_room(&places, &events(), NONE));
        assert!(has_room(&places, &letters(), with_events));
        places.take(&letters(), with_events, 0);
        assert_eq!(places.shares.retained(), 4, "it was reserved");
        // The events go, the dead letters stay.
        places.give_back(&events(), with_letters, SHARED_IDS, 0, 1);
        assert_eq!(places.shares.retained(), 3);
        assert!(!has_room(&places, &events(), NONE));
        assert!(has_room(&places, &events(), with_letters));
        places.give_back(&letters(), NONE, SHARED_IDS + 2, 0, 1);
        assert_eq!(places.shares.retained(), 2);
        assert!(has_room(&places, &events(), NONE));
    }

    #[test]
    fn a_namespace_with_ever_new_brokers_leaves_places_to_others() {
        let mut places = with_most(1024, 0);
        let log = |namespace: &str, number: u64| LogName::from_key(&format!("{namespace}/b{number}"));
        let mut take_all = |namespace: &str| {
            let mut count = 0;
            while places.check(&log(namespace, count), NONE).is_ok() {
                places.take(&log(namespace, count), NONE, 0);
                count += 1;
            }
            let short = ["greedy", "second", "third"].map(|namespace| places.short().has(namespace));
            (count, short)
        };
        assert_eq!(take_all("greedy"), (256, [true, false, false]));
        assert_eq!(take_all("second"), (128, [true, true, false]));
        // The guaranteed parts of further namespaces stay free.
        assert_eq!(take_all("third"), (36, [true, true, true]));
        // What is given back is free again.
        for number in 0..200 {
            let id = SHARED_IDS + u32::try_from(number).unwrap();
            places.give_back(&log("greedy", number), NONE, id, 0, 1);
        }
        assert!(!places.short().has("greedy"));
        assert_eq!(places.check(&log("third", 999), NONE), Ok(()));
    }
}
