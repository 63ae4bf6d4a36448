//! Runs the conformance suite on a real server, and tests what is specific to this log: servers that are unavailable,
//! killed, full or misconfigured, several routers, and damaged messages.

mod cluster;
mod copy;
mod faults;
mod health;
mod members;
mod partitions;
mod routers;
pub(crate) mod server;
mod setup;
mod unique;

use proptest::prelude::*;

use super::*;
use crate::log::conformance::{self, Tested};
use server::NatsServer;

/// Opens the log by a new connection each time.
impl Tested for NatsServer {
    type Logs = JetStreamLog;

    async fn open(&self) -> JetStreamLog {
        self.connect().await
    }

    /// Allows for the subjects, headers and fields that the server stores with each record.
    fn counts(&self, counted: u64, payloads: u64, records: u64) -> bool {
        (payloads..=payloads + 400 * records).contains(&counted)
    }
}

crate::log::conformance::conformance!(NatsServer::start());

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

    #[test]
    fn behaves_like_the_model(steps in conformance::steps(40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(conformance::behaves_like_the_model(NatsServer::start(), steps));
    }
}
