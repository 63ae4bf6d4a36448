//! Resolves hosts by DNS, without a thread for each lookup.
//!
//! The system's `getaddrinfo` blocks a thread while a nameserver is silent, and the runtime's blocking threads
//! also read files. Here lookups are tasks, limited and divided by namespace; concurrent requests for a name share
//! one lookup; answers are cached for the TTL of their records.
//!
//! `/etc/resolv.conf` and `/etc/hosts` are read once, at startup.

use std::{
    collections::HashMap,
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf,
};

use super::stage::{AttemptStage, Lack, is_exhausted};
use crate::memory::Pool;

/// Maximum concurrent lookups. Each has two to four sockets.
const LOOKUPS: usize = 32;

/// Timeout of a lookup, with all search domains and retries.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);

/// Time after which another nameserver, or the same one again, is asked. A shorter timeout in the system's
/// configuration takes precedence.
const NAMESERVER_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum cached names.
const MAX_CACHED: usize = 1024;

/// Bounds of the time that an answer is cached, whatever its TTL.
const MIN_TTL: Duration = Duration::from_secs(1);
const MAX_TTL: Duration = Duration::from_secs(300);

/// Maximum time to cache that a name has no address.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// A caching resolver. Clones share the cache.
#[derive(Clone)]
pub(super) struct Names(Arc<SharedResolver>);

struct SharedResolver {
    resolver: TokioResolver,
    lookups: Pool,
    state: Mutex<ResolverState>,
}

#[derive(Default)]
struct ResolverState {
    known: HashMap<Arc<str>, CachedAddresses>,
    lookups_in_flight: HashMap<Arc<str>, WeakShared<Lookup>>,
}

struct CachedAddresses {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

type Lookup = BoxFuture<'static, Result<Arc<[IpAddr]>, ResolveError>>;

/// Why a host has no address.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("the host {0:?} is not a valid name: an IPv4 address has four numbers")]
    NoName(Arc<str>),
    #[error("the host {0:?} has no address in DNS")]
    Unknown(Arc<str>),
    #[error("cannot resolve the host {0:?}: no nameserver answered within {LOOKUP_TIMEOUT:?}")]
    Silent(Arc<str>),
    #[error("cannot resolve the host {0:?}: {1}")]
    Failed(Arc<str>, String),
    /// The router has no socket left for the lookup.
    #[error("cannot resolve the host {0:?} at the moment")]
    Exhausted(Arc<str>, #[source] Arc<io::Error>),
}

impl Names {
    /// Creates a resolver with the system's configuration.
    ///
    /// # Errors
    /// Fails when no resolver can be created.
    pub(super) fn of_system() -> Result<Self, NetError> {
        let (config, options) = system_conf::read_system_conf().unwrap_or_else(|error| {
            // Same default as the C library without a configured nameserver.
            let local = NameServerConfig::udp_and_tcp(IpAddr::from([127, 0, 0, 1]));
            tracing::warn!(%error, "no nameserver in /etc/resolv.conf; using 127.0.0.1");
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![local]);
            (config, ResolverOpts::default())
        });
        Self::configured(config, options)
    }

    /// Creates a resolver with these nameservers.
    fn configured(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, NetError> {
        options.timeout = options.timeout.min(NAMESERVER_TIMEOUT);
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.cache_size = MAX_CACHED as u64;
        // The domain of the host's name replaces absent search domains; it is not an additional one.
        let config = match config.search() {
            [] => config,
            search => {
                let servers = config.name_servers().to_vec();
                ResolverConfig::from_parts(None, search.to_vec(), servers)
            }
        };
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Ok(Self(Arc::new(SharedResolver {
            resolver: resolver.with_options(options).build()?,
            lookups: Pool::new(LOOKUPS),
            state: Mutex::default(),
        })))
    }

    /// Resolves a host on behalf of a namespace.
    pub(super) async fn resolve(
        &self,
        namespace: &Arc<str>,
        host: &str,
        stage: &AttemptStage,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let host: Arc<str> = host.to_ascii_lowercase().into();
        if is_number(&host) {
            return Err(ResolveError::NoName(host));
        }
        if let Some(found) = self.cached_or_in_flight(&host) {
            return found.await;
        }
        stage.wait_for(Lack::Connection);
        let room = self.0.lookups.reserve(namespace, 1).await;
        stage.granted();
        let lookup = {
            let mut state = self.lock();
            match state.find(&host) {
                Some(found) => found,
                None => {
                    let inner = self.0.clone();
                    let name = host.clone();
                    let lookup = async move {
                        let _room = room;
                        inner.look_up(name).await
                    };
                    let lookup = lookup.boxed().shared();
                    state
                        .lookups_in_flight
                        .retain(|_, lookup| lookup.upgrade().is_some());
                    if let Some(weak) = lookup.downgrade() {
                        state.lookups_in_flight.insert(host, weak);
                    }
                    lookup
                }
            }
        };
        lookup.await
    }

    fn cached_or_in_flight(&self, host: &str) -> Option<Shared<Lookup>> {
        self.lock().find(host)
    }

    fn lock(&self) -> MutexGuard<'_, ResolverState> {
        self.0.lock()
    }
}

impl SharedResolver {
    async fn look_up(&self, host: Arc<str>) -> Result<Arc<[IpAddr]>, ResolveError> {
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.lookup_ip(&*host)).await;
        let mut state = self.lock();
        state.lookups_in_flight.remove(&host);
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(unresolved(host, error)),
            Err(_) => return Err(ResolveError::Silent(host)),
        };
        let addresses: Arc<[IpAddr]> = found.iter().collect();
        if addresses.is_empty() {
            return Err(ResolveError::Unknown(host));
        }
        let now = Instant::now();
        let until = found.valid_until().clamp(now + MIN_TTL, now + MAX_TTL);
        state.remember(host, addresses.clone(), until, now);
        Ok(addresses)
    }

    fn lock(&self) -> MutexGuard<'_, ResolverState> {
        // No panic under the lock leaves the maps half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolverState {
    fn find(&self, host: &str) -> Option<Shared<Lookup>> {
        let now = Instant::now();
        if let Some(known) = self.known.get(host).filter(|known| known.until > now) {
            let addresses = known.addresses.clone();
            return Some(std::future::ready(Ok(addresses)).boxed().shared());
        }
        self.lookups_in_flight.get(host)?.upgrade()
    }

    fn remember(&mut self, host: Arc<str>, addresses: Arc<[IpAddr]>, until: Instant, now: Instant) {
        if self.known.len() >= MAX_CACHED {
            self.known.retain(|_, known| known.until > now);
        }
        if self.known.len() >= MAX_CACHED {
            self.known.clear();
        }
        self.known.insert(host, CachedAddresses { addresses, until });
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

fn unresolved(host: Arc<str>, error: NetError) -> ResolveError {
    match error {
        NetError::Io(error) if is_exhausted(&error) => ResolveError::Exhausted(host, error),
        NetError::Timeout => ResolveError::Silent(host),
        error if error.is_nx_domain() || error.is_no_records_found() => ResolveError::Unknown(host),
        error => ResolveError::Failed(host, error.to_string()),
    }
}

/// Whether a host is or ends in a number, as in other notations of IPv4 addresses. No DNS name ends so.
fn is_number(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or(host);
    let digits = last.strip_prefix("0x");
    match digits {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use hickory_resolver::{config::ConnectionConfig, proto::rr::Name};
    use tokio::net::UdpSocket;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A nameserver that ignores names with `silent` in them, and resolves `quick.search.test` to 10.0.0.7.
    struct Nameserver {
        names: Names,
        asked: Arc<AtomicUsize>,
    }

    impl Nameserver {
        async fn start() -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut connection = ConnectionConfig::udp();
            connection.port = socket.local_addr().unwrap().port();
            let server = NameServerConfig::new(IpAddr::from([127, 0, 0, 1]), true, vec![connection]);
            let search = vec![Name::from_ascii("search.test").unwrap()];
            let config = ResolverConfig::from_parts(None, search, vec![server]);
            let asked = Arc::<AtomicUsize>::default();
            let counted = asked.clone();
            tokio::spawn(async move {
                let mut query = [0; 512];
                loop {
                    let (length, peer) = socket.recv_from(&mut query).await.unwrap();
                    counted.fetch_add(1, Relaxed);
                    if let Some(answer) = answer(&query[..length]) {
                        socket.send_to(&answer, peer).await.unwrap();
                    }
                }
            });
            Self {
                names: Names::configured(config, ResolverOpts::default()).unwrap(),
                asked,
            }
        }

        async fn resolve(&self, namespace: &str, host: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
            let (namespace, stage) = (namespace.into(), AttemptStage::default());
            let found = self.names.resolve(&namespace, host, &stage);
            tokio::time::timeout(PATIENCE, found).await.unwrap()
        }
    }

    /// The answer to a query of one question; `None` if it is ignored.
    fn answer(query: &[u8]) -> Option<Vec<u8>> {
        let (mut at, mut name) = (12, Vec::new());
        while query[at] != 0 {
            let length = query[at] as usize;
            name.push(String::from_utf8(query[at + 1..=at + length].to_vec()).unwrap());
            at += length + 1;
        }
        let (name, question) = (name.join(".").to_lowercase(), &query[12..at + 5]);
        let is_v4 = query[at + 2] == 1;
        if name.contains("silent") {
            return None;
        }
        let is_known = name == "quick.search.test";
        let (code, answers) = (if is_known { 0 } else { 3 }, u8::from(is_known && is_v4));
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
        answer.extend(question);
        if answers == 1 {
            // The name of the question, A, IN, a minute, 4 bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 7]);
        }
        Some(answer)
    }

    #[tokio::test]
    async fn resolves_by_search_domain_and_hosts_file_and_caches() {
        let nameserver = Nameserver::start().await;
        for host in ["quick", "QUICK", "quick.search.test."] {
            let found = nameserver.resolve("a", host).await.unwrap();
            assert_eq!(*found, [IpAddr::from([10, 0, 0, 7])], "{host}");
        }
        let asked = nameserver.asked.load(Relaxed);
        nameserver.resolve("b", "quick").await.unwrap();
        assert_eq!(nameserver.asked.load(Relaxed), asked, "cached");
        let localhost = nameserver.resolve("a", "localhost").await.unwrap();
        assert!(localhost.iter().all(IpAddr::is_loopback) && !localhost.is_empty());
        assert_eq!(nameserver.asked.load(Relaxed), asked, "found in the hosts file");
        let unknown = nameserver.resolve("a", "unknown").await.unwrap_err();
        assert!(matches!(unknown, ResolveError::Unknown(_)), "{unknown:?}");
        let number = nameserver.resolve("a", "0x7f.1").await.unwrap_err();
        assert!(matches!(number, ResolveError::NoName(_)), "{number:?}");
    }

    #[tokio::test]
    async fn a_silent_lookup_blocks_no_other_name() {
        let nameserver = Arc::new(Nameserver::start().await);
        // More requests for one name than lookups are allowed: they share one lookup.
        let asking = (0..2 * LOOKUPS).map(|_| {
            let nameserver = nameserver.clone();
            tokio::spawn(async move { nameserver.resolve("a", "silent").await })
        });
        let asking: Vec<_> = asking.collect();
        while nameserver.asked.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        nameserver.resolve("a", "quick").await.unwrap();
        assert_eq!(nameserver.names.0.lookups.free(), LOOKUPS - 1);
        for found in asking {
            let silent = found.await.unwrap().unwrap_err();
            assert!(matches!(silent, ResolveError::Silent(_)), "{silent:?}");
        }
        assert_eq!(nameserver.names.0.lookups.free(), LOOKUPS);
    }

    #[tokio::test]
    async fn many_silent_lookups_of_a_namespace_leave_room_for_others() {
        let nameserver = Arc::new(Nameserver::start().await);
        let ask = |number: usize| {
            let nameserver = nameserver.clone();
            tokio::spawn(async move { nameserver.resolve("greedy", &format!("silent-{number}")).await })
        };
        let asking: Vec<_> = (0..10 * LOOKUPS).map(ask).collect();
        while nameserver.names.0.lookups.free() > LOOKUPS / 2 {
            tokio::task::yield_now().await;
        }
        nameserver.resolve("modest", "quick").await.unwrap();
        // A cached name needs no lookup, so the greedy namespace gets it as well.
        nameserver.resolve("greedy", "quick").await.unwrap();
        for asking in asking {
            asking.abort();
            let _ = asking.await;
        }
        assert_eq!(nameserver.names.0.lookups.free(), LOOKUPS);
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut state = ResolverState::default();
        let now = Instant::now();
        for number in 0..3 * MAX_CACHED {
            let until = now + Duration::from_secs(60);
            state.remember(number.to_string().into(), Arc::new([]), until, now);
            assert!(state.known.len() <= MAX_CACHED);
        }
    }

    #[test]
    fn numbers_are_not_names() {
        for (host, expected) in [
            ("127.1", true),
            ("127.0.0.1", true),
            ("2130706433", true),
            ("0x7f000001", true),
            ("0x7f.1.", true),
            ("a.0x7f", true),
            ("0xnot", false),
            ("1.example", false),
            ("example", false),
            ("a1", false),
            ("", false),
        ] {
            assert_eq!(is_number(host), expected, "{host:?}");
        }
    }
}
