//! Compiles the kind webhook of a Source. Pure.

use super::{
    credentials::{invalid_value, secret_value, without_line_break},
    diagnosis::ResourceId,
    event_attributes::{self, default_source},
    finding::Finding,
    resolver::Resolver,
};
use crate::{
    api::{self, SecretKeyRef, SecretValue, WebhookSecrets},
    routing::{self, HmacVerification, Secret, SigningKey, Verification},
    transform::Transform,
};

/// Lists every Secret key that a webhook references.
pub(super) fn references(webhook: &api::WebhookSource) -> impl Iterator<Item = &SecretKeyRef> {
    let api::WebhookVerification {
        github,
        gitlab,
        stripe,
        slack,
        standard_webhooks,
        hmac,
        token,
        basic,
        cloud_events,
        none: _,
    } = &webhook.verification;
    let presets = [github, gitlab, stripe, slack].into_iter().flatten();
    let presets = presets.flat_map(|WebhookSecrets { secrets }| secrets);
    let keys = standard_webhooks.iter().flat_map(|standard| &standard.keys);
    let hmac = hmac.iter().flat_map(|hmac| &hmac.secrets);
    let token = token.iter().flat_map(|token| &token.secrets);
    let basic = basic.iter().flat_map(|basic| &basic.passwords);
    let cloud_events = cloud_events.iter().flat_map(|sender| &sender.secrets);
    let all = presets.chain(keys).chain(hmac).chain(token).chain(basic);
    let all = all.chain(cloud_events);
    all.map(|SecretValue { secret_key_ref }| secret_key_ref)
}

/// Compiles a webhook of a Source.
pub(super) fn compile(
    resolver: &Resolver<'_>,
    subject: &ResourceId,
    verification: &api::WebhookVerification,
    event: Option<Transform>,
) -> Result<routing::Webhook, Finding> {
    let secrets = SourceSecrets {
        resolver,
        namespace: &subject.namespace,
    };
    Ok(routing::Webhook {
        verification: secrets.verification(verification)?,
        event,
        source: default_source(subject),
    })
}

/// Converts how an event is made of a request.
pub(super) fn event_template(event: &api::WebhookEvent) -> Transform {
    let api::WebhookEvent { attributes, data } = event;
    event_attributes::template(attributes, data.as_ref())
}

/// Reads the Secrets of a Source's namespace.
struct SourceSecrets<'a> {
    resolver: &'a Resolver<'a>,
    namespace: &'a str,
}

impl SourceSecrets<'_> {
    fn verification(&self, verification: &api::WebhookVerification) -> Result<Verification, Finding> {
        let api::WebhookVerification {
            github,
            gitlab,
            stripe,
            slack,
            standard_webhooks,
            hmac,
            token,
            basic,
            cloud_events,
            none,
        } = verification;
        let mut found = Vec::new();
        if let Some(preset) = github {
            let secrets = self.preset("github", preset)?;
            found.push(Verification::GitHub { secrets });
        }
        if let Some(preset) = gitlab {
            let secrets = self.preset("gitlab", preset)?;
            found.push(Verification::GitLab { secrets });
        }
        if let Some(preset) = stripe {
            let secrets = self.preset("stripe", preset)?;
            found.push(Verification::Stripe { secrets });
        }
        if let Some(preset) = slack {
            let secrets = self.preset("slack", preset)?;
            found.push(Verification::Slack { secrets });
        }
        if let Some(api::WebhookKeys { keys }) = standard_webhooks {
            let keys = self.keys(keys)?;
            found.push(Verification::StandardWebhooks { keys });
        }
        if let Some(hmac) = hmac {
            found.push(Verification::Hmac(self.hmac(hmac)?));
        }
        if let Some(api::WebhookToken { header, secrets }) = token {
            let header = header.clone();
            let secrets = self.values("token.secrets", secrets)?;
            found.push(Verification::Token { header, secrets });
        }
        if let Some(api::WebhookBasic { username, passwords }) = basic {
            let username = username.clone();
            let secrets = self.values("basic.passwords", passwords)?;
            found.push(Verification::Basic { username, secrets });
        }
        if let Some(sender) = cloud_events {
            let api::WebhookCloudEvents {
                allowed_origins,
                secrets,
            } = sender;
            found.push(Verification::CloudEvents {
                allowed_origins: allowed_origins.clone(),
                secrets: self.values("cloudEvents.secrets", secrets)?,
            });
        }
        found.extend(none.map(|api::NoVerification {}| Verification::Nothing {}));
        match (found.pop(), found.is_empty()) {
            (Some(verification), true) => Ok(verification),
            _ => Err(Finding::bad(
                "InvalidVerification",
                "spec.webhook.verification must have exactly one field",
            )),
        }
    }

    fn preset(&self, name: &str, preset: &WebhookSecrets) -> Result<Vec<Secret>, Finding> {
        self.values(&format!("{name}.secrets"), &preset.secrets)
    }

    fn hmac(&self, hmac: &api::WebhookHmac) -> Result<HmacVerification, Finding> {
        let api::WebhookHmac {
            header,
            prefix,
            algorithm,
            encoding,
            secrets,
        } = hmac;
        Ok(HmacVerification {
            header: header.clone(),
            prefix: prefix.clone(),
            algorithm: match algorithm {
                api::HmacAlgorithm::Sha1 => routing::HmacAlgorithm::Sha1,
                api::HmacAlgorithm::Sha256 => routing::HmacAlgorithm::Sha256,
                api::HmacAlgorithm::Sha512 => routing::HmacAlgorithm::Sha512,
            },
            encoding: match encoding {
                api::HmacEncoding::Hex => routing::HmacEncoding::Hex,
                api::HmacEncoding::Base64 => routing::HmacEncoding::Base64,
            },
            secrets: self.values("hmac.secrets", secrets)?,
        })
    }

    fn values(&self, field: &str, values: &[SecretValue]) -> Result<Vec<Secret>, Finding> {
        let values = values.iter().enumerate();
        let values = values.map(|(index, value)| Ok(self.value(field, index, value)?.0));
        values.collect()
    }

    fn keys(&self, keys: &[SecretValue]) -> Result<Vec<SigningKey>, Finding> {
        let keys = keys.iter().enumerate().map(|(index, value)| {
            let field = "standardWebhooks.keys";
            let (secret, version) = self.value(field, index, value)?;
            let SecretKeyRef { name, key } = &value.secret_key_ref;
            let key = SigningKey {
                value: secret,
                version: format!("{name}/{key}@{version}"),
            };
            let invalid =
                |problem: routing::InvalidSigningKey| self.invalid(field, index, value, &problem.to_string());
            key.bytes().map_err(invalid)?;
            Ok(key)
        });
        keys.collect()
    }

    /// Returns a value, and the version of its Secret.
    fn value(&self, field: &str, index: usize, value: &SecretValue) -> Result<(Secret, String), Finding> {
        let SecretKeyRef { name, key } = &value.secret_key_ref;
        let path = path(field, index);
        let (text, version) = secret_value(self.resolver, self.namespace, &path, name, key)?;
        let text = without_line_break(text);
        if text.is_empty() {
            return Err(self.invalid(field, index, value, "is empty"));
        }
        Ok((text.to_owned().into(), version.to_owned()))
    }

    fn invalid(&self, field: &str, index: usize, value: &SecretValue, problem: &str) -> Finding {
        invalid_value(
            self.namespace,
            &path(field, index),
            &value.secret_key_ref,
            problem,
        )
    }
}

fn path(field: &str, index: usize) -> String {
    format!("spec.webhook.verification.{field}[{index}].secretKeyRef")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        resolve::{Observed, Referrers, SecretName, SecretState, compile},
        routing::{InstallationQuotas, SourceKind},
    };

    /// Compiles a Source with this webhook, beside a Secret `hooks`; gives the kind, or the reason and the message.
    fn compiled(webhook: &Value) -> Result<SourceKind, (String, String)> {
        let source = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Source",
            "metadata": {"namespace": "shop", "name": "hook", "uid": "u", "generation": 1},
            "spec": {"webhook": webhook},
        });
        let secret = SecretState::Found {
            version: "v1".into(),
            values: [
                ("a", "s3cret\n"),
                ("empty", "\n"),
                ("key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned().into()))
            .into(),
            looked_for: None,
        };
        let name = SecretName {
            namespace: "shop".into(),
            name: "hooks".into(),
        };
        let observed = Observed {
            sources: vec![serde_json::from_value(source).unwrap()],
            secrets: [(name.clone(), secret)].into(),
            ..Observed::default()
        };
        let referrers = Referrers {
            sources: &observed.sources,
            ..Referrers::default()
        };
        assert!(referrers.secrets().into_keys().all(|named| named == name));
        let outcome = compile(&observed, "cluster.local", InstallationQuotas::default());
        let valid = &outcome.diagnoses.sources[0].valid;
        match outcome.configuration.sources.first() {
            Some(source) => Ok(source.kind.clone()),
            None => Err((valid.reason.to_owned(), valid.message.clone())),
        }
    }

    fn secrets(keys: &[&str]) -> Value {
        let value = |key| json!({"secretKeyRef": {"name": "hooks", "key": key}});
        keys.iter().map(value).collect()
    }

    #[test]
    fn each_verification_gets_its_secrets() {
        let secret = || vec![Secret::from("s3cret".to_owned())];
        let a = secrets(&["a"]);
        for (verification, expected) in [
            (
                json!({"github": {"secrets": a}}),
                Verification::GitHub { secrets: secret() },
            ),
            (
                json!({"gitlab": {"secrets": a}}),
                Verification::GitLab { secrets: secret() },
            ),
            (
                json!({"stripe": {"secrets": a}}),
                Verification::Stripe { secrets: secret() },
            ),
            (
                json!({"slack": {"secrets": a}}),
                Verification::Slack { secrets: secret() },
            ),
            (
                json!({"token": {"secrets": a}}),
                Verification::Token {
                    header: "Authorization".into(),
                    secrets: secret(),
                },
            ),
            (
                json!({"basic": {"username": "u", "passwords": a}}),
                Verification::Basic {
                    username: "u".into(),
                    secrets: secret(),
                },
            ),
            (
                json!({"hmac": {"header": "X-Sign", "algorithm": "SHA512", "encoding": "Base64", "secrets": a}}),
                Verification::Hmac(HmacVerification {
                    header: "X-Sign".into(),
                    prefix: String::new(),
                    algorithm: routing::HmacAlgorithm::Sha512,
                    encoding: routing::HmacEncoding::Base64,
                    secrets: secret(),
                }),
            ),
            (
                json!({"cloudEvents": {"allowedOrigins": ["eventgrid.azure.net"], "secrets": a}}),
                Verification::CloudEvents {
                    allowed_origins: vec!["eventgrid.azure.net".into()],
                    secrets: secret(),
                },
            ),
            (json!({"none": {}}), Verification::Nothing {}),
        ] {
            let found = compiled(&json!({"verification": verification}));
            let Ok(SourceKind::Webhook(webhook)) = found else {
                panic!("{verification}: {found:?}")
            };
            assert_eq!(webhook.verification, expected);
            assert_eq!(
                webhook.source,
                "/apis/weir.dev/v1alpha1/namespaces/shop/sources/hook"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let a = secrets(&["a"]);
        let github = json!({"github": {"secrets": a}});
        for (webhook, reason, part) in [
            (
                json!({"verification": {"github": {"secrets": secrets(&["a", "b"])}}}),
                "SecretKeyNotFound",
                "spec.webhook.verification.github.secrets[1].secretKeyRef: ",
            ),
            (
                json!({"verification": {"slack": {"secrets": secrets(&["empty"])}}}),
                "InvalidSecretValue",
                "is empty",
            ),
            (
                json!({"verification": {"standardWebhooks": {"keys": secrets(&["key", "a"])}}}),
                "InvalidSecretValue",
                "standardWebhooks.keys[1].secretKeyRef: ",
            ),
            (json!({"verification": {}}), "InvalidVerification", "exactly one"),
            (
                json!({"verification": {"github": {"secrets": a}, "none": {}}}),
                "InvalidVerification",
                "exactly one",
            ),
            (
                json!({"verification": github, "event": {"attributes": {"source": "a b"}}}),
                "InvalidEvent",
                "spec.webhook.event.attributes.source: ",
            ),
            (
                json!({"verification": github, "event": {"attributes": {"type": "t.${body.status"}}}),
                "InvalidEvent",
                "spec.webhook.event.attributes.type: column 3: ",
            ),
            (
                json!({"verification": github, "event": {"data": {"a": ["${message.x}"]}}}),
                "InvalidEvent",
                "spec.webhook.event.data.a[0]: column 3: there is no message: the variables are body",
            ),
            (
                json!({"verification": github, "event": {"attributes": {"weirhops": "1"}}}),
                "InvalidEvent",
                "spec.webhook.event.attributes: weirhops",
            ),
            (
                json!({"verification": github, "event": {}}),
                "InvalidEvent",
                "spec.webhook.event: ",
            ),
        ] {
            let (found, message) = compiled(&webhook).unwrap_err();
            assert_eq!(found, reason, "{webhook}: {message}");
            assert!(message.contains(part), "{message}");
            assert!(!message.contains("s3cret"), "{message}");
        }
    }
}
