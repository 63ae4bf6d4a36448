//! What routing needs to know of a cluster besides our resources: Services and namespaces, as far as files have them.
//!
//! Their schema is not checked: that is their owner's business.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Node, resource::DEFAULT_NAMESPACE};
use crate::{
    controller::{Namespace, Port, Service},
    routing::ServiceName,
};

/// Services and namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The Services.
    pub services: Vec<Service>,
    /// The namespaces, with their labels.
    pub namespaces: Vec<Namespace>,
}

impl Surroundings {
    /// Services of which nothing is known but that they are there: any port is taken as it is asked for.
    pub fn of_services(names: impl IntoIterator<Item = ServiceName>) -> Self {
        let services = names.into_iter().map(|ServiceName { namespace, name }| Service {
            namespace,
            name,
            ports: None,
            external_name: false,
        });
        Self {
            services: services.collect(),
            namespaces: Vec::new(),
        }
    }

    /// Adds those of another file.
    pub fn extend(&mut self, other: Self) {
        let Self { services, namespaces } = other;
        self.services.extend(services);
        self.namespaces.extend(namespaces);
    }

    /// Whether there is this Service.
    pub fn has_service(&self, wanted: &ServiceName) -> bool {
        let ServiceName { namespace, name } = wanted;
        let mut services = self.services.iter();
        services.any(|service| service.namespace == *namespace && service.name == *name)
    }

    /// Whether there is this namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.iter().any(|namespace| namespace.name == name)
    }

    /// Takes a Service or a namespace up; says whether the document is one.
    pub(super) fn take_note(&mut self, group: &str, kind: &str, node: &Node) -> bool {
        let manifest = node.to_json();
        match (group, kind) {
            ("", "Service") => self.services.extend(service(&manifest)),
            ("", "Namespace") => self.namespaces.extend(namespace(&manifest)),
            _ => return false,
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
        external_name: text(manifest, "/spec/type").as_deref() == Some("ExternalName"),
    })
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
    })
}

#[cfg(test)]
mod tests {
    use super::{super::document, *};

    #[test]
    fn services_and_namespaces_are_taken_note_of() {
        let text = "kind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{name: http, port: 80}, {port: 9}]}\n---\n\
                    kind: Service\nmetadata: {name: b}\nspec: {type: ExternalName}\n---\n\
                    kind: Service\nmetadata: {}\n---\n\
                    kind: Namespace\nmetadata: {name: shop, labels: {audited: 'true', n: 1}}\n---\n\
                    kind: Deployment\nmetadata: {name: a}\n";
        let mut surroundings = Surroundings::default();
        let mut noted = Vec::new();
        for node in document::read(text).unwrap() {
            let kind = node.get("kind").and_then(Node::text).unwrap();
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
                    external_name: false,
                },
                Service {
                    namespace: "default".to_owned(),
                    name: "b".to_owned(),
                    ports: Some(vec![]),
                    external_name: true,
                },
            ],
            namespaces: vec![Namespace {
                name: "shop".to_owned(),
                labels: [("audited".to_owned(), "true".to_owned())].into(),
            }],
        };
        assert_eq!(surroundings, expected);
    }
}
