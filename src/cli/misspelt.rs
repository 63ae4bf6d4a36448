//! Warns about attribute names in filters that look misspelt. Any attribute name is valid, so this is only a
//! warning.

use super::manifests::{Manifest, ManifestProblem, Resource, distance};
use crate::api::Filter;

/// Attributes of CloudEvents 1.0 and common extensions.
const KNOWN: &[&str] = &[
    "datacontenttype",
    "dataschema",
    "expirytime",
    "id",
    "partitionkey",
    "source",
    "specversion",
    "subject",
    "time",
    "type",
];

/// Returns a warning for each attribute in a Trigger's `exact`, `prefix` and `suffix` that closely resembles a
/// known one.
pub(super) fn warnings(manifest: &Manifest) -> Vec<ManifestProblem> {
    let Resource::Trigger(trigger) = &manifest.resource else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    for (index, filter) in trigger.spec.filters.iter().enumerate() {
        let mut names = Vec::new();
        attributes(filter, &mut names);
        names.sort_unstable();
        names.dedup();
        let (_, namespace, trigger) = manifest.key();
        let warning = |name: &str| {
            let meant = meant(name)?;
            let message = format!(
                "Trigger {namespace}/{trigger}: the filter uses the attribute {name}, which is not a known \
                 attribute; did you mean {meant}?"
            );
            Some(manifest.problem(&format!("spec.filters[{index}]"), message))
        };
        warnings.extend(names.into_iter().filter_map(warning));
    }
    warnings
}

/// Returns the known attribute at edit distance one: a letter changed, missing or added, or two letters swapped.
fn meant(name: &str) -> Option<&'static str> {
    let sorted = |text: &str| {
        let mut letters = text.as_bytes().to_vec();
        letters.sort_unstable();
        letters
    };
    let is_near =
        |known: &&&str| sorted(known) == sorted(name) || (name.len() > 3 && distance(name, known) == 1);
    KNOWN
        .iter()
        .find(is_near)
        .copied()
        .filter(|_| !KNOWN.contains(&name))
}

fn attributes<'a>(filter: &'a Filter, names: &mut Vec<&'a str>) {
    match filter {
        Filter::Exact(values) | Filter::Prefix(values) | Filter::Suffix(values) => {
            names.extend(values.keys().map(String::as_str));
        }
        Filter::All(children) | Filter::Any(children) => {
            children.iter().for_each(|child| attributes(child, names));
        }
        Filter::Not(child) => attributes(child, names),
        Filter::Sql(_) | Filter::Cel(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_similar_attribute_names() {
        for (name, expected) in [
            ("tpye", Some("type")),
            ("typ", None),
            ("types", Some("type")),
            ("sorce", Some("source")),
            ("subjcet", Some("subject")),
            ("di", Some("id")),
            ("type", None),
            ("name", None),
            ("tier", None),
            ("tenant", None),
            ("severity", None),
            ("partitionkye", Some("partitionkey")),
        ] {
            assert_eq!(meant(name), expected, "{name}");
        }
    }
}
