//! The kind webhook of a Source.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SecretValue;

/// Requests of another system, each of which becomes an event. They are posted to /NAMESPACE/SOURCE at the routers' port
/// for webhooks; the status has the URL. The response is 202 once the event is durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSource {
    /// How a request proves who sent it. Others are rejected with 401.
    pub verification: WebhookVerification,

    /// How the event of a request is made. Default: attributes by the conventions of the sender, and the body as the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<WebhookEvent>,
}

/// How a request proves who sent it: exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.github), has(self.gitlab), has(self.stripe), has(self.slack), has(self.standardWebhooks), has(self.hmac), has(self.token), has(self.basic), has(self.cloudEvents), has(self.none)].filter(set, set).size() == 1", "exactly one of github, gitlab, stripe, slack, standardWebhooks, hmac, token, basic, cloudEvents and none must be set"))]
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

    /// A sender of CloudEvents by the webhook specification of CloudEvents, such as Azure Event Grid. The events keep their
    /// attributes and their data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_events: Option<WebhookCloudEvents>,

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

/// A sender by the specification "HTTP 1.1 Web Hooks for Event Delivery" of CloudEvents, with a bearer token in the header
/// Authorization or in the query parameter access_token. Before it sends, it asks for permission by a request with the method
/// OPTIONS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookCloudEvents {
    /// Names of the senders that get permission, as they call themselves in WebHook-Request-Origin, for example
    /// eventgrid.azure.net, or * for all. It is no proof of who sends. At most 16.
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^(\*|[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?)$")
        )
    )]
    pub allowed_origins: Vec<String>,

    /// Tokens, each of which is accepted. While a token is replaced, list the old and the new one.
    #[schemars(length(min = 1, max = 2))]
    pub secrets: Vec<SecretValue>,
}

/// No proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoVerification {}

/// How the event of a request is made, in place of what the conventions of the sender say. Values may contain
/// ${EXPRESSION}, a CEL expression as in a cel filter; $${ stands for the text ${. The variables are body, the body (of
/// CloudEvents, the data of the event) as JSON, as the fields of a form, or as text; request, with headers (names in lower case), query, path and received; and event, the
/// event as it would be without these fields. A request for which an expression fails is rejected with 422.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookEvent {
    /// Context attributes and extensions, with their values, for example type: com.example.alert.${body.status}. All but
    /// specversion, traceparent, tracestate and names that begin with weir can be set. An extension that is exactly one
    /// ${EXPRESSION} may be a Boolean or an integer of 32 bits; every other value is text. At most 32. Default: by the
    /// sender, such as type com.github.issues.opened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$') && name != 'data')", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['specversion', 'traceparent', 'tracestate'] || name.startsWith('weir'))", "specversion, traceparent, tracestate and names that begin with weir cannot be set")
    )]
    pub attributes: BTreeMap<String, String>,

    /// Data: a template of any JSON value, as in a Trigger's transform. For example:
    ///   data:
    ///     alert: ${body.commonLabels.alertname}
    ///     pods: ${body.alerts.map(a, a.labels.pod)}
    /// Default: the body, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::any_json")]
    pub data: Option<Value>,
}

fn authorization() -> String {
    "Authorization".to_owned()
}
