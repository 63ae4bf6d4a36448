//! Detects panics of tasks. The runtime only prints them and continues without the task.
//!
//! The result of [`caught`] is handled like the task's own error, if it has one. If a router cannot continue
//! without the task, a [`Supervisor`] notifies the router's owner; the router then exits with an error and is
//! restarted.
//!
//! A panic cannot simply abort the process, because the event log catches panics of its storage library.

use std::{any::Any, panic::AssertUnwindSafe};

use futures::FutureExt as _;
use tokio::sync::watch;

/// A task panicked, which is a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{task} panicked: {message}")]
pub struct Panicked {
    task: String,
    message: String,
}

/// Runs a task to completion. Logs a panic with the task's name, such as `the reader of shop/default`.
///
/// # Errors
/// If it panicked.
pub async fn caught<T>(task: &str, running: impl Future<Output = T>) -> Result<T, Panicked> {
    let ended = AssertUnwindSafe(running).catch_unwind().await;
    ended.map_err(|panic| {
        let message = message(&*panic).to_owned();
        tracing::error!(task, message, "a task panicked; please report it");
        Panicked {
            task: task.to_owned(),
            message,
        }
    })
}

/// Runs long computations, such as compiling user input, on a separate thread.
///
/// # Errors
/// If it panicked.
pub async fn apart<T: Send + 'static>(
    task: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| {
        let message = match error.try_into_panic() {
            Ok(panic) => message(&*panic).to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(task, message, "a task panicked; please report it");
        Panicked {
            task: task.to_owned(),
            message,
        }
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// Reports the first task that panicked. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(watch::Sender<Option<Panicked>>);

impl Supervisor {
    /// Runs a task to completion, and reports a panic.
    pub async fn watch(self, task: impl AsRef<str>, running: impl Future<Output = ()>) {
        if let Err(panicked) = caught(task.as_ref(), running).await {
            self.0.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(panicked);
                is_first
            });
        }
    }

    /// Waits for a task to panic.
    pub async fn panicked(&self) -> Panicked {
        let mut told = self.0.subscribe();
        let panicked = told
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|told| told.clone());
        match panicked {
            Some(panicked) => panicked,
            // Unreachable: the sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    #[tokio::test]
    async fn panic_becomes_an_error_with_the_task_name() {
        assert_eq!(caught("the task", async { 1 }).await, Ok(1));
        let plain: Box<dyn Any + Send> = Box::new("plain");
        for (panic, message) in [
            (plain, "plain"),
            (Box::new("number 7".to_owned()), "number 7"),
            (Box::new(7), "without a message"),
        ] {
            let panicked = caught::<()>("the task", async { resume_unwind(panic) }).await;
            let told = panicked.unwrap_err().to_string();
            assert_eq!(told, format!("the task panicked: {message}"));
        }
    }

    #[tokio::test]
    async fn reports_the_first_panic() {
        let supervisor = Supervisor::default();
        tokio::spawn(supervisor.clone().watch("one that ends", async {}))
            .await
            .unwrap();
        let waiting = supervisor.panicked();
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        for task in ["the first", "the second"] {
            tokio::spawn(supervisor.clone().watch(task, async { panic!("oh") }))
                .await
                .unwrap();
        }
        assert_eq!(waiting.await.to_string(), "the first panicked: oh");
        assert_eq!(supervisor.panicked().await.to_string(), "the first panicked: oh");
    }
}
