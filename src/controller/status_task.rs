//! Keeps statuses up to date: recomputes them whenever resources or routers change.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Client, Resource};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    endpoint::Publication,
    metrics::ControllerMetrics,
    objects_status::objects_problem,
    source_activity::shown_every,
    source_status::{self, SourceFacts},
    sources_seen::SourceRuns,
    status_writer::{StatusWriter, Write},
    statuses,
};
use crate::{
    api,
    election::LeaseHealth,
    resolve::{Diagnoses, Observed, ResourceId},
};

/// Interval at which routers are checked for having gone.
const LOOK_FOR_ROUTERS_EVERY: Duration = Duration::from_secs(5);

/// Time for which no router runs a Source before that is told: longer than another one takes to take it over.
const IDLE_FOR: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The resources and the findings about them.
#[derive(Clone)]
pub(super) struct ResolvedResources {
    pub(super) observed: Arc<Observed>,
    pub(super) diagnoses: Arc<Diagnoses>,
}

pub(super) struct StatusTask {
    writer: StatusWriter,
    publication: Arc<Publication>,
    metrics: Arc<ControllerMetrics>,
    urls: BaseUrls,
    idle: IdleSources,
    /// Whether `weir sources` runs; `None` if the installation has none.
    sources: Option<watch::Receiver<LeaseHealth>>,
}

/// Since when no router runs a Source, by UID.
#[derive(Debug, Default)]
struct IdleSources(HashMap<String, Instant>);

impl IdleSources {
    /// Notes whether no router runs a Source. Returns whether that has lasted for [`IDLE_FOR`].
    fn is_lasting(&mut self, uid: &str, is_idle: bool, now: Instant) -> bool {
        if !is_idle {
            self.0.remove(uid);
            return false;
        }
        let since = *self.0.entry(uid.to_owned()).or_insert(now);
        now.duration_since(since) >= IDLE_FOR
    }

    fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|uid, _| exists(uid));
    }
}

/// URL prefixes that statuses tell.
#[derive(Clone, Debug)]
pub(super) struct BaseUrls {
    pub(super) brokers: Option<String>,
    pub(super) webhooks: Option<String>,
}

impl StatusTask {
    pub(super) fn new(
        client: Client,
        urls: BaseUrls,
        sources: Option<watch::Receiver<LeaseHealth>>,
        metrics: Arc<ControllerMetrics>,
        publication: Arc<Publication>,
    ) -> Self {
        Self {
            writer: StatusWriter::new(client, metrics.clone()),
            publication,
            metrics,
            urls,
            idle: IdleSources::default(),
            sources,
        }
    }

    /// Runs until told to stop.
    pub(super) async fn run(
        mut self,
        mut latest: watch::Receiver<ResolvedResources>,
        stop: &CancellationToken,
    ) {
        let mut pause = FIRST_PAUSE;
        let mut look = tokio::time::interval(LOOK_FOR_ROUTERS_EVERY);
        loop {
            let found = latest.borrow_and_update().clone();
            let all_written = tokio::select! {
                all_written = self.write(&found) => all_written,
                () = stop.cancelled() => return,
            };
            let retry_at = (!all_written).then(|| tokio::time::Instant::now() + pause);
            pause = if all_written {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            tokio::select! {
                changed = latest.changed() => if changed.is_err() { return },
                () = self.publication.acknowledged() => {}
                _ = look.tick() => {}
                () = retry(retry_at) => {}
                () = stop.cancelled() => return,
            }
            self.forget_gone_routers();
        }
    }

    fn forget_gone_routers(&self) {
        for router in self.publication.forget_gone() {
            tracing::warn!(router, "the router is gone");
        }
        self.metrics.routers(self.publication.routers().count());
    }

    /// Writes outdated statuses. Returns whether all writes succeeded.
    async fn write(&mut self, found: &ResolvedResources) -> bool {
        let writes = self.outdated(found);
        writes.is_empty() || self.writer.perform(writes).await
    }

    fn outdated(&mut self, ResolvedResources { observed, diagnoses }: &ResolvedResources) -> Vec<Write> {
        let Self {
            writer,
            publication,
            metrics,
            urls,
            idle,
            sources: process,
        } = self;
        let process = process.as_ref().map(|process| *process.borrow());
        let now = api::whole_seconds(Timestamp::now());
        let (now, broker_url) = (Time(now), urls.brokers.as_deref());
        let webhook_url = urls.webhooks.as_deref();
        let routers = publication.routers();
        let applied = |subject: &ResourceId| routers.applied(&subject.uid, Instant::now());
        let mut writes = Vec::new();
        let (mut ready, mut not_ready) = (0, 0);

        let triggers = by_uid(&observed.triggers);
        for diagnosis in &diagnoses.triggers {
            let subject = &diagnosis.subject;
            writes.extend(writer.outdated(&triggers, &subject.uid, |present| {
                let status = statuses::trigger(
                    diagnosis,
                    &applied(subject),
                    &routers.sink(&subject.uid),
                    &routers.filters(&subject.uid, subject.generation),
                    present,
                    broker_url,
                    &now,
                );
                let resumed = routers.has_resumed(&subject.uid);
                let status = statuses::resumed(status, resumed, present, &now);
                match api::condition(&status.conditions, statuses::READY) {
                    Some(condition) if condition.status == "True" => ready += 1,
                    _ => not_ready += 1,
                }
                status
            }));
        }
        metrics.triggers(ready, not_ready);

        let sinks = by_uid(&observed.sinks);
        for diagnosis in &diagnoses.sinks {
            let wanted = |present: Option<&_>| statuses::sink(diagnosis, present, &now);
            writes.extend(writer.outdated(&sinks, &diagnosis.subject.uid, wanted));
        }

        let sources = by_uid(&observed.sources);
        let shown_every = shown_every(sources.len());
        let mut counts = SourceConditions::default();
        for diagnosis in &diagnoses.sources {
            let subject = &diagnosis.subject;
            let seen = routers.source(&subject.uid);
            let is_idle = matches!(seen.runs, SourceRuns::Nowhere { .. });
            // As the watch has it: what the controller wrote itself does not have it.
            let status = sources
                .get(&*subject.uid)
                .and_then(|source| source.status.as_ref());
            let connected = status.and_then(|status| api::condition(&status.conditions, api::CONNECTED));
            let facts = SourceFacts {
                applied: &applied(subject),
                seen: &seen,
                is_idle: idle.is_lasting(&subject.uid, is_idle, Instant::now()),
                shown_every,
                objects_problem: objects_problem(process, connected, subject.generation),
            };
            writes.extend(writer.outdated(&sources, &subject.uid, |present| {
                let status = source_status::source(diagnosis, &facts, present, broker_url, webhook_url, &now);
                counts.count(&status.conditions);
                status
            }));
        }
        metrics.sources(counts.ready, counts.not_ready, counts.not_connected);
        idle.retain(|uid| sources.contains_key(uid));
        let brokers = by_uid(&observed.brokers);
        for diagnosis in &diagnoses.brokers {
            let subject = &diagnosis.subject;
            writes.extend(writer.outdated(&brokers, &subject.uid, |present| {
                statuses::broker(
                    diagnosis,
                    &applied(subject),
                    routers.broker(&subject.uid),
                    present,
                    broker_url,
                    &now,
                )
            }));
        }
        writer.retain(|uid| {
            triggers.contains_key(uid)
                || sinks.contains_key(uid)
                || sources.contains_key(uid)
                || brokers.contains_key(uid)
        });
        writes
    }
}

/// Numbers of Sources by their conditions.
#[derive(Debug, Default)]
struct SourceConditions {
    ready: i64,
    not_ready: i64,
    /// Ready, and `Connected` is False.
    not_connected: i64,
}

impl SourceConditions {
    fn count(&mut self, conditions: &[Condition]) {
        let status = |r#type| api::condition(conditions, r#type).map(|condition| &*condition.status);
        match status(statuses::READY) {
            Some("True") => {
                self.ready += 1;
                self.not_connected += i64::from(status(api::CONNECTED) == Some("False"));
            }
            _ => self.not_ready += 1,
        }
    }
}

fn by_uid<K: Resource>(resources: &[K]) -> HashMap<&str, &K> {
    resources
        .iter()
        .filter_map(|resource| Some((resource.meta().uid.as_deref()?, resource)))
        .collect()
}

async fn retry(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
