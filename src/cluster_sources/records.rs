//! Keeps what was told of the objects of a Source, in ConfigMaps of this process's namespace: one for each shard of the
//! records. A write is rejected if somebody else has written since, such as a process that led before.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Map, Value, json};

use crate::{
    api,
    source::kubernetes::{ObjectKey, Record, SHARDS, UnsavedRecords},
};

/// Label with the owner of the records.
const OWNER: &str = "weir.dev/sources";

/// Label with the UID of the Source.
pub(super) const SOURCE_UID: &str = "weir.dev/source-uid";

/// Annotation with the namespace and the name of the Source.
const SOURCE: &str = "weir.dev/source";

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why records could not be saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    /// The records are not those that were read.
    #[error("somebody else has written the records; reading them again")]
    Conflict,
    /// Nothing is known.
    #[error("{0}")]
    Failed(String),
}

/// The records of a Source.
#[derive(Clone)]
pub(super) struct RecordStore {
    maps: Api<ConfigMap>,
    owner: String,
    uid: String,
    /// `namespace/name`.
    source: String,
}

/// Versions of the ConfigMaps, by shard.
pub(super) type Versions = [Option<String>; SHARDS];

impl RecordStore {
    pub(super) fn new(client: Client, owner: &str, uid: &str, source: String) -> Self {
        Self {
            maps: Api::default_namespaced(client),
            owner: owner.to_owned(),
            uid: uid.to_owned(),
            source,
        }
    }

    /// Reads the records.
    pub(super) async fn load(&self) -> Result<(Vec<(ObjectKey, Record)>, Versions), String> {
        // Also those of an earlier owner, such as the same installation by another name.
        let parameters = ListParams::default().labels(&format!("{SOURCE_UID}={}", self.uid));
        let listed = in_time(self.maps.list(&parameters)).await?;
        let mut versions = Versions::default();
        let mut records = Vec::new();
        for map in listed {
            let name = map.metadata.name.unwrap_or_default();
            let shard = (0..SHARDS).find(|shard| self.name(*shard) == name);
            let Some(shard) = shard else { continue };
            versions[shard] = map.metadata.resource_version;
            for (key, value) in map.data.unwrap_or_default() {
                match (key.parse(), value.parse()) {
                    (Ok(key), Ok(record)) => records.push((key, record)),
                    _ => tracing::warn!(name, key, "a record of an object is invalid, and ignored"),
                }
            }
        }
        Ok((records, versions))
    }

    /// Saves records of a shard whose ConfigMap has this version. Returns the new version.
    pub(super) async fn save(
        &self,
        shard: usize,
        version: Option<&str>,
        records: &UnsavedRecords,
    ) -> Result<Option<String>, SaveError> {
        let name = self.name(shard);
        let lines = records.iter();
        let lines = lines.map(|(key, record)| (key.to_string(), record.as_ref().map(ToString::to_string)));
        let written = match version {
            Some(version) => {
                let lines = lines.map(|(key, line)| (key, line.map_or(Value::Null, Value::from)));
                let metadata = json!({"resourceVersion": version, "labels": {OWNER: self.owner}});
                let patch = json!({"metadata": metadata, "data": lines.collect::<Map<_, _>>()});
                let parameters = PatchParams::default();
                let patch = Patch::Merge(&patch);
                tokio::time::timeout(TIMEOUT, self.maps.patch(&name, &parameters, &patch)).await
            }
            None => {
                let lines = lines.filter_map(|(key, line)| Some((key, line?)));
                let map = self.config_map(&name, lines.collect());
                tokio::time::timeout(TIMEOUT, self.maps.create(&PostParams::default(), &map)).await
            }
        };
        match written {
            Ok(Ok(written)) => Ok(written.metadata.resource_version),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                Err(SaveError::Conflict)
            }
            Ok(Err(error)) => Err(SaveError::Failed(error.to_string())),
            Err(_) => Err(SaveError::Failed(format!("no response within {TIMEOUT:?}"))),
        }
    }

    fn name(&self, shard: usize) -> String {
        format!("weir-source-{}-{shard}", self.uid)
    }

    fn config_map(&self, name: &str, data: BTreeMap<String, String>) -> ConfigMap {
        let labels = [(OWNER, &self.owner), (SOURCE_UID, &self.uid)];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.clone()));
        let mut map = ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        };
        map.metadata.name = Some(name.to_owned());
        map.metadata.labels = Some(labels.into());
        map.metadata.annotations = Some([(SOURCE.to_owned(), self.source.clone())].into());
        map
    }
}

/// Removes the records of an owner whose Source does not exist. Looks in these namespaces, or in all if there are none, and
/// keeps the records of other ones.
pub(super) async fn remove_others(client: Client, owner: &str, namespaces: &[String]) -> Result<(), String> {
    let maps = Api::<ConfigMap>::default_namespaced(client.clone());
    let parameters = ListParams::default().labels(&format!("{OWNER}={owner}"));
    let maps_found = in_time(maps.list_metadata(&parameters)).await?;
    // After the records, and not from a watch: a Source whose records were found is missing only if it is gone.
    let existing = existing_sources(client, namespaces).await?;
    for map in maps_found {
        let metadata = &map.metadata;
        let uid = metadata.labels.as_ref().and_then(|labels| labels.get(SOURCE_UID));
        let source = metadata.annotations.as_ref().and_then(|all| all.get(SOURCE));
        let namespace = source
            .and_then(|source| source.split_once('/'))
            .map(|(namespace, _)| namespace);
        let (Some(name), Some(uid), Some(namespace)) = (&metadata.name, uid, namespace) else {
            continue;
        };
        let is_watched = namespaces.is_empty() || namespaces.iter().any(|watched| watched == namespace);
        if !is_watched || existing.contains(uid) {
            continue;
        }
        let unchanged = DeleteParams::default().preconditions(Preconditions {
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
        });
        match in_time(maps.delete(name, &unchanged)).await {
            Ok(_) => tracing::info!(
                name,
                "removed the records of a Source that does not exist any more"
            ),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The UIDs of the Sources of these namespaces, or of all.
async fn existing_sources(client: Client, namespaces: &[String]) -> Result<HashSet<String>, String> {
    let apis: Vec<Api<api::Source>> = match namespaces {
        [] => vec![Api::all(client)],
        some => some
            .iter()
            .map(|namespace| Api::namespaced(client.clone(), namespace))
            .collect(),
    };
    let mut existing = HashSet::new();
    for sources in apis {
        let listed = in_time(sources.list_metadata(&ListParams::default())).await?;
        existing.extend(listed.into_iter().filter_map(|source| source.metadata.uid));
    }
    Ok(existing)
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no response within {TIMEOUT:?}")),
    }
}
