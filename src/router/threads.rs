//! Dedicated threads of delivery: matching and delivering never delay the threads that serve requests.

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime that shuts down in the background on drop.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    /// Starts as many threads as the machine has cores, with this name.
    ///
    /// # Errors
    /// Fails when the machine starts no more threads.
    pub(super) fn start(name: &str) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name(name)
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Handle to spawn tasks; the current runtime's after the shutdown.
    pub(super) fn handle(&self) -> Handle {
        self.0
            .as_ref()
            .map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting would block a thread of the runtime that this is dropped on.
            runtime.shutdown_background();
        }
    }
}
