//! Converts documents to Weir resources, with the checks of the API server.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    DEFAULT_NAMESPACE, Issue, ManifestProblem, ResourceKey, Surroundings,
    document::{self, DocumentNode, Tree, ValuePositions},
    schema::{Schema, unknown_field},
};
use crate::{
    api::{self, GROUP, custom_resource_definitions},
    cli::service::is_label,
    resolve::trim,
};

/// Every field of `metadata`. Fields that the API server sets are accepted, so that the output of `kubectl get -o
/// yaml` can be used unchanged.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// A Weir resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A Broker.
    Broker(api::Broker),
    /// A Source.
    Source(Box<api::Source>),
    /// A Trigger.
    Trigger(api::Trigger),
    /// A Sink.
    Sink(api::Sink),
}

impl Resource {
    /// Kind, as in a manifest.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Broker(_) => "Broker",
            Self::Source(_) => "Source",
            Self::Trigger(_) => "Trigger",
            Self::Sink(_) => "Sink",
        }
    }

    /// Metadata.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Broker(broker) => broker.meta(),
            Self::Source(source) => source.meta(),
            Self::Trigger(trigger) => trigger.meta(),
            Self::Sink(sink) => sink.meta(),
        }
    }
}

/// A resource and its origin.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The resource.
    pub resource: Resource,
    /// File it was read from.
    pub file: PathBuf,
    /// Positions of its fields.
    places: Arc<ValuePositions>,
}

impl Manifest {
    /// Identity of the resource: kind, namespace and name.
    pub fn key(&self) -> ResourceKey {
        let meta = self.resource.meta();
        (
            self.resource.kind(),
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }

    /// Builds a problem at a path such as `spec.sink`.
    pub fn problem(&self, path: &str, message: String) -> ManifestProblem {
        ManifestProblem {
            file: self.file.clone(),
            position: self.places.locate(path),
            message,
        }
    }
}

/// Maximum number of values in a resource. Resources that compile have fewer; a larger one would waste memory.
const MAX_VALUES: usize = 20_000;

/// Content of a file's documents.
#[derive(Clone, Debug, Default)]
pub struct FileResources {
    /// Weir resources, in file order.
    pub manifests: Vec<Manifest>,
    /// Other resources of a cluster.
    pub surroundings: Surroundings,
    /// Resources with errors.
    pub unusable: Vec<ResourceKey>,
}

/// Converts documents to resources.
pub struct ManifestReader {
    schemas: HashMap<String, Schema>,
}

impl ManifestReader {
    pub fn new() -> Self {
        let schemas = custom_resource_definitions()
            .into_iter()
            .filter_map(|definition| Some((definition.spec.names.kind.clone(), Schema::of(&definition)?)))
            .collect();
        Self { schemas }
    }

    /// Reads the resources in a file's text, and appends errors to `problems`.
    pub fn read(&self, file: &Path, text: &str, problems: &mut Vec<ManifestProblem>) -> FileResources {
        let mut findings = Vec::new();
        let mut read = FileResources::default();
        for document in document::stream(&mut text.as_bytes()) {
            match document {
                Ok(document) => self.document(file, document, &mut read, &mut findings),
                Err(issue) => {
                    findings.push(issue);
                    // A document before the error may be incomplete.
                    read = FileResources::default();
                }
            }
        }
        problems.extend(
            findings
                .into_iter()
                .map(|Issue { position, message }| ManifestProblem {
                    file: file.to_owned(),
                    position,
                    message,
                }),
        );
        read
    }

    fn document(&self, file: &Path, node: DocumentNode, read: &mut FileResources, findings: &mut Vec<Issue>) {
        let mut refuse = |position, message: String| findings.push(Issue { position, message });
        if !matches!(node.tree, Tree::Map(_)) {
            return refuse(
                node.position,
                format!("a manifest must be a mapping, not {}", node.kind()),
            );
        }
        let (Some(version), Some(kind)) = (
            node.get("apiVersion").and_then(DocumentNode::text),
            node.get("kind").and_then(DocumentNode::text),
        ) else {
            // Skips events, which may be stored next to the manifests for `weir explain`.
            if node.get("specversion").is_none() {
                refuse(
                    node.position,
                    "not a manifest: apiVersion and kind are missing".to_owned(),
                );
            }
            return;
        };
        if (version, kind) == ("v1", "List") {
            for item in node.get("items").map(DocumentNode::items).unwrap_or_default() {
                self.document(file, item.clone(), read, findings);
            }
            return;
        }
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        if group != GROUP {
            if !read.surroundings.take_note(group, kind, &node) {
                tracing::debug!(file = %file.display(), line = node.position.line, group, kind, "skipped: not a Weir resource");
            }
            return;
        }
        if version != "v1alpha1" {
            let position = node.locate("apiVersion");
            return refuse(
                position,
                format!("apiVersion: {GROUP} has no version {version:?}; there is {GROUP}/v1alpha1"),
            );
        }
        let Some(schema) = self.schemas.get(kind) else {
            let mut kinds: Vec<_> = self.schemas.keys().map(String::as_str).collect();
            kinds.sort_unstable();
            let position = node.locate("kind");
            return refuse(
                position,
                format!(
                    "kind: {GROUP} has no kind {kind:?}; there are {}",
                    kinds.join(", ")
                ),
            );
        };
        if node.values() > MAX_VALUES {
            read.unusable.extend(key(&node));
            return refuse(
                node.position,
                format!("the {kind} has more than {MAX_VALUES} values; split the {kind}"),
            );
        }
        let before = findings.len();
        for (key, _) in node.entries() {
            const FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
            if !FIELDS.contains(&key.name.as_str()) {
                let message = format!(
                    "{}: {}",
                    key.name,
                    unknown_field(&key.name, FIELDS.iter().copied())
                );
                findings.push(Issue {
                    position: key.position,
                    message,
                });
            }
        }
        let metadata = metadata(&node, findings);
        let spec = match node.get("spec") {
            Some(spec) => schema.check(spec, node.position_of("spec"), findings),
            None => {
                read.unusable.extend(key(&node));
                findings.push(Issue {
                    position: node.position,
                    message: "spec is missing".to_owned(),
                });
                return;
            }
        };
        let (Some(metadata), true) = (metadata, findings.len() == before) else {
            read.unusable.extend(key(&node));
            return;
        };
        match resource(kind, metadata, spec) {
            Ok(resource) => {
                read.manifests.push(Manifest {
                    resource,
                    file: file.to_owned(),
                    places: Arc::new(ValuePositions::of(&node)),
                });
            }
            Err(error) => {
                read.unusable.extend(key(&node));
                findings.push(Issue {
                    position: node.locate("spec"),
                    message: format!("spec: {error}"),
                });
            }
        }
    }
}

/// Identity of a document if it is a Sink, the only kind that others reference.
fn key(node: &DocumentNode) -> Option<ResourceKey> {
    let metadata = node.get("metadata")?;
    let text = |field| {
        metadata
            .get(field)
            .and_then(DocumentNode::text)
            .map(str::to_owned)
    };
    let is_sink = node.get("kind").and_then(DocumentNode::text) == Some("Sink");
    let namespace = text("namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    is_sink.then_some(("Sink", namespace, text("name")?))
}

/// Returns the relevant metadata. Fields that the API server sets are dropped.
fn metadata(node: &DocumentNode, findings: &mut Vec<Issue>) -> Option<ObjectMeta> {
    let mut refuse = |position, message: String| findings.push(Issue { position, message });
    let Some(metadata) = node.get("metadata") else {
        refuse(
            node.position,
            "metadata is missing: it needs at least a name".to_owned(),
        );
        return None;
    };
    let key = node.position_of("metadata");
    if !matches!(metadata.tree, Tree::Map(_)) {
        refuse(
            metadata.position,
            format!("metadata: must be a mapping, not {}", metadata.kind()),
        );
        return None;
    }
    for (key, _) in metadata.entries() {
        if !METADATA.contains(&key.name.as_str()) {
            let message = unknown_field(&key.name, METADATA.iter().copied());
            refuse(key.position, format!("metadata.{}: {message}", key.name));
        }
    }
    let mut text = |field: &str| match metadata.get(field) {
        None => Some(None),
        Some(DocumentNode {
            tree: Tree::String(text),
            ..
        }) => Some(Some(text.clone())),
        Some(other) => {
            refuse(
                other.position,
                format!(
                    "metadata.{field}: must be a string, not {}; put it in quotes",
                    other.kind()
                ),
            );
            None
        }
    };
    let name = text("name")?;
    let namespace = text("namespace")?.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let Some(name) = name else {
        refuse(key, "metadata.name is missing".to_owned());
        return None;
    };
    if !is_subdomain(&name) {
        refuse(
            metadata.locate("name"),
            format!(
                "metadata.name: {name:?} must be at most 253 lower-case letters, digits, - and ., and begin and end with a letter or digit"
            ),
        );
    }
    if !is_label(&namespace) {
        refuse(
            metadata.locate("namespace"),
            format!(
                "metadata.namespace: {namespace:?} must be at most 63 lower-case letters, digits and -, and begin and end with a letter or digit"
            ),
        );
    }
    let mut strings = |field: &str| {
        let node = metadata.get(field)?;
        if !matches!(node.tree, Tree::Map(_)) {
            refuse(
                node.position,
                format!("metadata.{field}: must be a mapping, not {}", node.kind()),
            );
        }
        let mut map = BTreeMap::new();
        for (key, value) in node.entries() {
            match value.text() {
                Some(text) => drop(map.insert(key.name.clone(), text.to_owned())),
                None => refuse(
                    value.position,
                    format!(
                        "metadata.{field}.{}: must be a string, not {}; put it in quotes",
                        key.name,
                        value.kind()
                    ),
                ),
            }
        }
        Some(map)
    };
    let (labels, annotations) = (strings("labels"), strings("annotations"));
    Some(ObjectMeta {
        name: Some(name),
        namespace: Some(namespace),
        labels,
        annotations,
        ..ObjectMeta::default()
    })
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
            part.bytes().all(|c| inner(c) || c == b'-')
                && part.bytes().next().is_some_and(inner)
                && part.bytes().last().is_some_and(inner)
        })
}

fn resource(kind: &str, mut metadata: ObjectMeta, spec: Value) -> Result<Resource, serde_json::Error> {
    fn typed<S: DeserializeOwned>(spec: Value) -> Result<S, serde_json::Error> {
        serde_json::from_value(spec)
    }
    metadata.generation = Some(generation(&spec));
    let name = metadata.name.clone().unwrap_or_default();
    let mut uid = format!(
        "local/{kind}/{}/{name}",
        metadata.namespace.as_deref().unwrap_or_default()
    );
    let resource = match kind {
        "Broker" => Resource::Broker(api::Broker {
            metadata,
            ..api::Broker::new(&name, typed(spec)?)
        }),
        "Source" => {
            let mut source = api::Source {
                metadata,
                ..api::Source::new(&name, typed(spec)?)
            };
            trim::filters(&mut source.spec.filters);
            Resource::Source(Box::new(source))
        }
        "Sink" => Resource::Sink(api::Sink {
            metadata,
            ..api::Sink::new(&name, typed(spec)?)
        }),
        _ => {
            let mut trigger = api::Trigger {
                metadata,
                ..api::Trigger::new(&name, typed(spec)?)
            };
            trim::filters(&mut trigger.spec.filters);
            // A Trigger's broker is immutable, so one with another broker is a different Trigger.
            uid.push('/');
            uid.push_str(&trigger.spec.broker);
            Resource::Trigger(trigger)
        }
    };
    Ok(match resource {
        Resource::Broker(mut broker) => {
            broker.meta_mut().uid = Some(uid);
            Resource::Broker(broker)
        }
        Resource::Source(mut source) => {
            source.meta_mut().uid = Some(uid);
            Resource::Source(source)
        }
        Resource::Trigger(mut trigger) => {
            trigger.meta_mut().uid = Some(uid);
            Resource::Trigger(trigger)
        }
        Resource::Sink(mut sink) => {
            sink.meta_mut().uid = Some(uid);
            Resource::Sink(sink)
        }
    })
}

/// Derives a generation from the spec (FNV-1a of its JSON, made positive), so that it is stable across restarts.
fn generation(spec: &Value) -> i64 {
    let hash = spec
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    i64::try_from(hash >> 1).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests;
