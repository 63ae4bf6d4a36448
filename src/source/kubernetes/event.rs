//! Makes the event of a change.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    ledger::ObservedChange,
    merge_patch::merge_patch,
    names::KindNames,
    object::{ObservedObject, remains},
    record::ObjectPlace,
};
use crate::{
    cloudevents::{Event, EventBuilder, Invalid},
    routing::ChangeKind,
};

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// What the data of an event is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum EventData<'a> {
    /// The whole object.
    Object,
    /// The difference from an earlier version, if that is known.
    Patch(Option<&'a Value>),
    /// A reference to the object.
    Reference,
}

/// Returns the id of the event of a change.
pub(super) fn event_id(source_uid: &str, change: &ObservedChange) -> String {
    format!("{source_uid}.{}", change.id())
}

/// Makes the event of a change. `object` is `None` if the object was deleted while nobody watched.
///
/// The `id` begins with the UID of the Source: several Sources may tell the same change, each in its own way, and a broker
/// with deduplication would take only the first. Whoever tells the change again for the same Source uses the same.
///
/// # Errors
/// If it is no valid event, which takes an object with a very strange name.
pub(super) fn event(
    names: &KindNames,
    change: &ObservedChange,
    object: Option<&ObservedObject>,
    data: EventData<'_>,
    source_uid: &str,
    now: Timestamp,
) -> Result<Event, Invalid> {
    let ObservedChange {
        key,
        place: ObjectPlace { namespace, name },
        kind,
        ..
    } = change;
    let source = names.collection(namespace.as_deref());
    let changed = object.and_then(|object| object.changed);
    let time = match kind {
        ChangeKind::Deleted => now,
        ChangeKind::Added | ChangeKind::Updated => changed.unwrap_or(now),
    };
    let mut builder = EventBuilder::new()
        .attribute("id", event_id(source_uid, change))
        .attribute("type", format!("dev.weir.kubernetes.{}", kind.word()))
        .attribute("subject", format!("{source}/{name}"))
        .attribute("source", source)
        .attribute("time", time.to_string())
        .attribute("apiversion", names.api_version.as_str())
        .attribute("kind", names.kind.as_str())
        .attribute("name", name.as_str())
        // Keeps the events of an object in order.
        .attribute("partitionkey", &*key.uid);
    if let Some(namespace) = namespace {
        builder = builder.attribute("namespace", namespace.as_str());
    }
    let whole = || match object {
        Some(object) => object.value.clone(),
        None => remains(names, change),
    };
    let (content_type, data) = match (data, object) {
        (EventData::Reference, _) => (JSON, reference(names, change)),
        (EventData::Patch(Some(before)), Some(object)) if *kind == ChangeKind::Updated => {
            (MERGE_PATCH, merge_patch(before, &object.value))
        }
        (EventData::Object | EventData::Patch(_), _) => (JSON, whole()),
    };
    builder.data(content_type, data.to_string()).build()
}

fn reference(names: &KindNames, change: &ObservedChange) -> Value {
    let ObjectPlace { namespace, name } = &change.place;
    let mut reference = json!({
        "apiVersion": names.api_version, "kind": names.kind, "name": name,
        "uid": *change.key.uid, "resourceVersion": change.version,
    });
    if let Some(namespace) = namespace {
        reference["namespace"] = namespace.clone().into();
    }
    reference
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cloudevents::Data, source::kubernetes::ObjectKey};

    fn names(api_version: &str) -> KindNames {
        KindNames {
            api_version: api_version.to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
        }
    }

    fn change(kind: ChangeKind, namespace: Option<&str>) -> ObservedChange {
        ObservedChange {
            key: ObjectKey {
                kind: "Deployment.apps".into(),
                uid: "5f0a".into(),
            },
            place: ObjectPlace {
                namespace: namespace.map(str::to_owned),
                name: "web".to_owned(),
            },
            kind,
            since: "5".to_owned(),
            version: "7".to_owned(),
        }
    }

    fn observed(replicas: u32) -> ObservedObject {
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "5f0a", "resourceVersion": "7",
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": replicas},
        });
        ObservedObject::read("apps/v1", "Deployment", object).unwrap()
    }

    fn data(event: &Event) -> Value {
        let Some(Data::Binary(bytes)) = event.data() else {
            panic!("it has data")
        };
        serde_json::from_slice(&bytes).unwrap()
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn event_names_its_object() {
        let object = observed(2);
        let added = change(ChangeKind::Added, Some("shop"));
        let event = event(
            &names("apps/v1"),
            &added,
            Some(&object),
            EventData::Object,
            "s1",
            NOW,
        )
        .unwrap();
        for (name, value) in [
            ("id", "s1.5f0a.7"),
            ("type", "dev.weir.kubernetes.added"),
            ("source", "/apis/apps/v1/namespaces/shop/deployments"),
            ("subject", "/apis/apps/v1/namespaces/shop/deployments/web"),
            ("time", "2026-01-01T00:00:00Z"),
            ("apiversion", "apps/v1"),
            ("kind", "Deployment"),
            ("namespace", "shop"),
            ("name", "web"),
            ("partitionkey", "5f0a"),
            ("datacontenttype", JSON),
        ] {
            assert_eq!(event.attribute(name), Some(&value.into()), "{name}");
        }
        assert_eq!(data(&event), object.value);
    }

    #[test]
    fn events_of_two_sources_have_ids_of_their_own() {
        let (object, updated) = (observed(2), change(ChangeKind::Updated, Some("shop")));
        let id = |source_uid| {
            let (names, data) = (names("apps/v1"), EventData::Object);
            let event = event(&names, &updated, Some(&object), data, source_uid, NOW).unwrap();
            (event.source().to_owned(), event.id().to_owned())
        };
        assert_ne!(id("s1"), id("s2"));
        assert_eq!(id("s1"), id("s1"));
    }

    #[test]
    fn data_is_what_was_asked_for() {
        let before = observed(1).value;
        let object = observed(2);
        let reference = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web", "uid": "5f0a",
            "resourceVersion": "7",
        });
        let remains = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": "shop", "name": "web", "uid": "5f0a", "resourceVersion": "7"},
        });
        let (updated, deleted) = (ChangeKind::Updated, ChangeKind::Deleted);
        for (kind, object, asked, content_type, expected) in [
            (updated, Some(&object), EventData::Reference, JSON, reference),
            (
                updated,
                Some(&object),
                EventData::Patch(Some(&before)),
                MERGE_PATCH,
                json!({"spec": {"replicas": 2}}),
            ),
            (
                updated,
                Some(&object),
                EventData::Patch(None),
                JSON,
                object.value.clone(),
            ),
            (
                deleted,
                Some(&object),
                EventData::Patch(Some(&before)),
                JSON,
                object.value.clone(),
            ),
            (deleted, None, EventData::Object, JSON, remains),
        ] {
            let made = event(
                &names("apps/v1"),
                &change(kind, Some("shop")),
                object,
                asked,
                "s1",
                NOW,
            )
            .unwrap();
            assert_eq!(data(&made), expected);
            assert_eq!(made.attribute("datacontenttype"), Some(&content_type.into()));
        }
    }

    #[test]
    fn objects_of_the_core_and_of_no_namespace_have_their_own_paths() {
        let deleted = change(ChangeKind::Deleted, None);
        let event = event(&names("v1"), &deleted, None, EventData::Reference, "s1", NOW).unwrap();
        assert_eq!(event.source(), "/api/v1/deployments");
        assert_eq!(event.id(), "s1.5f0a.5.deleted");
        assert_eq!(event.attribute("namespace"), None);
        assert_eq!(event.attribute("time"), Some(&"1970-01-01T00:00:00Z".into()));
    }
}
