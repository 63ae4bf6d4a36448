//! The lease of the router that delivers: a message in the state stream that expires unless its holder renews it. A
//! holder that cannot renew the lease stops before it expires. A paused holder may not notice in time; its saves are
//! fenced by the newer epoch of the next holder.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    layout, names,
    state::{Expected, expiring},
    streams::JetStream,
};
use crate::log::{Epoch, LogError};

/// Time after the last renewal at which a lease expires.
const TTL: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Time before the expiry at which a holder that cannot renew its lease stops.
const MARGIN: Duration = Duration::from_secs(2);
/// Time after which a lease that was given up expires: the minimum that servers allow.
const GIVEN_UP_FOR: Duration = Duration::from_secs(1);

/// The lease, held and renewed by this router. If dropped, it is no longer renewed and expires after [`TTL`].
pub struct Lease {
    streams: Arc<JetStream>,
    epoch: Epoch,
    give_up: CancellationToken,
    renewal: JoinHandle<()>,
    _stop: DropGuard,
}

impl Lease {
    /// Epoch of this router's checkpoints.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Resolves with the reason once this router has to stop delivering.
    pub async fn lost(&self) -> LogError {
        self.streams.turn.over().await
    }

    /// Gives the lease up to let another router take it within about a second. Takes a few seconds at most.
    pub async fn give_up(self) {
        self.give_up.cancel();
        if let Err(error) = self.renewal.await {
            tracing::error!(%error, "the task that renews the lease failed; the lease expires by itself");
        }
    }
}

/// Renews a lease.
struct Renewal {
    streams: Arc<JetStream>,
    holder: String,
    /// Sequence of the lease's message.
    sequence: u64,
    /// Time of the last renewal.
    began: Instant,
}

impl JetStream {
    /// Takes the lease for a router.
    ///
    /// # Errors
    /// [`LogError::Open`] if an embedded log was copied here in part; otherwise as [`JetStream::take_lease_of`].
    pub(super) async fn take_lease(self: &Arc<Self>, router: &str) -> Result<Lease, LogError> {
        let lease = self.take_lease_of(router).await?;
        if self.is_copied_in_part().await? {
            lease.give_up().await;
            return Err(LogError::Open {
                path: self.session.place(),
                detail:
                    "an embedded log was copied there only in part; run weir log copy again until it succeeds"
                        .to_owned(),
            });
        }
        Ok(lease)
    }

    /// Takes the lease unless another router holds it, and takes over the checkpoints.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another router holds it; [`LogError::Unavailable`] if it took too long.
    pub(super) async fn take_lease_of(self: &Arc<Self>, router: &str) -> Result<Lease, LogError> {
        let mut renewal = Renewal {
            streams: self.clone(),
            holder: router.to_owned(),
            began: Instant::now(),
            sequence: 0,
        };
        renewal.sequence = self.write_lease(router, 0, TTL).await?;
        // Expects its own lease: a late write by a paused router must not fence the current holder.
        let holder = Expected {
            subject: names::LEASE,
            sequence: renewal.sequence,
        };
        let epoch = self.take_over(router, Some(holder)).await?;
        if Instant::now() >= renewal.deadline() {
            return Err(LogError::Unavailable(
                "NATS responded too slowly: the lease is about to expire".to_owned(),
            ));
        }
        self.turn.last_until(renewal.deadline());
        let (give_up, stop) = (CancellationToken::new(), CancellationToken::new());
        let renewal = tokio::spawn(renewal.run(give_up.clone(), stop.clone()));
        Ok(Lease {
            streams: self.clone(),
            epoch,
            give_up,
            renewal,
            _stop: stop.drop_guard(),
        })
    }

    /// Returns the router that holds the lease.
    pub(super) async fn lease_holder(&self) -> Result<Option<String>, LogError> {
        let holder = self.load_value(names::LEASE).await?;
        Ok(holder.map(|holder| String::from_utf8_lossy(&holder).into_owned()))
    }

    /// Replaces the lease's message with this sequence; 0 if there must be none.
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
    /// Time at which the holder stops unless it renews the lease.
    fn deadline(&self) -> Instant {
        self.began + TTL - MARGIN
    }

    /// Renews the lease until it is lost, given up, or dropped.
    async fn run(mut self, give_up: CancellationToken, stop: CancellationToken) {
        loop {
            let next = self.deadline().min(Instant::now() + RENEW_EVERY);
            tokio::select! {
                () = sleep_until(next) => {}
                () = give_up.cancelled() => return self.give_up().await,
                () = stop.cancelled() => return,
            }
            if let Err(reason) = self.renew().await {
                self.streams.turn.end(LogError::Fenced(reason));
                return;
            }
        }
    }

    /// Tries to renew the lease once. A failure is an error only if the lease is lost.
    async fn renew(&mut self) -> Result<(), String> {
        let (asked, deadline) = (Instant::now(), self.deadline());
        let renewal = self.streams.write_lease(&self.holder, self.sequence, TTL);
        match timeout_at(deadline, renewal).await {
            Ok(Ok(sequence)) => {
                (self.sequence, self.began) = (sequence, asked);
                self.streams.turn.last_until(self.deadline());
                Ok(())
            }
            Ok(Err(LogError::Fenced(_))) => {
                Err("the lease has expired, or another router has taken it".to_owned())
            }
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
            // Fenced: another router already holds it.
            Ok(Ok(_) | Err(LogError::Fenced(_))) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot give up the lease; it expires by itself"),
            Err(_) => tracing::warn!("cannot give up the lease: NATS does not answer; it expires by itself"),
        }
    }
}
