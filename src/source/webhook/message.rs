//! Makes an event of a verified request. What a sender tells by its own conventions becomes attributes, as far as it is
//! there and valid; for GitHub as the adapter of the CloudEvents specification says. The body is the data, unchanged.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde_json::Value;

use super::sender::WebhookSender;
use crate::cloudevents::{Event, EventBuilder, Invalid};

/// `type` of events whose request names none.
const TYPE: &str = "dev.weir.webhook";

/// Maximum length of a text that a sender chooses, in bytes.
const MAX_TEXT: usize = 1024;

/// Returns the challenge that a request asks to have answered. Slack sends one when a URL is entered.
pub(super) fn challenge(sender: WebhookSender, body: &[u8]) -> Option<String> {
    if sender != WebhookSender::Slack {
        return None;
    }
    let message: Value = serde_json::from_slice(body).ok()?;
    (message["type"] == "url_verification").then_some(())?;
    Some(message["challenge"].as_str()?.to_owned())
}

/// Makes an event.
///
/// # Errors
/// If the attributes do not make a valid event.
pub(super) fn event(
    sender: WebhookSender,
    source: &str,
    headers: &HeaderMap,
    body: &Bytes,
    now: Timestamp,
    id: impl FnOnce() -> String,
) -> Result<Event, Invalid> {
    let content_type = text_of(headers, header::CONTENT_TYPE.as_str());
    let message = serde_json::from_slice(body).unwrap_or(Value::Null);
    let mut attributes = described(sender, headers, &message);
    attributes.retain(|_, value| is_usable(value));
    for (name, default) in [("type", TYPE), ("source", source)] {
        attributes.entry(name).or_insert_with(|| default.to_owned());
    }
    attributes.entry("time").or_insert_with(|| now.to_string());
    attributes.entry("id").or_insert_with(id);
    if let Some(content_type) = content_type {
        attributes.insert("datacontenttype", content_type);
    }
    let builder = attributes
        .into_iter()
        .fold(EventBuilder::new(), |builder, (name, value)| {
            builder.attribute(name, value)
        });
    builder.untyped_data(body.clone()).build()
}

/// Attributes by the conventions of the sender.
fn described(sender: WebhookSender, headers: &HeaderMap, message: &Value) -> BTreeMap<&'static str, String> {
    let pairs = match sender {
        WebhookSender::GitHub => github(headers, message),
        WebhookSender::GitLab => gitlab(headers, message),
        WebhookSender::Stripe => vec![
            ("id", text(&message["id"])),
            (
                "type",
                text(&message["type"]).map(|kind| format!("com.stripe.{kind}")),
            ),
            ("subject", text(&message["data"]["object"]["id"])),
            ("time", seconds(&message["created"])),
        ],
        WebhookSender::Slack => {
            let kind = text(&message["event"]["type"]).or_else(|| text(&message["type"]));
            vec![
                ("id", text(&message["event_id"])),
                ("type", kind.map(|kind| format!("com.slack.{kind}"))),
                ("subject", text(&message["event"]["channel"])),
                ("time", seconds(&message["event_time"])),
            ]
        }
        WebhookSender::StandardWebhooks => vec![
            ("id", text_of(headers, "webhook-id")),
            ("type", text(&message["type"])),
            ("time", time(&message["timestamp"])),
        ],
        // Their attributes are in the events.
        WebhookSender::CloudEvents | WebhookSender::Other => Vec::new(),
    };
    let known = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    known.collect()
}

fn github(headers: &HeaderMap, message: &Value) -> Vec<(&'static str, Option<String>)> {
    let kind = text_of(headers, "x-github-event");
    let detail = match kind.as_deref() {
        Some("create" | "delete") => text(&message["ref_type"]),
        _ => text(&message["action"]),
    };
    let kind = kind.map(|kind| match detail {
        Some(detail) => format!("com.github.{kind}.{detail}"),
        None => format!("com.github.{kind}"),
    });
    let numbered = ["issue", "pull_request"].map(|name| text(&message[name]["number"]));
    let subject = numbered.into_iter().flatten().next();
    let source = ["repository", "organization", "sender"].map(|name| text(&message[name]["url"]));
    vec![
        ("id", text_of(headers, "x-github-delivery")),
        ("type", kind),
        ("source", source.into_iter().flatten().next()),
        ("subject", subject.or_else(|| text(&message["ref"]))),
    ]
}

fn gitlab(headers: &HeaderMap, message: &Value) -> Vec<(&'static str, Option<String>)> {
    let about = &message["object_attributes"];
    let detail = text(&about["action"]).or_else(|| text(&about["status"]));
    let kind = text(&message["object_kind"]).map(|kind| match detail {
        Some(detail) => format!("com.gitlab.{kind}.{detail}"),
        None => format!("com.gitlab.{kind}"),
    });
    // The same for each attempt of a delivery; older versions have neither.
    let ids = ["idempotency-key", "x-gitlab-event-uuid"].map(|name| text_of(headers, name));
    vec![
        ("id", ids.into_iter().flatten().next()),
        ("type", kind),
        ("source", text(&message["project"]["web_url"])),
        ("subject", text(&about["iid"]).or_else(|| text(&message["ref"]))),
    ]
}

/// Whether the text can be an attribute: CloudEvents permits no control characters, and no empty text.
fn is_usable(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    is_usable(text).then(|| text.to_owned())
}

fn seconds(value: &Value) -> Option<String> {
    Some(Timestamp::from_second(value.as_i64()?).ok()?.to_string())
}

fn time(value: &Value) -> Option<String> {
    let time: Timestamp = value.as_str()?.parse().ok()?;
    Some(time.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(sender: WebhookSender, headers: &[(&'static str, &str)], body: &Value) -> [String; 4] {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let id = || "random".to_owned();
        let body = Bytes::from(body.to_string());
        let event = event(sender, "/default", &headers, &body, Timestamp::UNIX_EPOCH, id).unwrap();
        let subject = event
            .attribute("subject")
            .map(ToString::to_string)
            .unwrap_or_default();
        [
            event.id().to_owned(),
            event.r#type().to_owned(),
            event.source().to_owned(),
            subject,
        ]
    }

    #[test]
    fn attributes_are_those_that_the_sender_tells() {
        let repository = json!({"url": "https://api.github.com/repos/o/r"});
        for (sender, headers, body, expected) in [
            (
                WebhookSender::GitHub,
                &[("x-github-event", "issues"), ("x-github-delivery", "72d3162e")][..],
                json!({"action": "opened", "issue": {"number": 7}, "repository": repository}),
                [
                    "72d3162e",
                    "com.github.issues.opened",
                    "https://api.github.com/repos/o/r",
                    "7",
                ],
            ),
            (
                WebhookSender::GitHub,
                &[("x-github-event", "create"), ("x-github-delivery", "1")],
                json!({"ref_type": "tag", "ref": "v1", "repository": repository}),
                [
                    "1",
                    "com.github.create.tag",
                    "https://api.github.com/repos/o/r",
                    "v1",
                ],
            ),
            (
                WebhookSender::GitHub,
                &[("x-github-event", "ping")],
                json!({"zen": "Keep it logically awesome.", "hook_id": 1}),
                ["random", "com.github.ping", "/default", ""],
            ),
            (
                WebhookSender::GitLab,
                &[("idempotency-key", "f5e5f430")],
                json!({"object_kind": "merge_request", "object_attributes": {"iid": 3, "action": "merge"},
                       "project": {"web_url": "https://gitlab.example/o/r"}}),
                [
                    "f5e5f430",
                    "com.gitlab.merge_request.merge",
                    "https://gitlab.example/o/r",
                    "3",
                ],
            ),
            (
                WebhookSender::Stripe,
                &[],
                json!({"id": "evt_1", "type": "invoice.paid", "created": 1, "data": {"object": {"id": "in_1"}}}),
                ["evt_1", "com.stripe.invoice.paid", "/default", "in_1"],
            ),
            (
                WebhookSender::Slack,
                &[],
                json!({"type": "event_callback", "event_id": "Ev1", "event": {"type": "message", "channel": "C1"}}),
                ["Ev1", "com.slack.message", "/default", "C1"],
            ),
            (
                WebhookSender::StandardWebhooks,
                &[("webhook-id", "msg_1")],
                json!({"type": "user.created", "timestamp": "2026-01-01T00:00:00Z", "data": {}}),
                ["msg_1", "user.created", "/default", ""],
            ),
            // What is no text, or no valid attribute, is as if it were not there.
            (
                WebhookSender::Stripe,
                &[],
                json!({"id": {"a": 1}, "type": "a\nb", "created": "soon"}),
                ["random", TYPE, "/default", ""],
            ),
            (
                WebhookSender::Slack,
                &[],
                json!("text"),
                ["random", TYPE, "/default", ""],
            ),
            (
                WebhookSender::Other,
                &[("x-github-event", "push")],
                json!({"id": "1", "type": "t"}),
                ["random", TYPE, "/default", ""],
            ),
        ] {
            assert_eq!(made(sender, headers, &body), expected, "{sender:?} {body}");
        }
    }

    #[test]
    fn body_is_the_data_with_its_content_type() {
        let headers: HeaderMap = [(
            header::CONTENT_TYPE,
            "application/x-www-form-urlencoded".parse().unwrap(),
        )]
        .into_iter()
        .collect();
        let body = Bytes::from_static(b"payload=%7B%7D");
        let id = || "1".to_owned();
        let now = Timestamp::UNIX_EPOCH;
        let made = event(WebhookSender::Other, "/s", &headers, &body, now, id).unwrap();
        assert_eq!(made.data(), Some(crate::cloudevents::Data::Binary(body.clone())));
        assert_eq!(
            made.attribute("datacontenttype"),
            Some(&"application/x-www-form-urlencoded".into())
        );
        assert_eq!(made.attribute("time"), Some(&"1970-01-01T00:00:00Z".into()));
    }

    #[test]
    fn only_slack_sends_challenges() {
        let body = br#"{"token": "x", "challenge": "3eZbrw1a", "type": "url_verification"}"#;
        assert_eq!(challenge(WebhookSender::Slack, body), Some("3eZbrw1a".to_owned()));
        assert_eq!(challenge(WebhookSender::Other, body), None);
        assert_eq!(
            challenge(WebhookSender::Slack, br#"{"type": "event_callback"}"#),
            None
        );
    }
}
