//! Requests to the JetStream API, as JSON. The types have only the fields that Weir uses.

use std::{collections::BTreeMap, time::Duration};

use async_nats::HeaderMap;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    names,
    session::{NatsError, Rejection, Session},
};
use crate::log::{LogBounds, Offset};

/// A stream, as reported by its leader.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    pub(super) state: StreamState,
    /// Creation time. Distinguishes a stream from a later one with the same name.
    pub(super) created: String,
    /// Replicas; `None` if the server is not part of a cluster.
    pub(super) cluster: Option<StreamCluster>,
}

/// Configuration of a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamConfig {
    pub(super) name: String,
    pub(super) num_replicas: u8,
    /// -1 if there is no limit.
    pub(super) max_bytes: i64,
    /// Nanoseconds for which ids are remembered.
    #[serde(default)]
    pub(super) duplicate_window: u64,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
}

/// State of a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
}

/// Servers with a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamCluster {
    pub(super) leader: Option<String>,
    /// All replicas except the leader.
    pub(super) replicas: Option<Vec<Replica>>,
}

/// A replica, as its leader sees it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Replica {
    /// ID of the server.
    pub(super) peer: String,
    /// Whether the replica was seen recently and has everything that a quorum has.
    pub(super) current: bool,
    #[serde(default)]
    pub(super) offline: bool,
    /// Nanoseconds since the replica was last seen.
    pub(super) active: u64,
}

impl StreamInfo {
    /// Returns the bounds as offsets, which begin at 0; sequences begin at 1.
    pub(super) fn bounds(&self) -> LogBounds {
        let StreamState {
            messages,
            first_seq,
            last_seq,
            ..
        } = self.state;
        LogBounds {
            first: Offset(match messages {
                0 => last_seq,
                _ => first_seq.saturating_sub(1),
            }),
            next: Offset(last_seq),
        }
    }
}

/// A message in an API response, with its content in base64.
#[derive(Deserialize)]
struct Encoded {
    seq: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    hdrs: String,
}

/// A message of a stream.
pub(super) struct StreamMessage {
    pub(super) sequence: u64,
    headers: String,
    pub(super) content: Bytes,
}

impl StreamMessage {
    /// Returns the value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(header, _)| *header == name);
        found.map(|(_, value)| value.trim())
    }
}

/// One page of the list of streams, which is ordered by name.
#[derive(Deserialize)]
#[serde(from = "StreamList")]
pub(super) struct StreamPage {
    /// Number of streams in the list.
    pub(super) total: usize,
    /// Streams by name, with `None` for those whose leader did not respond.
    pub(super) streams: BTreeMap<String, Option<StreamInfo>>,
}

#[derive(Deserialize)]
struct StreamNames {
    total: usize,
}

#[derive(Deserialize)]
struct StreamList {
    total: usize,
    streams: Option<Vec<StreamInfo>>,
    /// Names of streams without a response.
    missing: Option<Vec<String>>,
}

impl From<StreamList> for StreamPage {
    fn from(list: StreamList) -> Self {
        let mut streams = BTreeMap::new();
        // Without a leader, a stream is listed once for each replica.
        for info in list.streams.into_iter().flatten() {
            streams.entry(info.config.name.clone()).or_insert(Some(info));
        }
        // If all of its servers are offline, a stream is also listed, as if it were empty.
        for name in list.missing.into_iter().flatten() {
            streams.insert(name, None);
        }
        Self {
            total: list.total,
            streams,
        }
    }
}

#[derive(Deserialize)]
struct Answered {
    error: Option<Rejection>,
}

const STREAM_NOT_FOUND: u32 = 10059;
const NAME_IN_USE: u32 = 10058;
const NO_MESSAGE: u32 = 10037;

impl Session {
    /// Sends a request to the API.
    ///
    /// # Errors
    /// [`NatsError::Rejected`] if JetStream rejects the request; otherwise as [`Session::request`].
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        request: &str,
        body: &impl Serialize,
        wait: Duration,
    ) -> Result<T, NatsError> {
        let unexpected = |e: serde_json::Error| NatsError::Unexpected(format!("{request}: {e}"));
        let subject = format!("$JS.API.{request}");
        let body = serde_json::to_vec(body).map_err(unexpected)?;
        let answer = self
            .request(&subject, HeaderMap::new(), body.into(), wait)
            .await?;
        let Answered { error } = serde_json::from_slice(&answer.payload).map_err(unexpected)?;
        match error {
            Some(rejection) => Err(NatsError::Rejected(rejection)),
            None => serde_json::from_slice(&answer.payload).map_err(unexpected),
        }
    }

    /// Returns a stream; `None` if it does not exist.
    pub(super) async fn stream(&self, name: &str, wait: Duration) -> Result<Option<StreamInfo>, NatsError> {
        let info = self.api(&format!("STREAM.INFO.{name}"), &json!({}), wait).await;
        match info {
            Ok(info) => Ok(Some(info)),
            Err(NatsError::Rejected(rejection)) if rejection.err_code == STREAM_NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns a stream, and creates it if it does not exist.
    pub(super) async fn stream_or_new(
        &self,
        config: &serde_json::Value,
        wait: Duration,
    ) -> Result<StreamInfo, NatsError> {
        let name = config["name"].as_str().unwrap_or_default();
        if let Some(info) = self.stream(name, wait).await? {
            return Ok(info);
        }
        match self.api(&format!("STREAM.CREATE.{name}"), config, wait).await {
            // Another router has created it meanwhile, with other options.
            Err(
                error @ NatsError::Rejected(Rejection {
                    err_code: NAME_IN_USE,
                    ..
                }),
            ) => self.stream(name, wait).await?.ok_or(error),
            made => made,
        }
    }

    /// Returns a page of the list of all streams: those after the first `offset`.
    pub(super) async fn streams(&self, offset: usize, wait: Duration) -> Result<StreamPage, NatsError> {
        let body = json!({ "offset": offset, "subject": names::ALL });
        self.api("STREAM.LIST", &body, wait).await
    }

    /// Whether a stream has this subject. Its leader need not respond.
    pub(super) async fn has_stream(&self, subject: &str, wait: Duration) -> Result<bool, NatsError> {
        let names: StreamNames = self
            .api("STREAM.NAMES", &json!({ "subject": subject }), wait)
            .await?;
        Ok(names.total > 0)
    }

    /// Returns the content of a message: see [`Session::stored_message`].
    pub(super) async fn message(
        &self,
        stream: &str,
        which: &serde_json::Value,
        wait: Duration,
    ) -> Result<Option<Bytes>, NatsError> {
        let found = self.stored_message(stream, which, wait).await?;
        Ok(found.map(|found| found.content))
    }

    /// Returns a message from the leader of its stream, by its sequence (`seq`) or as the last of its subject
    /// (`last_by_subj`).
    pub(super) async fn stored_message(
        &self,
        stream: &str,
        which: &serde_json::Value,
        wait: Duration,
    ) -> Result<Option<StreamMessage>, NatsError> {
        #[derive(Deserialize)]
        struct OneMessage {
            message: Encoded,
        }
        let found = self.api(&format!("STREAM.MSG.GET.{stream}"), which, wait).await;
        let OneMessage { message } = match found {
            Err(NatsError::Rejected(rejection)) if rejection.err_code == NO_MESSAGE => return Ok(None),
            found => found?,
        };
        let decode = |text: String| {
            let decoded = BASE64_STANDARD.decode(text);
            decoded.map_err(|e| NatsError::Unexpected(e.to_string()))
        };
        Ok(Some(StreamMessage {
            sequence: message.seq,
            headers: String::from_utf8_lossy(&decode(message.hdrs)?).into_owned(),
            content: decode(message.data)?.into(),
        }))
    }

    /// Removes the messages below a sequence.
    pub(super) async fn purge(&self, name: &str, below: u64, wait: Duration) -> Result<(), NatsError> {
        let request = format!("STREAM.PURGE.{name}");
        let _: serde_json::Value = self.api(&request, &json!({ "seq": below }), wait).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str, messages: u64) -> serde_json::Value {
        json!({
            "config": { "name": name, "num_replicas": 3, "max_bytes": -1 },
            "state": { "messages": messages, "bytes": 0, "first_seq": 1, "last_seq": messages },
            "created": "2026-11-30T00:00:00Z",
        })
    }

    #[test]
    fn a_page_has_each_stream_once() {
        let page = json!({
            "total": 5,
            "streams": [stream("a", 1), stream("b", 2), stream("b", 1), stream("c", 0)],
            "missing": ["c", "d"],
        });
        let page: StreamPage = serde_json::from_value(page).unwrap();
        assert_eq!(page.total, 5);
        let messages = |info: StreamInfo| info.state.messages;
        let streams = page.streams.into_iter();
        let streams: Vec<_> = streams.map(|(name, info)| (name, info.map(messages))).collect();
        let expected = [("a", Some(1)), ("b", Some(2)), ("c", None), ("d", None)];
        assert_eq!(streams, expected.map(|(name, info)| (name.to_owned(), info)));
        let empty: StreamPage = serde_json::from_value(json!({ "total": 0, "streams": null })).unwrap();
        assert!(empty.streams.is_empty());
    }
}
