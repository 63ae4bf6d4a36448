//! Health of the servers that keep a log, as last seen. Pure.

use std::sync::Arc;

use super::LogName;

/// Health of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogHealth {
    /// The servers do not respond. What was last known of the streams may be wrong by now.
    Unavailable,
    /// The servers respond, with these streams.
    Available(Arc<[StreamHealth]>),
}

/// Health of one stream: the servers replicate and limit each log, and all checkpoints together, as a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHealth {
    /// Name, for the servers' own tools.
    pub name: String,
    /// Log in the stream; `None` for the checkpoints.
    pub log: Option<LogName>,
    /// Bytes at which the stream is full; `None` if it has no limit or no leader.
    pub max_bytes: Option<u64>,
    /// Replicas that are offline or behind. 0 without a leader: then nobody knows.
    pub replicas_missing: u64,
    /// Whether the stream has a leader. Without one, nothing can be appended.
    pub has_leader: bool,
}
