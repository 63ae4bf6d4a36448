//! Threads of delivery's own: matching and delivering never hold up those that take requests.

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime whose threads end in the background when this is dropped.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    /// Starts as many threads as the machine has cores. `name` is theirs.
    ///
    /// # Errors
    /// When the machine starts no more threads.
    pub(super) fn start(name: &str) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name(name)
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn tasks; the present runtime after the end.
    pub(super) fn handle(&self) -> Handle {
        self.0
            .as_ref()
            .map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting here would block a thread of the runtime that this is dropped on.
            runtime.shutdown_background();
        }
    }
}
