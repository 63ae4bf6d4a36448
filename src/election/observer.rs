//! Observes the Lease of other processes: whether one of them leads.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, Client};
use tokio::{sync::watch, time::Instant};

use super::{PATIENCE, duration, holder};

/// Interval at which the Lease is read.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Time after which a Lease that is not renewed, as observed here, is nobody's. Longer than what a hand-over takes.
const STALE: Duration = Duration::from_secs(30);

/// Whether a process holds a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseHealth {
    /// It is not known yet, or cannot be read.
    Unknown,
    /// A process holds it.
    Held,
    /// No process has held it for a while.
    Abandoned,
}

/// Reads a Lease regularly.
pub struct LeaseObserver {
    leases: Api<Lease>,
    name: String,
    health: watch::Sender<LeaseHealth>,
}

impl LeaseObserver {
    /// Creates an observer of the Lease of this name, in the client's namespace.
    pub fn new(client: Client, name: &str) -> Self {
        Self {
            leases: Api::default_namespaced(client),
            name: name.to_owned(),
            health: watch::Sender::new(LeaseHealth::Unknown),
        }
    }

    /// Returns what is known, and what will be.
    pub fn health(&self) -> watch::Receiver<LeaseHealth> {
        self.health.subscribe()
    }

    /// Observes forever.
    pub async fn run(self) {
        let mut seen = LastRenewal::new(Instant::now());
        loop {
            let read = tokio::time::timeout(PATIENCE, self.leases.get_opt(&self.name)).await;
            let health = match read {
                Ok(Ok(lease)) => seen.see(lease.and_then(|lease| lease.spec), Instant::now()),
                // Nobody could have renewed it either.
                Ok(Err(_)) | Err(_) => {
                    seen.since = Instant::now();
                    LeaseHealth::Unknown
                }
            };
            self.health.send_if_modified(|before| {
                let is_news = health != LeaseHealth::Unknown && *before != health;
                if is_news {
                    *before = health;
                }
                is_news
            });
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The Lease as last seen, and since when it has been so.
struct LastRenewal {
    lease: Option<LeaseSpec>,
    since: Instant,
}

impl LastRenewal {
    fn new(now: Instant) -> Self {
        Self {
            lease: None,
            since: now,
        }
    }

    fn see(&mut self, lease: Option<LeaseSpec>, now: Instant) -> LeaseHealth {
        let is_held = lease.as_ref().and_then(holder).is_some();
        if lease != self.lease && is_held {
            self.since = now;
        }
        self.lease = lease;
        let lasts = self.lease.as_ref().map_or(STALE, duration).max(STALE);
        match now.duration_since(self.since) <= lasts {
            true if is_held => LeaseHealth::Held,
            // Someone may be about to take it.
            true => LeaseHealth::Unknown,
            false => LeaseHealth::Abandoned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, transitions: i32) -> Option<LeaseSpec> {
        Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_transitions: Some(transitions),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        })
    }

    #[test]
    fn a_lease_is_held_while_it_is_renewed() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut seen = LastRenewal::new(begin);
        for (seconds, lease, expected) in [
            (0, None, LeaseHealth::Unknown),
            (31, None, LeaseHealth::Abandoned),
            (32, held_by("one", 0), LeaseHealth::Held),
            (61, held_by("one", 0), LeaseHealth::Held),
            (63, held_by("one", 0), LeaseHealth::Abandoned),
            (64, held_by("one", 1), LeaseHealth::Held),
            // Released, and taken again.
            (66, held_by("", 1), LeaseHealth::Unknown),
            (70, held_by("two", 2), LeaseHealth::Held),
            (80, held_by("", 2), LeaseHealth::Unknown),
            (101, held_by("", 2), LeaseHealth::Abandoned),
        ] {
            assert_eq!(seen.see(lease, after(seconds)), expected, "after {seconds} s");
        }
    }
}
