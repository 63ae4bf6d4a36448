//! The kind kubernetes of a Source.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes of objects in the cluster, each of which becomes an event. Objects that exist when the Source is created are
/// told as added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.resources.size() * (has(self.namespaces) ? self.namespaces.size() : 1) <= 64", "resources times namespaces must be at most 64: use several Sources"),
    validation = ("!has(self.namespaces) || !('*' in self.namespaces) || self.namespaces.size() == 1", "* is all namespaces: list no others")
)]
pub struct KubernetesSource {
    /// ServiceAccount in the Source's namespace. What it may list and watch is what the Source sees, and it is the producer
    /// of the events. The owner of the namespace grants the use of it (the status shows how).
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub service_account_name: String,

    /// Kinds of objects, each once. At most 16.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = ("self.all(one, self.exists_one(other, other.kind == one.kind && other.apiVersion == one.apiVersion))", "each kind must be listed once"))]
    pub resources: Vec<ObjectSelection>,

    /// Namespaces of the objects, or "*" for all, for which the ServiceAccount needs rights in the whole cluster. Does not
    /// apply to objects that belong to no namespace. At most 32. Default: the Source's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 1, max = 63),
            regex(pattern = r"^([*]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")
        )
    )]
    pub namespaces: Vec<String>,

    /// Changes that become events. An object is also Added when it begins to match the selectors, and Deleted when it no
    /// longer does. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub events: Vec<ObjectChange>,

    /// Data of the events. Default: Object.
    #[serde(default)]
    pub data: ObjectData,

    /// How the event of a change is made. Values may contain ${EXPRESSION}, a CEL expression as in a cel filter; $${ stands for
    /// the text ${. The variables are:
    ///   object     the object; of a deleted one, what is known of it
    ///   oldObject  the version that was seen before; null if there is none, or after a restart
    ///   change     'added', 'updated' or 'deleted'
    ///   event      the event as it would be without these fields, with event.kind, event.namespace and event.name
    /// A change for which an expression fails is given up: status.lastRejection says why. Default: attributes that name the
    /// change and the object, and the data that the field data says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<ObjectEvent>,
}

/// How the event of a change is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectEvent {
    /// Context attributes and extensions, with their values, for example type: com.example.deployment.${change}. All but
    /// specversion, traceparent, tracestate and names that begin with weir can be set. An extension that is exactly one
    /// ${EXPRESSION} may be a Boolean or an integer of 32 bits; every other value is text. At most 32. Default: those
    /// that the Source sets itself, such as type dev.weir.kubernetes.updated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$') && name != 'data')", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['specversion', 'traceparent', 'tracestate'] || name.startsWith('weir'))", "specversion, traceparent, tracestate and names that begin with weir cannot be set")
    )]
    pub attributes: BTreeMap<String, String>,

    /// Data: a template of any JSON value, as in a Trigger's transform. For example:
    ///   data:
    ///     image: ${object.spec.template.spec.containers[0].image}
    ///     replicas: ${object.spec.replicas}
    /// Default: what the field data of the Source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::any_json")]
    pub data: Option<Value>,
}

/// A kind of object, and which objects of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectSelection {
    /// Group and version of the kind, such as apps/v1, or v1 for kinds of Kubernetes' core.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?v[a-z0-9]+$")
    )]
    pub api_version: String,

    /// Kind, such as Deployment.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub kind: String,

    /// Label selector, as kubectl get --selector takes it, such as "app=shop,tier in (web,api)". Default: all objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub label_selector: Option<String>,

    /// Field selector, as kubectl get --field-selector takes it, such as "type=Warning". Which fields can be selected by
    /// depends on the kind. Default: all objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub field_selector: Option<String>,
}

/// A change of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ObjectChange {
    /// It is new, or begins to match the selectors.
    Added,
    /// It is different.
    Updated,
    /// It is gone, or no longer matches the selectors.
    Deleted,
}

/// Data of the events of objects. metadata.managedFields are always left out, and the data of Secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ObjectData {
    /// The whole object.
    #[default]
    Object,
    /// For an update, a JSON merge patch (RFC 7396) from the last version that was seen, with the content type
    /// application/merge-patch+json; else, and where that version is not known, as after a restart, the whole object.
    Patch,
    /// apiVersion, kind, namespace, name, uid and resourceVersion.
    Reference,
}
