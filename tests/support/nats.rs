//! A NATS server for one test, which can be killed and started again with the same port and data.

use super::{PATIENCE, Process, ReservedPort, Scratch};

/// A server with JetStream that syncs messages before it acknowledges them.
pub(crate) struct Nats {
    process: Process,
    port: ReservedPort,
    data: Scratch,
}

impl Nats {
    pub(crate) fn start() -> Self {
        let (port, data) = (ReservedPort::new(), Scratch::new());
        let store = data.path().join("store");
        data.write(
            "nats.conf",
            format!(
                "max_payload: 2MB\njetstream {{ store_dir: {store:?}, sync_interval: always, max_file: 4GB }}\n"
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
    let server = std::path::Path::new(&folder).join("nats-server");
    let port = port.address().port().to_string();
    let configuration = data.path().join("nats.conf").display().to_string();
    let arguments = ["--addr", "127.0.0.1", "--port", &port, "--config", &configuration];
    let process = Process::program(server, arguments).quiet().start();
    process.wait_for_line(PATIENCE, |line| line.contains("Server is ready"));
    process
}
