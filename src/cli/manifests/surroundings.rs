//! Other cluster resources that routing depends on, as far as files contain them: Services, namespaces, Secrets, and objects
//! with a URL in their status.
//!
//! Their schema is not validated, since other controllers own them.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{DEFAULT_NAMESPACE, DocumentNode};
use crate::{
    resolve::{
        AddressableKind, AddressableName, Namespace, Port, SecretName, SecretState, Service, StatusAddress,
    },
    routing::{Secret, ServiceName},
};

/// Hashes with a random key, so that versions reveal nothing about the values.
static VERSIONS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Services, namespaces, Secrets, and objects with a URL in their status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The Services.
    pub services: Vec<Service>,
    /// The namespaces, with their labels.
    pub namespaces: Vec<Namespace>,
    /// The Secrets.
    pub secrets: BTreeMap<SecretName, SecretState>,
    /// The objects that may have a URL in their status.
    pub addressables: BTreeMap<AddressableName, StatusAddress>,
    /// Whether tokens of ServiceAccounts count as issued.
    pub issues_tokens: bool,
}

impl Surroundings {
    /// Creates Services that are known only by name. Any port is accepted as given.
    pub fn of_services(names: impl IntoIterator<Item = ServiceName>) -> Self {
        let services = names.into_iter().map(|ServiceName { namespace, name }| Service {
            namespace,
            name,
            ports: None,
            external_name: None,
        });
        Self {
            services: services.collect(),
            ..Self::default()
        }
    }

    /// Adds the resources of another file.
    pub fn extend(&mut self, other: Self) {
        let Self {
            services,
            namespaces,
            secrets,
            addressables,
            issues_tokens,
        } = other;
        self.services.extend(services);
        self.namespaces.extend(namespaces);
        self.secrets.extend(secrets);
        self.addressables.extend(addressables);
        self.issues_tokens |= issues_tokens;
    }

    /// Whether this Service exists.
    pub fn has_service(&self, wanted: &ServiceName) -> bool {
        let ServiceName { namespace, name } = wanted;
        let mut services = self.services.iter();
        services.any(|service| service.namespace == *namespace && service.name == *name)
    }

    /// Whether this namespace exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.name == name)
    }

    /// Adds the document if it is a Service, a namespace, a Secret, or an object that may have a URL in its status.
    /// Returns whether it is one of the first three.
    pub(super) fn take_note(&mut self, group: &str, kind: &str, node: &DocumentNode) -> bool {
        let manifest = node.to_json();
        match (group, kind) {
            ("", "Service") => self.services.extend(service(&manifest)),
            ("", "Namespace") => self.namespaces.extend(namespace(&manifest)),
            ("", "Secret") => self.secrets.extend(secret(&manifest)),
            _ => {
                self.addressables.extend(addressable(&manifest));
                return false;
            }
        }
        true
    }
}

fn text(value: &Value, pointer: &str) -> Option<String> {
    Some(value.pointer(pointer)?.as_str()?.to_owned())
}

fn service(manifest: &Value) -> Option<Service> {
    let ports = manifest.pointer("/spec/ports").and_then(Value::as_array);
    Some(Service {
        namespace: text(manifest, "/metadata/namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        name: text(manifest, "/metadata/name")?,
        ports: Some(ports.into_iter().flatten().filter_map(port).collect()),
        external_name: text(manifest, "/spec/type")
            .filter(|text| text == "ExternalName")
            .map(|_| text(manifest, "/spec/externalName").unwrap_or_default()),
    })
}

fn addressable(manifest: &Value) -> Option<(AddressableName, StatusAddress)> {
    let name = AddressableName {
        kind: AddressableKind {
            api_version: text(manifest, "/apiVersion").filter(|text| text.contains('/'))?,
            kind: text(manifest, "/kind")?,
        },
        namespace: text(manifest, "/metadata/namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        name: text(manifest, "/metadata/name")?,
    };
    Some((name, StatusAddress::of(manifest)))
}

fn port(port: &Value) -> Option<Port> {
    Some(Port {
        name: text(port, "/name").unwrap_or_default(),
        number: port.get("port")?.as_u64()?.try_into().ok()?,
    })
}

fn namespace(manifest: &Value) -> Option<Namespace> {
    let labels = manifest.pointer("/metadata/labels").and_then(Value::as_object);
    let labels: BTreeMap<_, _> = labels
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    Some(Namespace {
        name: text(manifest, "/metadata/name")?,
        labels,
        terminating: false,
    })
}

/// A value that is not valid base64 becomes one that no header can contain.
fn secret(manifest: &Value) -> Option<(SecretName, SecretState)> {
    let texts = |field: &str| {
        let members = manifest.get(field).and_then(Value::as_object);
        members
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?)))
    };
    let decoded = |(key, text): (String, &str)| {
        let text: String = text.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(text).unwrap_or_else(|_| vec![0xff]);
        (key, String::from_utf8_lossy(&bytes).into_owned())
    };
    // Entries of `stringData` override `data`, as in the API server.
    let mut data: BTreeMap<_, _> = texts("data").map(decoded).collect();
    data.extend(texts("stringData").map(|(key, text)| (key, text.to_owned())));
    let name = SecretName {
        namespace: text(manifest, "/metadata/namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        name: text(manifest, "/metadata/name")?,
    };
    let state = SecretState::Found {
        version: format!("{:016x}", VERSIONS.hash_one(&data)),
        values: data
            .into_iter()
            .map(|(key, value)| (key, Secret::from(value)))
            .collect(),
        looked_for: None,
    };
    Some((name, state))
}

#[cfg(test)]
mod tests {
    use super::{super::document, *};

    #[test]
    fn collects_services_and_namespaces() {
        let text = "kind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{name: http, port: 80}, {port: 9}]}\n---\n\
                    kind: Service\nmetadata: {name: b}\nspec: {type: ExternalName, externalName: example.com}\n---\n\
                    kind: Service\nmetadata: {}\n---\n\
                    kind: Namespace\nmetadata: {name: shop, labels: {audited: 'true', n: 1}}\n---\n\
                    kind: Deployment\nmetadata: {name: a}\n";
        let mut surroundings = Surroundings::default();
        let mut noted = Vec::new();
        for node in document::read(text).unwrap() {
            let kind = node.get("kind").and_then(DocumentNode::text).unwrap();
            noted.push(surroundings.take_note("", kind, &node));
        }
        assert_eq!(noted, [true, true, true, true, false]);
        let port = |name: &str, number| Port {
            name: name.to_owned(),
            number,
        };
        let expected = Surroundings {
            services: vec![
                Service {
                    namespace: "shop".to_owned(),
                    name: "a".to_owned(),
                    ports: Some(vec![port("http", 80), port("", 9)]),
                    external_name: None,
                },
                Service {
                    namespace: "default".to_owned(),
                    name: "b".to_owned(),
                    ports: Some(vec![]),
                    external_name: Some("example.com".to_owned()),
                },
            ],
            namespaces: vec![Namespace {
                name: "shop".to_owned(),
                labels: [("audited".to_owned(), "true".to_owned())].into(),
                terminating: false,
            }],
            secrets: BTreeMap::new(),
            addressables: BTreeMap::new(),
            issues_tokens: false,
        };
        assert_eq!(surroundings, expected);
    }

    #[test]
    fn decodes_secrets_and_versions_them() {
        let read = |data: &str| {
            let text = format!("kind: Secret\nmetadata: {{name: s, namespace: shop}}\n{data}\n");
            let mut surroundings = Surroundings::default();
            let nodes = document::read(&text).unwrap();
            assert!(surroundings.take_note("", "Secret", &nodes[0]));
            let (name, state) = surroundings.secrets.pop_first().unwrap();
            assert_eq!((&*name.namespace, &*name.name), ("shop", "s"));
            let SecretState::Found { version, values, .. } = state else {
                panic!("{state:?}")
            };
            let values: Vec<_> = values
                .into_iter()
                .map(|(key, value)| (key, value.reveal().to_owned()))
                .collect();
            (version, values)
        };
        let pairs = |pairs: &[(&str, &str)]| -> Vec<_> {
            let pairs = pairs.iter();
            pairs
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        };
        let (version, values) =
            read("data: {a: 'YmFz\n  ZTY0', b: 'not base64', c: eA==}\nstringData: {c: text}");
        assert_eq!(
            values,
            pairs(&[("a", "base64"), ("b", "\u{fffd}"), ("c", "text")])
        );
        assert_eq!(
            read("stringData: {c: text}\ndata: {b: '?', a: YmFzZTY0}").0,
            version
        );
        assert_ne!(
            read("data: {a: YmFzZTY0, b: '?'}\nstringData: {c: texts}").0,
            version
        );
        assert_eq!(read("").1, pairs(&[]));
    }
}
