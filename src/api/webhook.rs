//! The kind webhook of a Source.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretValue;

/// Requests of another system, each of which becomes an event. They are posted to /NAMESPACE/SOURCE at the routers' port
/// for webhooks; the status has the URL. The response is 202 once the event is durable. The body of a request is the
/// data of its event, unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSource {
    /// How a request proves who sent it. Others are rejected with 401.
    pub verification: WebhookVerification,

    /// Attributes of the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<WebhookEvent>,
}

/// How a request proves who sent it: exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.github), has(self.gitlab), has(self.stripe), has(self.slack), has(self.standardWebhooks), has(self.hmac), has(self.token), has(self.basic), has(self.none)].filter(set, set).size() == 1", "exactly one of github, gitlab, stripe, slack, standardWebhooks, hmac, token, basic and none must be set"))]
pub struct WebhookVerification {
    /// A webhook of GitHub, signed with its secret (X-Hub-Signature-256).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<WebhookSecrets>,

    /// A webhook of GitLab, with its secret token (X-Gitlab-Token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gitlab: Option<WebhookSecrets>,

    /// A webhook endpoint of Stripe, signed with its signing secret (Stripe-Signature).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripe: Option<WebhookSecrets>,

    /// An app of Slack, signed with its signing secret (X-Slack-Signature). The challenge that Slack sends when the URL is
    /// entered is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<WebhookSecrets>,

    /// A sender that signs by the Standard Webhooks specification (www.standardwebhooks.com).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_webhooks: Option<WebhookKeys>,

    /// Any sender that puts an HMAC of the body into a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<WebhookHmac>,

    /// Any sender that puts a secret token into a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<WebhookToken>,

    /// HTTP Basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<WebhookBasic>,

    /// No proof: everyone who reaches the port can send events to the broker, whatever producers its Broker lists. Write
    /// {} for senders that cannot do better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<NoVerification>,
}

/// Secrets of a sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSecrets {
    /// Secrets, each of which is accepted. While a secret is replaced, list the old and the new one.
    #[schemars(length(min = 1, max = 2))]
    pub secrets: Vec<SecretValue>,
}

/// Keys of a sender that signs by the Standard Webhooks specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookKeys {
    /// Keys: whsec_ followed by the base64 of 24 to 64 random bytes. A signature by any of them is accepted. While a key
    /// is replaced, list the old and the new one.
    #[schemars(length(min = 1, max = 2))]
    pub keys: Vec<SecretValue>,
}

/// An HMAC of the body in a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookHmac {
    /// Name of the header, such as X-Signature.
    #[schemars(schema_with = "super::schema::header_name")]
    pub header: String,

    /// Text before the HMAC in the header, such as sha256=. Default: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64), regex(pattern = r"^[ -~]*$"))]
    pub prefix: String,

    /// Hash function. Default: SHA256.
    #[serde(default)]
    pub algorithm: HmacAlgorithm,

    /// Encoding of the HMAC. Default: Hex.
    #[serde(default)]
    pub encoding: HmacEncoding,

    /// Secrets, each of which is accepted. While a secret is replaced, list the old and the new one.
    #[schemars(length(min = 1, max = 2))]
    pub secrets: Vec<SecretValue>,
}

/// Hash function of an HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HmacAlgorithm {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

/// Encoding of an HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HmacEncoding {
    /// Hexadecimal digits.
    #[default]
    Hex,
    /// Base64.
    Base64,
}

/// A secret token in a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookToken {
    /// Name of the header. In Authorization, the token follows Bearer. Default: Authorization.
    #[serde(default = "authorization")]
    #[schemars(schema_with = "super::schema::header_name")]
    pub header: String,

    /// Tokens, each of which is accepted. While a token is replaced, list the old and the new one.
    #[schemars(length(min = 1, max = 2))]
    pub secrets: Vec<SecretValue>,
}

/// HTTP Basic authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookBasic {
    /// User name.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[!-9;-~]+$"))]
    pub username: String,

    /// Passwords, each of which is accepted. While a password is replaced, list the old and the new one.
    #[schemars(length(min = 1, max = 2))]
    pub passwords: Vec<SecretValue>,
}

/// No proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoVerification {}

/// Attributes of the events of a webhook, in place of those that are made from the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookEvent {
    /// The type attribute. Default: by the sender, such as com.github.issues.opened; for senders without a convention
    /// dev.weir.webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub r#type: Option<String>,

    /// The source attribute, a URI-reference. Default: by the sender, such as the URL of the repository; else
    /// /apis/weir.dev/v1alpha1/namespaces/NAMESPACE/sources/NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub source: Option<String>,

    /// The subject attribute. Default: by the sender, such as the number of the issue; else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub subject: Option<String>,

    /// Extension attributes. Names consist of lower-case letters and digits. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$'))", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['id', 'source', 'type', 'specversion', 'time', 'subject', 'datacontenttype', 'dataschema', 'data'])", "id, source, type, specversion, time, subject, datacontenttype, dataschema and data are not extensions")
    )]
    pub extensions: BTreeMap<String, String>,
}

fn authorization() -> String {
    "Authorization".to_owned()
}
