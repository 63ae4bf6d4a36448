//! Options of the JetStream log.

use std::{path::PathBuf, time::Duration};

const MIB: usize = 1024 * 1024;

/// Servers, credentials and limits of a [`JetStreamLog`](super::JetStreamLog).
#[derive(Clone, Debug)]
pub struct JetStreamOptions {
    /// URLs of servers of one cluster, `nats://HOST:PORT`, or `tls://HOST:PORT` to require TLS. Others are discovered.
    pub urls: Vec<String>,
    /// Credentials.
    pub auth: NatsAuth,
    /// Certificates.
    pub tls: NatsTls,
    /// Replicas of each stream: 1, 3 or 5.
    pub replicas: u8,
    /// Maximum bytes of each broker's event stream. The servers reserve them.
    pub max_bytes: u64,
    /// Maximum bytes of each broker's dead-letter stream.
    pub dead_letters_max_bytes: u64,
    /// Partitions of each broker that no router has used yet: 1 to [`SHARDS`](super::SHARDS).
    pub partitions: u16,
    /// Maximum bytes of a record. The servers' `max_payload` must allow it.
    pub largest_record: usize,
    /// Maximum bytes of all appends in flight. Further appends wait.
    pub in_flight_bytes: usize,
    /// Timeout of an operation, including retries. A stream that loses its leader has a new one after 4 to 8 seconds.
    pub timeout: Duration,
}

impl Default for JetStreamOptions {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            auth: NatsAuth::None,
            tls: NatsTls::default(),
            replicas: 3,
            max_bytes: 1024 * MIB as u64,
            dead_letters_max_bytes: 256 * MIB as u64,
            partitions: 1,
            largest_record: MIB + MIB / 4,
            in_flight_bytes: 32 * MIB,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Credentials for NATS. Files are read again for each connection, so they can be replaced while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NatsAuth {
    /// No credentials.
    #[default]
    None,
    /// Credentials file, with a JWT and the seed of its NKey.
    Credentials(PathBuf),
    /// File with the seed of an NKey.
    NkeySeed(PathBuf),
    /// User and password.
    User {
        /// Name of the user.
        name: String,
        /// File with the password. A trailing line break is ignored.
        password: PathBuf,
    },
}

/// Certificates for NATS: PEM files, read again for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// Authorities trusted to sign the servers' certificates; by default those of the system.
    pub authorities: Option<PathBuf>,
    /// Certificate of this client and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
}
