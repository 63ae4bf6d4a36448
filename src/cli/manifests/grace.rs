//! Keeps resources for a moment after they disappear from the files: editors and tools truncate or remove a file
//! before they rewrite it. Pure: time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Loaded, Manifest, ResourceKey, Surroundings};

/// Time for which a missing resource is kept.
pub const GRACE: Duration = Duration::from_secs(3);

/// The last resources in the files, and since when each is missing.
#[derive(Debug, Default)]
pub struct Grace {
    present: BTreeMap<ResourceKey, Manifest>,
    missing: BTreeMap<ResourceKey, (Instant, Manifest)>,
    /// The surroundings at the time when the first of the missing resources was still present.
    surroundings: Surroundings,
}

impl Grace {
    /// Adds recently missing resources. Returns when to check again, if there are any.
    pub fn bridge(&mut self, loaded: &mut Loaded, now: Instant) -> Option<Instant> {
        let read = loaded.manifests.iter();
        let read: BTreeMap<_, _> = read.map(|manifest| (manifest.key(), manifest.clone())).collect();
        for (key, manifest) in std::mem::replace(&mut self.present, read) {
            if !self.present.contains_key(&key) {
                let (kind, namespace, name) = &key;
                tracing::info!(
                    seconds = GRACE.as_secs(),
                    "{kind} {namespace}/{name} is no longer in any file; it is removed unless it comes back within \
                     this time"
                );
                self.missing.insert(key, (now, manifest));
            }
        }
        let present = &self.present;
        self.missing
            .retain(|key, (since, _)| !present.contains_key(key) && now.duration_since(*since) < GRACE);
        if self.missing.is_empty() {
            self.surroundings = loaded.surroundings.clone();
            return None;
        }
        let missing = self.missing.values().map(|(_, manifest)| manifest.clone());
        loaded.manifests.extend(missing);
        let mut surroundings = self.surroundings.clone();
        surroundings.extend(std::mem::take(&mut loaded.surroundings));
        loaded.surroundings = surroundings;
        let first = self.missing.values().map(|(since, _)| *since).min();
        first.map(|since| since + GRACE)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::manifests::Manifests;

    fn sink(name: &str, uri: &str) -> String {
        format!(
            "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}}}\nspec: {{uri: '{uri}'}}\n"
        )
    }

    /// Returns the names and URIs in force, and the seconds until the next check.
    fn look(files: &mut (Manifests, Grace), start: Instant, second: u64) -> (String, Option<u64>) {
        let (manifests, grace) = files;
        let mut loaded = manifests.load();
        let now = start + Duration::from_secs(second);
        let again = grace.bridge(&mut loaded, now);
        let shown = loaded.manifests.iter().map(|manifest| {
            let super::super::Resource::Sink(sink) = &manifest.resource else {
                panic!()
            };
            format!("{} {}", manifest.key().2, sink.spec.uri.as_deref().unwrap())
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        (shown, again.map(|again| again.duration_since(now).as_secs()))
    }

    #[test]
    fn keeps_missing_resources_for_a_moment_and_applies_changes_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let write = |content: &str| fs::write(&file, content).unwrap();
        let both = sink("a", "http://a") + &sink("b", "http://b");
        write(&both);
        let manifests = Manifests::new(vec![directory.path().to_owned()]).unwrap();
        let (mut files, start) = ((manifests, Grace::default()), Instant::now());
        let mut look = |second| look(&mut files, start, second);
        let all = || "a http://a, b http://b".to_owned();
        assert_eq!(look(0), (all(), None));
        write("");
        assert_eq!(look(1), (all(), Some(3)));
        assert_eq!(look(3), (all(), Some(1)));
        write(&sink("b", "http://new"));
        assert_eq!(look(3), ("b http://new, a http://a".to_owned(), Some(1)));
        write(&both);
        assert_eq!(look(3), (all(), None));
        // A file truncated between two resources is valid.
        write(&sink("a", "http://new"));
        assert_eq!(look(10), ("a http://new, b http://b".to_owned(), Some(3)));
        assert_eq!(look(13), ("a http://new".to_owned(), None));
        fs::remove_file(&file).unwrap();
        assert_eq!(look(20), ("a http://new".to_owned(), Some(3)));
        assert_eq!(look(23), (String::new(), None));
        // The resource moved to another file.
        write(&both);
        assert_eq!(look(24), (all(), None));
        fs::rename(&file, directory.path().join("z.yaml")).unwrap();
        assert_eq!(look(25), (all(), None));
    }
}
