//! A NATS server for one test, on loopback, with its own port and directory. The kernel kills it when the test process
//! ends.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::log::jetstream::{JetStreamLog, JetStreamOptions};

/// Timeout of every wait in the tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Configuration of a server that meets the requirements of the log.
pub(super) const FIT: &str = "max_payload: 2MB\njetstream { sync_interval: always, max_file: 1GB }\n";

/// A port reserved for a server even while none listens: it stays bound, with `SO_REUSEADDR`, so a server can bind it
/// too.
pub(super) struct HeldPort(TcpSocket);

impl HeldPort {
    pub(super) fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self(socket)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// A server that can be killed and started again on the same port.
pub(crate) struct NatsServer {
    directory: TempDir,
    port: HeldPort,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server that meets the requirements of the log.
    pub(crate) fn start() -> Self {
        Self::configured(FIT)
    }

    /// Starts a server with this configuration, to which port and directory are added.
    pub(super) fn configured(configuration: &str) -> Self {
        let mut server = Self {
            directory: tempfile::tempdir().unwrap(),
            port: HeldPort::new(),
            child: None,
        };
        server.configure(configuration);
        server.start_again();
        server
    }

    /// Replaces the configuration for the next start.
    pub(super) fn configure(&self, configuration: &str) {
        let store = format!("jetstream {{ store_dir: {:?},", self.directory().join("store"));
        let configuration = configuration.replace("jetstream {", &store);
        fs::write(self.directory().join("nats.conf"), configuration).unwrap();
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn url(&self) -> String {
        format!("nats://{}", self.port.address())
    }

    /// Options for this server, with timeouts for tests.
    pub(super) fn options(&self) -> JetStreamOptions {
        JetStreamOptions {
            urls: vec![self.url()],
            replicas: 1,
            max_bytes: 64 * 1024 * 1024,
            dead_letters_max_bytes: 64 * 1024 * 1024,
            timeout: Duration::from_secs(30),
            ..Default::default()
        }
    }

    pub(crate) async fn connect(&self) -> JetStreamLog {
        JetStreamLog::connect(self.options()).await.unwrap()
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Shuts the server down gracefully, after it has written everything.
    pub(super) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let id = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server with the same data and port, and waits until it listens.
    pub(super) fn start_again(&mut self) {
        let ports = self.directory().join("ports");
        drop(fs::remove_dir_all(&ports));
        fs::create_dir(&ports).unwrap();
        let port = self.port.address().port().to_string();
        let log = fs::File::create(self.directory().join("log")).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(binary())
            .args(["--addr", "127.0.0.1", "--port", &port, "--ports_file_dir"])
            .arg(&ports)
            .arg("--config")
            .arg(self.directory().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait_until_it_listens(&ports);
    }

    /// Waits for the file that the server writes once it listens.
    fn wait_until_it_listens(&mut self, ports: &Path) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if fs::read_dir(ports).unwrap().next().is_some() {
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                panic!("nats-server ended with {status}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nats-server does not listen: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory().join("log")).unwrap()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Retries until the attempt succeeds.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < end, "it still fails: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the path of the server. Panics if there is none: a skipped test would look like a passed one.
fn binary() -> PathBuf {
    let folder = std::env::var_os("WEIR_NATS").unwrap_or_else(|| {
        panic!("WEIR_NATS is not set; run: export WEIR_NATS=$(tests/nats/build.sh), or make unit")
    });
    let binary = Path::new(&folder).join("nats-server");
    assert!(
        binary.exists(),
        "{} does not exist; unset WEIR_NATS and run: export WEIR_NATS=$(tests/nats/build.sh)",
        binary.display()
    );
    binary
}
