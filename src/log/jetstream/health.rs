//! Health of the servers and streams, as the polls of all streams show it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    api::{Replica, StreamCluster, StreamInfo},
    names,
};
use crate::log::{LogHealth, StreamHealth};

/// Time after the last response for which NATS counts as available. Electing the server that responds takes up to 8
/// seconds, and a request that was lost with the one before times out after 10.
const AVAILABLE_FOR: Duration = Duration::from_secs(15);
/// Time without contact after which a replica is missing. A server that was killed is reported as offline only after 150
/// seconds.
const UNSEEN: Duration = Duration::from_secs(10);
/// Time for which a replica must be behind in every poll to be missing. Under load, a healthy replica was behind by a few
/// records in half of the polls.
const BEHIND: Duration = Duration::from_secs(60);
/// Maximum number of streams named in one log line.
const NAMED: usize = 10;

/// Replicas that are behind, by stream and server, with the time of the first poll that showed it.
type BehindSince = BTreeMap<(String, String), Instant>;

/// The health of the servers as of the last poll.
#[derive(Default)]
pub(super) struct ServerHealth(Mutex<Polled>);

#[derive(Default)]
struct Polled {
    /// Time of the last response.
    responded: Option<Instant>,
    streams: Arc<[StreamHealth]>,
    behind: BehindSince,
}

impl ServerHealth {
    /// Notes a response to a poll.
    pub(super) fn responded(&self, now: Instant) {
        self.polled().responded = Some(now);
    }

    /// Notes the result of a poll: all streams, with `None` for those whose leader did not respond. Logs which streams
    /// have no leader, if they have changed.
    pub(super) fn update(&self, streams: &BTreeMap<String, Option<StreamInfo>>, now: Instant) {
        let mut polled = self.polled();
        let before = std::mem::take(&mut polled.behind);
        let ours = streams.iter().filter_map(|(name, info)| {
            let log = names::log_of(name);
            (log.is_some() || name == names::STATE).then_some((name, log, info))
        });
        let streams = ours.map(|(name, log, info)| {
            let info = info.as_ref().filter(|info| has_leader(info));
            let missing = info.map(|info| replicas_missing(info, &before, &mut polled.behind, now));
            StreamHealth {
                name: name.clone(),
                log,
                max_bytes: info.and_then(|info| u64::try_from(info.config.max_bytes).ok()),
                replicas_missing: missing.unwrap_or_default(),
                has_leader: info.is_some(),
            }
        });
        let streams = streams.collect();
        let earlier = std::mem::replace(&mut polled.streams, streams);
        report_without_leader(&earlier, &polled.streams);
    }

    /// Returns the health of the servers.
    pub(super) fn get(&self, is_connected: bool, now: Instant) -> LogHealth {
        let polled = self.polled();
        match polled.responded {
            Some(responded) if is_connected && now - responded < AVAILABLE_FOR => {
                LogHealth::Available(polled.streams.clone())
            }
            _ => LogHealth::Unavailable,
        }
    }

    fn polled(&self) -> MutexGuard<'_, Polled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a stream has a leader. A server that runs alone reports no cluster.
fn has_leader(info: &StreamInfo) -> bool {
    info.cluster
        .as_ref()
        .is_none_or(|cluster| cluster.leader.is_some())
}

/// Counts the replicas of a stream that are missing, and adds those that are behind to `behind`. Its leader reports the
/// others.
fn replicas_missing(info: &StreamInfo, before: &BehindSince, behind: &mut BehindSince, now: Instant) -> u64 {
    let Some(StreamCluster { replicas, .. }) = &info.cluster else {
        return 0;
    };
    let mut present = 1;
    for Replica {
        peer,
        current,
        offline,
        active,
    } in replicas.iter().flatten()
    {
        if *current && !offline {
            present += 1;
            continue;
        }
        let key = (info.config.name.clone(), peer.clone());
        let since = before.get(&key).copied().unwrap_or(now);
        behind.insert(key, since);
        let behind_for = now - since;
        // A leader that has not seen a replica since its own election reports 0.
        let unseen_for = match *active {
            0 => behind_for,
            nanos => Duration::from_nanos(nanos),
        };
        let is_missing = *offline || unseen_for >= UNSEEN || behind_for >= BEHIND;
        present += u64::from(!is_missing);
    }
    u64::from(info.config.num_replicas).saturating_sub(present)
}

fn report_without_leader(before: &[StreamHealth], now: &[StreamHealth]) {
    let without = |streams: &[StreamHealth]| -> Vec<String> {
        let without = streams.iter().filter(|stream| !stream.has_leader);
        without.map(|stream| stream.name.clone()).collect()
    };
    let (before, now) = (without(before), without(now));
    if now == before {
        return;
    }
    match now.len() {
        0 => tracing::info!("all streams have a leader again"),
        count => {
            let streams = now[..count.min(NAMED)].join(", ");
            tracing::warn!(count, streams, "streams have no leader");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A stream with a leader and these replicas, of three.
    fn stream(name: &str, replicas: &[Value]) -> (String, Option<StreamInfo>) {
        listed(
            name,
            json!({ "name": "weir", "leader": "server-0", "replicas": replicas }),
        )
    }

    fn listed(name: &str, cluster: Value) -> (String, Option<StreamInfo>) {
        let info = json!({
            "config": { "name": name, "num_replicas": 3, "max_bytes": if name == names::STATE { -1 } else { 1000 } },
            "state": { "messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0 },
            "created": "2026-11-30T00:00:00Z",
            "cluster": cluster,
        });
        (name.to_owned(), Some(serde_json::from_value(info).unwrap()))
    }

    fn current(server: u8) -> Value {
        json!({ "name": "server", "peer": server.to_string(), "current": true, "active": 100 })
    }

    fn behind(server: u8) -> Value {
        json!({ "name": "server", "peer": server.to_string(), "current": false, "active": 100, "lag": 1 })
    }

    fn offline(server: u8) -> Value {
        json!({ "name": "server", "peer": server.to_string(), "current": false, "offline": true, "active": 0 })
    }

    fn unseen(server: u8) -> Value {
        json!({ "name": "server", "peer": server.to_string(), "current": false, "active": 10_000_000_000_u64 })
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Polls once, and returns the streams.
    fn poll<const N: usize>(
        health: &ServerHealth,
        now: Instant,
        streams: [(String, Option<StreamInfo>); N],
    ) -> Arc<[StreamHealth]> {
        health.responded(now);
        health.update(&streams.into(), now);
        match health.get(true, now) {
            LogHealth::Available(streams) => streams,
            LogHealth::Unavailable => panic!("it is unavailable"),
        }
    }

    #[track_caller]
    fn assert_missing(replicas: &[Value], expected: u64) {
        let streams = poll(
            &ServerHealth::default(),
            Instant::now(),
            [stream("weir_n_b", replicas)],
        );
        assert!(streams[0].has_leader);
        assert_eq!(streams[0].replicas_missing, expected, "{replicas:?}");
    }

    #[test]
    fn replicas_that_are_lost_are_missing() {
        assert_missing(&[current(1), current(2)], 0);
        assert_missing(&[current(1), offline(2)], 1);
        assert_missing(&[unseen(1), current(2)], 1);
        assert_missing(&[unseen(1), offline(2)], 2);
        assert_missing(&[current(1)], 1);
        assert_missing(&[], 2);
        // The stream is being scaled down.
        assert_missing(&[current(1), current(2), current(3)], 0);
    }

    #[test]
    fn a_replica_is_missing_once_it_has_been_behind_for_long() {
        let (health, start) = (ServerHealth::default(), Instant::now());
        let missing = |at: u64, first: Value, second: Value| {
            let streams = [
                stream("weir_n_b", &[first, current(2)]),
                stream("weir_n_c", &[second, current(2)]),
            ];
            let streams = poll(&health, start + seconds(at), streams);
            streams.iter().map(|stream| stream.replicas_missing).sum::<u64>()
        };
        assert_eq!(missing(0, behind(1), current(1)), 0);
        assert_eq!(missing(59, behind(1), behind(1)), 0);
        assert_eq!(missing(60, behind(1), behind(1)), 1);
        assert_eq!(missing(119, current(1), behind(1)), 1);
        assert_eq!(missing(120, behind(1), current(1)), 0, "it had caught up");
        // A server that is back has to catch up first.
        assert_eq!(missing(130, offline(1), offline(1)), 2);
        assert_eq!(missing(200, behind(1), behind(1)), 2);
        assert_eq!(missing(210, current(1), current(1)), 0);
    }

    #[test]
    fn a_replica_is_missing_if_a_new_leader_does_not_see_it() {
        let (health, start) = (ServerHealth::default(), Instant::now());
        let lost = json!({ "name": "server", "peer": "1", "current": false, "active": 0, "lag": 7 });
        for (at, expected) in [(0, 0), (9, 0), (10, 1)] {
            let streams = [stream("weir_n_b", &[lost.clone(), current(2)])];
            let streams = poll(&health, start + seconds(at), streams);
            assert_eq!(streams[0].replicas_missing, expected, "{at} seconds");
        }
    }

    #[test]
    fn streams_without_a_leader_are_told_from_others() {
        let streams = [
            ("weir_n_a".to_owned(), None),
            listed(
                "weir_n_b",
                json!({ "name": "weir", "replicas": [current(1), offline(2), offline(3)] }),
            ),
            stream("weir_n_c", &[current(1), current(2)]),
            stream("weir_n_c_dl", &[current(1), current(2)]),
            stream(names::STATE, &[current(1), current(2)]),
            ("orders".to_owned(), None),
        ];
        let streams = poll(&ServerHealth::default(), Instant::now(), streams);
        let seen = streams.iter().map(|stream| {
            let log = stream.log.as_ref().map(ToString::to_string);
            assert_eq!(stream.replicas_missing, 0, "{stream:?}");
            (&*stream.name, log, stream.has_leader, stream.max_bytes)
        });
        let log = |name: &str| Some(name.to_owned());
        let expected = [
            ("weir_n_a", log("n/a"), false, None),
            ("weir_n_b", log("n/b"), false, None),
            ("weir_n_c", log("n/c"), true, Some(1000)),
            ("weir_n_c_dl", log("n/c.dead-letters"), true, Some(1000)),
            (names::STATE, None, true, None),
        ];
        assert!(seen.eq(expected), "{streams:?}");
    }

    #[test]
    fn a_single_server_has_no_missing_replicas() {
        let streams = [listed("weir_n_b", Value::Null)];
        let streams = poll(&ServerHealth::default(), Instant::now(), streams);
        assert!(streams[0].has_leader);
        assert_eq!(streams[0].replicas_missing, 0);
    }

    #[test]
    fn servers_are_available_while_connected_and_responding() {
        let (health, start) = (ServerHealth::default(), Instant::now());
        let is_available =
            |is_connected, after| health.get(is_connected, start + seconds(after)) != LogHealth::Unavailable;
        assert!(!is_available(true, 0), "none has responded");
        health.responded(start);
        assert!(is_available(true, 14));
        assert!(!is_available(false, 14));
        assert!(!is_available(true, 15));
        health.responded(start + seconds(15));
        assert!(is_available(true, 16));
    }
}
