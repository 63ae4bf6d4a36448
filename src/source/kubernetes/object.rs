//! Objects as the API server gives them, without what is not told.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{ledger::ObservedChange, names::KindNames, record::ObjectPlace};

/// Maximum length of a UID. A key of a ConfigMap has 253 bytes at most, and also names the kind.
const MAX_UID: usize = 64;

/// Members of a Secret that have its values.
const SECRET_VALUES: [&str; 2] = ["data", "stringData"];

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedObject {
    /// Where it is.
    pub place: ObjectPlace,
    /// UID.
    pub uid: String,
    /// Version.
    pub version: String,
    /// Time of its last change, as far as the API server recorded it.
    pub changed: Option<Timestamp>,
    /// The object, without managed fields, and without the values and annotations of a Secret.
    pub value: Value,
}

/// An object without a name, a UID or a version, as some extension API servers have them, or with one that cannot be recorded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object has no usable metadata.{0}")]
pub struct InvalidObject(&'static str);

impl ObservedObject {
    /// Reads an object of this kind.
    ///
    /// # Errors
    /// If it cannot be followed.
    pub fn read(api_version: &str, kind: &str, mut value: Value) -> Result<Self, InvalidObject> {
        let metadata = &value["metadata"];
        let text = |name: &str| {
            let text = metadata[name].as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
        };
        let place = ObjectPlace {
            namespace: text("namespace"),
            name: text("name").ok_or(InvalidObject("name"))?,
        };
        let uid = text("uid")
            .filter(|uid| is_recordable_uid(uid))
            .ok_or(InvalidObject("uid"))?;
        let version = text("resourceVersion").filter(|version| !version.contains(' '));
        let version = version.ok_or(InvalidObject("resourceVersion"))?;
        let changed = changed(metadata);
        // Objects in lists have neither.
        value["apiVersion"] = api_version.into();
        value["kind"] = kind.into();
        strip(&mut value, api_version == "v1" && kind == "Secret");
        Ok(Self {
            place,
            uid,
            version,
            changed,
            value,
        })
    }

    /// Whether the object has this label.
    #[must_use]
    pub fn has_label(&self, name: &str) -> bool {
        self.value["metadata"]["labels"].get(name).is_some()
    }
}

/// What is known of a deleted object that was not seen since a restart, in the form of an object.
pub(super) fn remains(names: &KindNames, change: &ObservedChange) -> Value {
    let KindNames {
        api_version, kind, ..
    } = names;
    let ObservedChange {
        key, place, version, ..
    } = change;
    let mut metadata = json!({"name": place.name, "uid": *key.uid, "resourceVersion": version});
    if let Some(namespace) = &place.namespace {
        metadata["namespace"] = namespace.clone().into();
    }
    json!({"apiVersion": api_version, "kind": kind, "metadata": metadata})
}

/// Whether a key of a ConfigMap can contain it, after a dot.
fn is_recordable_uid(uid: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    uid.len() <= MAX_UID && uid.bytes().all(is_fit)
}

fn changed(metadata: &Value) -> Option<Timestamp> {
    let time = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
    let managed = metadata["managedFields"].as_array();
    let managed = managed
        .into_iter()
        .flatten()
        .filter_map(|fields| time(&fields["time"]));
    managed.chain(time(&metadata["creationTimestamp"])).max()
}

fn strip(value: &mut Value, is_secret: bool) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        // Tools that apply manifests store them in annotations, with the values.
        if is_secret {
            metadata.remove("annotations");
        }
    }
    if is_secret && let Some(members) = value.as_object_mut() {
        for name in SECRET_VALUES {
            members.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(more: Value) -> Value {
        let mut object = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{\"stringData\": {\"token\": \"s3cret\"}}",
                    "kapp.k14s.io/original": "{\"data\": {\"token\": \"czNjcmV0\"}}",
                },
                "managedFields": [{"time": "2026-01-03T00:00:00Z"}, {"time": "2026-01-02T00:00:00Z"}, {}],
            },
        });
        object
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        object
    }

    #[test]
    fn the_values_of_secrets_are_left_out() {
        let values =
            json!({"data": {"token": "czNjcmV0"}, "stringData": {"token": "s3cret"}, "type": "Opaque"});
        let secret = ObservedObject::read("v1", "Secret", object(values.clone())).unwrap();
        let text = secret.value.to_string();
        assert!(!text.contains("s3cret") && !text.contains("czNj"), "{text}");
        assert_eq!(secret.value["type"], "Opaque");
        assert_eq!(secret.value["metadata"].get("annotations"), None);

        let other = ObservedObject::read("v1", "ConfigMap", object(values)).unwrap();
        assert_eq!(other.value["data"]["token"], "czNjcmV0");
        assert_eq!(other.value["metadata"].get("managedFields"), None);
        assert!(other.value["metadata"].get("annotations").is_some());
    }

    #[test]
    fn an_object_has_its_kind_and_the_time_of_its_last_change() {
        let pod = ObservedObject::read("v1", "Pod", object(json!({"spec": {}}))).unwrap();
        assert_eq!((&pod.value["kind"], &*pod.version), (&json!("Pod"), "7"));
        assert_eq!(pod.changed, Some("2026-01-03T00:00:00Z".parse().unwrap()));
        for uid in ["", "a.b", "a/b", "ä"] {
            let mut other = object(json!({}));
            other["metadata"]["uid"] = uid.into();
            assert_eq!(
                ObservedObject::read("v1", "Pod", other),
                Err(InvalidObject("uid")),
                "{uid:?}"
            );
        }
    }
}
