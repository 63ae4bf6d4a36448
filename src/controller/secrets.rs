//! Reads the Secrets that Sinks and Brokers reference. The controller may `get` only those that a namespace's owner grants it, and
//! may neither list nor watch them. Only the referenced keys of a Secret are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1;
use kube::Api;

use super::credential_reader::{Credential, CredentialApi, Credentials, Obtained};
use crate::{
    resolve::{Naming, Referrers, SecretName, SecretState},
    routing::Secret,
};

/// Interval at which each Secret is read again. A change takes effect within this time.
const READ_EVERY: Duration = Duration::from_secs(30);

/// Known states of the referenced Secrets.
pub(super) type Secrets = Credentials<NamedSecret>;

/// A Secret that Sinks or Brokers reference.
#[derive(Debug)]
pub(super) struct NamedSecret;

impl Credential for NamedSecret {
    type Name = SecretName;
    type State = SecretState;

    const KIND: &'static str = "Secret";

    fn named(referrers: Referrers<'_>) -> BTreeMap<SecretName, Naming> {
        referrers.secrets()
    }

    fn withheld() -> SecretState {
        SecretState::Withheld
    }

    fn unavailable(error: String) -> SecretState {
        SecretState::Unreadable(error)
    }

    fn serves(state: &SecretState, keys: &BTreeSet<String>) -> bool {
        match state {
            SecretState::Found { values, .. } => keys.iter().all(|key| values.contains_key(key)),
            _ => false,
        }
    }

    async fn obtain(
        api: &CredentialApi,
        SecretName { namespace, name }: &SecretName,
        keys: &BTreeSet<String>,
    ) -> Result<Obtained<SecretState>, String> {
        let secrets = Api::<v1::Secret>::namespaced(api.client.clone(), namespace);
        let state = match secrets.get_opt(name).await {
            Ok(Some(secret)) => found(secret, keys),
            Ok(None) => SecretState::NotFound,
            Err(kube::Error::Api(status)) if status.code == 403 => SecretState::Forbidden {
                account: api.account().await,
            },
            // The error could quote the Secret.
            Err(kube::Error::SerdeError(_)) => {
                return Err("the API server's response is not a valid Secret".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        };
        Ok(Obtained {
            state,
            again: READ_EVERY,
            expires: None,
        })
    }
}

fn found(secret: v1::Secret, keys: &BTreeSet<String>) -> SecretState {
    let metadata = secret.metadata;
    let data = secret.data.unwrap_or_default();
    let values = data.into_iter().filter(|(key, _)| keys.contains(key));
    SecretState::Found {
        version: format!(
            "{}.{}",
            metadata.uid.unwrap_or_default(),
            metadata.resource_version.unwrap_or_default()
        ),
        values: values
            .map(|(key, value)| (key, Secret::from(String::from_utf8_lossy(&value.0).into_owned())))
            .collect(),
        looked_for: Some(keys.clone()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    #[test]
    fn keeps_only_referenced_keys() {
        let data = [("token", &b"a"[..]), ("odd", b"\xff"), ("other", b"b")];
        let secret = v1::Secret {
            metadata: ObjectMeta {
                uid: Some("u".into()),
                resource_version: Some("7".into()),
                ..ObjectMeta::default()
            },
            data: Some(
                data.map(|(key, value)| (key.to_owned(), ByteString(value.into())))
                    .into(),
            ),
            ..v1::Secret::default()
        };
        let keys: BTreeSet<_> = ["token", "odd", "absent"].map(str::to_owned).into();
        let state = found(secret, &keys);
        let expected = [("token", "a"), ("odd", "\u{fffd}")];
        assert_eq!(
            state,
            SecretState::Found {
                version: "u.7".into(),
                values: expected
                    .map(|(key, value)| (key.into(), value.to_owned().into()))
                    .into(),
                looked_for: Some(keys.clone()),
            }
        );
        assert!(!NamedSecret::serves(&state, &keys));
        assert!(NamedSecret::serves(&state, &["token".to_owned()].into()));
        assert!(!NamedSecret::serves(&SecretState::NotFound, &keys));
    }
}
