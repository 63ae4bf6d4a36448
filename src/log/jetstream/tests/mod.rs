//! Runs the conformance suite on a real server, and tests what only this log can run into: a server that is away,
//! killed, full or configured wrongly, other routers, damaged messages.

mod cluster;
mod copy;
mod faults;
mod lease;
mod routers;
mod server;
mod setup;

use proptest::prelude::*;

use super::*;
use crate::log::conformance::{self, Tested};
use server::NatsServer;

/// A server, whose log is opened by a new connection each time.
impl Tested for NatsServer {
    type Logs = JetStreamLog;

    async fn open(&self) -> JetStreamLog {
        self.connect().await
    }

    /// The server counts what it stores: subjects, headers and its own fields, too.
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
