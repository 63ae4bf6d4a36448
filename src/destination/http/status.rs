//! Interprets the head of an HTTP answer. Pure.
//!
//! Follows the CloudEvents HTTP webhook specification 1.0, with the additional retries of Knative's data plane
//! contract.

use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::destination::verdict::{Blame, Verdict};

/// Maps a status code: 2xx delivers; 404, 408, 409, 429 and 5xx are retried; anything else is final, including
/// redirects and 410. 401 is final, too, unless credentials were sent: expired ones may be replaced.
pub(super) fn verdict(status: StatusCode, with_credentials: bool) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Delivered,
        401 if with_credentials => Verdict::Failed(Blame::Event),
        429 => Verdict::Failed(Blame::TooFast),
        502..=504 => Verdict::Failed(Blame::Unavailable),
        404 | 408 | 409 | 500..=599 => Verdict::Failed(Blame::Event),
        _ => Verdict::Rejected,
    }
}

/// Parses `Retry-After` (RFC 9110, 10.2.3): seconds, or a date in any of its three forms (5.6.7). An invalid value
/// is ignored.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_each_status() {
        let table = [
            (Verdict::Delivered, vec![200, 201, 202, 204, 299]),
            (Verdict::Failed(Blame::TooFast), vec![429]),
            (Verdict::Failed(Blame::Unavailable), vec![502, 503, 504]),
            (
                Verdict::Failed(Blame::Event),
                vec![404, 408, 409, 500, 501, 505, 599],
            ),
            (
                Verdict::Rejected,
                vec![301, 302, 307, 304, 400, 401, 403, 405, 410, 413, 415, 422],
            ),
        ];
        for (expected, codes) in table {
            for code in codes {
                let status = StatusCode::from_u16(code).unwrap();
                assert_eq!(verdict(status, false), expected, "{code}");
                let with_credentials = if code == 401 {
                    Verdict::Failed(Blame::Event)
                } else {
                    expected
                };
                assert_eq!(verdict(status, true), with_credentials, "{code}");
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:27:00 GMT").unwrap();
        let table = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(60)),
            ("Wednesday, 21-Oct-15 07:28:00 GMT", Some(60)),
            ("Wed Oct 21 07:28:00 2015", Some(60)),
            ("Wed, 21 Oct 2015 07:20:00 GMT", Some(0)),
            ("-5", None),
            ("soon", None),
            ("", None),
        ];
        for (value, expected) in table {
            assert_eq!(
                retry_after(value, now),
                expected.map(Duration::from_secs),
                "{value:?}"
            );
        }
    }
}
