//! What has arrived at a consumer, and in which order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::is_long;
use crate::support::{Consumer, Received, eventually};

/// The events that have arrived at a consumer, in order of their first arrival.
#[derive(Default)]
pub(crate) struct Arrivals {
    looked_at: usize,
    number: HashMap<String, usize>,
}

impl Arrivals {
    /// Looks at what is new.
    pub(crate) fn catch_up(&mut self, consumer: &Consumer) {
        consumer.look(|received| {
            for message in &received[self.looked_at..] {
                *self.number.entry(id_of(message)).or_default() += 1;
            }
            self.looked_at = received.len();
        });
    }

    /// How many different events have arrived.
    pub(crate) fn events(&self) -> usize {
        self.number.len()
    }

    /// How many deliveries were repeats.
    pub(crate) fn repeats(&self) -> usize {
        self.looked_at - self.number.len()
    }

    /// Waits until a consumer has every acknowledged event.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, consumer: &Consumer, acknowledged: &BTreeSet<String>) {
        let patience = Duration::from_secs(if is_long() { 600 } else { 120 });
        eventually(patience, || {
            self.catch_up(consumer);
            match acknowledged.iter().find(|id| !self.number.contains_key(*id)) {
                None => Ok(()),
                Some(id) => Err(format!(
                    "{} events arrived and {} were acknowledged; {id} did not arrive",
                    self.events(),
                    acknowledged.len()
                )),
            }
        });
    }
}

/// Waits until a consumer has every acknowledged event.
#[track_caller]
pub(crate) fn all_arrive(consumer: &Consumer, acknowledged: &BTreeSet<String>) -> Arrivals {
    let mut arrivals = Arrivals::default();
    arrivals.wait_for(consumer, acknowledged);
    arrivals
}

/// An event's id, of a message in either mode.
pub(crate) fn id_of(message: &Received) -> String {
    match message.header("ce-id") {
        Some(id) => id.to_owned(),
        None => serde_json::from_slice::<serde_json::Value>(&message.body).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned(),
    }
}

/// The events of one key arrive in the order in which they were posted, leaving repeats aside. What
/// [`super::Producers`] post is numbered.
#[track_caller]
pub(crate) fn check_order_by_key(consumer: &Consumer) {
    check_order_by_key_of(consumer, |_| true);
}

/// Checks the order by key of the acknowledged events. One that was not acknowledged may be stored at any later time, if
/// the router that has its request was paused, say.
#[track_caller]
pub(crate) fn check_order_of_acknowledged(consumer: &Consumer, acknowledged: &BTreeSet<String>) {
    check_order_by_key_of(consumer, |id| acknowledged.contains(id));
}

#[track_caller]
fn check_order_by_key_of(consumer: &Consumer, counts: impl Fn(&str) -> bool) {
    let mut highest = BTreeMap::<String, u64>::new();
    let mut seen = BTreeSet::new();
    consumer.look(|received| {
        for message in received {
            let id = id_of(message);
            if !counts(&id) || !seen.insert(id.clone()) {
                continue;
            }
            let number = id.split_once('-').unwrap().1.parse().unwrap();
            let key = message.header("ce-partitionkey").unwrap().to_owned();
            if let Some(before) = highest.insert(key, number) {
                assert!(before < number, "{id} came after {before} of the same key");
            }
        }
    });
}
