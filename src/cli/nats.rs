//! Flags for the connection to NATS.

use std::path::PathBuf;

use anyhow::bail;

use super::units::Size;
use crate::log::jetstream::{JetStreamOptions, NatsAuth, NatsTls, SHARDS};

/// Maximum bytes of a record besides the request body: attributes, the trace context, and headers.
const BESIDE_BODY: u64 = 64 * 1024;

/// Connection to NATS and limits of the streams. Used only with `--log jetstream`.
#[derive(Debug, clap::Args)]
pub struct NatsArgs {
    /// URLs of servers of one NATS cluster: nats://HOST:PORT, or tls://HOST:PORT to require TLS. Required with --log
    /// jetstream. The servers must be version 2.15 or newer and have sync_interval: always in their jetstream block.
    #[arg(
        long = "nats",
        env = "WEIR_NATS_URLS",
        value_delimiter = ',',
        value_name = "URL[,URL]"
    )]
    pub urls: Vec<String>,

    /// Credentials file for NATS, with a JWT and the seed of its NKey. Read again for each new connection.
    #[arg(long = "nats-credentials", env = "WEIR_NATS_CREDENTIALS", value_name = "FILE", conflicts_with_all = ["nkey", "user"])]
    pub credentials: Option<PathBuf>,

    /// File with the seed of an NKey for NATS.
    #[arg(
        long = "nats-nkey",
        env = "WEIR_NATS_NKEY",
        value_name = "FILE",
        conflicts_with = "user"
    )]
    pub nkey: Option<PathBuf>,

    /// NATS user, for authentication by password.
    #[arg(
        long = "nats-user",
        env = "WEIR_NATS_USER",
        value_name = "NAME",
        requires = "password"
    )]
    pub user: Option<String>,

    /// File with the password of the NATS user.
    #[arg(
        long = "nats-password",
        env = "WEIR_NATS_PASSWORD_FILE",
        value_name = "FILE",
        requires = "user"
    )]
    pub password: Option<PathBuf>,

    /// PEM file with the authorities trusted to sign the certificates of the NATS servers. Default: those of the
    /// system.
    #[arg(long = "nats-ca", env = "WEIR_NATS_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// PEM file with the client certificate for the NATS servers.
    #[arg(
        long = "nats-certificate",
        env = "WEIR_NATS_CERTIFICATE",
        value_name = "FILE",
        requires = "key"
    )]
    pub certificate: Option<PathBuf>,

    /// PEM file with the private key of the client certificate.
    #[arg(
        long = "nats-key",
        env = "WEIR_NATS_KEY",
        value_name = "FILE",
        requires = "certificate"
    )]
    pub key: Option<PathBuf>,

    /// Replicas of each stream, each on a different NATS server: 1, 3 or 5. With 1, events are lost with the storage
    /// of their server.
    #[arg(
        long = "nats-replicas",
        env = "WEIR_NATS_REPLICAS",
        default_value_t = 3,
        value_name = "NUMBER"
    )]
    pub replicas: u8,

    /// Maximum size of each broker's event stream, reserved on the NATS servers. When it is full, new events are
    /// rejected with 507. Existing streams keep their size.
    #[arg(
        long = "nats-stream-size",
        env = "WEIR_NATS_STREAM_SIZE",
        default_value = "1GiB",
        value_name = "SIZE"
    )]
    pub stream_size: Size,

    /// Maximum size of each broker's dead-letter stream, reserved on the NATS servers. Existing streams keep their
    /// size.
    #[arg(
        long = "nats-dead-letter-stream-size",
        env = "WEIR_NATS_DEAD_LETTER_STREAM_SIZE",
        default_value = "256MiB",
        value_name = "SIZE"
    )]
    pub dead_letter_stream_size: Size,

    /// Number of partitions of each new broker, 1 to 24. Up to that many routers deliver the events of a broker in
    /// parallel. Existing brokers keep the number they started with.
    #[arg(
        long = "nats-partitions",
        env = "WEIR_NATS_PARTITIONS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(SHARDS)),
        value_name = "NUMBER"
    )]
    pub partitions: u16,
}

impl NatsArgs {
    /// Converts the flags. `max_event_size` is the maximum size of a request.
    ///
    /// # Errors
    /// If there is no URL, or `replicas` is not 1, 3 or 5.
    pub fn into_options(self, max_event_size: Size) -> anyhow::Result<JetStreamOptions> {
        let Self {
            urls,
            credentials,
            nkey,
            user,
            password,
            ca,
            certificate,
            key,
            replicas,
            stream_size,
            dead_letter_stream_size,
            partitions,
        } = self;
        if urls.is_empty() {
            bail!("--log jetstream needs the URLs of the NATS servers: set --nats (WEIR_NATS_URLS)");
        }
        if !matches!(replicas, 1 | 3 | 5) {
            bail!("--nats-replicas is {replicas}: use 1, 3 or 5");
        }
        let auth = match (credentials, nkey, user.zip(password)) {
            (Some(file), _, _) => NatsAuth::Credentials(file),
            (None, Some(file), _) => NatsAuth::NkeySeed(file),
            (None, None, Some((name, password))) => NatsAuth::User { name, password },
            (None, None, None) => NatsAuth::None,
        };
        let largest = max_event_size.0.saturating_add(BESIDE_BODY);
        Ok(JetStreamOptions {
            urls,
            auth,
            tls: NatsTls {
                authorities: ca,
                client: certificate.zip(key),
            },
            replicas,
            max_bytes: stream_size.0,
            dead_letters_max_bytes: dead_letter_stream_size.0,
            partitions,
            largest_record: usize::try_from(largest).unwrap_or(usize::MAX),
            ..JetStreamOptions::default()
        })
    }
}
