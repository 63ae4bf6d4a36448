//! The memory budget of a router. Everything whose size is under external control draws from it.
//!
//! The budget has three pools, so that one use cannot starve another: requests, attempts and answers. Namespaces
//! are the tenants of a pool, and a tenant may hold as much as it leaves free (dynamic thresholds: Choudhury and
//! Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). One greedy tenant gets half of a pool, two get a third
//! each, and there is always room for a tenant that holds nothing yet. The same applies to the members of a tenant,
//! such as its Triggers: a member may hold as much as it leaves to the other members.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

const MIB: u64 = 1024 * 1024;

/// Budget without a memory limit.
const UNLIMITED_DEFAULT: u64 = 256 * MIB;

/// Minimum default budget.
const MIN_DEFAULT: u64 = 32 * MIB;

/// Divisor of the memory limit for the default budget. The rest is for the event log's caches, code, stacks, the
/// page cache, and memory that the allocator cannot return.
const LIMIT_DIVISOR: u64 = 4;

/// The pools that the budget is divided into.
#[derive(Clone, Debug)]
pub struct MemoryBudget {
    /// Heads, bodies and parsed events of requests: 40 % of the budget.
    pub requests: Pool,
    /// Events in delivery, and their connections: 40 % of the budget.
    pub attempts: Pool,
    /// Responses of Sinks: 20 % of the budget.
    pub answers: Pool,
}

impl MemoryBudget {
    /// Creates a budget of this many bytes in total.
    pub fn new(bytes: u64) -> Self {
        let percent = |share| Pool::new(usize::try_from(bytes / 100 * share).unwrap_or(usize::MAX));
        Self {
            requests: percent(40),
            attempts: percent(40),
            answers: percent(20),
        }
    }

    /// Returns the default budget in bytes: a quarter of the process's cgroup memory limit, or 256 MiB without one.
    pub fn default_bytes() -> u64 {
        match cgroup_limit(Path::new("/sys/fs/cgroup")) {
            Some(limit) => (limit / LIMIT_DIVISOR).max(MIN_DEFAULT),
            None => UNLIMITED_DEFAULT,
        }
    }
}

/// Returns the memory limit of the cgroup mounted at `root`, in bytes (`memory.max` of version 2, or else version
/// 1).
fn cgroup_limit(root: &Path) -> Option<u64> {
    let read = |file: &str| {
        fs::read_to_string(root.join(file))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let limit = read("memory.max").or_else(|| read("memory/memory.limit_in_bytes"))?;
    // In version 1, a value larger than any machine's memory means unlimited.
    (limit < 1 << 50).then_some(limit)
}

/// A part of the budget, shared by tenants. Clones share the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<PoolShared>);

#[derive(Debug)]
struct PoolShared {
    capacity: usize,
    state: Mutex<PoolState>,
}

#[derive(Debug)]
struct PoolState {
    free: usize,
    /// Tenants that hold any bytes.
    tenants: HashMap<Arc<str>, Tenant>,
    /// Callers that wait, by tenant and in order. A release gives each what it can have, so that those who must wait on
    /// are not woken, however many they are.
    waiting: HashMap<Arc<str>, WaitingCallers>,
    /// Key of the next caller that waits.
    next: u64,
}

/// The callers of a tenant that wait.
#[derive(Debug)]
struct WaitingCallers {
    by_key: BTreeMap<u64, Waiting>,
    /// No caller waits for fewer bytes, so that a release that is smaller need not look at them.
    least: usize,
}

/// A caller that waits for bytes.
#[derive(Debug)]
struct Waiting {
    member: Option<Arc<str>>,
    bytes: usize,
    granted: oneshot::Sender<Reservation>,
}

/// The place of a caller that waits. Given up on drop.
struct WaitingPlace {
    pool: Pool,
    tenant: Arc<str>,
    key: u64,
}

/// Bytes held by a tenant, including those of its members.
#[derive(Debug, Default)]
struct Tenant {
    held: usize,
    members: HashMap<Arc<str>, usize>,
}

impl Pool {
    /// Creates a pool of this many bytes.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(PoolShared {
            capacity,
            state: Mutex::new(PoolState {
                free: capacity,
                tenants: HashMap::new(),
                waiting: HashMap::new(),
                next: 0,
            }),
        }))
    }

    /// Returns the size of the pool in bytes.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Returns the number of free bytes.
    pub fn free(&self) -> usize {
        self.lock().free
    }

    /// Reserves bytes for a tenant. Returns `None` if its share does not currently allow it. A request for more
    /// than half of the pool counts as half.
    pub fn try_reserve(&self, tenant: &Arc<str>, bytes: usize) -> Option<Reservation> {
        self.empty(tenant, None).grown(bytes)
    }

    /// Reserves bytes for a member of a tenant.
    pub fn try_reserve_for(&self, tenant: &Arc<str>, member: &Arc<str>, bytes: usize) -> Option<Reservation> {
        self.empty(tenant, Some(member)).grown(bytes)
    }

    fn empty(&self, tenant: &Arc<str>, member: Option<&Arc<str>>) -> Reservation {
        Reservation {
            pool: self.clone(),
            tenant: tenant.clone(),
            member: member.cloned(),
            bytes: 0,
        }
    }

    /// Waits until the tenant's share allows it, then reserves bytes. The caller must bound the wait.
    pub fn reserve(
        &self,
        tenant: &Arc<str>,
        bytes: usize,
    ) -> impl Future<Output = Reservation> + Send + 'static {
        self.clone().wait(tenant.clone(), None, bytes)
    }

    /// Like [`Pool::reserve`], for a member of a tenant.
    pub fn reserve_for(
        &self,
        tenant: &Arc<str>,
        member: &Arc<str>,
        bytes: usize,
    ) -> impl Future<Output = Reservation> + Send + 'static {
        self.clone().wait(tenant.clone(), Some(member.clone()), bytes)
    }

    async fn wait(self, tenant: Arc<str>, member: Option<Arc<str>>, bytes: usize) -> Reservation {
        if let Some(reservation) = self.empty(&tenant, member.as_ref()).grown(bytes) {
            return reservation;
        }
        loop {
            let (granted, reservation) = oneshot::channel();
            let bytes = bytes.min(self.0.capacity / 2);
            let waiting = Waiting {
                member: member.clone(),
                bytes,
                granted,
            };
            let place = self.enqueue(&tenant, waiting);
            if let Ok(reservation) = reservation.await {
                return reservation;
            }
            drop(place);
        }
    }

    /// Lets a caller wait, unless it can be served by now.
    fn enqueue(&self, tenant: &Arc<str>, waiting: Waiting) -> WaitingPlace {
        let mut state = self.lock();
        let key = state.next;
        state.next += 1;
        let callers = state.waiting.entry(tenant.clone());
        let callers = callers.or_insert_with(|| WaitingCallers {
            by_key: BTreeMap::new(),
            least: usize::MAX,
        });
        callers.least = callers.least.min(waiting.bytes);
        callers.by_key.insert(key, waiting);
        // There may have been a release since the caller tried.
        let granted = state.grant();
        drop(state);
        self.hand_over(granted);
        WaitingPlace {
            pool: self.clone(),
            tenant: tenant.clone(),
            key,
        }
    }

    /// Hands over what was granted. What a caller that is gone does not take is released again.
    fn hand_over(&self, granted: Vec<(Arc<str>, Waiting)>) {
        for (tenant, waiting) in granted {
            let mut reservation = self.empty(&tenant, waiting.member.as_ref());
            reservation.bytes = waiting.bytes;
            drop(waiting.granted.send(reservation));
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        // No holder of the lock can panic halfway through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes held by a tenant, released on drop.
#[derive(Debug)]
pub struct Reservation {
    pool: Pool,
    tenant: Arc<str>,
    member: Option<Arc<str>>,
    bytes: usize,
}

impl Reservation {
    fn grown(mut self, bytes: usize) -> Option<Self> {
        self.try_grow(bytes).then_some(self)
    }

    /// Returns the number of bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Grows to `bytes` in total. Returns whether the tenant's share allows it. Never shrinks.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let more = bytes.min(self.pool.0.capacity / 2).saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut state = self.pool.lock();
        let allowed = state.allows(&self.tenant, self.member.as_ref(), more, self.bytes);
        if allowed {
            state.charge(&self.tenant, self.member.as_ref(), more);
            self.bytes += more;
        }
        allowed
    }

    /// Splits off some of the bytes into a new reservation.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let mut part = self.pool.empty(&self.tenant, self.member.as_ref());
        part.bytes = bytes;
        part
    }

    /// Releases the bytes beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        self.bytes -= less;
        let mut state = self.pool.lock();
        state.give_back(&self.tenant, self.member.as_ref(), less);
        let granted = state.grant();
        drop(state);
        self.pool.hand_over(granted);
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        if let Some(waiting) = state.waiting.get_mut(&self.tenant) {
            waiting.by_key.remove(&self.key);
            if waiting.by_key.is_empty() {
                state.waiting.remove(&self.tenant);
            }
        }
    }
}

impl PoolState {
    /// Whether a tenant, or one of its members, may take `more` bytes in addition to the `own` bytes of a
    /// reservation.
    fn allows(&self, tenant: &Arc<str>, member: Option<&Arc<str>>, more: usize, own: usize) -> bool {
        let Some(found) = self.tenants.get(tenant) else {
            return more <= self.free;
        };
        // A growing reservation is not limited by its own bytes if it is the tenant's only one.
        let is_alone = found.held == own;
        if more > self.free || (!is_alone && found.held + more > self.free - more) {
            return false;
        }
        let Some(member) = member else { return true };
        let held = found.members.get(member).copied().unwrap_or(0);
        // Bytes that the tenant may take in addition.
        let left = self.free.saturating_sub(found.held) / 2;
        held == own || held + 2 * more <= left
    }

    fn charge(&mut self, tenant: &Arc<str>, member: Option<&Arc<str>>, bytes: usize) {
        self.free -= bytes;
        let tenant = self.tenants.entry(tenant.clone()).or_default();
        tenant.held += bytes;
        if let Some(member) = member {
            *tenant.members.entry(member.clone()).or_default() += bytes;
        }
    }

    /// Charges those who wait for what they can have now, and takes them out.
    fn grant(&mut self) -> Vec<(Arc<str>, Waiting)> {
        let mut granted = Vec::new();
        if self.waiting.is_empty() {
            return granted;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|tenant, WaitingCallers { by_key, least }| {
            let (mut room, mut fits) = (self.room_of(tenant), Vec::new());
            for (&key, caller) in by_key.iter() {
                if room < *least {
                    break;
                }
                if caller.bytes <= room && self.allows(tenant, caller.member.as_ref(), caller.bytes, 0) {
                    self.charge(tenant, caller.member.as_ref(), caller.bytes);
                    room = self.room_of(tenant);
                    fits.push(key);
                }
            }
            let taken = fits.iter().filter_map(|key| by_key.remove(key));
            granted.extend(taken.map(|caller| (tenant.clone(), caller)));
            !by_key.is_empty()
        });
        self.waiting = waiting;
        granted
    }

    /// Bytes that a tenant may take in addition, if its members may.
    fn room_of(&self, tenant: &Arc<str>) -> usize {
        match self.tenants.get(tenant) {
            Some(found) => self.free.saturating_sub(found.held) / 2,
            None => self.free,
        }
    }

    fn give_back(&mut self, tenant: &Arc<str>, member: Option<&Arc<str>>, bytes: usize) {
        self.free += bytes;
        let Some(found) = self.tenants.get_mut(tenant) else {
            return;
        };
        found.held -= bytes;
        if let Some(member) = member
            && let Some(held) = found.members.get_mut(member)
        {
            *held -= bytes;
            if *held == 0 {
                found.members.remove(member);
            }
        }
        if found.held == 0 {
            self.tenants.remove(tenant);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn one_greedy_tenant_leaves_half_and_two_leave_a_third() {
        let pool = Pool::new(1200);
        let take_all = |name: &str| {
            let taken = std::iter::from_fn(|| pool.try_reserve(&tenant(name), 10));
            taken.collect::<Vec<_>>()
        };
        let first = take_all("a");
        assert_eq!(first.len(), 60);
        let second = take_all("b");
        assert_eq!(second.len(), 30);
        let third = take_all("c");
        assert_eq!(third.len(), 15);
        drop(first);
        assert_eq!(pool.free(), 1200 - 450);
        drop((second, third));
        assert_eq!(pool.free(), 1200);
    }

    #[test]
    fn new_tenant_gets_what_fits() {
        let pool = Pool::new(1000);
        let _half = pool.try_reserve(&tenant("a"), 5000).unwrap();
        assert_eq!(pool.free(), 500, "no more than half at once");
        let rest = pool.try_reserve(&tenant("b"), 500).unwrap();
        assert!(pool.try_reserve(&tenant("c"), 1).is_none());
        drop(rest);
        let mut growing = pool.try_reserve(&tenant("c"), 1).unwrap();
        assert!(growing.try_grow(400) && growing.try_grow(400));
        growing.shrink(100);
        assert_eq!((growing.bytes(), pool.free()), (100, 400));
    }

    #[test]
    fn greedy_member_leaves_room_for_others_of_its_tenant() {
        let pool = Pool::new(12_000);
        let take_all = |tenant_name: &str, member: &str| {
            let (tenant, member) = (tenant(tenant_name), tenant(member));
            let taken = std::iter::from_fn(|| pool.try_reserve_for(&tenant, &member, 10));
            taken.collect::<Vec<_>>()
        };
        let first = take_all("a", "1");
        assert!((250..=310).contains(&first.len()), "{}", first.len());
        let others: Vec<_> = (2..8).map(|number| take_all("a", &number.to_string())).collect();
        assert!(
            others.iter().all(|taken| taken.len() > 4),
            "{:?}",
            others.iter().map(Vec::len).collect::<Vec<_>>()
        );
        let neighbour = take_all("b", "1");
        assert!(neighbour.len() > 100, "{}", neighbour.len());
        drop((first, others, neighbour));
        assert_eq!((pool.free(), pool.lock().tenants.len()), (12_000, 0));
    }

    #[test]
    fn split_reservation_is_released_separately() {
        let pool = Pool::new(1000);
        let mut whole = pool.try_reserve_for(&tenant("a"), &tenant("1"), 300).unwrap();
        let part = whole.split(100);
        assert_eq!((whole.bytes(), part.bytes(), pool.free()), (200, 100, 700));
        drop(whole);
        assert_eq!(pool.free(), 900);
        drop(part);
        assert_eq!(pool.free(), 1000);
    }

    #[tokio::test]
    async fn waiter_continues_after_a_release() {
        let pool = Pool::new(100);
        let held = [(); 2].map(|()| pool.try_reserve(&tenant("a"), 25));
        let waiting = tokio::spawn(pool.reserve(&tenant("a"), 25));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.unwrap().bytes(), 25);
    }

    #[test]
    fn release_wakes_only_those_whom_it_serves() {
        let pool = Pool::new(1000);
        let mut held: Vec<_> = std::iter::from_fn(|| pool.try_reserve(&tenant("a"), 10)).collect();
        assert_eq!(held.len(), 50);
        let mut many: Vec<_> = (0..5).map(|_| by_hand(pool.reserve(&tenant("a"), 10))).collect();
        let mut large = by_hand(pool.reserve(&tenant("a"), 300));
        let waiting = many.iter_mut().chain([&mut large]);
        assert!(waiting.into_iter().all(|caller| caller.poll().is_none()));
        let other = by_hand(pool.reserve(&tenant("b"), 10)).poll().unwrap();
        let woken = |many: &[PolledByHand]| many.iter().map(PolledByHand::is_woken).collect::<Vec<_>>();
        held.truncate(48);
        assert_eq!(woken(&many), [true, false, false, false, false]);
        let first = many[0].poll().unwrap();
        held.truncate(47);
        assert_eq!(woken(&many), [true, true, false, false, false]);
        // What a caller that is gone was granted goes to the next one.
        drop(many.remove(1));
        assert_eq!(woken(&many), [true, true, false, false]);
        assert!(!large.is_woken());
        drop((first, many, large, other, held));
        assert_eq!(pool.free(), 1000);
        assert!(pool.lock().waiting.is_empty() && pool.lock().tenants.is_empty());
    }

    /// A future that is polled by hand.
    struct PolledByHand {
        future: std::pin::Pin<Box<dyn Future<Output = Reservation> + Send>>,
        woken: Arc<Woken>,
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn by_hand(future: impl Future<Output = Reservation> + Send + 'static) -> PolledByHand {
        PolledByHand {
            future: Box::pin(future),
            woken: Arc::default(),
        }
    }

    impl PolledByHand {
        fn poll(&mut self) -> Option<Reservation> {
            let waker = self.woken.clone().into();
            match self
                .future
                .as_mut()
                .poll(&mut std::task::Context::from_waker(&waker))
            {
                std::task::Poll::Ready(reservation) => Some(reservation),
                std::task::Poll::Pending => None,
            }
        }

        fn is_woken(&self) -> bool {
            self.woken.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    #[test]
    fn reads_the_cgroup_limit() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_limit(root.path()), None);
        let v1 = root.path().join("memory");
        fs::create_dir(&v1).unwrap();
        fs::write(v1.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(cgroup_limit(root.path()), None);
        fs::write(v1.join("memory.limit_in_bytes"), "1048576\n").unwrap();
        assert_eq!(cgroup_limit(root.path()), Some(1 << 20));
        fs::write(root.path().join("memory.max"), "536870912\n").unwrap();
        assert_eq!(cgroup_limit(root.path()), Some(512 << 20));
    }

    proptest! {
        #[test]
        fn newcomer_always_finds_room_and_no_bytes_leak(steps in prop::collection::vec((0_usize..4, 1_usize..60, any::<bool>()), 1..200)) {
            let pool = Pool::new(1000);
            let mut held: Vec<Reservation> = Vec::new();
            for (name, bytes, take) in steps {
                if take {
                    held.extend(pool.try_reserve(&tenant(&name.to_string()), bytes));
                } else if !held.is_empty() {
                    held.swap_remove(bytes % held.len());
                }
                let sum: usize = held.iter().map(Reservation::bytes).sum();
                prop_assert_eq!(pool.free() + sum, 1000);
                prop_assert!(pool.try_reserve(&tenant("newcomer"), 60).is_some());
            }
            held.clear();
            prop_assert_eq!(pool.free(), 1000);
            prop_assert!(pool.lock().tenants.is_empty());
        }
    }
}
