//! Compiles the kind kubernetes of a Source. Pure.

use std::collections::BTreeSet;

use super::{diagnosis::ResourceId, event_attributes, finding::Finding, selectors};
use crate::{
    api::{self, ObjectChange, ObjectData},
    filter::Expression,
    routing::{ChangeKind, DataForm, ObjectEvents},
    transform::Transform,
};

/// Maximum number of watches of a Source.
const MAX_WATCHES: usize = 64;

/// What `weir sources` does for a Source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesPlan {
    /// ServiceAccount in the Source's namespace.
    pub account: String,
    /// Kinds.
    pub kinds: Vec<PlannedKind>,
    /// Namespaces of the objects; `None` for all.
    pub namespaces: Option<BTreeSet<String>>,
    /// How the events are made.
    pub events: ObjectEvents,
}

/// A kind of object to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedKind {
    /// Group; empty for the core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Label selector.
    pub labels: Option<String>,
    /// Field selector.
    pub fields: Option<String>,
}

/// Compiles the filters of a Source, as routers do.
#[must_use]
pub fn source_filters(spec: &api::SourceSpec) -> Vec<Expression> {
    spec.filters.iter().map(super::filters::expression).collect()
}

/// Plans what `weir sources` does for a Source in this namespace.
///
/// # Errors
/// What is wrong.
pub fn plan_kubernetes(namespace: &str, source: &api::KubernetesSource) -> Result<KubernetesPlan, Finding> {
    let api::KubernetesSource {
        service_account_name,
        resources,
        namespaces,
        events,
        data,
        event,
    } = source;
    let bad = |field: &str, problem: &str| {
        Err(Finding::bad(
            "InvalidResources",
            format!("spec.kubernetes.{field}: {problem}"),
        ))
    };
    if resources.is_empty() {
        return bad("resources", "at least one kind must be listed");
    }
    let kinds = resources.iter().enumerate();
    let kinds: Vec<_> = kinds
        .map(|(index, selection)| plan_kind(index, selection))
        .collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    if !kinds.iter().all(|kind| names.insert((&kind.group, &kind.kind))) {
        return bad("resources", "a kind is listed twice; list each kind once");
    }
    let namespaces: BTreeSet<_> = namespaces.iter().cloned().collect();
    if namespaces.contains("*") && namespaces.len() > 1 {
        return bad("namespaces", "* is all namespaces: list no others");
    }
    if kinds.len() * namespaces.len() > MAX_WATCHES {
        return bad(
            "namespaces",
            "resources times namespaces must be at most 64: use several Sources",
        );
    }
    let namespaces = match namespaces.contains("*") {
        true => None,
        false if namespaces.is_empty() => Some([namespace.to_owned()].into()),
        false => Some(namespaces),
    };
    Ok(KubernetesPlan {
        account: service_account_name.clone(),
        kinds,
        namespaces,
        events: ObjectEvents {
            changes: match events.is_empty() {
                true => ChangeKind::ALL.into(),
                false => events.iter().copied().map(change_kind).collect(),
            },
            data: match data {
                ObjectData::Object => DataForm::Object,
                ObjectData::Patch => DataForm::Patch,
                ObjectData::Reference => DataForm::Reference,
            },
            event: event.as_ref().map(event_template),
        },
    })
}

/// How the event of a change is made, as a change of the event that would be made otherwise.
pub(super) fn event_template(event: &api::ObjectEvent) -> Transform {
    let api::ObjectEvent { attributes, data } = event;
    event_attributes::template(attributes, data.as_ref())
}

fn change_kind(change: ObjectChange) -> ChangeKind {
    match change {
        ObjectChange::Added => ChangeKind::Added,
        ObjectChange::Updated => ChangeKind::Updated,
        ObjectChange::Deleted => ChangeKind::Deleted,
    }
}

fn plan_kind(index: usize, selection: &api::ObjectSelection) -> Result<PlannedKind, Finding> {
    let api::ObjectSelection {
        api_version,
        kind,
        label_selector,
        field_selector,
    } = selection;
    let checked =
        |field: &str, selector: &Option<String>, check: fn(&str) -> Result<(), String>| match selector {
            Some(selector) => check(selector).map_err(|problem| {
                Finding::bad(
                    "InvalidSelector",
                    format!("spec.kubernetes.resources[{index}].{field}: {problem}"),
                )
            }),
            None => Ok(()),
        };
    checked("labelSelector", label_selector, selectors::check_labels)?;
    checked("fieldSelector", field_selector, selectors::check_fields)?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Ok(PlannedKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.clone(),
        labels: label_selector.clone(),
        fields: field_selector.clone(),
    })
}

/// Returns whether a Source can run, and what it does.
pub(super) fn compile(subject: &ResourceId, source: &api::KubernetesSource) -> Result<Finding, Finding> {
    let plan = plan_kubernetes(&subject.namespace, source)?;
    let kinds: Vec<&str> = plan.kinds.iter().map(|kind| kind.kind.as_str()).collect();
    let namespaces = match &plan.namespaces {
        Some(namespaces) => namespaces.iter().cloned().collect::<Vec<_>>().join(", "),
        None => "all".to_owned(),
    };
    Ok(Finding::good(
        "Valid",
        format!("tells changes of {}; namespaces: {namespaces}", kinds.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(more: &Value) -> Result<KubernetesPlan, Finding> {
        let mut source =
            json!({"serviceAccountName": "viewer", "resources": [{"apiVersion": "v1", "kind": "Pod"}]});
        source
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        plan_kubernetes("shop", &serde_json::from_value(source).unwrap())
    }

    #[test]
    fn defaults_are_the_own_namespace_and_all_changes() {
        let plan = planned(&json!({})).unwrap();
        assert_eq!(plan.namespaces, Some(["shop".to_owned()].into()));
        assert_eq!(plan.events.changes, ChangeKind::ALL.into());
        assert_eq!((&*plan.kinds[0].group, &*plan.kinds[0].version), ("", "v1"));
        let all = planned(&json!({"namespaces": ["*"], "events": ["Deleted"]})).unwrap();
        assert_eq!(
            (all.namespaces, all.events.changes),
            (None, [ChangeKind::Deleted].into())
        );
    }

    #[test]
    fn how_the_event_is_made_is_planned() {
        let event = json!({"attributes": {"type": "${change}"}, "data": {"name": "${object.metadata.name}"}});
        let planned = planned(&json!({ "event": event })).unwrap().events.event.unwrap();
        assert_eq!(planned.set["type"], "${change}");
        assert_eq!(planned.data, Some(event["data"].clone()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let pod =
            |more: &str| json!({"resources": [{"apiVersion": "v1", "kind": "Pod", "labelSelector": more}]});
        for (more, reason, part) in [
            (
                pod("a,,b"),
                "InvalidSelector",
                "spec.kubernetes.resources[0].labelSelector: ",
            ),
            (
                json!({"resources": [{"apiVersion": "v1", "kind": "Pod", "fieldSelector": "x"}]}),
                "InvalidSelector",
                "resources[0].fieldSelector: ",
            ),
            (json!({"resources": []}), "InvalidResources", "at least one"),
            (
                json!({"resources": [{"apiVersion": "apps/v1", "kind": "A"}, {"apiVersion": "apps/v2", "kind": "A"}]}),
                "InvalidResources",
                "listed twice",
            ),
            (
                json!({"namespaces": ["*", "shop"]}),
                "InvalidResources",
                "spec.kubernetes.namespaces: ",
            ),
        ] {
            let finding = planned(&more).unwrap_err();
            assert_eq!(finding.reason, reason, "{more}");
            assert!(finding.message.contains(part), "{}", finding.message);
        }
    }
}
