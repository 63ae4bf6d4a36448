//! The lease of the router that delivers: a message of the state that expires unless its holder renews it. A holder
//! that cannot renew it stops before the servers give the lease away. One that is paused longer finds out when it
//! runs again; until then its saves are refused, because the next holder has a newer epoch.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    layout, names,
    state::{Expected, expiring},
    streams::JetStream,
};
use crate::log::{Epoch, LogError};

/// Time after which a lease that is not renewed ends.
const TTL: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Time before its end at which the holder of a lease that was not renewed stops.
const MARGIN: Duration = Duration::from_secs(2);
/// Time after which a lease that was given up ends; the least that the servers know.
const GIVEN_UP_FOR: Duration = Duration::from_secs(1);

/// The lease, as long as this router holds it. Dropping it stops its renewal: it ends after [`TTL`].
pub struct Lease {
    epoch: Epoch,
    lost: watch::Receiver<Option<LogError>>,
    give_up: CancellationToken,
    renewal: JoinHandle<()>,
    _stop: DropGuard,
}

impl Lease {
    /// Epoch of this router's checkpoints.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Resolves with the reason once this router no longer holds the lease and has to stop delivering.
    pub async fn lost(&self) -> LogError {
        let mut lost = self.lost.clone();
        let reason = lost.wait_for(Option::is_some).await.ok();
        let reason = reason.and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| LogError::Fenced("the lease is no longer renewed".to_owned()))
    }

    /// Gives the lease up, so that another router can take it at once. Takes a few seconds at most.
    pub async fn give_up(self) {
        self.give_up.cancel();
        if let Err(error) = self.renewal.await {
            tracing::error!(%error, "the renewal of the lease ended early; the lease ends by itself");
        }
    }
}

/// Renews a lease.
struct Renewal {
    streams: Arc<JetStream>,
    holder: String,
    /// Sequence of the lease's message.
    sequence: u64,
    /// Time from which the lease lasts.
    began: Instant,
}

impl JetStream {
    /// Takes the lease unless another router holds it, and makes this router the owner of the checkpoints.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another router holds it.
    pub(super) async fn take_lease(self: &Arc<Self>, router: &str) -> Result<Lease, LogError> {
        let began = Instant::now();
        let sequence = self.write_lease(router, 0, TTL).await?;
        let renewal = Renewal {
            streams: self.clone(),
            holder: router.to_owned(),
            sequence,
            began,
        };
        let (tell, lost) = watch::channel(None);
        let (give_up, stop) = (CancellationToken::new(), CancellationToken::new());
        let renewal = renewal.run(tell, give_up.clone(), stop.clone());
        let renewal = tokio::spawn(renewal);
        let stop = stop.drop_guard();
        Ok(Lease {
            epoch: self.take_over(router).await?,
            lost,
            give_up,
            renewal,
            _stop: stop,
        })
    }

    /// Returns the router that holds the lease.
    pub(super) async fn lease_holder(&self) -> Result<Option<String>, LogError> {
        let holder = self.load_value(names::LEASE).await?;
        Ok(holder.map(|holder| String::from_utf8_lossy(&holder).into_owned()))
    }

    /// Writes the lease over its message with this sequence; 0 stands for no message.
    async fn write_lease(&self, router: &str, over: u64, ttl: Duration) -> Result<u64, LogError> {
        let content = layout::encode(names::LEASE, 0, router.as_bytes());
        let message = expiring(names::LEASE.to_owned(), ttl, content);
        let expected = Expected {
            subject: names::LEASE,
            sequence: over,
        };
        self.store_state(&[message], Some(expected)).await
    }
}

impl Renewal {
    /// Renews the lease until it is lost, given up, or dropped.
    async fn run(
        mut self,
        lost: watch::Sender<Option<LogError>>,
        give_up: CancellationToken,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = sleep(RENEW_EVERY) => {}
                () = give_up.cancelled() => return self.give_up().await,
                () = stop.cancelled() => return,
            }
            if let Err(reason) = self.renew().await {
                lost.send_replace(Some(LogError::Fenced(reason)));
                return;
            }
        }
    }

    /// Renews the lease once; an attempt may fail as long as the lease lasts. Returns why it is lost.
    async fn renew(&mut self) -> Result<(), String> {
        let (asked, deadline) = (Instant::now(), self.began + TTL - MARGIN);
        let renewal = self.streams.write_lease(&self.holder, self.sequence, TTL);
        match timeout_at(deadline, renewal).await {
            Ok(Ok(sequence)) => {
                (self.sequence, self.began) = (sequence, asked);
                Ok(())
            }
            Ok(Err(LogError::Fenced(_))) => Err("another one has taken the lease".to_owned()),
            Ok(Err(LogError::Unavailable(_))) if Instant::now() < deadline => Ok(()),
            Ok(Err(error)) => Err(format!("cannot renew the lease: {error}")),
            Err(_) => Err("cannot renew the lease: NATS does not answer".to_owned()),
        }
    }

    async fn give_up(self) {
        let write = self
            .streams
            .write_lease(&self.holder, self.sequence, GIVEN_UP_FOR);
        match timeout_at(Instant::now() + MARGIN, write).await {
            // Another router has it already.
            Ok(Ok(_) | Err(LogError::Fenced(_))) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot give up the lease; it ends by itself"),
            Err(_) => tracing::warn!("cannot give up the lease: NATS does not answer; it ends by itself"),
        }
    }
}
