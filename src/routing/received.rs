//! Decodes a routing configuration item by item, so that one from a newer controller does not fail as a whole. Pure.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Authorities, Configuration, Revision};

/// An item of the routing configuration that this version cannot decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// `Trigger` or `Source`.
    pub kind: &'static str,
    /// `namespace/name`.
    pub name: String,
    /// The error.
    pub error: String,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, error } = self;
        write!(f, "{kind} {name}: {error}")
    }
}

/// A configuration whose items are not decoded yet.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Received {
    revision: Revision,
    namespaces: BTreeSet<String>,
    triggers: Vec<Box<RawValue>>,
    sources: Vec<Box<RawValue>>,
    #[serde(default)]
    authorities: Authorities,
    #[serde(default)]
    unread: BTreeSet<String>,
}

/// What every item has, in any version.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    uid: String,
    namespace: String,
    name: String,
}

impl From<Received> for Configuration {
    fn from(received: Received) -> Self {
        let Received {
            revision,
            namespaces,
            triggers,
            sources,
            authorities,
            mut unread,
        } = received;
        let mut undecodable = Vec::new();
        let triggers = decode("Trigger", triggers, |uid, item| {
            unread.insert(uid);
            undecodable.push(item);
        });
        let sources = decode("Source", sources, |_, item| undecodable.push(item));
        Self {
            revision,
            namespaces,
            triggers,
            sources,
            authorities,
            unread,
            undecodable,
        }
    }
}

/// Decodes items; those that cannot be go to `failed` with their UIDs.
fn decode<T: DeserializeOwned>(
    kind: &'static str,
    items: Vec<Box<RawValue>>,
    mut failed: impl FnMut(String, Undecodable),
) -> Vec<T> {
    let mut decoded = Vec::with_capacity(items.len());
    for item in items {
        match serde_json::from_str(item.get()) {
            Ok(item) => decoded.push(item),
            Err(error) => {
                let Named { uid, namespace, name } = serde_json::from_str(item.get()).unwrap_or_default();
                let name = format!("{namespace}/{name}");
                let error = error.to_string();
                failed(uid, Undecodable { kind, name, error });
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::routing::Delivery;

    #[test]
    fn what_a_newer_controller_wrote_fails_by_itself() {
        let trigger = |name: &str, mode: &str| {
            json!({
                "uid": name, "namespace": "n", "name": name, "generation": 1, "broker": "b", "filters": [],
                "destination": {"uri": "http://a/", "service": null, "contentMode": mode},
                "delivery": Delivery::default(), "start": "Latest", "suspend": false,
            })
        };
        let source = |name: &str, kind: &str, value: Value| json!({"uid": name, "namespace": "n", "name": name, "generation": 1, "broker": "b", kind: value});
        let cron = json!({"schedule": "* * * * *", "timeZone": "UTC", "attributes": [], "data": null});
        let configuration = json!({
            "revision": "1", "namespaces": ["n"],
            "triggers": [trigger("old", "Binary"), trigger("new", "Newer")],
            "sources": [source("clock", "cron", cron), source("hook", "webhook", json!({}))],
        });
        let configuration: Configuration = serde_json::from_str(&configuration.to_string()).unwrap();
        let names: Vec<_> = configuration
            .triggers
            .iter()
            .map(|trigger| &*trigger.name)
            .collect();
        assert_eq!(names, ["old"]);
        assert_eq!(configuration.unread, ["new".to_owned()].into());
        assert_eq!(configuration.sources.len(), 1);
        let told: Vec<_> = configuration
            .undecodable
            .iter()
            .map(Undecodable::to_string)
            .collect();
        assert!(
            told[0].starts_with("Trigger n/new: unknown variant `Newer`"),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("Source n/hook: unknown field `webhook`"),
            "{told:?}"
        );
    }
}
