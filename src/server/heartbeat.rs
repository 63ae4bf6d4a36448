//! Liveness of the main runtime, observable from another thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_secs(1);

/// A task that only records that it ran. Ends with the last clone.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Beat>);

#[derive(Debug)]
struct Beat {
    began: Instant,
    /// Time of the last run, in milliseconds since the start.
    last: AtomicU64,
}

impl Heartbeat {
    /// Starts the task on the current runtime.
    pub fn start() -> Self {
        let beat = Arc::new(Beat {
            began: Instant::now(),
            last: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&beat);
        tokio::spawn(async move {
            while let Some(beat) = weak.upgrade() {
                beat.last.store(beat.now(), Ordering::Relaxed);
                drop(beat);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self(beat)
    }

    /// Returns the time since the last run.
    pub fn silent_for(&self) -> Duration {
        let last = self.0.last.load(Ordering::Relaxed);
        Duration::from_millis(self.0.now().saturating_sub(last))
    }
}

impl Beat {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn stalled_runtime_is_silent() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let heartbeat = runtime.block_on(async {
            let heartbeat = Heartbeat::start();
            tokio::time::sleep(Duration::from_millis(10)).await;
            heartbeat
        });
        thread::sleep(Duration::from_millis(50));
        assert!(heartbeat.silent_for() >= Duration::from_millis(50));
        runtime.block_on(async { tokio::time::sleep(INTERVAL + Duration::from_millis(100)).await });
        assert!(heartbeat.silent_for() < INTERVAL);
    }
}
