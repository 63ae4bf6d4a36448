//! Who is connected: so many places, shared by the peers' addresses.
//!
//! A peer may hold as many places as are left free, so that there is always one for a newcomer. Whoever finds none takes
//! that of a connection that is idle: the longest idle one of the peer with the most.

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

/// A connection is idle once it has had no request under way for so long. A client needs a moment to send the first.
const IDLE: Duration = Duration::from_secs(1);

/// How many idle connections make room for one.
const MAX_VICTIMS: usize = 8;

/// How often an idle connection is looked for in which time: it takes a look at every connection, and whoever has too many
/// can ask for it as often as he can connect.
const MAX_SEARCHES: u32 = 100;
const SEARCH_TIME: Duration = Duration::from_millis(100);

/// What a server counts about its connections. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCounts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    closed_for_room: AtomicU64,
}

impl ConnectionCounts {
    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Idle connections that were closed to make room.
    pub fn closed_for_room(&self) -> u64 {
        self.0.closed_for_room.load(Ordering::Relaxed)
    }
}

/// The places of a server.
#[derive(Debug)]
pub(super) struct Places {
    pool: Pool,
    counts: ConnectionCounts,
    peers: Mutex<HashMap<IpAddr, BTreeMap<u64, Arc<Slot>>>>,
    next: AtomicU64,
    /// Since when searches are counted, and how many there were.
    searches: Mutex<(Instant, u32)>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
    key: u64,
    slot: Arc<Slot>,
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Slot {
    state: Mutex<State>,
    /// Whoever wants the place says so by this.
    wanted: CancellationToken,
    /// Absent once somebody else has the place.
    place: Mutex<Option<Reservation>>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// When each request that is under way began.
    requests: BTreeMap<u64, Instant>,
    idle_since: Instant,
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    slot: Arc<Slot>,
    key: u64,
}

impl Places {
    pub(super) fn new(capacity: usize, counts: ConnectionCounts) -> Arc<Self> {
        Arc::new(Self {
            pool: Pool::new(capacity),
            counts,
            peers: Mutex::default(),
            next: AtomicU64::new(0),
            searches: Mutex::new((Instant::now(), 0)),
        })
    }

    /// A place for a connection of this peer, if there is one or one can be made.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let tenant: Arc<str> = peer.to_string().into();
        let reserve = || self.pool.try_reserve(&tenant, 1);
        let place = reserve()
            .or_else(|| (0..MAX_VICTIMS).find_map(|_| self.close_one_idle(peer).then(reserve).flatten()))?;
        let slot = Arc::new(Slot {
            state: Mutex::new(State {
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
        Some(Place {
            places: self.clone(),
            peer,
            key,
            slot,
        })
    }

    /// Takes the place of the longest idle connection of the peer that has most, but of none that has fewer than this
    /// one.
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
        // What is changed under the lock is changed by one call each.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Takes more places, so that it has this many in all.
    pub(super) fn widen(&self, places: usize) -> bool {
        let grow = || match &mut *lock(&self.slot.place) {
            Some(place) => place.try_grow(places),
            None => true,
        };
        grow() || (0..MAX_VICTIMS).any(|_| self.places.close_one_idle(self.peer) && grow())
    }
}

impl Drop for Place {
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
    /// A request has come.
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

    /// Resolves when somebody else has the place.
    pub(super) async fn wanted(&self) {
        self.wanted.cancelled().await;
    }

    /// When the oldest request began that is under way.
    pub(super) fn oldest(&self) -> Option<Instant> {
        lock(&self.state).requests.values().next().copied()
    }

    /// Since when no request is under way; `None` if one is.
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

    fn places(capacity: usize) -> Arc<Places> {
        Places::new(capacity, ConnectionCounts::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_holds_half_and_newcomers_find_a_place() {
        let places = places(100);
        let held: Vec<_> = std::iter::from_fn(|| places.admit(peer(1))).collect();
        assert_eq!(held.len(), 50);
        assert!(places.admit(peer(2)).is_some());
        assert_eq!(places.counts.open(), 50);
        drop(held);
        assert_eq!((places.counts.open(), places.peers().len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_makes_room() {
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
    async fn whoever_has_many_makes_room_for_whoever_has_few() {
        let places = places(9);
        let many: Vec<_> = std::iter::from_fn(|| places.admit(peer(1))).collect();
        let more: Vec<_> = [2, 3].map(|number| places.admit(peer(number)).unwrap()).into();
        tokio::time::advance(IDLE).await;
        let newcomer = places.admit(peer(4)).unwrap();
        assert!(newcomer.widen(4));
        assert!(more.iter().all(|place| !place.slot().wanted.is_cancelled()));
        assert!(many.iter().any(|place| place.slot().wanted.is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_request_is_known() {
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
