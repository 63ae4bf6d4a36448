//! NATS servers for one test, which can be killed and started again with the same port and data: a single one, or a
//! cluster of three.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::{Disk, PATIENCE, Process, ReservedPort, Scratch, eventually, try_get};

/// Timeout of a server that recovers its replicas, or of an election.
const RECOVERY: Duration = Duration::from_secs(120);

/// A server with JetStream that syncs messages before it acknowledges them.
pub(crate) struct Nats {
    process: Process,
    port: ReservedPort,
    data: Scratch,
}

impl Nats {
    pub(crate) fn start() -> Self {
        let data = Scratch::new();
        let store = data.path().join("store");
        Self::configured(data, &store, "")
    }

    /// Starts a server with its data in `store`, and with more configuration.
    fn configured(data: Scratch, store: &Path, more: &str) -> Self {
        let port = ReservedPort::new();
        data.write(
            "nats.conf",
            format!(
                "max_payload: 2MB\njetstream {{ store_dir: {store:?}, sync_interval: always, max_file: 4GB }}\n{more}"
            ),
        );
        Self {
            process: launch(&port, &data),
            port,
            data,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.port.address())
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = launch(&self.port, &self.data);
    }
}

fn launch(port: &ReservedPort, data: &Scratch) -> Process {
    let folder = std::env::var_os("WEIR_NATS").unwrap_or_else(|| {
        panic!("WEIR_NATS is not set; run: export WEIR_NATS=$(tests/nats/build.sh), or make integration")
    });
    let server = Path::new(&folder).join("nats-server");
    let port = port.address().port().to_string();
    let configuration = data.path().join("nats.conf").display().to_string();
    let arguments = ["--addr", "127.0.0.1", "--port", &port, "--config", &configuration];
    let process = Process::program(server, arguments).quiet().start();
    process.wait_for_line(PATIENCE, |line| line.contains("Server is ready"));
    process
}

/// Three servers, for streams with three replicas. The server of index `n` is named `server-n`.
pub(crate) struct NatsCluster {
    members: Vec<Member>,
}

/// A server of a cluster.
struct Member {
    server: Nats,
    monitoring: ReservedPort,
    storage: Storage,
    is_paused: bool,
    _route: ReservedPort,
}

/// Where a server of a cluster has its data.
enum Storage {
    /// In a directory.
    Directory(PathBuf),
    /// On a disk whose power can be cut.
    Disk(Disk),
}

impl Storage {
    fn path(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Disk(disk) => disk.path().join("store"),
        }
    }
}

impl NatsCluster {
    /// Starts the servers, and waits until they have formed the cluster. Their data are on disks whose power can be cut,
    /// if this machine allows it; otherwise the reason is written to standard error.
    pub(crate) fn start() -> Self {
        let routes: Vec<_> = (0..3).map(|_| ReservedPort::new()).collect();
        let urls: Vec<_> = routes
            .iter()
            .map(|route| format!("nats-route://{}", route.address()))
            .collect();
        let start = |(number, route): (usize, ReservedPort)| {
            let (data, monitoring) = (Scratch::new(), ReservedPort::new());
            let storage = match Disk::mount(2048) {
                Ok(disk) => Storage::Disk(disk),
                Err(reason) => {
                    eprintln!("server-{number} has no disk whose power can be cut: {reason}");
                    Storage::Directory(data.path().join("store"))
                }
            };
            let more = format!(
                "server_name: server-{number}\nhttp: \"{}\"\n\
                 cluster {{ name: weir, listen: \"{}\", routes: {urls:?} }}\n",
                monitoring.address(),
                route.address()
            );
            Member {
                server: Nats::configured(data, &storage.path(), &more),
                monitoring,
                storage,
                is_paused: false,
                _route: route,
            }
        };
        let cluster = Self {
            members: routes.into_iter().enumerate().map(start).collect(),
        };
        eventually(RECOVERY, || {
            let mut servers = cluster.servers();
            servers.try_for_each(|server| cluster.is_healthy(server))
        });
        cluster
    }

    /// The URLs of all servers, separated by commas.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<_> = self.members.iter().map(|member| member.server.url()).collect();
        urls.join(",")
    }

    /// Indices of the servers.
    pub(crate) fn servers(&self) -> std::ops::Range<usize> {
        0..self.members.len()
    }

    /// Whether the power of the servers can be cut.
    pub(crate) fn can_lose_power(&self) -> bool {
        let is_disk = |member: &Member| matches!(member.storage, Storage::Disk(_));
        self.members.iter().all(is_disk)
    }

    pub(crate) fn kill(&mut self, server: usize) {
        self.members[server].server.kill();
    }

    pub(crate) fn start_again(&mut self, server: usize) {
        self.members[server].server.start_again();
    }

    pub(crate) fn pause(&mut self, server: usize) {
        self.members[server].server.process.signal("STOP");
        self.members[server].is_paused = true;
    }

    pub(crate) fn resume(&mut self, server: usize) {
        self.members[server].server.process.signal("CONT");
        self.members[server].is_paused = false;
    }

    /// Removes all data of a server that was killed.
    pub(crate) fn wipe(&mut self, server: usize) {
        fs::remove_dir_all(self.members[server].storage.path()).expect("cannot remove the data of a server");
    }

    /// Cuts the power of servers, all at the same moment: what they have not synced is lost.
    pub(crate) fn cut_power(&mut self, servers: impl IntoIterator<Item = usize> + Clone) {
        // A server must not see the failing disk: it would have a chance to respond to it.
        for server in servers.clone() {
            self.members[server].server.process.signal("STOP");
        }
        for server in servers.clone() {
            if let Storage::Disk(disk) = &self.members[server].storage {
                disk.cut_power();
            }
        }
        for server in servers {
            let Member { server, storage, .. } = &mut self.members[server];
            server.kill();
            if let Storage::Disk(disk) = storage {
                disk.restore();
            }
        }
    }

    /// The server that leads a stream, as soon as there is one.
    #[track_caller]
    pub(crate) fn leader(&self, stream: &str) -> usize {
        eventually(RECOVERY, || {
            let leader = |server| {
                let streams = self.streams(server).ok()?;
                let leader = streams.get(stream)?.leader.clone()?;
                leader.strip_prefix("server-")?.parse().ok()
            };
            // One that was killed may be known as the leader for a while.
            let leader = self.servers().find_map(leader);
            leader
                .filter(|leader| self.streams(*leader).is_ok())
                .ok_or_else(|| format!("no server leads {stream}"))
        })
    }

    /// Waits until all servers are up, and each has every message that any of them has now.
    #[track_caller]
    pub(crate) fn wait_until_current(&self) {
        let mut wanted: Option<BTreeMap<String, u64>> = None;
        eventually(RECOVERY, || {
            let each: Vec<_> = self
                .servers()
                .map(|server| self.streams(server))
                .collect::<Result<_, _>>()?;
            let wanted = wanted.get_or_insert_with(|| {
                let mut wanted = BTreeMap::new();
                for (stream, Replica { last, .. }) in each.iter().flatten() {
                    let most = wanted.entry(stream.clone()).or_insert(*last);
                    *most = (*most).max(*last);
                }
                wanted
            });
            for (server, replicas) in each.iter().enumerate() {
                for (stream, last) in wanted.iter() {
                    let is = replicas.get(stream).map(|replica| replica.last);
                    if is < Some(*last) {
                        return Err(format!(
                            "server-{server} has {is:?} of {last} messages of {stream}"
                        ));
                    }
                }
            }
            Ok(())
        });
    }

    /// Checks that a server knows the leaders, and does not lag behind them. Under load there is always a stream with a lag.
    fn is_healthy(&self, server: usize) -> Result<(), String> {
        let health = self.monitor(server, "/healthz")?;
        if health["status"] == "ok" {
            Ok(())
        } else {
            Err(format!("server-{server}: {health}"))
        }
    }

    /// The replicas of a server, by stream.
    fn streams(&self, server: usize) -> Result<BTreeMap<String, Replica>, String> {
        let answer = self.monitor(server, "/jsz?accounts=true&streams=true")?;
        let streams = answer["account_details"].as_array().into_iter().flatten();
        let streams = streams.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
        let replica = |stream: &Value| {
            let replica = Replica {
                leader: stream["cluster"]["leader"].as_str().map(str::to_owned),
                last: stream["state"]["last_seq"].as_u64().unwrap_or_default(),
            };
            (stream["name"].as_str().unwrap_or_default().to_owned(), replica)
        };
        Ok(streams.map(replica).collect())
    }

    fn monitor(&self, server: usize, path: &str) -> Result<Value, String> {
        let member = &self.members[server];
        if member.is_paused {
            return Err(format!("server-{server} is paused"));
        }
        let url = format!("http://{}{path}", member.monitoring.address());
        Ok(try_get(&url)?.json())
    }
}

/// A replica of a stream.
struct Replica {
    /// Name of the leader, as far as this replica knows.
    leader: Option<String>,
    /// Sequence of the last message.
    last: u64,
}
