//! Runs a Source: obtains tokens, finds its kinds, and then follows the objects and tells their changes.

use std::{array, collections::HashMap, mem, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use kube::{ResourceExt as _, api::DynamicObject, runtime::watcher};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    account_client::account_client,
    account_tokens::{KnownTokens, TokenKeeper},
    broker::{CONFLICT, Posted},
    feed::{FeedFailure, WatchItem},
    given_up::GivenUp,
    kinds::{WatchedKinds, is_planned},
    metrics::SourceCounters,
    process::SourcesProcess,
    queue::{ChangeQueue, MAX_OBJECTS, Pending},
    records::{RecordStore, SaveError, Versions},
    report::{self, Activity, ConnectionReport, Reporter, SourceConnection},
};
use crate::{
    api,
    resolve::{Finding, KubernetesPlan, plan_kubernetes, source_filters},
    source::kubernetes::{EventMaker, Ledger, ObjectKey, SHARDS, UnsavedRecords},
};

/// Maximum number of events of a Source in flight.
const IN_FLIGHT: usize = 16;

/// Maximum number of saves of a Source in flight.
const SAVES: usize = 4;

/// Time for which saves of a shard are collected; less if an object waits for one. Longer for a large shard.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_AWAITED: Duration = Duration::from_millis(200);

/// Pauses before another attempt to post an event, or to save; each is twice the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Pauses before another attempt to run a Source that cannot run.
const FIRST_RERUN: Duration = Duration::from_secs(2);
const LONGEST_RERUN: Duration = Duration::from_secs(60);

/// Time for which the broker, or saving, fails before the status tells it. A router restarts within it.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// Time for which one event, or some of the records, fail while others succeed before the status tells it.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Time for which a run that ends waits for events in flight, and then for the last save.
const LAST_EVENTS: Duration = Duration::from_secs(3);
const LAST_SAVE: Duration = Duration::from_secs(5);

/// Why a run ended.
enum Ended {
    Stopped,
    /// The records are not those that were read.
    Conflict,
    Problem(Finding),
}

/// Runs a Source until told to stop.
pub(super) async fn run(shared: Arc<SourcesProcess>, source: Arc<api::Source>, stop: CancellationToken) {
    let (namespace, name) = (source.namespace().unwrap_or_default(), source.name_any());
    let uid = source.uid().unwrap_or_default();
    let plan = source.spec.kubernetes.as_ref();
    let plan = plan.and_then(|spec| plan_kubernetes(&namespace, spec).ok());
    let prepared = plan.and_then(|plan| {
        let maker = EventMaker::compile(&plan.events, &source_filters(&source.spec), &uid);
        Some((plan, maker.ok()?))
    });
    let Some((plan, maker)) = prepared else {
        // The controller tells what is wrong.
        stop.run_until_cancelled(report::release(
            shared.client.clone(),
            &source.metadata,
            Some(&source),
        ))
        .await;
        return;
    };
    let (report, reports) = watch::channel(None);
    let (known, tokens) = watch::channel(None);
    let renew = Arc::new(Notify::new());
    let keeper = TokenKeeper {
        client: shared.client.clone(),
        namespace: namespace.clone(),
        account: plan.account.clone(),
        known,
        renew: renew.clone(),
    };
    let was_connected = report::is_connected(&source);
    let reporter = Reporter::new(shared.client.clone(), &source);
    let runner = Runner {
        url: shared.broker.url(&namespace, &source.spec.broker),
        counters: shared.metrics.of(&namespace, &name),
        memory: RecordStore::new(
            shared.client.clone(),
            &shared.owner,
            &uid,
            format!("{namespace}/{name}"),
        ),
        shared,
        namespace,
        name,
        plan,
        maker,
        tokens,
        renew,
        report,
        was_connected,
        stop,
    };
    tokio::select! {
        () = runner.run() => {}
        () = keeper.run() => {}
        () = reporter.run(reports) => {}
    }
}

/// A Source, and what it is run with.
struct Runner {
    shared: Arc<SourcesProcess>,
    namespace: String,
    name: String,
    url: String,
    plan: KubernetesPlan,
    maker: EventMaker,
    memory: RecordStore,
    counters: Arc<SourceCounters>,
    tokens: watch::Receiver<KnownTokens>,
    renew: Arc<Notify>,
    report: watch::Sender<Option<ConnectionReport>>,
    /// Whether an earlier run of the same generation was connected last.
    was_connected: bool,
    stop: CancellationToken,
}

impl Runner {
    /// Runs the Source, again and again if it cannot.
    async fn run(&self) {
        let mut pause = FIRST_RERUN;
        let mut had_conflict = false;
        let mut tokens = self.tokens.clone();
        loop {
            let begun = Instant::now();
            let (namespace, source) = (&self.namespace, &self.name);
            let problem = match self.attempt(&mut tokens).await {
                Ended::Stopped => return,
                // As when the API server did not answer in time although it had saved.
                Ended::Conflict
                    if !mem::replace(&mut had_conflict, true) || begun.elapsed() > LONGEST_RERUN =>
                {
                    tracing::info!(namespace, source, "the records have changed; reading them again");
                    continue;
                }
                Ended::Conflict => Finding::bad("RecordsUnavailable", SaveError::Conflict.to_string()),
                Ended::Problem(problem) => problem,
            };
            let (reason, message) = (problem.reason, &problem.message);
            tracing::warn!(namespace, source, reason, message, "the Source does not run");
            self.tell(SourceConnection::Known(problem), Activity::default());
            if begun.elapsed() > LONGEST_RERUN {
                pause = FIRST_RERUN;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = tokens.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_RERUN);
        }
    }

    fn tell(&self, connection: SourceConnection, activity: Activity) {
        self.counters.is_connected(connection.holds());
        self.report.send_if_modified(|report| {
            let activity = match &*report {
                Some(before) => activity.or(&before.activity),
                None => activity,
            };
            let next = Some(ConnectionReport { connection, activity });
            let is_news = *report != next;
            *report = next;
            is_news
        });
    }

    async fn attempt(&self, tokens: &mut watch::Receiver<KnownTokens>) -> Ended {
        let begin = async {
            loop {
                match &*tokens.borrow_and_update() {
                    Some(Ok(_)) => break,
                    Some(Err(finding)) => return Err(finding.clone()),
                    None => {}
                }
                if tokens.changed().await.is_err() {
                    return Err(Finding::bad("TokenUnavailable", "no tokens are requested"));
                }
            }
            let client = account_client(&self.shared.config, self.tokens.clone())
                .map_err(|error| Finding::bad("ApiServerUnavailable", error.to_string()))?;
            let (records, versions) = self.memory.load().await.map_err(|problem| {
                Finding::bad(
                    "RecordsUnavailable",
                    format!("weir sources cannot read its records of the objects: {problem}; retrying"),
                )
            })?;
            let mut ledger = Ledger::restore(records);
            ledger.retain(|key, place| is_planned(&self.plan, key, place));
            Ok((client, ledger, versions))
        };
        let (client, ledger, versions) = match self.stop.run_until_cancelled(begin).await {
            None => return Ended::Stopped,
            Some(Err(problem)) => return Ended::Problem(problem),
            Some(Ok(begun)) => begun,
        };
        let following = Following {
            runner: self,
            work: ChangeQueue::new(ledger, self.maker.clone(), self.counters.clone()),
            kinds: WatchedKinds::begin(client, &self.plan),
            begun: Instant::now(),
            posts: FuturesUnordered::new(),
            saves: FuturesUnordered::new(),
            shards: versions_to_shards(versions),
            broker_failure: None,
            save_failure: None,
            refused: HashMap::new(),
            last_event: None,
        };
        following.run(tokens).await
    }
}

/// A shard of the records.
struct ShardState {
    version: Option<String>,
    is_saving: bool,
    /// Time at which collected records are saved.
    due: Option<Instant>,
    /// Time before which nothing is saved, after a failure.
    not_before: Instant,
    failures: u32,
    /// Since when it cannot be saved, and why.
    failure: Option<(Instant, String)>,
}

fn versions_to_shards(versions: Versions) -> [ShardState; SHARDS] {
    let mut versions = versions.into_iter();
    array::from_fn(|_| ShardState {
        version: versions.next().flatten(),
        is_saving: false,
        due: None,
        not_before: Instant::now(),
        failures: 0,
        failure: None,
    })
}

type Save = (usize, UnsavedRecords, Result<Option<String>, SaveError>);

/// A Source that runs.
struct Following<'a> {
    runner: &'a Runner,
    work: ChangeQueue,
    kinds: WatchedKinds,
    begun: Instant,
    posts: FuturesUnordered<BoxFuture<'static, (Pending, Posted)>>,
    saves: FuturesUnordered<BoxFuture<'static, Save>>,
    shards: [ShardState; SHARDS],
    /// Since when the broker takes no event at all, and why.
    broker_failure: Option<(Instant, Finding)>,
    /// The same of saving.
    save_failure: Option<(Instant, String)>,
    /// The same of each event that is posted again; as many as are in flight at most.
    refused: HashMap<ObjectKey, (Instant, Finding)>,
    last_event: Option<Timestamp>,
}

impl Following<'_> {
    async fn run(mut self, tokens: &mut watch::Receiver<KnownTokens>) -> Ended {
        let stop = &self.runner.stop;
        let ended = loop {
            self.begin_posts();
            self.begin_saves(Instant::now());
            self.tell();
            if self.work.ledger.seen() > MAX_OBJECTS {
                break Ended::Problem(too_many());
            }
            let due = self.next_due();
            let step = tokio::select! {
                () = stop.cancelled() => Err(Ended::Stopped),
                delivered = self.kinds.next(self.work.has_room()) => {
                    if let Some((feed, delivered)) = delivered {
                        self.delivered(feed, delivered);
                    }
                    Ok(())
                }
                Some((pending, posted)) = self.posts.next() => {
                    self.posted(pending, posted);
                    Ok(())
                }
                Some(save) = self.saves.next() => self.saved(save),
                Ok(()) = tokens.changed() => match &*tokens.borrow_and_update() {
                    Some(Err(finding)) => Err(Ended::Problem(finding.clone())),
                    _ => Ok(()),
                },
                () = tokio::time::sleep_until(due) => Ok(()),
            };
            if let Err(ended) = step {
                break ended;
            }
        };
        self.end().await;
        ended
    }

    /// Takes what a watch delivers.
    fn delivered(&mut self, number: usize, delivered: WatchItem) {
        let now = Timestamp::now();
        let Some(feed) = self.kinds.feed(number) else {
            return;
        };
        let work = &mut self.work;
        match delivered {
            Ok(watcher::Event::Init) => feed.listing = Some(Default::default()),
            Ok(watcher::Event::InitApply(object)) => {
                if let Some(object) = value(object).and_then(|object| work.read(&feed.names, object)) {
                    work.exists(&feed.names, &feed.kind, &object, now);
                    feed.listing
                        .get_or_insert_default()
                        .insert(object.uid.as_str().into());
                }
            }
            Ok(watcher::Event::InitDone) => {
                let listed = feed.listing.take().unwrap_or_default();
                work.are_all(&feed.names, &feed.kind, feed.namespace.as_deref(), &listed, now);
                feed.is_listed = true;
                feed.works();
            }
            Ok(watcher::Event::Apply(object)) => {
                feed.works();
                if let Some(object) = value(object).and_then(|object| work.read(&feed.names, object)) {
                    work.exists(&feed.names, &feed.kind, &object, now);
                }
            }
            Ok(watcher::Event::Delete(object)) => {
                feed.works();
                if let Some(object) = value(object).and_then(|object| work.read(&feed.names, object)) {
                    work.is_gone(&feed.names, &feed.kind, &object, now);
                }
            }
            Err(error) => {
                let Runner { plan, namespace, .. } = self.runner;
                match feed.failed(&error, &plan.account, namespace) {
                    FeedFailure::Retried => {}
                    FeedFailure::Unauthenticated => self.runner.renew.notify_one(),
                    FeedFailure::UnknownKind => self.kinds.lost(number),
                }
            }
        }
    }

    fn begin_posts(&mut self) {
        while self.posts.len() < IN_FLIGHT
            && let Some(pending) = self.work.next()
        {
            self.post(pending, Duration::ZERO);
        }
        self.runner
            .counters
            .holds(self.work.pending(), self.work.ledger.len());
    }

    fn post(&self, pending: Pending, pause: Duration) {
        let Runner {
            shared, url, tokens, ..
        } = self.runner;
        let (shared, url, tokens) = (shared.clone(), url.clone(), tokens.clone());
        let post = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let token = match &*tokens.borrow() {
                Some(Ok(tokens)) => Some(tokens.broker.clone()),
                _ => None,
            };
            let posted = shared.broker.post(&url, &pending.event, token).await;
            (pending, posted)
        };
        self.posts.push(post.boxed());
    }

    fn posted(&mut self, mut pending: Pending, posted: Posted) {
        let counters = &self.runner.counters;
        let refused = self.refused.remove(&pending.change.key);
        let posted = match posted {
            // It was told before a restart, with what was known then, such as the version before.
            Posted::Rejected { reason, .. } if reason == CONFLICT && self.work.has_id_of_change(&pending) => {
                Posted::Accepted
            }
            posted => posted,
        };
        match posted {
            Posted::Accepted => {
                counters.produced();
                self.broker_failure = None;
                self.last_event = Some(Timestamp::now());
                self.work.settled(&pending.change);
            }
            Posted::Rejected { reason, message } => {
                counters.rejected();
                self.broker_failure = None;
                let (namespace, source) = (&self.runner.namespace, &self.runner.name);
                let (id, change) = (pending.event.id(), pending.change.id());
                tracing::warn!(namespace, source, id, change, message, "an event is given up");
                self.work.rejection = Some(GivenUp::new(Timestamp::now(), &reason, message));
                self.work.settled(&pending.change);
            }
            Posted::Refused {
                problem,
                after,
                is_unauthenticated,
            } => {
                counters.refused();
                let since = self
                    .broker_failure
                    .take()
                    .map_or_else(Instant::now, |(since, _)| since);
                self.broker_failure = Some((since, problem.clone()));
                let since = refused.map_or_else(Instant::now, |(since, _)| since);
                self.refused.insert(pending.change.key.clone(), (since, problem));
                if is_unauthenticated {
                    self.runner.renew.notify_one();
                }
                let pause = after.unwrap_or_else(|| pause(pending.failures));
                pending.failures = pending.failures.saturating_add(1);
                self.post(pending, pause);
            }
        }
    }

    fn begin_saves(&mut self, now: Instant) {
        let objects = u32::try_from(self.work.ledger.len() / SHARDS).unwrap_or(u32::MAX);
        let collect = SAVE_EVERY + Duration::from_millis(1) * objects;
        let awaited = SAVE_AWAITED + Duration::from_millis(1) * objects / 4;
        for shard in 0..SHARDS {
            let state = &mut self.shards[shard];
            if !self.work.ledger.is_unsaved(shard) || state.is_saving {
                continue;
            }
            let wait = match self.work.ledger.is_awaited(shard) {
                true => awaited,
                false => collect,
            };
            let due = state.due.map_or(now + wait, |due| due.min(now + wait));
            state.due = Some(due);
            if due <= now && state.not_before <= now && self.saves.len() < SAVES {
                self.save(shard);
            }
        }
    }

    fn save(&mut self, shard: usize) {
        let records = self.work.ledger.take_unsaved(shard);
        let state = &mut self.shards[shard];
        (state.is_saving, state.due) = (true, None);
        let (memory, version) = (self.runner.memory.clone(), state.version.clone());
        let save = async move {
            let saved = memory.save(shard, version.as_deref(), &records).await;
            (shard, records, saved)
        };
        self.saves.push(save.boxed());
    }

    fn saved(&mut self, (shard, records, saved): Save) -> Result<(), Ended> {
        let state = &mut self.shards[shard];
        state.is_saving = false;
        match saved {
            Ok(version) => {
                (state.version, state.failures, state.failure) = (version, 0, None);
                self.save_failure = None;
                self.work.ledger.saved(&records);
                Ok(())
            }
            Err(SaveError::Conflict) => Err(Ended::Conflict),
            Err(SaveError::Failed(problem)) => {
                state.not_before = Instant::now() + pause(state.failures);
                state.failures = state.failures.saturating_add(1);
                let since = self
                    .save_failure
                    .take()
                    .map_or_else(Instant::now, |(since, _)| since);
                self.save_failure = Some((since, problem.clone()));
                let since = state.failure.take().map_or_else(Instant::now, |(since, _)| since);
                state.failure = Some((since, problem));
                self.work.ledger.not_saved(shard, records);
                Ok(())
            }
        }
    }

    /// Time at which something is to be done, at the latest.
    fn next_due(&self) -> Instant {
        let now = Instant::now();
        let due = (0..SHARDS).filter_map(|shard| {
            let state = &self.shards[shard];
            let is_waiting =
                self.work.ledger.is_unsaved(shard) && !state.is_saving && self.saves.len() < SAVES;
            is_waiting.then_some(state.due?.max(state.not_before))
        });
        // The status tells of failures after a while.
        due.chain([now + TOLD_AFTER]).min().unwrap_or(now)
    }

    fn tell(&self) {
        if let Some(connection) = self.connection() {
            let activity = Activity {
                last_event: self.last_event,
                last_rejection: self.work.rejection.clone(),
            };
            self.runner.tell(connection, activity);
        }
    }

    /// Whether the Source works; `None` while what was told before a restart may still be true.
    fn connection(&self) -> Option<SourceConnection> {
        if let Some(problem) = self.problem() {
            return Some(SourceConnection::Known(problem));
        }
        let listing = self.kinds.listing();
        if !listing.is_empty() {
            let is_brief = self.runner.was_connected && self.begun.elapsed() < TOLD_AFTER;
            let message = format!("lists the objects of {}", listing.join(", "));
            return (!is_brief).then_some(SourceConnection::Listing(message));
        }
        Some(SourceConnection::Known(self.working()))
    }

    /// What does not work.
    fn problem(&self) -> Option<Finding> {
        let broker = lasting(self.broker_failure.as_ref(), self.refused.values()).cloned();
        let shards = self.shards.iter().filter_map(|shard| shard.failure.as_ref());
        let save = lasting(self.save_failure.as_ref(), shards).map(|problem| {
            let message = format!("weir sources cannot save its records of the objects: {problem}; retrying");
            Finding::bad("RecordsUnavailable", message)
        });
        // One kind may be out of reach for long, while the others are watched.
        let problems = [broker, save, self.kinds.problem()];
        let problems: Vec<_> = problems.into_iter().flatten().collect();
        let reason = problems.first()?.reason;
        let messages = problems.into_iter().map(|problem| problem.message);
        let messages: Vec<_> = messages.chain(self.rejection()).collect();
        Some(Finding::bad(reason, messages.join("; ")))
    }

    /// What is told of the events that were given up.
    fn rejection(&self) -> Option<String> {
        self.work.rejection.as_ref().map(|GivenUp { message, .. }| {
            format!("events were rejected or could not be made, and are given up; the last: {message}")
        })
    }

    /// What is told of a Source that works.
    fn working(&self) -> Finding {
        match self.rejection() {
            Some(message) => Finding::good("EventsRejected", message),
            None => Finding::good("Connected", format!("watches {}", self.kinds.names().join(", "))),
        }
    }

    /// Waits for events in flight, and saves what was told.
    async fn end(mut self) {
        self.kinds.end();
        let last_events = async {
            while let Some((pending, posted)) = self.posts.next().await {
                if !matches!(posted, Posted::Refused { .. }) {
                    self.posted(pending, posted);
                }
            }
        };
        drop(tokio::time::timeout(LAST_EVENTS, last_events).await);
        let last_save = async {
            loop {
                for shard in 0..SHARDS {
                    if self.work.ledger.is_unsaved(shard) && !self.shards[shard].is_saving {
                        self.save(shard);
                    }
                }
                let Some(save) = self.saves.next().await else {
                    return;
                };
                let is_failed = matches!(save.2, Err(SaveError::Failed(_)));
                if self.saved(save).is_err() {
                    return; // somebody else has the records now
                }
                if is_failed {
                    tokio::time::sleep(FIRST_PAUSE).await;
                }
            }
        };
        drop(tokio::time::timeout(LAST_SAVE, last_save).await);
    }
}

/// Returns what has failed for long: all, or one of some.
fn lasting<'a, T>(
    all: Option<&'a (Instant, T)>,
    each: impl Iterator<Item = &'a (Instant, T)>,
) -> Option<&'a T> {
    let all = all.filter(|(since, _)| since.elapsed() >= TOLD_AFTER);
    let oldest = || {
        let oldest = each.min_by_key(|(since, _)| *since);
        oldest.filter(|(since, _)| since.elapsed() >= STUCK_AFTER)
    };
    all.or_else(oldest).map(|(_, problem)| problem)
}

/// Pause after this many failures before, with jitter.
fn pause(failures: u32) -> Duration {
    let ceiling = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    ceiling.min(LONGEST_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn too_many() -> Finding {
    Finding::bad(
        "TooManyObjects",
        format!(
            "more than {MAX_OBJECTS} objects match: select fewer by labelSelector, fieldSelector or namespaces, or use \
             several Sources"
        ),
    )
}

/// The object as JSON. That of an API server always has a form.
fn value(object: DynamicObject) -> Option<serde_json::Value> {
    serde_json::to_value(object).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_stuck_is_told_although_others_succeed() {
        let begun = Instant::now();
        let (all, one, other) = ((begun, "all"), (begun, "one"), (begun + TOLD_AFTER, "other"));
        let each = || [&other, &one].into_iter();
        assert_eq!(lasting(Some(&all), each()), None);
        tokio::time::advance(TOLD_AFTER).await;
        assert_eq!(lasting(Some(&all), each()), Some(&"all"));
        assert_eq!(lasting(None, each()), None);
        tokio::time::advance(STUCK_AFTER - TOLD_AFTER).await;
        assert_eq!(lasting(None, each()), Some(&"one"));
        assert_eq!(lasting(None, std::iter::once(&other)), None);
    }
}
