//! How a kind of object is called.

/// How a kind is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindNames {
    /// Group and version, such as `apps/v1`, or `v1`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Its name in paths, such as `deployments`.
    pub plural: String,
}

impl KindNames {
    /// Group, which is empty for that of the core, and version.
    #[must_use]
    pub fn group_and_version(&self) -> (&str, &str) {
        self.api_version
            .split_once('/')
            .unwrap_or(("", &self.api_version))
    }

    /// The path of the objects of a namespace, or of those that belong to none, at the API server.
    pub(super) fn collection(&self, namespace: Option<&str>) -> String {
        let Self {
            api_version, plural, ..
        } = self;
        let root = if api_version.contains('/') { "apis" } else { "api" };
        match namespace {
            Some(namespace) => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
            None => format!("/{root}/{api_version}/{plural}"),
        }
    }
}
