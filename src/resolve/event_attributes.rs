//! Attributes that a Source sets on its events. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{diagnosis::ResourceId, finding::Finding};
use crate::{cloudevents::EventBuilder, transform::Transform};

/// The `source` of events for which their Source sets none.
pub(super) fn default_source(subject: &ResourceId) -> String {
    let ResourceId { namespace, name, .. } = subject;
    format!("/apis/weir.dev/v1alpha1/namespaces/{namespace}/sources/{name}")
}

/// How an event is made of another one, by these attributes and this data.
pub(super) fn template(attributes: &BTreeMap<String, String>, data: Option<&Value>) -> Transform {
    Transform {
        set: attributes.clone(),
        data: data.cloned(),
        ..Transform::default()
    }
}

/// Collects the attributes that have a value, and the extensions.
pub(super) fn collect<const N: usize>(
    attributes: [(&str, Option<String>); N],
    extensions: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let attributes = attributes.into_iter();
    let set = attributes.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    set.chain(extensions.clone()).collect()
}

/// Checks that attributes make a valid event, once it has an `id`. `field` is the path of the field that sets them.
pub(super) fn check<'a>(
    field: &str,
    attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), Finding> {
    let probe = attributes.into_iter().fold(
        EventBuilder::new().attribute("id", "1"),
        |builder, (name, value)| builder.attribute(name, value),
    );
    let invalid = |invalid| Finding::bad("InvalidEvent", format!("{field}: {invalid}"));
    probe.build().map(drop).map_err(invalid)
}
