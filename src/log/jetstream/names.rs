//! Names of streams and subjects. Namespaces and brokers are DNS labels, without `_` and `.`, so a name can be parsed
//! back; other characters are percent-encoded. Pure.
//!
//! | content | stream | subject |
//! | --- | --- | --- |
//! | events of a broker | `weir_NAMESPACE_BROKER` | `weir.ev.NAMESPACE.BROKER.0` |
//! | dead letters of a broker | `weir_NAMESPACE_BROKER_dl` | `weir.dl.NAMESPACE.BROKER` |
//! | checkpoints of a shard | `weir_state` | `weir.st.checkpoint.SHARD.KEY` |
//! | owner of a shard | `weir_state` | `weir.st.own.SHARD` |
//! | lease of a router | `weir_state` | `weir.st.member.ROUTER` |
//! | lease of a copy by `weir log copy` | `weir_state` | `weir.st.copying` |
//! | state of a copy | `weir_state` | `weir.st.copy` |
//! | number of partitions of a broker | `weir_state` | `weir.st.partitions.NAMESPACE.BROKER` |
//! | newest time of a log that was trimmed to empty | `weir_state` | `weir.st.newest.STREAM` |
//! | events of a log that were stored and then refused | `weir_state` | `weir.st.refused.STREAM` |
//! | barrier of a load | `weir_state` | `weir.st.barrier.UUID` |
//! | announcement of the end of a log to other routers | none | `weir.end.STREAM` |
//! | announcement of changed owners | none | `weir.end.owners` |
//! | questions to a router | none | `weir.ask.ROUTER` |

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::log::{BrokerName, CheckpointKey, LogName, Shard};

/// Number of shards. Checkpoints are stored by shard, so this must never change. Divides evenly among 1, 2, 3, 4, 6, 8 or
/// 12 routers.
pub const SHARDS: u16 = 24;

/// The state stream.
pub(super) const STATE: &str = "weir_state";
/// Subjects of the state stream.
pub(super) const STATE_SUBJECTS: &str = "weir.st.>";
/// Subjects of the leases of routers.
pub(super) const MEMBERS: &str = "weir.st.member.*";
/// Subjects of the owners of shards.
pub(super) const OWNERS: &str = "weir.st.own.*";
/// Subject of the lease of a copy.
pub(super) const COPYING: &str = "weir.st.copying";
/// Subject of the state of a copy.
pub(super) const COPY: &str = "weir.st.copy";
/// Subjects of the numbers of partitions.
pub(super) const PARTITIONS: &str = "weir.st.partitions.*.*";
/// Prefix of the subject that is written before checkpoints are loaded.
pub(super) const BARRIER: &str = "weir.st.barrier";
/// Subjects on which routers announce the ends of logs.
pub(super) const ENDS: &str = "weir.end.*";
/// Subjects of the questions to routers.
pub(super) const QUESTIONS: &str = "weir.ask.*";
/// Subject on which routers announce changed owners. No stream of a log has this name.
pub(super) const OWNERS_CHANGED: &str = "weir.end.owners";
/// All subjects of stored messages.
pub(super) const ALL: &str = "weir.>";

const STREAM: &str = "weir_";
const DEAD_LETTERS: &str = "dl";
const CHECKPOINT: &str = "weir.st.checkpoint.";
const MEMBER: &str = "weir.st.member.";
const OWNER: &str = "weir.st.own.";
const NEWEST: &str = "weir.st.newest.";
const REFUSED: &str = "weir.st.refused.";
const END: &str = "weir.end.";
const ASK: &str = "weir.ask.";
const PARTITIONS_OF: &str = "weir.st.partitions.";

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
                subject: format!("weir.ev.{namespace}.{broker}.0"),
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

/// Subject of questions to a router.
pub(super) fn ask(router: &str) -> String {
    format!("{ASK}{}", token(router))
}

/// Subject of a router's lease.
pub(super) fn member(router: &str) -> String {
    format!("{MEMBER}{}", token(router))
}

/// Returns the router of a lease.
pub(super) fn member_of(subject: &str) -> Option<String> {
    text(subject.strip_prefix(MEMBER)?)
}

/// Subject whose last message names the owner of a shard, and whose last sequence is the owner's epoch.
pub(super) fn owner(shard: Shard) -> String {
    format!("{OWNER}{shard}")
}

/// Returns the shard of an owner's subject.
pub(super) fn owned_shard(subject: &str) -> Option<Shard> {
    subject.strip_prefix(OWNER)?.parse().ok().map(Shard)
}

/// Subjects of the checkpoints of a shard.
pub(super) fn checkpoints(shard: Shard) -> String {
    format!("{CHECKPOINT}{shard}.*")
}

/// Subjects of the checkpoints of all shards.
pub(super) fn checkpoints_of_all() -> String {
    format!("{CHECKPOINT}>")
}

/// Subjects of the checkpoints with this key, of all shards.
pub(super) fn checkpoint_of_all(key: &CheckpointKey) -> String {
    format!("{CHECKPOINT}*.{}", token(&key.to_string()))
}

pub(super) fn checkpoint(shard: Shard, key: &CheckpointKey) -> String {
    format!("{CHECKPOINT}{shard}.{}", token(&key.to_string()))
}

pub(super) fn checkpoint_key(subject: &str) -> Option<(Shard, CheckpointKey)> {
    let (shard, key) = subject.strip_prefix(CHECKPOINT)?.split_once('.')?;
    Some((Shard(shard.parse().ok()?), CheckpointKey::from_key(&text(key)?)))
}

/// Subject of the number of partitions of a broker.
pub(super) fn partitions(broker: &BrokerName) -> String {
    let (namespace, name) = (token(broker.namespace()), token(broker.name()));
    format!("{PARTITIONS_OF}{namespace}.{name}")
}

/// Returns the broker whose number of partitions has this subject.
pub(super) fn partitioned_broker(subject: &str) -> Option<BrokerName> {
    let (namespace, name) = subject.strip_prefix(PARTITIONS_OF)?.split_once('.')?;
    Some(BrokerName::new(&text(namespace)?, &text(name)?))
}

/// Subject of the newest time of a log that was trimmed to empty.
pub(super) fn newest(stream: &str) -> String {
    format!("{NEWEST}{stream}")
}

/// Subject of the events of a stream that were refused.
pub(super) fn refused(stream: &str) -> String {
    format!("{REFUSED}{stream}")
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
            let subject = checkpoint(Shard(7), &key);
            assert_eq!(subject.split('.').count(), 5, "{subject}");
            assert_eq!(checkpoint_key(&subject), Some((Shard(7), key)));
        }
        assert_eq!(checkpoint_key(&owner(Shard(7))), None);
    }

    #[test]
    fn subjects_lead_back_to_partitioned_brokers() {
        for broker in ["shop/orders", "a_b/c.d*"] {
            let broker = BrokerName::from(broker);
            let subject = partitions(&broker);
            assert_eq!(subject.split('.').count(), 5, "{subject}");
            assert_eq!(partitioned_broker(&subject), Some(broker));
        }
        assert_eq!(partitioned_broker(&owner(Shard(7))), None);
    }

    #[test]
    fn subjects_lead_back_to_routers_and_shards() {
        for router in ["weir-router-0", "host.example/17", "a b*"] {
            let subject = member(router);
            assert_eq!(subject.split('.').count(), 4, "{subject}");
            assert_eq!(member_of(&subject).as_deref(), Some(router));
        }
        assert_eq!(owned_shard(&owner(Shard(23))), Some(Shard(23)));
        assert_eq!(owned_shard(&member("weir-router-0")), None);
    }
}
