//! What the integration tests stand on: real processes, a real API server, a real HTTP consumer. No fakes.
//!
//! A test is a plain, blocking `#[test]` function; what has to be asynchronous runs on [`runtime`]. Nothing here
//! waits for a fixed time where there is a condition to wait for ([`eventually`]), and nothing outlives the test
//! process, however that ends (see `process.rs` and `scratch.rs`).

mod client;
mod collector;
mod consumer;
mod control_plane;
mod disk;
mod https_client;
mod kubectl;
mod local_router;
mod nameserver;
mod nats;
mod node;
mod port;
mod process;
mod raw;
mod scratch;
mod tls;
mod volume;

pub(crate) use client::{Response, get, post, send, try_get, try_post};
pub(crate) use collector::{Collector, Exported};
pub(crate) use consumer::{Answer, Consumer, Received};
pub(crate) use control_plane::ControlPlane;
pub(crate) use disk::Disk;
pub(crate) use https_client::{HttpsClient, TlsStream};
pub(crate) use kubectl::{Kubectl, kubectl_binary};
pub(crate) use local_router::{LocalRouter, Setup, mapped, operator_of};
pub(crate) use nameserver::Nameserver;
pub(crate) use nats::{Nats, NatsCluster};
pub(crate) use node::Node;
pub(crate) use port::ReservedPort;
pub(crate) use process::{Launch, Process};
pub(crate) use raw::{RawResponse, connect, connect_from, exchange, exchange_bytes, exchange_on};
pub(crate) use scratch::Scratch;
pub(crate) use tls::{Authority, HttpsFront, Pair, SecretVolume};
pub(crate) use volume::Volume;

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

/// How long to wait for what takes moments, on a machine that is busy with other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Tries again until it succeeds, and fails the test with the last error when it does not in time.
#[track_caller]
pub(crate) fn eventually<T>(timeout: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if begin.elapsed() >= timeout => panic!("after {timeout:?} still: {error}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The runtime of the consumers and of the HTTP client, for as long as the test process lives.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("cannot start tokio's runtime")
    })
}
