//! What evaluating a Trigger's filters on one event may cost.
//!
//! Every step of an evaluation is paid for before it is made, by what it costs at most: bytes that are looked at or
//! copied, states of an automaton, values that are compared. Nothing here reads a clock, so an evaluation that goes
//! beyond the budget does so on every machine and at every repetition.

use std::cell::Cell;

/// How many steps one Trigger's filters may take for one event. A step is about a nanosecond of an optimised build.
pub const BUDGET: u64 = 2_000_000;

/// What a part of an expression costs by itself.
pub(super) const PART: u64 = 20;

/// What is left of a budget. Once it is used up it stays so: nothing that is tried after it succeeds.
#[derive(Debug)]
pub(super) struct Fuel(Cell<u64>);

/// The budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the filters take more than {BUDGET} steps for this event")]
pub(super) struct Overrun;

impl Fuel {
    /// A full budget.
    pub(super) fn new() -> Self {
        Self::of(BUDGET)
    }

    /// So many steps.
    pub(super) fn of(steps: u64) -> Self {
        Self(Cell::new(steps))
    }

    /// Pays for so many steps.
    pub(super) fn spend(&self, steps: u64) -> Result<(), Overrun> {
        let left = self.0.get().saturating_sub(steps);
        self.0.set(left);
        // The last step is never used, so that nothing left and used up are the same.
        if left == 0 { Err(Overrun) } else { Ok(()) }
    }

    /// Pays for looking at so many bytes, at so many steps each.
    pub(super) fn read(&self, bytes: usize, steps: u64) -> Result<(), Overrun> {
        self.spend((bytes as u64).saturating_mul(steps))
    }

    /// Pays for bytes that are copied, compared or counted in bulk.
    pub(super) fn pass(&self, bytes: usize) -> Result<(), Overrun> {
        self.spend(bytes as u64 / 4 + 1)
    }

    /// Whether something was not paid for.
    pub(super) fn is_used_up(&self) -> bool {
        self.0.get() == 0
    }

    /// How many steps of a full budget were taken.
    pub(super) fn spent(&self) -> u64 {
        BUDGET.saturating_sub(self.0.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_stays_so() {
        let fuel = Fuel::of(100);
        assert_eq!(fuel.spend(60), Ok(()));
        assert_eq!(fuel.read(39, 1), Ok(()));
        assert!(!fuel.is_used_up());
        assert_eq!(fuel.pass(0), Err(Overrun));
        assert_eq!((fuel.spend(0), fuel.is_used_up()), (Err(Overrun), true));
    }
}
