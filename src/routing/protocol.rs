//! What routers and the controller say to each other over HTTP.
//!
//! A router asks `GET /v1/configuration?router=NAME&revision=APPLIED`. It is answered 200 with a [`Configuration`]
//! as soon as there is one of another revision, and 204 when there is none within [`POLL_TIMEOUT`]. Asking is also
//! the acknowledgement: the router routes by the revision that it names, or by none yet if that is empty.
//!
//! A router says which Sinks are down by `PUT /v1/routers/NAME/sinks` with a [`SinkReport`]: when that changes, and
//! again every [`REPORT_EVERY`], so that a controller that has forgotten learns it anew. It is answered 204, or 409
//! before the router has asked for the configuration. A report replaces the one before it, and is forgotten with a
//! router that no longer asks.
//!
//! Where the controller checks who asks, every request has `Authorization: Bearer` with a ServiceAccount token for the
//! audience [`TOKEN_AUDIENCE`]. It is answered 401 with a line of text when that is no router's, or is bound to a pod
//! of another name than the router's, and 503 when that cannot be found out.
//!
//! [`Configuration`]: super::Configuration

use std::time::Duration;

use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::Revision;

/// The audience of the tokens by which routers prove who they are; such a token is good for nothing else.
pub const TOKEN_AUDIENCE: &str = "weir-controller";

/// Where the controller answers routers.
pub const CONFIGURATION_PATH: &str = "/v1/configuration";

/// Where a router says which Sinks are down.
pub const SINKS_PATH: &str = "/v1/routers/{router}/sinks";

/// How long the controller holds a request when there is nothing new.
pub const POLL_TIMEOUT: Duration = Duration::from_secs(25);

/// How often a router tells of its Sinks when nothing has changed.
pub const REPORT_EVERY: Duration = Duration::from_secs(30);

/// How large a [`SinkReport`] may be, in bytes: enough for some ten thousand outages.
pub const MAX_REPORT: usize = 8 * 1024 * 1024;

/// How long a [`Detail`] may be, in bytes.
const MAX_DETAIL: usize = 256;

/// What a router says when it asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationQuery {
    /// The router's name.
    pub router: String,
    /// The revision that it has applied; empty before the first.
    #[serde(default)]
    pub revision: Revision,
}

impl ConfigurationQuery {
    /// As the query of a URI.
    pub fn encode(&self) -> String {
        let Self {
            router,
            revision: Revision(revision),
        } = self;
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        format!("router={}&revision={}", encode(router), encode(revision))
    }
}

/// Where the router of this name says which Sinks are down: [`SINKS_PATH`] with the name in its place.
pub fn sinks_path(router: &str) -> String {
    SINKS_PATH.replace(
        "{router}",
        &utf8_percent_encode(router, NON_ALPHANUMERIC).to_string(),
    )
}

/// What a router knows of its Triggers' Sinks. Of a Trigger that is not in it, the Sink answers, for better or worse.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkReport {
    /// The Sinks that keep failing or have asked for a long pause.
    pub down: Vec<SinkOutage>,
    /// The UIDs of Triggers whose Sink has not answered since the router started or the Sink was changed: nothing is
    /// said about it.
    #[serde(default)]
    pub unproven: Vec<String>,
    /// The Triggers whose filters ended in an error for some event, which then does not match.
    #[serde(default)]
    pub filter_errors: Vec<FilterError>,
    /// The UIDs of Triggers that went on, since the router started, where they or deleted ones of their names had been.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<String>,
    /// The Triggers whose filters are too expensive for too many events, and are not evaluated any more.
    #[serde(default)]
    pub set_aside: Vec<SetAside>,
}

/// A Trigger's events wait, since its filters are too expensive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAside {
    /// The UID of the Trigger.
    pub uid: String,
    /// The generation that the router routes by: another may have other filters.
    pub generation: i64,
}

/// A Trigger's filter ended in an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterError {
    /// The UID of the Trigger.
    pub uid: String,
    /// What the error was, the last time.
    pub detail: Detail,
}

/// A Sink is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkOutage {
    /// The UID of the Trigger that delivers to it.
    pub uid: String,
    /// When it was taken to be down.
    pub since: Timestamp,
    /// What came of the last attempt.
    pub detail: Detail,
}

/// What a Sink said, made fit to be shown: of bounded length, in one line, and without characters that would act on
/// a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Detail(String);

impl Detail {
    /// The text.
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
        for word in text.split(|character: char| character.is_whitespace() || acts(character)) {
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

/// Control characters, and those that change the direction of text or cannot be seen.
fn acts(character: char) -> bool {
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
    fn a_detail_is_one_clean_line() {
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
    fn a_detail_is_as_long_as_it_may_be() {
        let fits = "x".repeat(MAX_DETAIL);
        assert_eq!(Detail::from(&*fits).as_str(), fits);
        let cut = Detail::from("ü".repeat(MAX_DETAIL));
        assert!(cut.0.len() <= MAX_DETAIL && cut.0.ends_with("ü…"), "{cut:?}");
    }

    proptest! {
        #[test]
        fn what_is_clean_stays_as_it_is(text in any::<String>()) {
            let once = Detail::from(text);
            prop_assert!(once.0.len() <= MAX_DETAIL);
            prop_assert!(!once.0.chars().any(char::is_control));
            prop_assert_eq!(Detail::from(once.as_str()), once);
        }
    }

    #[test]
    fn what_comes_in_is_cleaned_too() {
        let report: SinkReport = serde_json::from_str(
            r#"{"down": [{"uid": "u", "since": "2026-01-01T00:00:00Z", "detail": "a\u001b[2Jb"}]}"#,
        )
        .unwrap();
        assert_eq!(report.down[0].detail.as_str(), "a [2Jb");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<SinkReport>(&json).unwrap(), report);
    }

    #[test]
    fn a_routers_name_stays_one_segment_of_the_path() {
        assert_eq!(sinks_path("router-0"), "/v1/routers/router%2D0/sinks");
        assert_eq!(sinks_path("a/../b"), "/v1/routers/a%2F%2E%2E%2Fb/sinks");
    }
}
