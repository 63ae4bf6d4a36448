//! Leases: a lease is a message in the state stream that expires unless its holder renews it. A holder that cannot
//! renew its lease stops before it expires. A paused holder may not notice in time; what it then writes is fenced.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    layout,
    state::{Expected, expiring},
    streams::JetStream,
};
use crate::log::LogError;

/// Time after the last renewal at which a lease expires.
const TTL: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Time before the expiry at which a holder that cannot renew its lease stops.
const MARGIN: Duration = Duration::from_secs(2);
/// Time after which a lease that was given up expires: the minimum that servers allow.
const GIVEN_UP_FOR: Duration = Duration::from_secs(1);

/// A lease, held and renewed by this process. If dropped, it is no longer renewed and expires after [`TTL`].
pub(super) struct Lease {
    streams: Arc<JetStream>,
    value: watch::Sender<Bytes>,
    give_up: CancellationToken,
    renewal: JoinHandle<()>,
    _stop: DropGuard,
}

impl Lease {
    /// Resolves with the reason once the lease is lost, or the turn of its holder ended otherwise.
    pub(super) async fn lost(&self) -> LogError {
        self.streams.turn.over().await
    }

    /// Replaces the value, by a renewal at once.
    pub(super) fn set_value(&self, value: Bytes) {
        self.value.send_replace(value);
    }

    /// Gives the lease up to let another process take it within about a second. Takes a few seconds at most.
    pub(super) async fn give_up(self) {
        self.give_up.cancel();
        if let Err(error) = self.renewal.await {
            tracing::error!(%error, "the task that renews the lease failed; the lease expires by itself");
        }
    }
}

/// Renews a lease.
struct Renewal {
    streams: Arc<JetStream>,
    subject: String,
    value: watch::Receiver<Bytes>,
    /// Sequence of the lease's message.
    sequence: u64,
    /// Time of the last renewal.
    began: Instant,
}

impl JetStream {
    /// Takes the lease of a subject and begins the turn of this process. Its message has this value.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another process holds it; [`LogError::Unavailable`] if it took too long.
    pub(super) async fn take_lease(
        self: &Arc<Self>,
        subject: String,
        value: Bytes,
    ) -> Result<Lease, LogError> {
        let (value, received) = watch::channel(value);
        let mut renewal = Renewal {
            streams: self.clone(),
            subject,
            value: received,
            began: Instant::now(),
            sequence: 0,
        };
        renewal.sequence = renewal.write(TTL).await?;
        // The stream may have been deleted and created again.
        self.state_end.store(renewal.sequence, Relaxed);
        if Instant::now() >= renewal.deadline() {
            return Err(LogError::Unavailable(
                "NATS responded too slowly: the lease is about to expire".to_owned(),
            ));
        }
        self.turn.begin(renewal.deadline());
        let (give_up, stop) = (CancellationToken::new(), CancellationToken::new());
        let renewal = tokio::spawn(renewal.run(give_up.clone(), stop.clone()));
        Ok(Lease {
            streams: self.clone(),
            value,
            give_up,
            renewal,
            _stop: stop.drop_guard(),
        })
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
                Ok(()) = self.value.changed() => {}
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
        match timeout_at(deadline, self.write(TTL)).await {
            Ok(Ok(sequence)) => {
                (self.sequence, self.began) = (sequence, asked);
                self.streams.turn.last_until(self.deadline());
                Ok(())
            }
            Ok(Err(LogError::Fenced(_))) => {
                Err("the lease has expired, or another process has taken it".to_owned())
            }
            Ok(Err(LogError::Unavailable(_))) if Instant::now() < deadline => Ok(()),
            Ok(Err(error)) => Err(format!("cannot renew the lease: {error}")),
            Err(_) => Err("cannot renew the lease: NATS does not answer".to_owned()),
        }
    }

    async fn give_up(self) {
        match timeout_at(Instant::now() + MARGIN, self.write(GIVEN_UP_FOR)).await {
            // Fenced: another process already holds it.
            Ok(Ok(_) | Err(LogError::Fenced(_))) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot give up the lease; it expires by itself"),
            Err(_) => tracing::warn!("cannot give up the lease: NATS does not answer; it expires by itself"),
        }
    }

    /// Replaces the message of the lease.
    async fn write(&self, ttl: Duration) -> Result<u64, LogError> {
        let content = layout::encode(&self.subject, 0, &self.value.borrow());
        let message = expiring(self.subject.clone(), ttl, content);
        let expected = Expected {
            subject: self.subject.clone().into(),
            sequence: self.sequence,
        };
        self.streams.store_state(&[message], Some(expected)).await
    }
}
