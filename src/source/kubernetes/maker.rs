//! Makes the events of a Source's changes, as far as they are wanted.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    event::{EventData, event, event_id},
    ledger::ObservedChange,
    names::KindNames,
    object::{ObservedObject, remains},
};
use crate::{
    cloudevents::{Event, Invalid},
    filter::{CompileError, CompiledFilter, Expression, cel::ChangedObject},
    routing::{DataForm, ObjectEvents},
    transform::{CompiledTransform, TemplateOwner, TransformError, TransformFailure},
};

/// How the events of a Source are made.
#[derive(Clone, Debug)]
pub struct EventMaker {
    events: ObjectEvents,
    /// Changes of the event, compiled.
    event: Option<CompiledTransform>,
    filter: CompiledFilter,
    /// UID of the Source, which distinguishes its events from those of others that watch the same objects.
    source_uid: String,
}

/// Why the events of a Source cannot be made. The controller checks the same.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidObjectEvents {
    /// How events are made does not compile.
    #[error("spec.{0}")]
    Event(#[from] TransformError),
    /// The filters do not compile.
    #[error("spec.{0}")]
    Filters(#[from] CompileError),
}

/// Why no event is made of a change. It fails again whenever it is tried.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChangeRejection {
    /// It makes no valid event, which takes an object with a very strange name.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// An expression of the Source's `event` fails for it.
    #[error(transparent)]
    NotMapped(#[from] TransformFailure),
    /// A filter of the Source fails for the event, so that it is unknown whether the event matches.
    #[error("spec.filters: {0}")]
    NotFiltered(String),
}

impl ChangeRejection {
    /// Reason in statuses.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Invalid(invalid) => invalid.label(),
            Self::NotMapped(_) => "mapping_failed",
            Self::NotFiltered(_) => "filter_failed",
        }
    }
}

impl EventMaker {
    /// Prepares how events are made, which have to match the filters.
    ///
    /// # Errors
    /// If an expression is invalid.
    pub fn compile(
        events: &ObjectEvents,
        filters: &[Expression],
        source_uid: &str,
    ) -> Result<Self, InvalidObjectEvents> {
        let compile = |event| CompiledTransform::compile_of(TemplateOwner::Objects, event);
        Ok(Self {
            events: events.clone(),
            event: events.event.as_ref().map(compile).transpose()?,
            filter: CompiledFilter::compile(filters)?,
            source_uid: source_uid.to_owned(),
        })
    }

    /// UID of the Source.
    #[must_use]
    pub fn source_uid(&self) -> &str {
        &self.source_uid
    }

    /// Returns the id of the event of a change, unless `event` sets another one.
    #[must_use]
    pub fn id_of(&self, change: &ObservedChange) -> String {
        event_id(&self.source_uid, change)
    }

    /// Whether events depend on the version of an object before its change.
    #[must_use]
    pub fn needs_versions(&self) -> bool {
        let is_read = self
            .event
            .as_ref()
            .is_some_and(CompiledTransform::reads_old_object);
        is_read || self.events.data == DataForm::Patch
    }

    /// Makes the event of a change. Returns `None` if it is not wanted or does not match the filters. `object` is `None` if the
    /// object was deleted while nobody watched, and `before` if the version before is not known.
    ///
    /// # Errors
    /// If it is no valid event, or an expression or a filter fails for it.
    pub fn make(
        &self,
        names: &KindNames,
        change: &ObservedChange,
        object: Option<&ObservedObject>,
        before: Option<&Value>,
        now: Timestamp,
    ) -> Result<Option<Event>, ChangeRejection> {
        if !self.events.changes.contains(&change.kind) {
            return Ok(None);
        }
        let data = match self.events.data {
            DataForm::Object => EventData::Object,
            DataForm::Patch => EventData::Patch(before),
            DataForm::Reference => EventData::Reference,
        };
        let mut made = event(names, change, object, data, &self.source_uid, now)?;
        if let Some(template) = &self.event {
            let object = match object {
                Some(object) => Cow::Borrowed(&object.value),
                None => Cow::Owned(remains(names, change)),
            };
            let changed = ChangedObject::new(change.kind.word(), &object, before);
            made = template.apply_to_change(&made, &changed)?;
        }
        match self.filter.try_matches(&made) {
            Ok(true) => Ok(Some(made)),
            Ok(false) => Ok(None),
            Err(error) => Err(ChangeRejection::NotFiltered(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        routing::ChangeKind,
        source::kubernetes::{ObjectKey, ObjectPlace},
    };

    const CEL: fn(&str) -> Expression = |text| Expression::Cel(text.to_owned());

    fn maker(event: Value, filters: &[Expression]) -> EventMaker {
        let events = ObjectEvents {
            changes: [ChangeKind::Added, ChangeKind::Updated].into(),
            data: DataForm::Reference,
            event: Some(serde_json::from_value(event).unwrap()),
        };
        EventMaker::compile(&events, filters, "s1").unwrap()
    }

    fn deployment(replicas: u32) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "5f0a", "resourceVersion": "7"},
            "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"image": "web:2"}]}}},
        })
    }

    /// Makes the event of a Deployment `web` with two replicas.
    fn made(
        maker: &EventMaker,
        kind: ChangeKind,
        before: Option<&Value>,
    ) -> Result<Option<Event>, ChangeRejection> {
        let names = KindNames {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
        };
        let object = ObservedObject::read("apps/v1", "Deployment", deployment(2)).unwrap();
        let change = ObservedChange {
            key: ObjectKey {
                kind: "Deployment.apps".into(),
                uid: "5f0a".into(),
            },
            place: ObjectPlace {
                namespace: Some("shop".to_owned()),
                name: "web".to_owned(),
            },
            kind,
            since: "5".to_owned(),
            version: "7".to_owned(),
        };
        maker.make(&names, &change, Some(&object), before, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn event_is_made_of_the_change() {
        let before = deployment(1);
        let of = "${change}: ${object.metadata.name} in ${event.namespace}";
        let scaled = "${oldObject == null ? 0 : oldObject.spec.replicas}";
        let image = "${object.spec.template.spec.containers[0].image}";
        let maker = maker(
            json!({"set": {"subject": of, "before": scaled}, "data": {"image": image}}),
            &[CEL("data.image == 'web:2' && event.before < 2")],
        );
        for (kind, before, subject, count) in [
            (ChangeKind::Added, None, "added: web in shop", 0),
            (ChangeKind::Updated, Some(&before), "updated: web in shop", 1),
        ] {
            let event = made(&maker, kind, before).unwrap().unwrap();
            assert_eq!(event.attribute("subject"), Some(&subject.into()));
            assert_eq!(event.attribute("before"), Some(&count.into()));
            assert_eq!(event.data().unwrap().as_bytes(), br#"{"image":"web:2"}"#);
            assert_eq!(event.attribute("kind"), Some(&"Deployment".into()));
        }
        assert_eq!(made(&maker, ChangeKind::Deleted, None), Ok(None));
        assert_eq!(made(&maker, ChangeKind::Updated, Some(&deployment(2))), Ok(None));
    }

    #[test]
    fn a_failure_names_the_field_and_not_the_data() {
        let good = json!({"set": {"subject": "${object.metadata.name}"}});
        for (event, filters, label, message) in [
            (
                json!({"set": {"tier": "${object.metadata.labels.tier}"}}),
                vec![],
                "mapping_failed",
                "spec.kubernetes.event.attributes.tier: there is no labels",
            ),
            (
                json!({"data": {"old": ["${oldObject.spec}"]}}),
                vec![],
                "mapping_failed",
                "spec.kubernetes.event.data.old[0]: ",
            ),
            (
                json!({"set": {"time": "${object.metadata.name}"}}),
                vec![],
                "mapping_failed",
                "spec.kubernetes.event.attributes.time: the value is not a timestamp",
            ),
            (
                good,
                vec![CEL("data.spec == 'x'")],
                "filter_failed",
                "spec.filters: cel: there is no spec",
            ),
        ] {
            let rejection = made(&maker(event, &filters), ChangeKind::Added, None).unwrap_err();
            assert_eq!(rejection.label(), label);
            assert!(rejection.to_string().starts_with(message), "{rejection}");
            assert!(!rejection.to_string().contains("web"), "{rejection}");
        }
    }

    #[test]
    fn versions_are_kept_where_an_expression_reads_them() {
        for (event, expected) in [
            (json!({"set": {"a": "${object.kind}"}}), false),
            (json!({"set": {"a": "x${has(oldObject.spec)}"}}), true),
            (json!({"data": [{"a": "${[1].map(n, oldObject)}"}]}), true),
        ] {
            assert_eq!(maker(event.clone(), &[]).needs_versions(), expected, "{event}");
        }
    }

    #[test]
    fn variables_of_a_change_are_listed() {
        let events = ObjectEvents {
            changes: ChangeKind::ALL.into(),
            data: DataForm::Object,
            event: Some(serde_json::from_value(json!({"set": {"type": "${body.a}"}})).unwrap()),
        };
        let error = EventMaker::compile(&events, &[], "s1").unwrap_err().to_string();
        assert!(
            error.starts_with(
                "spec.kubernetes.event.attributes.type: column 3: there is no body: the variables are object"
            ),
            "{error}"
        );
    }
}
