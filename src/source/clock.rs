//! The clock that Sources wait by, so that tests need not.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;

/// What tells the time, and waits.
pub(super) trait Clock: Send + Sync + 'static {
    /// The time of day. It can jump in both directions.
    fn now(&self) -> Timestamp;

    /// Waits, whatever the time of day does meanwhile.
    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()>;
}

/// The machine's.
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(pause))
    }
}
