//! Publishes the broker's address to workloads: in each namespace with the label `weir.dev/inject=enabled`, a
//! ConfigMap of environment variables for `envFrom`.
//!
//! `K_SINK` is Knative's name for the URL to post to, and `K_CA_CERTS` that for the authorities to trust there. Many
//! producers already support them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::sync::{Notify, watch::Receiver};
use tokio_util::sync::CancellationToken;

use super::{
    broker_authority::BrokerAuthority,
    metrics::ControllerMetrics,
    status_task::ResolvedResources,
    status_writer::FIELD_MANAGER,
    watch::{self, ResourceStores},
};
use crate::{resolve::Namespace, routing::PRODUCER_AUDIENCE};

/// Name of the ConfigMap.
pub(super) const NAME: &str = "weir-broker";

/// Label, and its value, by which a namespace opts in.
const WANTED: (&str, &str) = ("weir.dev/inject", "enabled");

/// Label, and its value, by which Weir recognizes its own ConfigMaps.
const OURS: (&str, &str) = ("app.kubernetes.io/managed-by", "weir");

/// Maximum number of requests in flight.
const CONCURRENCY: usize = 8;

/// Timeout of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Delay before failed actions are retried.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Interval at which the file with the authorities is read.
const READ_EVERY: Duration = Duration::from_secs(15);

/// Variables of the authorities. They are absent without any.
const AUTHORITIES: [&str; 2] = ["K_CA_CERTS", "WEIR_BROKER_CA_CERTS"];

/// Keeps the ConfigMaps up to date.
pub(super) struct Discovery {
    client: Client,
    recorder: Recorder,
    base_url: String,
    authority: BrokerAuthority,
    config_maps: ResourceStores<ConfigMap>,
    changed: Arc<Notify>,
    /// Actions whose failure was already logged, by namespace.
    told: BTreeSet<(String, ConfigMapAction)>,
    /// Resource version of the last write, by namespace, so that each change is logged once: a write without a
    /// change returns the same version.
    written: BTreeMap<String, String>,
}

/// Action needed in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ConfigMapAction {
    Write,
    Remove,
    /// Someone else created it; leave it unchanged.
    Leave,
}

impl Discovery {
    /// Starts watching. `base_url` is the URL prefix before `/NAMESPACE/BROKER`.
    pub(super) fn start(
        client: &Client,
        base_url: &str,
        authority: BrokerAuthority,
        namespaces: &[String],
        metrics: &Arc<ControllerMetrics>,
        stop: &CancellationToken,
    ) -> Self {
        let (config_maps, changed) = watch::config_maps(client, namespaces, NAME, metrics, stop);
        Self {
            client: client.clone(),
            recorder: Recorder::new(client.clone(), Reporter::from(FIELD_MANAGER)),
            base_url: base_url.to_owned(),
            authority,
            config_maps,
            changed,
            told: BTreeSet::new(),
            written: BTreeMap::new(),
        }
    }

    /// Runs until told to stop.
    pub(super) async fn run(mut self, latest: Receiver<ResolvedResources>, stop: &CancellationToken) {
        stop.run_until_cancelled(self.follow(latest)).await;
    }

    async fn follow(&mut self, mut latest: Receiver<ResolvedResources>) {
        loop {
            self.authority.refresh().await;
            let observed = latest.borrow_and_update().observed.clone();
            let all_done = self.act(&observed.namespaces).await;
            tokio::select! {
                changed = latest.changed() => if changed.is_err() { return },
                () = self.changed.notified() => {}
                () = tokio::time::sleep(RETRY_AFTER), if !all_done => {}
                () = tokio::time::sleep(READ_EVERY), if self.authority.may_change() => {}
            }
        }
    }

    /// Performs all actions. Returns whether all succeeded.
    async fn act(&mut self, namespaces: &[Namespace]) -> bool {
        let present: BTreeMap<String, Arc<ConfigMap>> = self
            .config_maps
            .state()
            .map(|config_map| (config_map.namespace().unwrap_or_default(), config_map))
            .collect();
        // Skips namespaces that were not listed yet: an existing ConfigMap could belong to someone else.
        let listed = namespaces
            .iter()
            .filter(|namespace| self.config_maps.is_listed(&namespace.name));
        let actions = actions(listed, &present, &self.address());
        self.told
            .retain(|(namespace, action)| actions.get(namespace) == Some(action));
        self.written
            .retain(|name, _| namespaces.iter().any(|namespace| namespace.name == *name));
        let this = &*self;
        let results: Vec<_> = stream::iter(actions)
            .map(async |(namespace, action)| {
                let result = this.perform(&namespace, action, present.get(&namespace)).await;
                ((namespace, action), result)
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let all_done = results.iter().all(|(_, result)| result.is_ok());
        for ((namespace, action), result) in results {
            let is_news = self.told.insert((namespace.clone(), action));
            match result {
                Ok(_) if action == ConfigMapAction::Leave => {}
                Ok(written) => {
                    self.told.remove(&(namespace.clone(), action));
                    self.tell_of_written(namespace, written);
                }
                Err(problem) if is_news => {
                    tracing::warn!(
                        namespace,
                        config_map = NAME,
                        problem,
                        "cannot update the ConfigMap; retrying"
                    );
                }
                Err(_) => {}
            }
        }
        all_done
    }

    fn address(&self) -> BrokerAddress<'_> {
        BrokerAddress {
            base_url: &self.base_url,
            authorities: self.authority.text(),
        }
    }

    fn tell_of_written(&mut self, namespace: String, resource_version: Option<String>) {
        let Some(resource_version) = resource_version else {
            self.written.remove(&namespace);
            return;
        };
        if self.written.get(&namespace) != Some(&resource_version) {
            tracing::info!(
                namespace,
                config_map = NAME,
                "published the broker's address in the ConfigMap"
            );
            self.written.insert(namespace, resource_version);
        }
    }

    /// Returns the resource version of the write.
    async fn perform(
        &self,
        namespace: &str,
        action: ConfigMapAction,
        present: Option<&Arc<ConfigMap>>,
    ) -> Result<Option<String>, String> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let request = async {
            match (action, present) {
                (ConfigMapAction::Write, _) => return self.write(&api, namespace).await,
                (ConfigMapAction::Remove, Some(config_map)) => remove(&api, config_map).await?,
                (ConfigMapAction::Leave, Some(config_map))
                    if !self.told.contains(&(namespace.to_owned(), action)) =>
                {
                    self.tell_of_foreign(namespace, config_map).await?;
                }
                (ConfigMapAction::Remove | ConfigMapAction::Leave, _) => {}
            }
            Ok(None)
        };
        match tokio::time::timeout(PATIENCE, request).await {
            Ok(result) => result.map_err(|error: kube::Error| error.to_string()),
            Err(_) => Err("the API server did not respond in time".to_owned()),
        }
    }

    async fn write(&self, api: &Api<ConfigMap>, namespace: &str) -> Result<Option<String>, kube::Error> {
        let patch = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "labels": {OURS.0: OURS.1}},
            "data": self.address().data(namespace),
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let written = api.patch(NAME, &parameters, &Patch::Apply(&patch)).await?;
        Ok(written.resource_version())
    }

    async fn tell_of_foreign(&self, namespace: &str, config_map: &ConfigMap) -> Result<(), kube::Error> {
        let note = format!(
            "the namespace requests a ConfigMap {NAME:?} by its label {}={}, but this one was not created by Weir; \
             remove it, or label it {}={} to have it overwritten",
            WANTED.0, WANTED.1, OURS.0, OURS.1
        );
        tracing::warn!(namespace, config_map = NAME, problem = note, "left as it is");
        let event = Event {
            type_: EventType::Warning,
            reason: "NotManaged".to_owned(),
            note: Some(note),
            action: "Inject".to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, &config_map.object_ref(&())).await
    }
}

async fn remove(api: &Api<ConfigMap>, config_map: &ConfigMap) -> Result<(), kube::Error> {
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: config_map.uid(),
            resource_version: config_map.resource_version(),
        }),
        ..DeleteParams::default()
    };
    match api.delete(NAME, &parameters).await {
        // Already gone, or changed in the meantime; the watch will report it.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// Computes the actions by namespace.
fn actions<'a>(
    namespaces: impl IntoIterator<Item = &'a Namespace>,
    present: &BTreeMap<String, Arc<ConfigMap>>,
    address: &BrokerAddress<'_>,
) -> BTreeMap<String, ConfigMapAction> {
    let action = |namespace: &Namespace| {
        let wanted = namespace
            .labels
            .get(WANTED.0)
            .is_some_and(|value| value == WANTED.1);
        match present.get(&namespace.name) {
            None => wanted.then_some(ConfigMapAction::Write),
            Some(config_map) if !is_ours(config_map) => wanted.then_some(ConfigMapAction::Leave),
            Some(_) if !wanted => Some(ConfigMapAction::Remove),
            Some(config_map) => {
                (!says(config_map, &address.data(&namespace.name))).then_some(ConfigMapAction::Write)
            }
        }
    };
    namespaces
        .into_iter()
        .filter(|namespace| !namespace.terminating)
        .filter_map(|namespace| Some((namespace.name.clone(), action(namespace)?)))
        .collect()
}

fn is_ours(config_map: &ConfigMap) -> bool {
    config_map
        .labels()
        .get(OURS.0)
        .is_some_and(|value| value == OURS.1)
}

fn says(config_map: &ConfigMap, data: &BTreeMap<&str, String>) -> bool {
    let has = |(key, value): (&&str, &String)| {
        config_map.data.as_ref().and_then(|data| data.get(*key)) == Some(value)
    };
    let is_left_over = |key: &&str| {
        let present = config_map
            .data
            .as_ref()
            .is_some_and(|data| data.contains_key(*key));
        present && !data.contains_key(key)
    };
    data.iter().all(has) && !AUTHORITIES.iter().any(is_left_over)
}

/// What workloads are told.
struct BrokerAddress<'a> {
    base_url: &'a str,
    /// In PEM.
    authorities: Option<&'a str>,
}

impl BrokerAddress<'_> {
    fn data(&self, namespace: &str) -> BTreeMap<&'static str, String> {
        let url = format!("{}/{namespace}/default", self.base_url.trim_end_matches('/'));
        let authorities = self.authorities.into_iter();
        let authorities =
            authorities.flat_map(|authorities| AUTHORITIES.map(|name| (name, authorities.to_owned())));
        let audience = ("WEIR_BROKER_AUDIENCE", PRODUCER_AUDIENCE.to_owned());
        [("K_SINK", url.clone()), ("WEIR_BROKER_URL", url), audience]
            .into_iter()
            .chain(authorities)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: BrokerAddress<'static> = BrokerAddress {
        base_url: "http://weir.weir-system.svc",
        authorities: None,
    };

    fn namespace(label: Option<&str>) -> Namespace {
        Namespace {
            name: "shop".into(),
            labels: label
                .map(|value| (WANTED.0.into(), value.into()))
                .into_iter()
                .collect(),
            terminating: false,
        }
    }

    fn config_map(managed_by: &str, url: &str) -> ConfigMap {
        let map = json!({
            "metadata": {"name": NAME, "namespace": "shop", "labels": {OURS.0: managed_by}},
            "data": {"K_SINK": url, "WEIR_BROKER_URL": url, "WEIR_BROKER_AUDIENCE": "weir-broker", "MORE": "of somebody's"},
        });
        serde_json::from_value(map).unwrap()
    }

    #[test]
    fn publishes_config_map_only_in_labelled_namespaces() {
        let right = config_map("weir", "http://weir.weir-system.svc/shop/default");
        let wrong = config_map("weir", "http://weir.elsewhere.svc/shop/default");
        let foreign = config_map("helm", "http://broker");
        let (yes, no, other) = (Some("enabled"), None, Some("disabled"));
        for (case, label, present, wanted) in [
            ("nothing is asked for", no, None, None),
            ("it is asked for", yes, None, Some(ConfigMapAction::Write)),
            ("it is not enabled", other, None, None),
            ("it is there", yes, Some(&right), None),
            (
                "it says something else",
                yes,
                Some(&wrong),
                Some(ConfigMapAction::Write),
            ),
            (
                "it is no longer asked for",
                no,
                Some(&right),
                Some(ConfigMapAction::Remove),
            ),
            (
                "it was disabled",
                other,
                Some(&right),
                Some(ConfigMapAction::Remove),
            ),
            (
                "somebody else made it",
                yes,
                Some(&foreign),
                Some(ConfigMapAction::Leave),
            ),
            ("somebody else made it, unasked", no, Some(&foreign), None),
        ] {
            let present = present.map(|map| ("shop".to_owned(), Arc::new(map.clone())));
            let present = present.into_iter().collect();
            let actions = actions(&[namespace(label)], &present, &ADDRESS);
            assert_eq!(actions.get("shop").copied(), wanted, "{case}");
            let terminating = Namespace {
                terminating: true,
                ..namespace(label)
            };
            let actions = super::actions(&[terminating], &present, &ADDRESS);
            assert!(actions.is_empty(), "{case}, and the namespace is being deleted");
        }
    }

    #[test]
    fn both_variables_hold_url_of_the_default_broker() {
        let url = "http://weir.weir-system.svc/shop/default".to_owned();
        let audience = ("WEIR_BROKER_AUDIENCE", "weir-broker".to_owned());
        let wanted = BTreeMap::from([("K_SINK", url.clone()), ("WEIR_BROKER_URL", url), audience]);
        assert_eq!(ADDRESS.data("shop"), wanted);
        let with_slash = BrokerAddress {
            base_url: "http://weir.weir-system.svc/",
            ..ADDRESS
        };
        assert_eq!(with_slash.data("shop"), wanted);
    }

    #[test]
    fn authorities_are_published_and_removed() {
        let of = |authorities| BrokerAddress {
            authorities,
            ..ADDRESS
        };
        let (none, one, other) = (of(None), of(Some("one")), of(Some("other")));
        assert_eq!(one.data("shop").len(), 5);
        let as_config_map = |address: &BrokerAddress<'_>| {
            let mut config_map = config_map("weir", "");
            let data = address.data("shop").into_iter();
            config_map.data = Some(data.map(|(key, value)| (key.to_owned(), value)).collect());
            config_map
        };
        for (present, wanted, says_so) in [
            (&none, &none, true),
            (&one, &one, true),
            (&none, &one, false),
            (&one, &none, false),
            (&one, &other, false),
        ] {
            assert_eq!(says(&as_config_map(present), &wanted.data("shop")), says_so);
        }
    }
}
