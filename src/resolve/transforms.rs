//! Transforms of manifests as plain data, and what is wrong with them. Pure.

use super::finding::Finding;
use crate::{
    api,
    routing::{self, TriggerRejection},
    transform::{CompiledTransform, Transform, TransformError},
};

/// Converts a transform.
pub(super) fn transform(spec: &api::TransformSpec) -> Transform {
    let api::TransformSpec { attributes, data } = spec;
    let api::TransformAttributes { set, remove } = attributes.clone().unwrap_or_default();
    Transform {
        set,
        remove: remove.into_iter().collect(),
        data: data.clone(),
    }
}

/// Returns whether a Trigger's transform is valid, if it has one.
pub(super) fn finding(route: &routing::Trigger, admitted: &Result<(), TriggerRejection>) -> Option<Finding> {
    let transform = route.transform.as_ref()?;
    let good = || Finding::good("Compiled", "the transform is valid");
    let bad = |error: &TransformError| Finding::bad(error.label(), format!("spec.{error}"));
    Some(match admitted {
        Ok(()) => good(),
        Err(TriggerRejection::Transform(error)) => bad(error),
        // Rejected because of its filters, before its transform was compiled.
        Err(_) => CompiledTransform::compile(transform).map_or_else(|error| bad(&error), |_| good()),
    })
}
