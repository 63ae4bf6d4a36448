//! Order by key: events of one `partitionkey` are under way one after another. Pure.
//!
//! A key that has an event under way, or waiting for a retry, holds the later events of that key, and no others.

use std::collections::{HashMap, VecDeque};

use super::place::Place;
use crate::cloudevents::Event;

/// An event that a Trigger wants and that is not under way. What waits long has its event left in the log.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) event: Option<Event>,
    /// Its `partitionkey`, where the Trigger delivers in order by key.
    pub(super) key: Option<Box<str>>,
}

/// The keys that have an event under way, and what waits behind each.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    waiting: HashMap<Box<str>, VecDeque<Item>>,
    /// Which event under way holds which key.
    holders: HashMap<Place, Box<str>>,
}

impl Lanes {
    /// Takes the key for an event that is to be sent; gives it back if it may be, and keeps it if its key is held.
    pub(super) fn enter(&mut self, item: Item) -> Option<Item> {
        let Some(key) = &item.key else { return Some(item) };
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.push_back(Item { event: None, ..item });
            return None;
        }
        self.waiting.insert(key.clone(), VecDeque::new());
        self.holders.insert(item.place, key.clone());
        Some(item)
    }

    /// The event is settled; gives the next one of its key, which then holds it.
    pub(super) fn leave(&mut self, place: Place) -> Option<Item> {
        let key = self.holders.remove(&place)?;
        match self.waiting.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(next) => {
                self.holders.insert(next.place, key);
                Some(next)
            }
            None => {
                self.waiting.remove(&key);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Offset;

    fn item(offset: u64, key: Option<&str>) -> Item {
        Item {
            place: Place::Log(Offset(offset)),
            event: None,
            key: key.map(Into::into),
        }
    }

    fn offset(item: Option<Item>) -> Option<u64> {
        item.map(|item| match item.place {
            Place::Log(offset) | Place::DeadLetter(offset) => offset.0,
        })
    }

    #[test]
    fn one_key_is_one_after_another_and_holds_no_other() {
        let mut lanes = Lanes::default();
        assert_eq!(offset(lanes.enter(item(1, Some("a")))), Some(1));
        assert_eq!(offset(lanes.enter(item(2, Some("a")))), None);
        assert_eq!(offset(lanes.enter(item(3, Some("b")))), Some(3));
        assert_eq!(offset(lanes.enter(item(4, None))), Some(4));
        assert_eq!(offset(lanes.enter(item(5, Some("a")))), None);
        assert_eq!(offset(lanes.leave(Place::Log(Offset(4)))), None);
        assert_eq!(offset(lanes.leave(Place::Log(Offset(1)))), Some(2));
        assert_eq!(
            offset(lanes.enter(item(6, Some("a")))),
            None,
            "2 holds the key now"
        );
        assert_eq!(offset(lanes.leave(Place::Log(Offset(2)))), Some(5));
        assert_eq!(offset(lanes.leave(Place::Log(Offset(5)))), Some(6));
        assert_eq!(offset(lanes.leave(Place::Log(Offset(6)))), None);
        assert_eq!(
            offset(lanes.enter(item(7, Some("a")))),
            Some(7),
            "the key is free again"
        );
    }
}
