//! Changes of recorded objects, and the events that a Source of kind kubernetes makes of them.

use jiff::Timestamp;

use super::suite::ChangeCase;
use crate::{
    cli::validate::CheckedSource,
    cloudevents::Event,
    resolve::{KubernetesPlan, plan_kubernetes, source_filters},
    source::kubernetes::{EventMaker, KindNames, ObjectKey, ObservedChange, ObservedObject},
};

/// What a Source makes of a change.
pub(super) struct ToldChange {
    /// `accepted`, `filtered`, or the reason for which it makes no event, as in the status.
    pub(super) result: &'static str,
    /// What is wrong, for people.
    pub(super) error: Option<String>,
    pub(super) event: Option<Event>,
}

/// Why a Source cannot tell a change.
pub(super) enum UntoldChange {
    /// There is no such Source of kind kubernetes.
    UnknownSource,
    /// The Source has this error.
    InvalidSource(String),
}

/// Tells the change of a recorded object. Its selectors are not evaluated: who records an object says that it matches.
pub(super) fn told(sources: &[CheckedSource], case: &ChangeCase) -> Result<ToldChange, UntoldChange> {
    let mut all = sources.iter();
    let source = all.find(|source| source.namespace == case.namespace && source.name == case.source);
    let source = source.ok_or(UntoldChange::UnknownSource)?;
    let objects = source
        .spec
        .kubernetes
        .as_ref()
        .ok_or(UntoldChange::UnknownSource)?;
    let plan = plan_kubernetes(&source.namespace, objects)
        .map_err(|finding| UntoldChange::InvalidSource(finding.message))?;
    let maker = EventMaker::compile(&plan.events, &source_filters(&source.spec), "1")
        .map_err(|error| UntoldChange::InvalidSource(error.to_string()))?;
    let failed = |result, error: String| ToldChange {
        result,
        error: Some(error),
        event: None,
    };
    let ChangeCase {
        change,
        object,
        old_object,
        seen,
        ..
    } = case;
    let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let names = KindNames {
        plural: plural(&text("kind")),
        api_version: text("apiVersion"),
        kind: text("kind"),
    };
    let read = |value| ObservedObject::read(&names.api_version, &names.kind, value);
    let before = old_object.clone().map(read).transpose();
    let (object, before) = match (read(object.clone()), before) {
        (Ok(object), Ok(before)) => (object, before),
        (Err(error), _) | (_, Err(error)) => return Ok(failed("invalid_object", error.to_string())),
    };
    if let Some(problem) = unwatched(&plan, &names, &object) {
        return Ok(failed("not_watched", problem));
    }
    let (group, _) = names.group_and_version();
    let change = ObservedChange {
        key: ObjectKey {
            kind: ObjectKey::kind_of(&names.kind, group),
            uid: object.uid.as_str().into(),
        },
        place: object.place.clone(),
        kind: *change,
        since: object.version.clone(),
        version: object.version.clone(),
    };
    let now = seen.unwrap_or_else(Timestamp::now);
    let before = before.as_ref().map(|before| &before.value);
    Ok(match maker.make(&names, &change, Some(&object), before, now) {
        Ok(event) => ToldChange {
            result: if event.is_some() { "accepted" } else { "filtered" },
            error: None,
            event,
        },
        Err(rejection) => failed(rejection.label(), rejection.to_string()),
    })
}

/// Why a Source does not watch an object, whatever its selectors.
fn unwatched(plan: &KubernetesPlan, names: &KindNames, object: &ObservedObject) -> Option<String> {
    let KindNames {
        api_version, kind, ..
    } = names;
    let (group, version) = names.group_and_version();
    let mut kinds = plan.kinds.iter();
    if !kinds.any(|known| (&*known.group, &*known.version, &*known.kind) == (group, version, &**kind)) {
        return Some(format!(
            "spec.kubernetes.resources: there is no {kind} of {api_version}"
        ));
    }
    let (namespaces, namespace) = (plan.namespaces.as_ref()?, object.place.namespace.as_ref()?);
    let is_watched = namespaces.contains(namespace);
    (!is_watched).then(|| format!("spec.kubernetes.namespaces: {namespace} is not among them"))
}

/// Guesses the name of a kind in paths, which only the API server knows.
fn plural(kind: &str) -> String {
    let name = kind.to_ascii_lowercase();
    let ends_with = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    match name.strip_suffix('y') {
        Some(stem) if !ends_with(&["ay", "ey", "oy", "uy"]) => format!("{stem}ies"),
        _ if name == "endpoints" => name,
        _ if ends_with(&["s", "x", "z", "ch", "sh"]) => format!("{name}es"),
        _ => format!("{name}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_of_kubernetes() {
        for (kind, expected) in [
            ("Deployment", "deployments"),
            ("NetworkPolicy", "networkpolicies"),
            ("Ingress", "ingresses"),
            ("Gateway", "gateways"),
            ("Endpoints", "endpoints"),
        ] {
            assert_eq!(plural(kind), expected);
        }
    }
}
