//! The budget for evaluating a Trigger's filters on one event.
//!
//! Every step of an evaluation is charged in advance, at its maximum cost: bytes read or copied, automaton states
//! visited, values compared. No clock is read, so an evaluation that exceeds the budget does so on every machine
//! and every time.

use std::cell::Cell;

/// Maximum number of steps of one Trigger's filters for one event. A step takes about a nanosecond in an optimized
/// build.
pub const BUDGET: u64 = 2_000_000;

/// Cost of a part of an expression by itself.
pub(super) const PART: u64 = 20;

/// Remaining budget. Once exhausted, it stays exhausted: all later charges fail.
#[derive(Debug)]
pub(super) struct Fuel(Cell<u64>);

/// The budget is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the filters exceed {BUDGET} steps for this event")]
pub(super) struct Overrun;

impl Fuel {
    /// Creates a full budget.
    pub(super) fn new() -> Self {
        Self::of(BUDGET)
    }

    /// Creates a budget of this many steps.
    pub(super) fn of(steps: u64) -> Self {
        Self(Cell::new(steps))
    }

    /// Charges this many steps.
    pub(super) fn spend(&self, steps: u64) -> Result<(), Overrun> {
        let left = self.0.get().saturating_sub(steps);
        self.0.set(left);
        // The last step is never granted, so that an empty budget always means an overrun.
        if left == 0 { Err(Overrun) } else { Ok(()) }
    }

    /// Charges for reading this many bytes, at `steps` each.
    pub(super) fn read(&self, bytes: usize, steps: u64) -> Result<(), Overrun> {
        self.spend((bytes as u64).saturating_mul(steps))
    }

    /// Charges for bytes that are copied, compared or counted in bulk.
    pub(super) fn pass(&self, bytes: usize) -> Result<(), Overrun> {
        self.spend(bytes as u64 / 4 + 1)
    }

    /// Whether a charge has failed.
    pub(super) fn is_used_up(&self) -> bool {
        self.0.get() == 0
    }

    /// Returns the number of steps charged against a full budget.
    pub(super) fn spent(&self) -> u64 {
        BUDGET.saturating_sub(self.0.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhausted_budget_stays_exhausted() {
        let fuel = Fuel::of(100);
        assert_eq!(fuel.spend(60), Ok(()));
        assert_eq!(fuel.read(39, 1), Ok(()));
        assert!(!fuel.is_used_up());
        assert_eq!(fuel.pass(0), Err(Overrun));
        assert_eq!((fuel.spend(0), fuel.is_used_up()), (Err(Overrun), true));
    }
}
