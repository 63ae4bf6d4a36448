//! Writes only statuses that change, and records transitions as Events.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::object::HasStatus,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    metrics::ControllerMetrics,
    statuses::{self, Transition},
};
use crate::api;

/// Field manager, as `kubectl` shows it.
pub(super) const FIELD_MANAGER: &str = "weir-controller";

/// Maximum number of writes in flight.
const CONCURRENCY: usize = 8;

/// Timeout of one write. The others wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum length of an Event's note, in bytes, enforced by the API server.
const LONGEST_NOTE: usize = 1024;

/// A kind of resource whose status is written.
pub(super) trait StatusKind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Clone + PartialEq + Serialize + DeserializeOwned>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Name in logs and metrics.
    const NAME: &'static str;

    /// Returns the conditions of a status.
    fn conditions(status: &Self::Status) -> &[Condition];

    /// Returns the part of a status that the controller writes.
    fn own(&self, status: Self::Status) -> Self::Status {
        status
    }
}

macro_rules! kinds {
    ($($kind:ident),*) => {
        $(impl StatusKind for api::$kind {
            const NAME: &'static str = stringify!($kind);

            fn conditions(status: &Self::Status) -> &[Condition] {
                &status.conditions
            }
        })*
    };
}

kinds!(Broker, Trigger, Sink);

impl StatusKind for api::Source {
    const NAME: &'static str = "Source";

    fn conditions(status: &Self::Status) -> &[Condition] {
        &status.conditions
    }

    /// Of a Source of kind kubernetes, `weir sources` writes the rest.
    fn own(&self, mut status: Self::Status) -> Self::Status {
        if self.spec.kubernetes.is_some() {
            status
                .conditions
                .retain(|condition| condition.type_ == statuses::READY);
            status.last_event_time = None;
            status.last_rejection = None;
        }
        status
    }
}

/// Writes statuses to the API server.
pub(super) struct StatusWriter {
    client: Client,
    recorder: Recorder,
    metrics: Arc<ControllerMetrics>,
    /// By UID, writes that the watch may not have delivered yet.
    written: HashMap<String, WrittenStatus>,
}

struct WrittenStatus {
    resource_version: u64,
    status: Value,
}

/// A status to write.
pub(super) struct Write {
    uid: String,
    /// Resolves to the new resource version.
    write: BoxFuture<'static, Result<Option<u64>, WriteError>>,
    status: Value,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server did not respond within {PATIENCE:?}")]
    Timeout,
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(WriteError::Timeout),
    }
}

impl StatusWriter {
    pub(super) fn new(client: Client, metrics: Arc<ControllerMetrics>) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from(FIELD_MANAGER));
        Self {
            client,
            recorder,
            metrics,
            written: HashMap::new(),
        }
    }

    /// Prepares the write of a resource's status. Returns `None` if the resource does not exist or `wanted` does
    /// not change its status.
    pub(super) fn outdated<K: StatusKind>(
        &mut self,
        resources: &HashMap<&str, &K>,
        uid: &str,
        wanted: impl FnOnce(Option<&K::Status>) -> K::Status,
    ) -> Option<Write> {
        let resource = *resources.get(uid)?;
        let present = self.present(resource).map(|present| resource.own(present));
        let status = wanted(present.as_ref());
        if present.as_ref() == Some(&status) {
            return None;
        }
        let before = present.as_ref().map(K::conditions).unwrap_or_default();
        let transitions = statuses::transitions(before, K::conditions(&status));
        Some(self.write(resource, &status, transitions))
    }

    /// Returns a resource's status: the last one written, until the watch delivers it or something newer.
    fn present<K: StatusKind>(&mut self, resource: &K) -> Option<K::Status> {
        let uid = resource.meta().uid.as_deref().unwrap_or_default();
        if let Some(written) = self.written.get(uid) {
            if version(resource) < written.resource_version {
                return serde_json::from_value(written.status.clone()).ok();
            }
            self.written.remove(uid);
        }
        resource.status().cloned()
    }

    /// Prepares a write and the Events for its transitions.
    fn write<K: StatusKind>(&self, resource: &K, status: &K::Status, transitions: Vec<Transition>) -> Write {
        let kind = K::NAME;
        // Serializing plain data cannot fail.
        let status = serde_json::to_value(status).unwrap_or_default();
        let (name, namespace) = (resource.name_any(), resource.namespace().unwrap_or_default());
        let patch = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": name, "namespace": namespace, "uid": resource.uid()},
            "status": status,
        });
        let (client, recorder, metrics) = (self.client.clone(), self.recorder.clone(), self.metrics.clone());
        let reference = resource.object_ref(&());
        let write = async move {
            let api = Api::<K>::namespaced(client, &namespace);
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            match in_time(api.patch_status(&name, &parameters, &Patch::Apply(&patch))).await {
                Ok(written) => {
                    metrics.wrote(kind, "written");
                    for transition in transitions {
                        if let Err(error) = in_time(recorder.publish(&event(transition), &reference)).await {
                            tracing::warn!(kind, namespace, name, %error, "cannot record an Event");
                        }
                    }
                    Ok(Some(version(&written)))
                }
                Err(WriteError::Api(kube::Error::Api(status)))
                    if status.code == 404 || status.code == 409 =>
                {
                    // Deleted in the meantime, or deleted and recreated; the watch will report it.
                    metrics.wrote(kind, "gone");
                    Ok(None)
                }
                Err(error) => {
                    metrics.wrote(kind, "failed");
                    tracing::warn!(kind, namespace, name, %error, "cannot write a status; retrying");
                    Err(error)
                }
            }
        };
        Write {
            uid: resource.uid().unwrap_or_default(),
            write: Box::pin(write),
            status,
        }
    }

    /// Performs the writes. Returns whether all succeeded.
    pub(super) async fn perform(&mut self, writes: Vec<Write>) -> bool {
        let writes = writes
            .into_iter()
            .map(|Write { uid, write, status }| async move { (uid, status, write.await) });
        let mut results = stream::iter(writes).buffer_unordered(CONCURRENCY);
        let mut all = true;
        while let Some((uid, status, result)) = results.next().await {
            match result {
                Ok(Some(resource_version)) => {
                    self.written.insert(
                        uid,
                        WrittenStatus {
                            resource_version,
                            status,
                        },
                    );
                }
                Ok(None) => {}
                Err(_) => all = false,
            }
        }
        all
    }

    /// Drops the entries of resources that are gone.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.written.retain(|uid, _| exists(uid));
    }
}

/// Resource versions of one kind compare as numbers. Kubernetes 1.35 guarantees this, and every API server has
/// behaved so.
fn version<K: Resource>(resource: &K) -> u64 {
    resource
        .meta()
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

fn event(
    Transition {
        action,
        warns,
        reason,
        message,
    }: Transition,
) -> Event {
    Event {
        type_: if warns {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason,
        note: Some(shortened(message)),
        action: action.to_owned(),
        secondary: None,
    }
}

/// The full message is in the condition.
fn shortened(mut message: String) -> String {
    const MARK: &str = "…";
    if message.len() > LONGEST_NOTE {
        message.truncate(message.floor_char_boundary(LONGEST_NOTE - MARK.len()));
        message.push_str(MARK);
    }
    message
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use kube::client::Body;

    use super::*;

    /// An API server that responds to PATCH, or to nothing.
    fn client(patched: Option<Value>) -> Client {
        let answer = move |request: Request<Body>| {
            let patched = patched.clone().filter(|_| request.method() == Method::PATCH);
            async move {
                let Some(patched) = patched else {
                    return std::future::pending().await;
                };
                let body = Body::from(patched.to_string().into_bytes());
                Ok::<_, kube::Error>(Response::new(body))
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test(start_paused = true)]
    async fn write_without_response_fails_and_event_without_response_is_dropped() {
        let resource = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Sink",
            "metadata": {"name": "s", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
            "spec": {"uri": "http://example.com/"},
        });
        let sink: api::Sink = serde_json::from_value(resource.clone()).unwrap();
        let sinks = HashMap::from([("u", &sink)]);
        let ready = json!({
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Resolved", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        });
        let mut patched = resource;
        patched["metadata"]["resourceVersion"] = "8".into();
        for (patched, is_written) in [(None, false), (Some(patched), true)] {
            let metrics = Arc::<ControllerMetrics>::default();
            let mut writer = StatusWriter::new(client(patched), metrics);
            let wanted = |_: Option<&_>| serde_json::from_value(ready.clone()).unwrap();
            let write = writer.outdated(&sinks, "u", wanted).unwrap();
            assert_eq!(writer.perform(vec![write]).await, is_written);
            let again = writer.outdated(&sinks, "u", wanted);
            assert_eq!(again.is_none(), is_written);
        }
    }

    #[test]
    fn truncates_notes_to_the_maximum_length() {
        let fits = "x".repeat(LONGEST_NOTE);
        assert_eq!(shortened(fits.clone()), fits);
        assert_eq!(shortened(format!("{fits}x")).len(), LONGEST_NOTE);
        let cut = shortened("ü".repeat(LONGEST_NOTE));
        assert!(cut.len() <= LONGEST_NOTE && cut.ends_with("ü…"), "{cut}");
    }
}
