//! Records of what was told, as text: one line an object, under a key.

use std::{fmt, str::FromStr, sync::Arc};

use xxhash_rust::xxh3::xxh3_64;

/// Number of parts into which the records of a Source are divided, so that a change writes a small one.
pub const SHARDS: usize = 16;

/// Stands for an empty field.
const NONE: &str = "-";

/// Stands for the group of Kubernetes' core, which has no name.
const CORE: &str = "core";

/// Identifies an object: its kind, as `Kind.group`, and its UID. The version is not part of it, since one object is
/// served in several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Kind and group.
    pub kind: Arc<str>,
    /// UID.
    pub uid: Arc<str>,
}

impl ObjectKey {
    /// Names a kind of a group.
    #[must_use]
    pub fn kind_of(kind: &str, group: &str) -> Arc<str> {
        let group = if group.is_empty() { CORE } else { group };
        format!("{kind}.{group}").into()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.uid)
    }
}

/// Returns the part that an object's record is in. Records are stored by it, so it must never change.
#[must_use]
pub fn shard_of(key: &ObjectKey) -> usize {
    // Less than `SHARDS`.
    usize::try_from(xxh3_64(key.uid.as_bytes()) % SHARDS as u64).unwrap_or_default()
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlace {
    /// Namespace; `None` if its kind belongs to none.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// What is remembered of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub place: ObjectPlace,
    /// Version at which it was first seen.
    pub since: String,
    /// Version that was told last; `None` before the first.
    pub told: Option<String>,
}

/// A record that another version of Weir, or a person, wrote.
#[derive(Debug, thiserror::Error)]
#[error("not a record of an object")]
pub struct InvalidRecord;

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, since, told } = self;
        let told = told.as_deref().unwrap_or(NONE);
        let namespace = place.namespace.as_deref().unwrap_or(NONE);
        write!(f, "{since} {told} {namespace} {}", place.name)
    }
}

impl FromStr for Record {
    type Err = InvalidRecord;

    fn from_str(text: &str) -> Result<Self, InvalidRecord> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [since, told, namespace, name] = parts[..] else {
            return Err(InvalidRecord);
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(InvalidRecord);
        }
        let present = |part: &str| (part != NONE).then(|| part.to_owned());
        Ok(Self {
            place: ObjectPlace {
                namespace: present(namespace),
                name: name.to_owned(),
            },
            since: since.to_owned(),
            told: present(told),
        })
    }
}

impl FromStr for ObjectKey {
    type Err = InvalidRecord;

    fn from_str(text: &str) -> Result<Self, InvalidRecord> {
        let (kind, uid) = text.rsplit_once('.').ok_or(InvalidRecord)?;
        if uid.is_empty() || !kind.contains('.') {
            return Err(InvalidRecord);
        }
        Ok(Self {
            kind: kind.into(),
            uid: uid.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        for (namespace, told, text) in [
            (Some("shop"), Some("12"), "7 12 shop web"),
            (None, None, "7 - - web"),
        ] {
            let record = Record {
                place: ObjectPlace {
                    namespace: namespace.map(str::to_owned),
                    name: "web".to_owned(),
                },
                since: "7".to_owned(),
                told: told.map(str::to_owned),
            };
            assert_eq!(record.to_string(), text);
            assert_eq!(text.parse::<Record>().unwrap(), record);
        }
        for text in ["", "7 12 shop", "7 12 shop web more", "7  shop web"] {
            assert!(text.parse::<Record>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        for (kind, group, text) in [
            ("Pod", "", "Pod.core.5f0a"),
            ("Event", "events.k8s.io", "Event.events.k8s.io.5f0a"),
        ] {
            let key = ObjectKey {
                kind: ObjectKey::kind_of(kind, group),
                uid: "5f0a".into(),
            };
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse::<ObjectKey>().unwrap(), key);
        }
        assert!("5f0a".parse::<ObjectKey>().is_err());
        assert!("Pod.5f0a".parse::<ObjectKey>().is_err());
    }

    #[test]
    fn the_part_of_a_record_never_changes() {
        let of = |uid: &str| {
            shard_of(&ObjectKey {
                kind: "Pod.core".into(),
                uid: uid.into(),
            })
        };
        let found = ["a", "5f0a", "00000000-0000-0000-0000-000000000000"].map(of);
        assert_eq!(found, EXPECTED_SHARDS);
    }

    const EXPECTED_SHARDS: [usize; 3] = [15, 8, 9];
}
