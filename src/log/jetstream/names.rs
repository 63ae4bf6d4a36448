//! Names of streams and subjects. Namespaces and brokers are DNS labels, without `_` and `.`, so a name can be parsed
//! back; other characters are percent-encoded. Pure.
//!
//! | content | stream | subject |
//! | --- | --- | --- |
//! | events of a broker | `weir_NAMESPACE_BROKER` | `weir.ev.NAMESPACE.BROKER.PARTITION` |
//! | dead letters of a broker | `weir_NAMESPACE_BROKER_dl` | `weir.dl.NAMESPACE.BROKER` |
//! | checkpoints | `weir_state` | `weir.st.checkpoint.KEY` |
//! | owner of the checkpoints | `weir_state` | `weir.st.own` |
//! | state of a copy by `weir log copy` | `weir_state` | `weir.st.copy` |
//! | lease of the router that delivers | `weir_state` | `weir.st.lease` |
//! | newest time of a log that was trimmed to empty | `weir_state` | `weir.st.newest.STREAM` |
//! | barrier of a load | `weir_state` | `weir.st.barrier.UUID` |
//! | announcement of the end of a log to other routers | none | `weir.end.STREAM` |

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::log::{BrokerName, CheckpointKey, LogName};

/// The state stream.
pub(super) const STATE: &str = "weir_state";
/// Subjects of the state stream.
pub(super) const STATE_SUBJECTS: &str = "weir.st.>";
/// Subjects of the checkpoints.
pub(super) const CHECKPOINTS: &str = "weir.st.checkpoint.>";
/// Subject whose last sequence is the epoch of the owner.
pub(super) const OWNER: &str = "weir.st.own";
/// Subject of the lease; its message names the holder.
pub(super) const LEASE: &str = "weir.st.lease";
/// Subject of the state of a copy.
pub(super) const COPY: &str = "weir.st.copy";
/// Prefix of the subject that is written before checkpoints are loaded.
pub(super) const BARRIER: &str = "weir.st.barrier";
/// Subjects on which routers announce the ends of logs.
pub(super) const ENDS: &str = "weir.end.*";
/// All subjects of stored messages.
pub(super) const ALL: &str = "weir.>";

const STREAM: &str = "weir_";
const DEAD_LETTERS: &str = "dl";
const CHECKPOINT: &str = "weir.st.checkpoint.";
const NEWEST: &str = "weir.st.newest.";
const END: &str = "weir.end.";
/// Number of the only partition.
const PARTITION: u32 = 0;

/// Characters to percent-encode in a token.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-');

/// Stream and subject of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Name of the stream.
    pub(super) stream: String,
    /// Subject of its messages.
    pub(super) subject: String,
}

impl Location {
    pub(super) fn of(log: &LogName) -> Self {
        let (namespace, broker) = (token(log.broker().namespace()), token(log.broker().name()));
        match log {
            LogName::Events(_) => Self {
                stream: format!("{STREAM}{namespace}_{broker}"),
                subject: format!("weir.ev.{namespace}.{broker}.{PARTITION}"),
            },
            LogName::DeadLetters(_) => Self {
                stream: format!("{STREAM}{namespace}_{broker}_{DEAD_LETTERS}"),
                subject: format!("weir.dl.{namespace}.{broker}"),
            },
        }
    }
}

/// Returns the log of a stream; `None` for the state stream and foreign streams.
pub(super) fn log_of(stream: &str) -> Option<LogName> {
    let mut tokens = stream.strip_prefix(STREAM)?.split('_');
    let broker = BrokerName::new(&text(tokens.next()?)?, &text(tokens.next()?)?);
    match (tokens.next(), tokens.next()) {
        (None, _) => Some(LogName::Events(broker)),
        (Some(DEAD_LETTERS), None) => Some(LogName::DeadLetters(broker)),
        _ => None,
    }
}

pub(super) fn checkpoint(key: &CheckpointKey) -> String {
    format!("{CHECKPOINT}{}", token(&key.to_string()))
}

pub(super) fn checkpoint_key(subject: &str) -> Option<CheckpointKey> {
    let key = text(subject.strip_prefix(CHECKPOINT)?)?;
    Some(CheckpointKey::from_key(&key))
}

/// Subject of the newest time of a log that was trimmed to empty.
pub(super) fn newest(stream: &str) -> String {
    format!("{NEWEST}{stream}")
}

/// Subject of the announcements of a stream's end.
pub(super) fn end(stream: &str) -> String {
    format!("{END}{stream}")
}

/// Returns the stream whose end is announced on a subject.
pub(super) fn ended(subject: &str) -> Option<&str> {
    subject.strip_prefix(END)
}

fn token(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

fn text(token: &str) -> Option<String> {
    let text = percent_decode_str(token).decode_utf8().ok()?;
    Some(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_logs() {
        for (key, stream, subject) in [
            ("shop/orders", "weir_shop_orders", "weir.ev.shop.orders.0"),
            (
                "shop/orders.dead-letters",
                "weir_shop_orders_dl",
                "weir.dl.shop.orders",
            ),
            ("a-b/state", "weir_a-b_state", "weir.ev.a-b.state.0"),
            ("a_b/c.d*", "weir_a%5Fb_c%2Ed%2A", "weir.ev.a%5Fb.c%2Ed%2A.0"),
        ] {
            let name = LogName::from_key(key);
            let location = Location::of(&name);
            assert_eq!((&*location.stream, &*location.subject), (stream, subject));
            assert_eq!(log_of(stream), Some(name));
        }
        for other in [STATE, "weir_a_b_c", "weir_a_b_dl_x", "orders", ""] {
            assert_eq!(log_of(other), None, "{other}");
        }
    }

    #[test]
    fn subjects_lead_back_to_their_checkpoints() {
        for key in [
            "uid-1",
            "trigger:uid-1",
            "dead-letters:shop/orders",
            "running-time",
        ] {
            let key = CheckpointKey::from_key(key);
            let subject = checkpoint(&key);
            assert_eq!(subject.split('.').count(), 4, "{subject}");
            assert_eq!(checkpoint_key(&subject), Some(key));
        }
        assert_eq!(checkpoint_key(OWNER), None);
    }
}
