//! Determines whether an attempt failed because the router was busy: it had no connection, lookup or memory left.

use std::{
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use hyper_util::client::legacy::connect::CaptureConnection;
use rustix::io::Errno;

tokio::task_local! {
    /// Stage of the attempt made by this task. The connector gets only a URI, so it finds the stage here.
    static CURRENT: Arc<AttemptStage>;
}

/// State of an attempt: the resource of the router that it waits for.
#[derive(Debug, Default)]
pub(super) struct AttemptStage {
    lack: AtomicU8,
    connection: Option<CaptureConnection>,
}

/// Resource of the router that an attempt waits for.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Lack {
    /// A lookup or a connection.
    Connection = 1,
    /// Memory for the Sink's answer.
    Memory,
}

/// Error for a router that has no connection or memory left.
#[derive(Debug, thiserror::Error)]
#[error("the router is busy: {0}")]
pub(super) struct Busy(pub(super) &'static str);

impl AttemptStage {
    /// Creates the stage of an attempt. `connection` captures the connection of its request.
    pub(super) fn new(connection: CaptureConnection) -> Self {
        Self {
            lack: AtomicU8::new(0),
            connection: Some(connection),
        }
    }

    /// Stage of the current attempt; a new one outside of any.
    pub(super) fn current() -> Arc<Self> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    /// Runs an attempt with this stage.
    pub(super) async fn of<F: Future>(self: Arc<Self>, attempt: F) -> F::Output {
        CURRENT.scope(self, attempt).await
    }

    /// Marks the attempt as waiting for a resource of the router.
    pub(super) fn wait_for(&self, lack: Lack) {
        self.lack.store(lack as u8, Relaxed);
    }

    /// Marks the resource as granted.
    pub(super) fn granted(&self) {
        self.lack.store(0, Relaxed);
    }

    /// The resource that the attempt lacks. An attempt that got a pooled connection lacks none, even if its own is
    /// still connecting.
    pub(super) fn lacks(&self) -> Option<&'static str> {
        let connection = self.connection.as_ref();
        let is_connected = || connection.is_some_and(|of| of.connection_metadata().is_some());
        match self.lack.load(Relaxed) {
            lack if lack == Lack::Memory as u8 => Some("no memory for the Sink's answer was free"),
            lack if lack == Lack::Connection as u8 && !is_connected() => Some("no connection was free"),
            _ => None,
        }
    }
}

/// Message for an error caused by the router; `None` for other errors.
pub(super) fn busy(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(busy) = error.downcast_ref::<Busy>() {
            return Some(busy.to_string());
        }
        let io = match error.downcast_ref::<Arc<io::Error>>() {
            Some(io) => Some(&**io),
            None => error.downcast_ref::<io::Error>(),
        };
        if let Some(io) = io.filter(|io| is_exhausted(io)) {
            return Some(format!("the router is busy: {io}"));
        }
        cause = error.source();
    }
    None
}

/// Whether the process or the machine has run out of descriptors, ports or memory.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn finds_a_busy_router_in_any_cause() {
        let table: [(Box<dyn Error + Send + Sync>, bool); 5] = [
            (Busy("no socket is free").into(), true),
            (io::Error::from(Errno::MFILE).into(), true),
            (Connect(io::Error::from(Errno::NFILE).into()).into(), true),
            (io::Error::from(Errno::CONNREFUSED).into(), false),
            (io::Error::other("refused").into(), false),
        ];
        for (error, expected) in table {
            let error = Connect(error);
            assert_eq!(busy(&error).is_some(), expected, "{error:?}");
        }
    }
}
