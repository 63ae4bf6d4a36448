//! The memory budget of a router: everything whose size a stranger chooses draws from it.
//!
//! The budget has three pools, so that one use cannot starve another: requests, attempts and answers. Within a pool
//! namespaces are the tenants, and a tenant may hold as much as is left free (dynamic thresholds: Choudhury and Hahne,
//! IEEE/ACM Transactions on Networking 6(2), 1998). One greedy tenant gets half of a pool, two get a third each, and
//! there is always room for one that holds nothing yet.

use std::{
    collections::HashMap,
    fs,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

const MIB: u64 = 1024 * 1024;

/// The budget where no memory limit is set.
const UNLIMITED_DEFAULT: u64 = 256 * MIB;

/// The smallest default budget.
const MIN_DEFAULT: u64 = 32 * MIB;

/// The default budget is the memory limit divided by this. The rest is for the event log's caches, code, stacks, the
/// page cache, and what the allocator cannot give back.
const LIMIT_DIVISOR: u64 = 4;

/// The pools that the budget is divided into.
#[derive(Clone, Debug)]
pub struct MemoryBudget {
    /// Heads, bodies and parsed events of requests: 40 % of the budget.
    pub requests: Pool,
    /// Events that are being delivered, and the connections they take: 40 % of the budget.
    pub attempts: Pool,
    /// What Sinks answer: 20 % of the budget.
    pub answers: Pool,
}

impl MemoryBudget {
    /// A budget of this many bytes in all.
    pub fn new(bytes: u64) -> Self {
        let percent = |share| Pool::new(usize::try_from(bytes / 100 * share).unwrap_or(usize::MAX));
        Self {
            requests: percent(40),
            attempts: percent(40),
            answers: percent(20),
        }
    }

    /// The default budget in bytes: a quarter of the memory limit of the process's cgroup, or 256 MiB without one.
    pub fn default_bytes() -> u64 {
        match cgroup_limit(Path::new("/sys/fs/cgroup")) {
            Some(limit) => (limit / LIMIT_DIVISOR).max(MIN_DEFAULT),
            None => UNLIMITED_DEFAULT,
        }
    }
}

/// The memory limit of the cgroup that is mounted here, in bytes (`memory.max` of version 2, else version 1).
fn cgroup_limit(root: &Path) -> Option<u64> {
    let read = |file: &str| {
        fs::read_to_string(root.join(file))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let limit = read("memory.max").or_else(|| read("memory/memory.limit_in_bytes"))?;
    // Version 1 says "no limit" by a number beyond any machine's memory.
    (limit < 1 << 50).then_some(limit)
}

/// A part of the budget that is shared by tenants. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    capacity: usize,
    state: Mutex<State>,
    released: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Bytes held by each tenant that holds any.
    held: HashMap<Arc<str>, usize>,
}

impl Pool {
    /// A pool of this many bytes.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Shared {
            capacity,
            state: Mutex::new(State {
                free: capacity,
                held: HashMap::new(),
            }),
            released: Notify::new(),
        }))
    }

    /// The size of the pool in bytes.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> usize {
        self.lock().free
    }

    /// Takes bytes for a tenant, or returns `None` if its share does not allow that now. What is larger than half of
    /// the pool counts as half of it.
    pub fn try_reserve(&self, tenant: &Arc<str>, bytes: usize) -> Option<Reservation> {
        let mut reservation = Reservation {
            pool: self.clone(),
            tenant: tenant.clone(),
            bytes: 0,
        };
        reservation.try_grow(bytes).then_some(reservation)
    }

    /// Waits until the tenant's share allows it, then takes bytes. The caller bounds the wait.
    pub fn reserve(
        &self,
        tenant: &Arc<str>,
        bytes: usize,
    ) -> impl Future<Output = Reservation> + Send + 'static {
        let (pool, tenant) = (self.clone(), tenant.clone());
        async move {
            loop {
                let released = pool.0.released.notified();
                tokio::pin!(released);
                // Before the attempt, so that what is released between the two is noticed.
                released.as_mut().enable();
                if let Some(reservation) = pool.try_reserve(&tenant, bytes) {
                    return reservation;
                }
                released.await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the counts half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a tenant holds; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    pool: Pool,
    tenant: Arc<str>,
    bytes: usize,
}

impl Reservation {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more, so that it holds `bytes` in all; whether the tenant's share allows that. It never shrinks.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let more = bytes.min(self.pool.0.capacity / 2).saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut state = self.pool.lock();
        let held = state.held.get(&self.tenant).copied().unwrap_or(0);
        let is_first = held == self.bytes;
        let allowed = more <= state.free && (is_first || held + more <= state.free - more);
        if allowed {
            state.free -= more;
            *state.held.entry(self.tenant.clone()).or_default() += more;
            self.bytes += more;
        }
        allowed
    }

    /// Gives back what it holds beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        self.bytes -= less;
        let mut state = self.pool.lock();
        state.free += less;
        if let Some(held) = state.held.get_mut(&self.tenant) {
            *held -= less;
            if *held == 0 {
                state.held.remove(&self.tenant);
            }
        }
        drop(state);
        self.pool.0.released.notify_waiters();
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
    fn a_tenant_that_holds_nothing_gets_what_fits() {
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

    #[tokio::test]
    async fn whoever_waits_goes_on_when_something_is_given_back() {
        let pool = Pool::new(100);
        let held = [(); 2].map(|()| pool.try_reserve(&tenant("a"), 25));
        let waiting = tokio::spawn(pool.reserve(&tenant("a"), 25));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.unwrap().bytes(), 25);
    }

    #[test]
    fn the_limit_is_the_cgroups() {
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
        fn nothing_is_lost_and_a_newcomer_always_finds_room(steps in prop::collection::vec((0_usize..4, 1_usize..60, any::<bool>()), 1..200)) {
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
            prop_assert!(pool.lock().held.is_empty());
        }
    }
}
