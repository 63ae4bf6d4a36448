//! Connection places, shared among the peers' addresses.
//!
//! A peer may hold as many places as it leaves free, so there is always one for a newcomer. A connection that finds
//! no place evicts an idle one: the longest idle connection of the peer with the most connections.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::memory::{Pool, Reservation};

/// Time without a request in flight after which a connection is idle. A client needs a moment to send its first
/// request.
const IDLE: Duration = Duration::from_secs(1);

/// Maximum number of idle connections evicted for one.
const MAX_VICTIMS: usize = 8;

/// Maximum rate of searches for idle connections. A search visits every connection, and a client can trigger one
/// per connection attempt.
const MAX_SEARCHES: u32 = 100;
const SEARCH_TIME: Duration = Duration::from_millis(100);

/// A server's counters of connections. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCounts(Arc<ConnectionCounters>);

#[derive(Debug, Default)]
struct ConnectionCounters {
    open: AtomicU64,
    closed_for_room: AtomicU64,
    failed_handshakes: AtomicU64,
}

impl ConnectionCounts {
    /// Number of open connections.
    pub fn open(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Number of idle connections closed to make room.
    pub fn closed_for_room(&self) -> u64 {
        self.0.closed_for_room.load(Ordering::Relaxed)
    }

    /// Number of connections that ended before their TLS handshake was complete.
    pub fn failed_handshakes(&self) -> u64 {
        self.0.failed_handshakes.load(Ordering::Relaxed)
    }

    pub(super) fn note_failed_handshake(&self) {
        self.0.failed_handshakes.fetch_add(1, Ordering::Relaxed);
    }
}

/// The places of a server, or of several that share them.
#[derive(Debug)]
pub struct ConnectionPlaces {
    pool: Pool,
    counts: ConnectionCounts,
    peers: Mutex<HashMap<IpAddr, BTreeMap<u64, Arc<Slot>>>>,
    next: AtomicU64,
    /// Start of the current period, and the number of searches in it.
    searches: Mutex<(Instant, u32)>,
}

/// The place of a connection, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    places: Arc<ConnectionPlaces>,
    peer: IpAddr,
    key: u64,
    slot: Arc<Slot>,
}

/// State of a connection.
#[derive(Debug)]
pub(super) struct Slot {
    state: Mutex<ConnectionActivity>,
    /// Cancelled when the place is needed for another connection.
    wanted: CancellationToken,
    /// `None` once the place was taken over.
    place: Mutex<Option<Reservation>>,
}

#[derive(Debug)]
struct ConnectionActivity {
    next: u64,
    /// Start times of the requests in flight.
    requests: BTreeMap<u64, Instant>,
    idle_since: Instant,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct UnderWay {
    slot: Arc<Slot>,
    key: u64,
}

impl ConnectionPlaces {
    /// Creates this many places.
    pub fn new(capacity: usize, counts: ConnectionCounts) -> Arc<Self> {
        Arc::new(Self {
            pool: Pool::new(capacity),
            counts,
            peers: Mutex::default(),
            next: AtomicU64::new(0),
            searches: Mutex::new((Instant::now(), 0)),
        })
    }

    pub(super) fn capacity(&self) -> usize {
        self.pool.capacity()
    }

    pub(super) fn counts(&self) -> &ConnectionCounts {
        &self.counts
    }

    /// Returns a place for a connection of this peer, evicting an idle one if necessary and possible.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<ConnectionPlace> {
        let tenant: Arc<str> = peer.to_string().into();
        let reserve = || self.pool.try_reserve(&tenant, 1);
        let place = reserve()
            .or_else(|| (0..MAX_VICTIMS).find_map(|_| self.close_one_idle(peer).then(reserve).flatten()))?;
        let slot = Arc::new(Slot {
            state: Mutex::new(ConnectionActivity {
                next: 0,
                requests: BTreeMap::new(),
                idle_since: Instant::now(),
            }),
            wanted: CancellationToken::new(),
            place: Mutex::new(Some(place)),
        });
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let mut peers = self.peers();
        peers.entry(peer).or_default().insert(key, slot.clone());
        drop(peers);
        self.counts.0.open.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPlace {
            places: self.clone(),
            peer,
            key,
            slot,
        })
    }

    /// Evicts the longest idle connection of the peer with the most connections, unless that peer has fewer than
    /// this one.
    fn close_one_idle(&self, peer: IpAddr) -> bool {
        if !self.may_search() {
            return false;
        }
        let peers = self.peers();
        let own = peers.get(&peer).map_or(0, BTreeMap::len);
        let victim = peers
            .iter()
            .filter(|(address, slots)| **address == peer || slots.len() >= own)
            .filter_map(|(_, slots)| {
                let idle = slots.values().filter_map(|slot| Some((slot.idle_since()?, slot)));
                let (_, longest) = idle.min_by_key(|(since, _)| *since)?;
                Some((slots.len(), longest))
            })
            .max_by_key(|(count, _)| *count)
            .map(|(_, slot)| slot.clone());
        drop(peers);
        let Some(victim) = victim else { return false };
        victim.give_up();
        self.counts.0.closed_for_room.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn may_search(&self) -> bool {
        let mut searches = lock(&self.searches);
        if searches.0.elapsed() >= SEARCH_TIME {
            *searches = (Instant::now(), 0);
        }
        searches.1 += 1;
        searches.1 <= MAX_SEARCHES
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<IpAddr, BTreeMap<u64, Arc<Slot>>>> {
        // Each change under the lock is a single call.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPlace {
    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Grows by this many places, evicting idle connections if necessary and possible.
    pub(super) fn widen(&self, more: usize) -> bool {
        let grow = || match &mut *lock(&self.slot.place) {
            Some(place) => place.try_grow(place.bytes() + more),
            None => true,
        };
        grow() || (0..MAX_VICTIMS).any(|_| self.places.close_one_idle(self.peer) && grow())
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut peers = self.places.peers();
        if let Some(slots) = peers.get_mut(&self.peer) {
            slots.remove(&self.key);
            if slots.is_empty() {
                peers.remove(&self.peer);
            }
        }
        drop(peers);
        self.places.counts.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slot {
    /// Registers a request.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = lock(&self.state);
        let key = state.next;
        state.next += 1;
        state.requests.insert(key, Instant::now());
        UnderWay {
            slot: self.clone(),
            key,
        }
    }

    /// Resolves when the place is needed for another connection.
    pub(super) async fn wanted(&self) {
        self.wanted.cancelled().await;
    }

    /// Returns the start time of the oldest request in flight.
    pub(super) fn oldest(&self) -> Option<Instant> {
        lock(&self.state).requests.values().next().copied()
    }

    /// Returns the time since which no request is in flight; `None` if one is.
    pub(super) fn without_request_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.requests.is_empty().then_some(state.idle_since)
    }

    fn idle_since(&self) -> Option<Instant> {
        if self.wanted.is_cancelled() {
            return None;
        }
        self.without_request_since()
            .filter(|since| since.elapsed() >= IDLE)
    }

    fn give_up(&self) {
        self.wanted.cancel();
        lock(&self.place).take();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = lock(&self.slot.state);
        state.requests.remove(&self.key);
        if state.requests.is_empty() {
            state.idle_since = Instant::now();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    fn places(capacity: usize) -> Arc<ConnectionPlaces> {
        ConnectionPlaces::new(capacity, ConnectionCounts::default())
    }

    #[tokio::test(start_paused = true)]
    async fn peer_gets_at_most_half_and_newcomers_find_a_place() {
        let places = places(100);
        let held: Vec<_> = std::iter::from_fn(|| places.admit(peer(1))).collect();
        assert_eq!(held.len(), 50);
        assert!(places.admit(peer(2)).is_some());
        assert_eq!(places.counts.open(), 50);
        drop(held);
        assert_eq!((places.counts.open(), places.peers().len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn evicts_the_longest_idle_connection() {
        let places = places(4);
        let first = places.admit(peer(1)).unwrap();
        tokio::time::advance(IDLE).await;
        let second = places.admit(peer(1)).unwrap();
        tokio::time::advance(IDLE).await;
        let busy = first.slot().begin();
        let third = places.admit(peer(1)).unwrap();
        assert!(
            second.slot().wanted.is_cancelled(),
            "the first has a request under way"
        );
        assert!(places.admit(peer(1)).is_none(), "the third is new");
        drop(busy);
        tokio::time::advance(IDLE).await;
        assert!(places.admit(peer(1)).is_some());
        let gone = [&first, &third].map(|place| place.slot().wanted.is_cancelled());
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
        assert_eq!(places.counts.closed_for_room(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn evicts_only_from_peers_with_more_connections() {
        let places = places(9);
        let many: Vec<_> = std::iter::from_fn(|| places.admit(peer(1))).collect();
        let more: Vec<_> = [2, 3].map(|number| places.admit(peer(number)).unwrap()).into();
        tokio::time::advance(IDLE).await;
        let newcomer = places.admit(peer(4)).unwrap();
        assert!(newcomer.widen(3));
        assert!(more.iter().all(|place| !place.slot().wanted.is_cancelled()));
        assert!(many.iter().any(|place| place.slot().wanted.is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_the_oldest_request() {
        let place = places(9).admit(peer(1)).unwrap();
        let began = Instant::now();
        let _first = place.slot().begin();
        tokio::time::advance(IDLE).await;
        let second = place.slot().begin();
        assert_eq!(place.slot().oldest(), Some(began));
        drop(second);
        assert_eq!(place.slot().oldest(), Some(began));
    }
}
