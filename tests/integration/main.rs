//! What crosses rooms, against the real thing: processes, an API server, HTTP. One binary, so that it links once.
//!
//! `make integration` runs it; tests/README.md says what it needs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and what it has to show then goes to standard error"
)]

#[path = "../support/mod.rs"]
mod support;

mod addressables;
mod brokers;
mod channel;
mod cluster;
mod conformance;
mod controller;
mod dead_letters;
mod deduplication;
mod e2e;
mod explain;
mod faults;
mod full_log;
mod gone_brokers;
mod harness;
mod hostile;
mod ingress_tls;
mod interop;
mod jetstream;
mod kubernetes_source;
mod leadership;
mod local;
mod logs;
mod operators;
mod producer_certificates;
mod producer_secrets;
mod producers;
mod replies;
mod resumed;
mod schedules;
mod several_routers;
mod sink_certificates;
mod sink_credentials;
mod sink_oauth2;
mod sink_signatures;
mod sink_status;
mod source_status;
mod traces;
mod transform;
mod uri_addresses;
mod webhooks;
mod wire;
