//! Leader election among the controllers, and among the processes `weir sources`: the leader holds a Lease
//! (coordination.k8s.io/v1), by the rules and with the timing of Kubernetes' own components.
//!
//! Clocks of different machines are never compared: a Lease has expired when it has not changed for its duration,
//! as observed locally. The API server rejects a write based on an older version, so at most one candidate gets the
//! Lease.

mod observer;

pub use observer::{LeaseHealth, LeaseObserver};

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Time for which a Lease is held without being renewed.
const LEASE_DURATION: Duration = Duration::from_secs(15);

/// A leader that cannot renew for this long stops, before another one may start.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Interval at which the leader renews, and others check whether they can take the Lease.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Timeout of one read or write.
const PATIENCE: Duration = Duration::from_secs(5);

/// Annotation of the Lease with the names of the routers, separated by commas.
const ROUTERS: &str = "weir.dev/routers";

/// Maximum number of names stored.
const MAX_ROUTERS: usize = 500;

/// Options of leader election.
#[derive(Clone, Debug)]
pub struct Election {
    /// Name of the Lease, in the client's namespace.
    pub lease: String,
    /// Identity of this process, such as its pod's name.
    pub host: String,
}

/// A process that leads, or may lead.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    /// The pod's name with a suffix that distinguishes it from earlier pods of the same name.
    identity: String,
    /// The Lease as last seen, and the time at which it last changed.
    seen: Option<(LeaseSpec, Instant)>,
    /// Time until which this process may consider itself the leader.
    until: Instant,
    /// Whether the current failure was already logged.
    in_trouble: bool,
    last_used: watch::Sender<Option<Instant>>,
    /// Names of the routers known to the leader: read when the Lease is taken, written while it is held.
    routers: watch::Sender<BTreeSet<String>>,
}

/// Why a Lease could not be used.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server did not respond in time")]
    Timeout,
}

impl Candidate {
    /// Creates a candidate. `last_used` receives the time at
    /// which the Lease was last read, or written if needed. Leaders hand over the names of `routers` through the
    /// Lease, so that the next one knows which to wait for.
    pub fn new(
        client: Client,
        Election { lease, host }: &Election,
        last_used: watch::Sender<Option<Instant>>,
        routers: watch::Sender<BTreeSet<String>>,
    ) -> Self {
        Self {
            leases: Api::default_namespaced(client),
            name: lease.clone(),
            identity: format!("{host}_{}", uuid::Uuid::new_v4()),
            seen: None,
            until: Instant::now(),
            in_trouble: false,
            last_used,
            routers,
        }
    }

    /// Leads whenever this process holds the Lease, until told to stop. Each term has a token that ends it.
    ///
    /// # Errors
    /// The first error of a term.
    pub async fn lead_when_elected<E>(
        &mut self,
        stop: &CancellationToken,
        lead: impl AsyncFn(&CancellationToken) -> Result<(), E>,
    ) -> Result<(), E> {
        while stop.run_until_cancelled(self.acquire()).await.is_some() {
            let term = stop.child_token();
            let keep = async {
                let lost = term.run_until_cancelled(self.keep()).await;
                term.cancel();
                lost.is_some()
            };
            let lead = async {
                let led = lead(&term).await;
                term.cancel();
                led
            };
            let (lost, led) = tokio::join!(keep, lead);
            if !lost {
                self.release().await;
            }
            led?;
        }
        Ok(())
    }

    /// Waits until this process leads.
    async fn acquire(&mut self) {
        let mut known_leader = None;
        while !self.attempt().await {
            let leader = self
                .seen
                .as_ref()
                .and_then(|(seen, _)| holder(seen).map(str::to_owned));
            if leader.is_some() && leader != known_leader {
                tracing::info!(lease = self.name, leader, "another process leads; waiting");
                known_leader = leader;
            }
            // Jitter, so that candidates do not collide each time.
            tokio::time::sleep(RETRY_PERIOD.mul_f64(1.0 + 0.2 * fastrand::f64())).await;
        }
        tracing::info!(lease = self.name, identity = self.identity, "this process leads");
    }

    /// Renews the Lease as long as possible. Returns when this process no longer leads.
    async fn keep(&mut self) {
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            let renewed = tokio::time::timeout_at(self.until, self.attempt()).await;
            let taken = self.seen.as_ref().and_then(|(seen, _)| holder(seen)) != Some(&self.identity);
            if taken || (renewed != Ok(true) && Instant::now() + RETRY_PERIOD >= self.until) {
                tracing::warn!(
                    lease = self.name,
                    "this process no longer leads: it could not renew its Lease in time, or another one holds it"
                );
                return;
            }
        }
    }

    /// Releases the Lease, so that another process need not wait for it to expire.
    async fn release(&mut self) {
        let release = async {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
                return Ok(());
            };
            if lease.spec.as_ref().and_then(holder) != Some(&self.identity) {
                return Ok(());
            }
            self.tell_routers(&mut lease.metadata);
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            self.leases
                .replace(&self.name, &PostParams::default(), &lease)
                .await
                .map(drop)
        };
        match tokio::time::timeout(PATIENCE, release).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "released the Lease"),
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, %error, "cannot release the Lease; it will expire");
            }
            Err(_) => tracing::warn!(
                lease = self.name,
                "could not release the Lease in time; it will expire"
            ),
        }
        self.seen = None;
    }

    /// Takes or renews the Lease if possible. Returns whether this process holds it.
    async fn attempt(&mut self) -> bool {
        let begin = Instant::now();
        let attempt = tokio::time::timeout(PATIENCE, self.try_attempt()).await;
        match attempt.unwrap_or(Err(LeaseError::Timeout)) {
            Ok(leads) => {
                if self.in_trouble {
                    tracing::info!(lease = self.name, "the Lease can be used again");
                }
                self.in_trouble = false;
                self.last_used.send_replace(Some(Instant::now()));
                if leads {
                    self.until = begin + RENEW_DEADLINE;
                }
                leads
            }
            Err(error) => {
                if !self.in_trouble {
                    tracing::warn!(
                        lease = self.name,
                        namespace = self.leases.namespace(),
                        %error,
                        "cannot read or write the Lease; retrying"
                    );
                }
                self.in_trouble = true;
                false
            }
        }
    }

    async fn try_attempt(&mut self) -> Result<bool, LeaseError> {
        let present = self.leases.get_opt(&self.name).await?;
        let seen = present
            .as_ref()
            .map(|lease| lease.spec.clone().unwrap_or_default());
        let seen_for = self.see(seen.clone());
        let Some(spec) = claim(seen.as_ref(), &self.identity, seen_for, Timestamp::now()) else {
            return Ok(false);
        };
        let held = seen.as_ref().and_then(holder) == Some(&self.identity);
        if let Some(present) = present.as_ref().filter(|_| !held) {
            self.routers.send_replace(told_routers(&present.metadata));
        }
        let post = PostParams::default();
        let mut lease = Lease {
            metadata: present.as_ref().map_or_else(
                || ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                // Includes the version that was read, so that the API server rejects the write if another one was
                // faster.
                |lease| lease.metadata.clone(),
            ),
            spec: Some(spec),
        };
        self.tell_routers(&mut lease.metadata);
        let written = match present {
            Some(_) => self.leases.replace(&self.name, &post, &lease).await,
            None => self.leases.create(&post, &lease).await,
        };
        match written {
            Ok(lease) => {
                self.see(lease.spec);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn tell_routers(&self, lease: &mut ObjectMeta) {
        let names = self.routers.borrow();
        if names.is_empty() && lease.annotations.is_none() {
            return;
        }
        // Bounds the size of the Lease object.
        let names: Vec<&str> = names.iter().take(MAX_ROUTERS).map(String::as_str).collect();
        lease
            .annotations
            .get_or_insert_default()
            .insert(ROUTERS.to_owned(), names.join(","));
    }

    /// Records the current state of the Lease. Returns how long it has been unchanged.
    fn see(&mut self, lease: Option<LeaseSpec>) -> Duration {
        match (&self.seen, lease) {
            (Some((seen, since)), Some(lease)) if *seen == lease => return since.elapsed(),
            (_, lease) => self.seen = lease.map(|lease| (lease, Instant::now())),
        }
        Duration::ZERO
    }
}

/// Returns the names that the previous leader wrote.
fn told_routers(lease: &ObjectMeta) -> BTreeSet<String> {
    let told = lease
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ROUTERS));
    told.into_iter()
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Returns the Lease after taking or renewing it, or `None` while another process holds it. `seen_for` is the
/// time for which it has been unchanged.
fn claim(
    present: Option<&LeaseSpec>,
    identity: &str,
    seen_for: Duration,
    now: Timestamp,
) -> Option<LeaseSpec> {
    let now = Some(MicroTime(now));
    let mut spec = present.cloned().unwrap_or_default();
    match holder(&spec) {
        Some(holder) if holder == identity => {}
        Some(_) if seen_for <= duration(&spec) => return None,
        _ => {
            spec.holder_identity = Some(identity.to_owned());
            spec.acquire_time = now.clone();
            spec.lease_transitions = Some(
                spec.lease_transitions
                    .map_or(0, |before| before.saturating_add(1)),
            );
        }
    }
    spec.renew_time = now;
    spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
    Some(spec)
}

/// Returns the holder. Kubernetes components write an empty name when they release a Lease.
fn holder(lease: &LeaseSpec) -> Option<&str> {
    lease
        .holder_identity
        .as_deref()
        .filter(|holder| !holder.is_empty())
}

fn duration(lease: &LeaseSpec) -> Duration {
    let seconds = lease
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map_or(LEASE_DURATION, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn held_by(identity: &str) -> LeaseSpec {
        claim(None, identity, Duration::ZERO, now()).unwrap()
    }

    #[test]
    fn free_lease_is_taken_and_only_its_holder_renews_it() {
        let released = LeaseSpec {
            holder_identity: Some(String::new()),
            ..held_by("other")
        };
        let short = LeaseSpec {
            lease_duration_seconds: Some(1),
            ..held_by("other")
        };
        let (short_while, long) = (Duration::from_secs(2), LEASE_DURATION + Duration::from_millis(1));
        for (case, present, seen_for, taken) in [
            ("there is none", None, Duration::ZERO, true),
            ("it is empty", Some(LeaseSpec::default()), Duration::ZERO, true),
            ("it was given up", Some(released), Duration::ZERO, true),
            ("another has it", Some(held_by("other")), Duration::ZERO, false),
            (
                "another may still renew it",
                Some(held_by("other")),
                LEASE_DURATION,
                false,
            ),
            ("another has not renewed it", Some(held_by("other")), long, true),
            (
                "another's has run out by its own duration",
                Some(short),
                short_while,
                true,
            ),
            ("it is mine", Some(held_by("me")), long, true),
        ] {
            let claimed = claim(present.as_ref(), "me", seen_for, now());
            assert_eq!(claimed.is_some(), taken, "{case}");
            if let Some(claimed) = claimed {
                assert_eq!(holder(&claimed), Some("me"), "{case}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reports_when_the_lease_was_last_usable() {
        let lease = Lease {
            spec: Some(held_by("other")),
            ..Lease::default()
        };
        let lease = serde_json::to_value(lease).unwrap();
        let forbidden = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "", "reason": "Forbidden", "code": 403,
        });
        for (status, body, is_used) in [(200, lease, true), (403, forbidden, false)] {
            let answer = move |_: http::Request<kube::client::Body>| {
                let body = kube::client::Body::from(body.to_string().into_bytes());
                let response = http::Response::builder().status(status).body(body).unwrap();
                std::future::ready(Ok::<_, kube::Error>(response))
            };
            let client = Client::new(tower::service_fn(answer), "default");
            let (last_used, used) = watch::channel(None);
            let election = Election {
                lease: "l".to_owned(),
                host: "me".to_owned(),
            };
            let mut candidate = Candidate::new(client, &election, last_used, watch::Sender::default());
            let acquired = tokio::time::timeout(LEASE_DURATION, candidate.acquire()).await;
            assert!(acquired.is_err());
            let ago = used.borrow().map(|at| at.elapsed());
            assert_eq!(ago.is_some_and(|ago| ago < RETRY_PERIOD * 2), is_used, "{ago:?}");
        }
    }

    #[test]
    fn holder_loses_the_lease_only_if_not_renewed() {
        let first = held_by("me");
        let later = now() + Duration::from_secs(60);
        let renewed = claim(Some(&first), "me", Duration::ZERO, later).unwrap();
        assert_eq!(
            renewed,
            LeaseSpec {
                renew_time: Some(MicroTime(later)),
                ..first.clone()
            }
        );
        let taken = claim(Some(&first), "other", LEASE_DURATION * 2, later).unwrap();
        assert_eq!(
            (first.lease_transitions, taken.lease_transitions),
            (Some(0), Some(1))
        );
        assert_eq!(taken.acquire_time, Some(MicroTime(later)));
    }
}
