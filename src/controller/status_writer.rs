//! Writes statuses, and only those that change; tells of transitions by Events.

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

/// Who wrote a field, as `kubectl` shows it.
pub(super) const FIELD_MANAGER: &str = "weir-controller";

/// How many writes are under way at once.
const CONCURRENCY: usize = 8;

/// How long one write may take. The others wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the API server lets an Event's note be, in bytes; it refuses a longer one.
const LONGEST_NOTE: usize = 1024;

/// A kind of resource whose statuses are written.
pub(super) trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Clone + PartialEq + Serialize + DeserializeOwned>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its name in logs and metrics.
    const NAME: &'static str;

    /// What a status says.
    fn conditions(status: &Self::Status) -> &[Condition];
}

macro_rules! kinds {
    ($($kind:ident),*) => {
        $(impl Kind for api::$kind {
            const NAME: &'static str = stringify!($kind);

            fn conditions(status: &Self::Status) -> &[Condition] {
                &status.conditions
            }
        })*
    };
}

kinds!(Trigger, Sink, Source);

/// Writes statuses to the API server.
pub(super) struct StatusWriter {
    client: Client,
    recorder: Recorder,
    metrics: Arc<ControllerMetrics>,
    /// By UID, what was written and is perhaps not seen in the watch yet.
    written: HashMap<String, Written>,
}

struct Written {
    resource_version: u64,
    status: Value,
}

/// A status to write.
pub(super) struct Write {
    uid: String,
    /// Gives the new resource version.
    write: BoxFuture<'static, Result<Option<u64>, WriteError>>,
    status: Value,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {PATIENCE:?}")]
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

    /// Prepares the write of a resource's status, if the resource is there and its status is another than `wanted`
    /// makes of the present one.
    pub(super) fn outdated<K: Kind>(
        &mut self,
        resources: &HashMap<&str, &K>,
        uid: &str,
        wanted: impl FnOnce(Option<&K::Status>) -> K::Status,
    ) -> Option<Write> {
        let resource = *resources.get(uid)?;
        let present = self.present(resource);
        let status = wanted(present.as_ref());
        if present.as_ref() == Some(&status) {
            return None;
        }
        let before = present.as_ref().map(K::conditions).unwrap_or_default();
        let transitions = statuses::transitions(before, K::conditions(&status));
        Some(self.write(resource, &status, transitions))
    }

    /// A resource's status: what was last written, until the watch has brought that or something newer.
    fn present<K: Kind>(&mut self, resource: &K) -> Option<K::Status> {
        let uid = resource.meta().uid.as_deref().unwrap_or_default();
        if let Some(written) = self.written.get(uid) {
            if version(resource) < written.resource_version {
                return serde_json::from_value(written.status.clone()).ok();
            }
            self.written.remove(uid);
        }
        resource.status().cloned()
    }

    /// Prepares a write, with the Events that tell of it.
    fn write<K: Kind>(&self, resource: &K, status: &K::Status, transitions: Vec<Transition>) -> Write {
        let kind = K::NAME;
        // Plain data always serialises.
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
                            tracing::warn!(kind, namespace, name, %error, "an Event cannot be recorded");
                        }
                    }
                    Ok(Some(version(&written)))
                }
                Err(WriteError::Api(kube::Error::Api(status)))
                    if status.code == 404 || status.code == 409 =>
                {
                    // Deleted meanwhile, or deleted and created anew: the watch will tell.
                    metrics.wrote(kind, "gone");
                    Ok(None)
                }
                Err(error) => {
                    metrics.wrote(kind, "failed");
                    tracing::warn!(kind, namespace, name, %error, "a status cannot be written; it is tried again");
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

    /// Makes the writes; tells whether all were made.
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
                        Written {
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

    /// Forgets what is about resources that are gone.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.written.retain(|uid, _| exists(uid));
    }
}

/// Resource versions of one kind can be compared as numbers (Kubernetes 1.35 makes it a promise, and every API
/// server has kept it).
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

/// The condition has the whole message.
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

    /// An API server that answers a PATCH, if it does, and nothing else.
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
    async fn a_write_that_is_not_answered_has_failed_and_an_event_that_is_not_is_lost() {
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
    fn a_note_is_as_long_as_it_may_be() {
        let fits = "x".repeat(LONGEST_NOTE);
        assert_eq!(shortened(fits.clone()), fits);
        assert_eq!(shortened(format!("{fits}x")).len(), LONGEST_NOTE);
        let cut = shortened("ü".repeat(LONGEST_NOTE));
        assert!(cut.len() <= LONGEST_NOTE && cut.ends_with("ü…"), "{cut}");
    }
}
