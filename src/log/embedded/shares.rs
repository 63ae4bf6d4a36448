//! Divides the log among namespaces, so that one that fills its part of it costs only itself. Pure.
//!
//! - A namespace may hold a share of what the others leave, by default half. One greedy namespace gets half of the
//!   log, two get a third each. The pools of memory are divided in the same way.
//! - Half of what a single namespace has to leave is guaranteed, in [`PARTS`] equal parts. A namespace within its
//!   part can always store more, whatever the others do, as long as there are no more namespaces than parts.
//! - The last thirty-second of the log is the reserve. Only dead letters and replies use it, once their namespace's
//!   share is full, so that its events can still be settled. A namespace may use as much of it as it leaves free.
//!   What is removed from a namespace's logs goes back to the reserve first.

use std::collections::HashMap;

use super::request::Purpose;
use crate::log::NamespaceShare;

/// Fraction of the log, one in so many, that only settling may use.
const RESERVE: u64 = 32;

/// Number of namespaces that have a guaranteed part.
const PARTS: u64 = 64;

/// What an append has no room in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortfall {
    /// The namespace's share: what it holds, and how much it may hold.
    Share { held: u64, limit: u64 },
    /// The log as a whole.
    Log,
}

/// The account that an append is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChargedAccount {
    Share,
    Reserve,
}

/// Bytes of payload by namespace.
#[derive(Debug)]
pub(super) struct Shares {
    capacity: u64,
    percent: u64,
    /// Fraction of the capacity, one in so many, that only settling may use.
    reserve: Option<u64>,
    /// Sums over all namespaces.
    total: Held,
    /// Sum of what each namespace holds of its guaranteed part.
    guaranteed_used: u64,
    namespaces: HashMap<Box<str>, Held>,
}

/// Bytes held, by account.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    share: u64,
    reserve: u64,
}

impl Held {
    fn bytes(self) -> u64 {
        self.share.saturating_add(self.reserve)
    }
}

impl Shares {
    /// Divides a log of this capacity; `percent` is the largest share of one namespace.
    pub(super) fn new(capacity: u64, percent: u8) -> Self {
        Self {
            capacity,
            percent: u64::from(percent.clamp(1, 99)),
            reserve: Some(RESERVE),
            total: Held::default(),
            guaranteed_used: 0,
            namespaces: HashMap::new(),
        }
    }

    /// Divides something else than the bytes of a log, without a reserve.
    pub(super) fn without_reserve(capacity: u64, percent: u8) -> Self {
        Self {
            reserve: None,
            ..Self::new(capacity, percent)
        }
    }

    /// Bytes of payload at which the log is full.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of payload of all namespaces.
    pub(super) fn retained(&self) -> u64 {
        self.total.bytes()
    }

    /// Changes the capacity.
    pub(super) fn resize(&mut self, capacity: u64) {
        self.capacity = capacity;
        let part = self.part();
        let used = self.namespaces.values().map(|held| held.share.min(part));
        self.guaranteed_used = used.sum();
    }

    /// What each namespace holds and may hold.
    pub(super) fn all(&self) -> Vec<NamespaceShare> {
        let shares = self.namespaces.iter().map(|(namespace, held)| NamespaceShare {
            namespace: namespace.to_string(),
            held: held.bytes(),
            limit: self.limit(*held),
            guaranteed: self.part(),
        });
        shares.collect()
    }

    /// Checks whether a namespace may store `length` more bytes.
    pub(super) fn check(&self, namespace: &str, purpose: Purpose, length: u64) -> Result<(), Shortfall> {
        self.account(namespace, purpose, length).map(|_| ())
    }

    /// Charges a namespace for `length` more bytes.
    pub(super) fn take(&mut self, namespace: &str, purpose: Purpose, length: u64) -> Result<(), Shortfall> {
        let account = self.account(namespace, purpose, length)?;
        self.change(namespace, |held| match account {
            ChargedAccount::Share => held.share += length,
            ChargedAccount::Reserve => held.reserve += length,
        });
        Ok(())
    }

    /// Charges a namespace for bytes that are there already.
    pub(super) fn found(&mut self, namespace: &str, length: u64) {
        self.change(namespace, |held| held.share += length);
    }

    /// Notes that `length` bytes of a namespace were removed.
    pub(super) fn give_back(&mut self, namespace: &str, length: u64) {
        self.change(namespace, |held| {
            let reserve = held.reserve.min(length);
            held.reserve -= reserve;
            held.share = held.share.saturating_sub(length - reserve);
        });
    }

    fn change(&mut self, namespace: &str, change: impl FnOnce(&mut Held)) {
        let part = self.part();
        let before = self.held(namespace);
        let mut held = before;
        change(&mut held);
        self.total.share = self.total.share - before.share + held.share;
        self.total.reserve = self.total.reserve - before.reserve + held.reserve;
        self.guaranteed_used = self.guaranteed_used - before.share.min(part) + held.share.min(part);
        if held.bytes() == 0 {
            self.namespaces.remove(namespace);
        } else if let Some(known) = self.namespaces.get_mut(namespace) {
            *known = held;
        } else {
            self.namespaces.insert(namespace.into(), held);
        }
    }

    fn account(&self, namespace: &str, purpose: Purpose, length: u64) -> Result<ChargedAccount, Shortfall> {
        let held = self.held(namespace);
        let limit = self.limit(held);
        if length == 0 || held.share.saturating_add(length) <= limit {
            return Ok(ChargedAccount::Share);
        }
        if self.reserve_has_room(held, purpose, length) {
            return Ok(ChargedAccount::Reserve);
        }
        Err(if length > self.common().saturating_sub(self.total.share) {
            Shortfall::Log
        } else {
            Shortfall::Share {
                held: held.bytes(),
                limit,
            }
        })
    }

    fn reserve_has_room(&self, held: Held, purpose: Purpose, length: u64) -> bool {
        let free = self.reserve().saturating_sub(self.total.reserve);
        // Records from before a restart may have used the reserve.
        let free = free.min(self.capacity.saturating_sub(self.total.bytes()));
        let Some(left) = free.checked_sub(length) else {
            return false;
        };
        let held_then = held.reserve + length;
        match purpose {
            Purpose::NewEvents => false,
            // A namespace that uses none of the reserve always gets a dead letter stored.
            Purpose::DeadLetter => held.reserve == 0 || held_then <= left,
            // A dead letter still has room when no more replies have.
            Purpose::Replies => held_then <= left / 2,
        }
    }

    /// Bytes of its share that a namespace may hold, given what the others hold.
    fn limit(&self, own: Held) -> u64 {
        let part = self.part();
        let others = self.total.share - own.share;
        let left = self.common().saturating_sub(others);
        let share = left.saturating_mul(self.percent) / 100;
        // What is guaranteed to others, and not yet used by them.
        let others_used = self.guaranteed_used - own.share.min(part);
        let kept = (part * (PARTS - 1)).saturating_sub(others_used);
        share.min(left.saturating_sub(kept)).max(part.min(left))
    }

    /// How much of its share a namespace holds, and how much it may hold.
    pub(super) fn usage(&self, namespace: &str) -> (u64, u64) {
        let held = self.held(namespace);
        (held.bytes(), self.limit(held))
    }

    fn held(&self, namespace: &str) -> Held {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    /// Bytes that the shares are of.
    fn common(&self) -> u64 {
        self.capacity - self.reserve()
    }

    fn reserve(&self) -> u64 {
        self.reserve.map_or(0, |part| self.capacity / part)
    }

    /// The part of a namespace that is guaranteed.
    fn part(&self) -> u64 {
        let left_by_one = self.common() / 100 * (100 - self.percent);
        left_by_one / 2 / PARTS
    }
}

/// Namespace of a log, by its name.
pub(super) fn namespace_of(broker: &str) -> &str {
    broker.split_once('/').map_or(broker, |(namespace, _)| namespace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: u64 = 32_000;
    /// Without the reserve of 1,000.
    const COMMON: u64 = 31_000;

    /// Stores records of 10 bytes until there is no room; returns the bytes held.
    fn fill(shares: &mut Shares, namespace: &str) -> u64 {
        while shares.take(namespace, Purpose::NewEvents, 10).is_ok() {}
        shares.held(namespace).bytes()
    }

    #[test]
    fn one_greedy_namespace_gets_half_and_two_get_a_third_each() {
        let mut shares = Shares::new(CAPACITY, 50);
        assert_eq!(fill(&mut shares, "a"), COMMON / 2);
        assert_eq!(fill(&mut shares, "b"), COMMON / 4);
        let mut shares = Shares::new(CAPACITY, 50);
        let mut stores = |namespace| shares.take(namespace, Purpose::NewEvents, 10).is_ok();
        while stores("a") | stores("b") {}
        for namespace in ["a", "b"] {
            let third = COMMON / 3;
            let held = shares.held(namespace).bytes();
            assert!((third - 10..=third).contains(&held), "{namespace} holds {held}");
        }
    }

    #[test]
    fn the_largest_share_can_be_chosen() {
        for (percent, expected) in [(25, COMMON / 4), (50, COMMON / 2), (90, COMMON / 10 * 9)] {
            let mut shares = Shares::new(CAPACITY, percent);
            assert_eq!(fill(&mut shares, "a"), expected, "{percent} %");
            let part = shares.part();
            assert!(fill(&mut shares, "b") >= part / 10 * 10, "{percent} %");
        }
    }

    #[test]
    fn a_refusal_says_what_has_no_room() {
        let mut shares = Shares::new(CAPACITY, 50);
        fill(&mut shares, "a");
        let refused = shares.check("a", Purpose::NewEvents, 10).unwrap_err();
        let limit = COMMON / 2;
        assert_eq!(refused, Shortfall::Share { held: limit, limit });
        assert_eq!(
            shares.check("b", Purpose::NewEvents, COMMON),
            Err(Shortfall::Log),
            "more than is left of the log"
        );
        assert_eq!(shares.check("a", Purpose::NewEvents, 0), Ok(()));
    }

    #[test]
    fn the_reserve_is_for_settling_and_divided_too() {
        let mut shares = Shares::new(CAPACITY, 50);
        let mut settle = |namespace: &str, purpose: Purpose| {
            fill(&mut shares, namespace);
            while shares.take(namespace, purpose, 10).is_ok() {}
            shares.held(namespace).reserve
        };
        // A third of the reserve for replies, and up to half for dead letters.
        assert_eq!(settle("a", Purpose::Replies), 330);
        assert_eq!(settle("a", Purpose::DeadLetter), 500);
        assert_eq!(settle("b", Purpose::DeadLetter), 250);
        assert_eq!(shares.check("c", Purpose::DeadLetter, 250), Ok(()));
        // What is removed returns to the reserve first.
        let share = shares.held("a").share;
        shares.give_back("a", 400);
        assert_eq!((shares.held("a").reserve, shares.held("a").share), (100, share));
        assert_eq!(shares.take("a", Purpose::DeadLetter, 100), Ok(()));
    }

    #[test]
    fn a_larger_volume_makes_shares_larger() {
        let mut shares = Shares::new(CAPACITY / 2, 50);
        let before = fill(&mut shares, "a");
        shares.resize(CAPACITY);
        assert_eq!((before, fill(&mut shares, "a")), (COMMON / 4, COMMON / 2));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Store(Purpose, u64),
        Remove(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let purpose = prop::sample::select(vec![Purpose::NewEvents, Purpose::Replies, Purpose::DeadLetter]);
        let step = prop_oneof![
            3 => (purpose, 1_u64..2000).prop_map(|(purpose, bytes)| Step::Store(purpose, bytes)),
            1 => (1_u64..4000).prop_map(Step::Remove),
        ];
        prop::collection::vec((0_usize..8, step), 1..300)
    }

    proptest! {
        #[test]
        fn whatever_the_others_do_a_guaranteed_part_can_be_stored(steps in steps(), percent in 10_u8..=90) {
            let mut shares = Shares::new(CAPACITY, percent);
            let part = shares.part();
            for (namespace, step) in steps {
                let namespace = namespace.to_string();
                match step {
                    Step::Store(purpose, bytes) => drop(shares.take(&namespace, purpose, bytes)),
                    Step::Remove(bytes) => shares.give_back(&namespace, bytes),
                }
                let held: u64 = shares.namespaces.values().map(|held| held.bytes()).sum();
                prop_assert_eq!(shares.retained(), held);
                prop_assert!(held <= CAPACITY);
                prop_assert!(shares.total.reserve <= shares.reserve());
                for namespace in ["0", "1", "newcomer"] {
                    let rest = part.saturating_sub(shares.held(namespace).share);
                    prop_assert_eq!(shares.check(namespace, Purpose::NewEvents, rest), Ok(()));
                }
                if shares.total.reserve < shares.reserve() {
                    prop_assert_eq!(shares.check("newcomer", Purpose::DeadLetter, 1), Ok(()));
                }
            }
        }
    }
}
