//! The HTTP protocol between routers and the controller.
//!
//! A router polls `GET /v1/configuration?router=NAME&revision=APPLIED`. The response is 200 with a
//! [`Configuration`] as soon as there is one with a different revision, or 204 if there is none within
//! [`POLL_TIMEOUT`]. The request is also the acknowledgement: the router routes by the revision it names, or by
//! none yet if it is empty.
//!
//! A router that ends, and whose work the other routers take over, says so by `DELETE /v1/routers/NAME`.
//!
//! A router reports failing Sinks, and what its Sources do, by `PUT /v1/routers/NAME/sinks` with a [`SinkReport`]: when
//! the report changes, and every [`REPORT_EVERY`], so that a restarted controller learns it again. The response is 204,
//! or 409 if the router has not polled yet. A report replaces the previous one, and is dropped when the router stops
//! polling.
//!
//! A router asks whether an operator may do something by `POST /v1/routers/NAME/access-reviews`; see
//! [`AccessReview`].
//!
//! If the controller authenticates callers, every request carries `Authorization: Bearer` with a ServiceAccount
//! token for the audience [`TOKEN_AUDIENCE`]. The response is 401 with a line of text if the token is not a
//! router's, or is bound to a pod with a different name than the router's; and 503 if this cannot be determined.
//!
//! [`Configuration`]: super::Configuration
//! [`AccessReview`]: super::AccessReview

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::Revision;

/// Audience of the tokens that authenticate routers. A token for it is not valid for anything else.
pub const TOKEN_AUDIENCE: &str = "weir-controller";

/// Path of the configuration endpoint.
pub const CONFIGURATION_PATH: &str = "/v1/configuration";

/// Path of a router.
pub const ROUTER_PATH: &str = "/v1/routers/{router}";

/// Path for reports on failing Sinks.
pub const SINKS_PATH: &str = "/v1/routers/{router}/sinks";

/// Time for which the controller holds a poll without news.
pub const POLL_TIMEOUT: Duration = Duration::from_secs(25);

/// Interval at which a router repeats an unchanged report.
pub const REPORT_EVERY: Duration = Duration::from_secs(30);

/// Time for which a router reports a broker after the last rejection of its producers.
pub const OVER_QUOTA_FOR: Duration = Duration::from_secs(60);

/// Time for which a webhook has to accept no request before its rejections count as a [failure](SourceReport::failure):
/// others can send forged requests between those of the sender.
pub const REJECTS_FOR: SignedDuration = SignedDuration::from_secs(60);

/// Maximum size of a [`SinkReport`], in bytes: enough for some ten thousand outages.
pub const MAX_REPORT: usize = 8 * 1024 * 1024;

/// Maximum length of a [`Detail`], in bytes.
const MAX_DETAIL: usize = 256;

/// Query parameters of a poll.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationQuery {
    /// Name of the router.
    pub router: String,
    /// Revision that it has applied; empty before the first.
    #[serde(default)]
    pub revision: Revision,
}

impl ConfigurationQuery {
    /// Encodes it as the query of a URI.
    pub fn encode(&self) -> String {
        let Self {
            router,
            revision: Revision(revision),
        } = self;
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        format!("router={}&revision={}", encode(router), encode(revision))
    }
}

/// Returns [`ROUTER_PATH`] with the name filled in.
pub fn router_path(router: &str) -> String {
    with_name(ROUTER_PATH, router)
}

/// Returns the path for this router's reports: [`SINKS_PATH`] with the name filled in.
pub fn sinks_path(router: &str) -> String {
    with_name(SINKS_PATH, router)
}

/// Returns a path with a router's name filled in.
pub(super) fn with_name(path: &str, router: &str) -> String {
    path.replace(
        "{router}",
        &utf8_percent_encode(router, NON_ALPHANUMERIC).to_string(),
    )
}

/// A router's view of its Triggers' Sinks. For a Trigger that is not listed, the Sink responds, with success or
/// failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkReport {
    /// Revision that the router routes by, empty before the first: the report says nothing about Triggers that came
    /// later.
    #[serde(default, skip_serializing_if = "Revision::is_none")]
    pub revision: Revision,
    /// Sinks that keep failing or have asked for a long pause.
    pub down: Vec<SinkOutage>,
    /// UIDs of Triggers whose Sink has not responded since the router started or the Sink was changed, so that its
    /// state is unknown.
    #[serde(default)]
    pub unproven: Vec<String>,
    /// UIDs of Triggers whose Sink has responded for a partition that this router delivers. Other routers, which
    /// deliver other partitions, may have had no event for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proven: Vec<String>,
    /// Triggers whose filters failed with an error for some event, which then did not match.
    #[serde(default)]
    pub filter_errors: Vec<FilterError>,
    /// UIDs of Triggers that, since the router started, resumed from their own position or that of a deleted
    /// Trigger with their name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<String>,
    /// Triggers whose filters exceeded the budget for too many events, and are no longer evaluated.
    #[serde(default)]
    pub set_aside: Vec<SetAside>,
    /// UIDs of Triggers whose events no router delivers at present, as this router sees it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undelivered: Vec<String>,
    /// Why this router takes no part in delivery at present, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Detail>,
    /// Brokers whose number of partitions differs from their Broker's, because they were in use before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_partitions: Vec<OtherPartitions>,
    /// Brokers whose producers were rejected within the last [`OVER_QUOTA_FOR`], because their quota, or the namespace's
    /// share of the router's log, is used up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over_quota: Vec<OverQuota>,
    /// What brokers that have a Broker hold in the router's embedded log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub usage: Vec<BrokerUsage>,
    /// UIDs of the Brokers, Triggers and Sources of the applied configuration that the router cannot decode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecodable: Vec<String>,
    /// Sources that run at this router, and those of which it has seen anything. `None` from a router of a version that
    /// does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<SourceReport>>,
    /// Name of the only router that runs Sources, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources_router: Option<String>,
}

/// What a router has seen of a Source since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceReport {
    /// UID of the Source.
    pub uid: String,
    /// Whether it runs at this router. Webhooks do not run: every router serves them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runs: bool,
    /// Time at which its last event was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Timestamp>,
    /// Time at which something last went well, with an event or without: a request was verified and not rejected, or a
    /// scheduled time was settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
    /// Why events do not come at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<SourceFailure>,
    /// The last request that was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rejection: Option<SourceRejection>,
    /// Oldest scheduled time that is due and has no event yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
}

/// Why the events of a Source do not come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceFailure {
    /// What failed.
    pub cause: SourceFailureCause,
    /// Time of the last failure.
    pub at: Timestamp,
    /// What is wrong.
    pub detail: Detail,
}

/// What fails at a Source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceFailureCause {
    /// Proof of the sender, and no request had any: they may be anybody's, and tell nothing about the sender.
    Unsigned,
    /// Proof of the sender.
    Verification,
    /// Making an event, or its filters.
    Event,
    /// Storing the event.
    Storage,
    /// The Source has ended.
    Ended,
    /// A cause that this version does not know.
    #[serde(other)]
    Other,
}

/// A request that a Source rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRejection {
    /// Time of the request.
    pub at: Timestamp,
    /// Reason, as in the metrics.
    pub reason: Detail,
    /// What is wrong with it.
    pub detail: Detail,
}

/// A broker whose number of partitions is not that of its Broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherPartitions {
    /// UID of the Broker.
    pub uid: String,
    /// Number of partitions that the broker has.
    pub partitions: u16,
}

/// A broker whose producers are rejected because a quota is used up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverQuota {
    /// UID of the Broker.
    pub uid: String,
    /// Name of the Trigger of its namespace that holds most of the log, if any does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// Whether it is the broker's own quota, and not the namespace's share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_broker: bool,
    /// Whether the namespace has too many brokers in the log, and not too many bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub too_many_brokers: bool,
}

/// Unsettled events of a broker in a router's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerUsage {
    /// UID of the Broker.
    pub uid: String,
    /// Number of events from the first one on that some Trigger has not settled.
    pub events: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
    /// Bytes that they may take: the broker's quota, or else the namespace's share at present.
    pub limit: u64,
}

impl BrokerUsage {
    /// How full the quota or the share is, in percent.
    pub fn percent(&self) -> u8 {
        let percent = u128::from(self.bytes) * 100 / u128::from(self.limit.max(1));
        u8::try_from(percent.min(100)).unwrap_or(100)
    }
}

/// A Trigger whose events wait because its filters are too expensive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAside {
    /// UID of the Trigger.
    pub uid: String,
    /// Generation that the router routes by. Another generation may have other filters.
    pub generation: i64,
}

/// An evaluation error of a Trigger's filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterError {
    /// UID of the Trigger.
    pub uid: String,
    /// The last error.
    pub detail: Detail,
}

/// A Sink that is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkOutage {
    /// UID of the Trigger that delivers to it.
    pub uid: String,
    /// Start of the outage.
    pub since: Timestamp,
    /// Outcome of the last attempt.
    pub detail: Detail,
}

/// Sanitized text from a Sink: bounded in length, on one line, and without terminal control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Detail(String);

impl Detail {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&str> for Detail {
    fn from(text: &str) -> Self {
        const MARK: char = '…';
        let mut clean = String::new();
        for word in text.split(|character: char| character.is_whitespace() || is_invisible(character)) {
            if word.is_empty() {
                continue;
            }
            if !clean.is_empty() {
                clean.push(' ');
            }
            clean.push_str(word);
            if clean.len() > MAX_DETAIL {
                clean.truncate(clean.floor_char_boundary(MAX_DETAIL - MARK.len_utf8()));
                clean.push(MARK);
                break;
            }
        }
        Self(clean)
    }
}

/// Whether a character is a control, bidirectional or invisible character.
fn is_invisible(character: char) -> bool {
    let hidden = matches!(
        character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    character.is_control() || hidden
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn detail_is_a_single_line_without_control_characters() {
        let table = [
            ("503 Service Unavailable", "503 Service Unavailable"),
            ("a\r\n\tb\u{0}c", "a b c"),
            ("\u{1b}[31mred\u{1b}[0m", "[31mred [0m"),
            ("\u{9b}31m", "31m"),
            ("pay\u{202e}gnp.exe", "pay gnp.exe"),
            ("  Zürich\u{2028}\u{2029} 東京 ", "Zürich 東京"),
            ("\n", ""),
        ];
        for (text, clean) in table {
            assert_eq!(Detail::from(text).as_str(), clean, "{text:?}");
        }
    }

    #[test]
    fn truncates_detail_to_the_maximum_length() {
        let fits = "x".repeat(MAX_DETAIL);
        assert_eq!(Detail::from(&*fits).as_str(), fits);
        let cut = Detail::from("ü".repeat(MAX_DETAIL));
        assert!(cut.0.len() <= MAX_DETAIL && cut.0.ends_with("ü…"), "{cut:?}");
    }

    proptest! {
        #[test]
        fn leaves_clean_text_unchanged(text in any::<String>()) {
            let once = Detail::from(text);
            prop_assert!(once.0.len() <= MAX_DETAIL);
            prop_assert!(!once.0.chars().any(char::is_control));
            prop_assert_eq!(Detail::from(once.as_str()), once);
        }
    }

    #[test]
    fn deserializing_sanitizes() {
        let report: SinkReport = serde_json::from_str(
            r#"{"down": [{"uid": "u", "since": "2026-01-01T00:00:00Z", "detail": "a\u001b[2Jb"}]}"#,
        )
        .unwrap();
        assert_eq!(report.down[0].detail.as_str(), "a [2Jb");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<SinkReport>(&json).unwrap(), report);
    }

    #[test]
    fn reports_of_older_and_newer_routers_are_read() {
        let report: SinkReport = serde_json::from_str(r#"{"down": []}"#).unwrap();
        assert_eq!(report.sources, None);
        let newer = r#"{"down": [], "sources": [
            {"uid": "u", "runs": true, "of": "tomorrow",
             "failure": {"cause": "novel", "at": "2026-01-01T00:00:00Z", "detail": "x\ny"}}]}"#;
        let report: SinkReport = serde_json::from_str(newer).unwrap();
        let source = &report.sources.unwrap()[0];
        let failure = source.failure.as_ref().unwrap();
        assert_eq!(
            (source.runs, failure.cause, failure.detail.as_str()),
            (true, SourceFailureCause::Other, "x y")
        );
    }

    #[test]
    fn router_name_stays_a_single_path_segment() {
        assert_eq!(router_path("router-0"), "/v1/routers/router%2D0");
        assert_eq!(sinks_path("router-0"), "/v1/routers/router%2D0/sinks");
        assert_eq!(sinks_path("a/../b"), "/v1/routers/a%2F%2E%2E%2Fb/sinks");
    }
}
