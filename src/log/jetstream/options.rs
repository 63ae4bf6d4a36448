//! What a JetStream log needs to know: servers, credentials, limits of the streams.

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
    /// Copies of each stream: 1, 3 or 5.
    pub replicas: u8,
    /// Bytes of a broker's stream of events at which it is full. The server reserves them.
    pub max_bytes: u64,
    /// The same of a broker's stream of dead letters.
    pub dead_letters_max_bytes: u64,
    /// Bytes of the largest record. The server's `max_payload` has to allow it.
    pub largest_record: usize,
    /// Bytes of the payloads of all appends in flight; beyond it, appends wait.
    pub in_flight_bytes: usize,
    /// Timeout of an operation, with its retries. A lost leader of a stream takes 4 to 8 seconds to be replaced.
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
        /// File with the password; the end of its line is not part of it.
        password: PathBuf,
    },
}

/// Certificates for NATS, as PEM files that are read again for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// Authorities that the servers' certificates are checked against; those of the system by default.
    pub authorities: Option<PathBuf>,
    /// Certificate of this client and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
}
