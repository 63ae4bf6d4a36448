//! The ingress: accepts CloudEvents at `/{namespace}/{broker}` and answers 202 once they are durable.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use jiff::Timestamp;

use super::{
    audit::AuditLog,
    body::{self, Bodies, Sender},
    metrics::IngressMetrics,
    over_quota::RejectedLately,
    problem::Problem,
    quotas::{self, Quotas},
};
use crate::{
    access::{Access, Permit, Presented, PresentedCertificate, Refusal},
    cloudevents::{Event, TraceContext, read_http_each},
    intake::{self, Admission, Beyond, Descendants, Intake, Shortage},
    log::{BrokerName, LogError},
    ownership::Shards,
    routing::{Quota, RoutingTable, broker_key},
    server::{CertificateNames, ClientNames, Peer},
    telemetry::{Burst, Receiver, Tracer},
};

/// State of the ingress.
pub(super) struct Ingress {
    pub(super) intake: Intake,
    pub(super) shards: Arc<Shards>,
    /// `None` until the first routing configuration is applied.
    pub(super) table: Arc<ArcSwapOption<RoutingTable>>,
    /// Who may post. Never older than the table.
    pub(super) access: Arc<ArcSwap<Access>>,
    pub(super) metrics: Arc<IngressMetrics>,
    pub(super) bodies: Bodies,
    pub(super) tracer: Tracer,
    /// Limits the log lines about events rejected by a full log.
    pub(super) refusals: Mutex<Burst>,
    pub(super) descendants: Descendants,
    /// Rates of the brokers that have a quota.
    pub(super) quotas: Arc<Quotas>,
    /// Brokers whose producers were rejected because their quota or their namespace's share of the log is used up.
    pub(super) over_quota: Arc<RejectedLately>,
    /// Limits the log lines about events with the id of another one.
    pub(super) conflicts: Mutex<Burst>,
    /// Limits the log lines about loops.
    pub(super) loops: Mutex<Burst>,
    /// Sums up the requests that only the audit lets pass.
    pub(super) audited: Arc<AuditLog>,
}

/// Creates the endpoint that producers post to.
pub(super) fn service(ingress: Arc<Ingress>) -> Router {
    Router::new()
        .route("/", get(front).fallback(unknown_path))
        .route("/{namespace}/{broker}", post(receive).options(validate))
        .route("/{namespace}/{broker}/", post(receive).options(validate))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(ingress)
}

async fn receive(
    State(ingress): State<Arc<Ingress>>,
    Path((namespace, broker)): Path<(String, String)>,
    request: Request,
) -> Response {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let context = TraceContext::from_headers(&parts.headers);
    let mut receiver = ingress.tracer.receiver(context, SystemTime::now());
    let accepted = ingress
        .accept(&namespace, &broker, parts, body, &mut receiver)
        .await;
    let exists = || ingress.check_broker(&namespace, &broker).is_ok();
    let key = broker_key(&namespace, &broker);
    let (response, reason) = match accepted {
        Ok(stored) => {
            ingress.metrics.accepted(&key, exists, stored, began.elapsed());
            (StatusCode::ACCEPTED.into_response(), None)
        }
        Err(problem) => {
            let reason = problem.reason();
            ingress.metrics.rejected(reason);
            ingress.note_over_quota(&key, &problem, exists);
            (problem.into_response(), Some(reason))
        }
    };
    receiver.end(response.status(), reason);
    response
}

impl Ingress {
    /// Checks and stores events; returns the number of those that are no repeats.
    async fn accept(
        &self,
        namespace: &str,
        broker: &str,
        parts: Parts,
        body: Body,
        receiver: &mut Receiver<'_>,
    ) -> Result<usize, Problem> {
        let admitted = self.admit(namespace, broker, &parts);
        let permit = match admitted.and_then(|permit| body::check_codings(&parts.headers).map(|()| permit)) {
            Ok(permit) => permit,
            Err(problem) => {
                body::refuse_body(&parts.headers, body).await;
                return Err(problem);
            }
        };
        let sender = Sender::new(namespace, parts.extensions.get::<Peer>().copied());
        let body = self.bodies.read(&sender, &parts.headers, body).await?;
        let broker = broker_key(namespace, broker);
        let unread = read_http_each(&parts.headers, body.bytes.clone())?;
        let (is_batch, count) = (unread.is_batch(), unread.len());
        let quota = self.quota_of(&broker);
        if let Some(per_second) = quota.events_per_second {
            self.quotas.count(&broker, per_second, count, Instant::now())?;
        }
        let mut room = match is_batch {
            true => Some(self.bodies.room_for(&sender, body.bytes.len(), count).await?),
            false => None,
        };
        let admission = self.admit_descendants(&parts.headers, &broker, count)?;
        let continued = |of_headers: Option<_>| match unread.single() {
            Some(event) => of_headers.or_else(|| event.extension_trace_context()),
            None => of_headers,
        };
        let context = receiver.begin(continued, &broker);
        // Only one event of a batch is in memory at a time, beside all records.
        let records = intake::records(unread.in_context(context), |index, event| {
            let event = event?;
            if is_batch {
                receiver.link(&event);
            } else {
                receiver.describe(&event);
            }
            self.permit(&permit, &broker, &event)
                .map_err(|problem| problem.of_event(index))?;
            let event = admission.with_lineage(event);
            let record = event
                .map_err(|beyond| self.loops(&broker, index, beyond))?
                .to_record();
            if let Some(room) = &mut room {
                room.add(&record)?;
            }
            Ok::<_, Problem>(record)
        });
        let records = records.await?;
        if is_batch {
            receiver.describe_batch(records.len());
        }
        if records.is_empty() {
            return Ok(0);
        }
        if let Some(largest) = quota.event_size {
            quotas::check_sizes(&broker, largest, &records)?;
        }
        let repeats = self.store(&broker, &records).await?;
        admission.keep();
        Ok(records.len() - repeats)
    }

    /// Decides by a request's head.
    fn admit(&self, namespace: &str, broker: &str, head: &Parts) -> Result<Permit, Problem> {
        if self.table.load().is_none() {
            return Err(no_configuration());
        }
        let authorization = head.headers.get(header::AUTHORIZATION);
        let certificate = head.extensions.get::<ClientNames>().map(ClientNames::get);
        let presented = Presented {
            authorization: authorization.and_then(|value| value.to_str().ok()),
            certificate: certificate.map(presented_certificate),
            address: head.extensions.get::<Peer>().map(|peer| peer.0.ip()),
        };
        let access = self.access.load();
        // Before it is checked that the broker exists: not everyone may know.
        let (permit, refusal) = match access.admit(namespace, broker, presented, Timestamp::now) {
            Ok(permit) => (permit, None),
            Err(refusal) if access.is_audit() => (Permit::everything(), Some(refusal)),
            Err(refusal) => {
                let challenges = access.challenges(&refusal);
                return Err(Problem::from(refusal).challenged(challenges));
            }
        };
        self.check_broker(namespace, broker)?;
        if let Some(refusal) = refusal {
            self.audit(&broker_key(namespace, broker), &refusal);
        }
        Ok(permit)
    }

    /// Decides about an event of an admitted request.
    fn permit(&self, permit: &Permit, broker: &str, event: &Event) -> Result<(), Problem> {
        match permit.check(event) {
            Err(refusal) if permit.is_audit() => {
                self.audit(broker, &refusal);
                Ok(())
            }
            checked => Ok(checked?),
        }
    }

    /// Counts and logs what would be rejected without the audit.
    fn audit(&self, broker: &str, refusal: &Refusal) {
        self.metrics.audited(broker, refusal.label());
        self.audited.add(broker, refusal, Instant::now());
    }

    /// Admits so many events of a request, unless they end a loop.
    pub(super) fn admit_descendants(
        &self,
        headers: &HeaderMap,
        broker: &str,
        count: usize,
    ) -> Result<Admission, Problem> {
        let admission = self.descendants.admit(headers, count);
        admission.map_err(|beyond| self.loops(broker, 0, beyond))
    }

    /// Stores the records of events; returns the number of repeats, which are not stored. Logs, now and then, that there
    /// is no room, or that an event has the id of another one.
    pub(super) async fn store(&self, broker: &str, records: &[Bytes]) -> Result<usize, LogError> {
        let name = BrokerName::from(broker);
        let appended = self.intake.accept(&name, records, Timestamp::now()).await;
        if let Err(error) = &appended
            && is_for_want_of_room(error)
        {
            self.tell_refusal(broker, error);
        }
        if let Err(conflict @ LogError::Conflict { index, .. }) = &appended {
            self.tell_conflict(broker, records.get(*index), conflict);
        }
        appended.map(|appended| appended.repeats)
    }

    /// The Trigger that holds most of what has no room: of a full log, which may be another namespace's, of the broker's
    /// namespace, or of the broker. For the operator only.
    fn held_by(&self, broker: &str, error: &LogError) -> Option<String> {
        let broker = BrokerName::from(broker);
        let most = match (error, Shortage::of(error)) {
            (LogError::BrokerQuota(_), _) => self.shards.holds_most(|view| *view.broker() == broker),
            (_, Some(Shortage::Share)) => {
                let namespace = broker.namespace();
                self.shards.holds_most(|view| view.namespace == namespace)
            }
            (_, Some(Shortage::Log)) => self.shards.holds_most(|_| true),
            (_, None) => None,
        }?;
        Some(format!("{}/{}", most.namespace, most.name))
    }

    /// A final rejection for the sender, above all for another router: that one turns the event into a dead letter
    /// and stops retrying.
    pub(super) fn loops(&self, broker: &str, index: usize, beyond: Beyond) -> Problem {
        let mut refusals = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(admitted) = refusals.admit(Instant::now()) {
            let held_back = admitted.held_back;
            tracing::warn!(broker, error = %beyond, held_back, "an event is rejected with 422: this looks like a loop");
        }
        let (reason, title) = match beyond {
            Beyond::Hops => ("too_many_hops", "Too many deliveries led to the event"),
            Beyond::Descendants => ("too_many_descendants", "Too many events follow from one"),
        };
        let detail = format!("{beyond}; the event was not stored");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason, title, detail).of_event(index)
    }

    fn tell_refusal(&self, broker: &str, error: &LogError) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(admitted) = refusals.admit(Instant::now()) {
            let held_back = admitted.held_back;
            let held_by = self.held_by(broker, error);
            tracing::warn!(broker, %error, held_by, held_back, "events are rejected with 507");
        }
    }

    fn tell_conflict(&self, broker: &str, record: Option<&Bytes>, conflict: &LogError) {
        let mut conflicts = self.conflicts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(admitted) = conflicts.admit(Instant::now()) {
            let held_back = admitted.held_back;
            let event = record.and_then(|record| Event::from_record(record.clone()).ok());
            let (source, id) = (event.as_ref().map(Event::source), event.as_ref().map(Event::id));
            tracing::warn!(
                broker,
                source,
                id,
                held_back,
                "an event is rejected with 422: {conflict}"
            );
        }
    }

    /// Counts a rejected request, if a limit of its broker or namespace is the reason.
    pub(super) fn note_over_quota(&self, broker: &str, problem: &Problem, exists: impl Fn() -> bool) {
        let Some(limit) = problem.exceeded() else { return };
        self.metrics.over_quota(broker, limit, exists);
        if limit.is_of_the_log() {
            self.over_quota.note(broker, limit, Instant::now());
        }
    }

    /// Checks the record of an event that no producer posts against the broker's quota.
    pub(super) fn check_quota(&self, broker: &str, record: &[Bytes]) -> Result<(), Problem> {
        let quota = self.quota_of(broker);
        if let Some(per_second) = quota.events_per_second {
            self.quotas
                .count(broker, per_second, record.len(), Instant::now())?;
        }
        match quota.event_size {
            Some(largest) => quotas::check_sizes(broker, largest, record),
            None => Ok(()),
        }
    }

    pub(super) fn quota_of(&self, broker: &str) -> Quota {
        let table = self.table.load();
        table
            .as_ref()
            .map(|table| table.quota_of(broker))
            .unwrap_or_default()
    }

    fn check_broker(&self, namespace: &str, broker: &str) -> Result<(), Problem> {
        Self::table_with_broker(self.table.load().as_deref(), namespace, broker).map(|_| ())
    }

    /// Returns the table, if there is one and it has the broker.
    pub(super) fn table_with_broker<'a>(
        table: Option<&'a RoutingTable>,
        namespace: &str,
        broker: &str,
    ) -> Result<&'a RoutingTable, Problem> {
        let Some(table) = table else {
            return Err(no_configuration());
        };
        if table.has_broker(namespace, broker) {
            return Ok(table);
        }
        let detail = if table.has_namespace(namespace) {
            format!(
                "namespace {namespace:?} has no broker {broker:?}: a broker exists once a Trigger or a Source names it \
                 (default always exists)"
            )
        } else {
            format!("there is no namespace {namespace:?}; events are posted to /NAMESPACE/BROKER")
        };
        Err(Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_broker",
            "There is no such broker",
            detail,
        ))
    }
}

fn presented_certificate(names: &CertificateNames) -> PresentedCertificate<'_> {
    let CertificateNames {
        dns_names,
        uris,
        expiry,
    } = names;
    PresentedCertificate {
        dns_names,
        uris,
        expiry: *expiry,
    }
}

fn is_for_want_of_room(error: &LogError) -> bool {
    matches!(
        error,
        LogError::Full(_)
            | LogError::Quota(_)
            | LogError::TooManyBrokers(_)
            | LogError::BrokerQuota(_)
            | LogError::Limit(_)
    )
}

fn no_configuration() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_configuration",
        "The router is not ready",
        "the router has no routing configuration yet; it waits for the controller",
    )
    .try_again()
}

/// Validation handshake of the CloudEvents HTTP webhook specification 1.0, section 4: any origin may post, at any
/// rate.
async fn validate(
    State(ingress): State<Arc<Ingress>>,
    Path((namespace, broker)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    if let Err(problem) = ingress.admit(&namespace, &broker, &parts) {
        ingress.metrics.rejected(problem.reason());
        return problem.into_response();
    }
    let mut response = StatusCode::OK.into_response();
    let answer = response.headers_mut();
    answer.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    if let Some(origin) = parts.headers.get("webhook-request-origin") {
        answer.insert("webhook-allowed-origin", origin.clone());
        answer.insert("webhook-allowed-rate", HeaderValue::from_static("*"));
    }
    response
}

/// For health checks of load balancers, many of which request only `/`.
async fn front(State(ingress): State<Arc<Ingress>>) -> Result<&'static str, Problem> {
    match &*ingress.table.load() {
        Some(_) => Ok("events are posted to /NAMESPACE/BROKER\n"),
        None => Err(no_configuration()),
    }
}

async fn unknown_path(State(ingress): State<Arc<Ingress>>) -> Problem {
    ingress.metrics.rejected("unknown_path");
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown_path",
        "There is nothing here",
        "events are posted to /NAMESPACE/BROKER, for example /shop/default",
    )
}

async fn wrong_method(State(ingress): State<Arc<Ingress>>) -> Problem {
    ingress.metrics.rejected("wrong_method");
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        "Events are posted",
        "use POST",
    )
}
