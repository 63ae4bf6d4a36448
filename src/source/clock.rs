//! The clock of Sources, replaceable in tests.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;

/// Provides the time and sleeps.
pub(super) trait Clock: Send + Sync + 'static {
    /// Returns the wall-clock time, which can jump in both directions.
    fn now(&self) -> Timestamp;

    /// Sleeps, independently of changes to the wall clock.
    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()>;
}

/// The system clock.
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(pause))
    }
}
