//! Weir routes CloudEvents inside a Kubernetes cluster.
//!
//! One binary is the controller, the router and the command line; this library holds its rooms. Arrows between
//! them point one way, and `tests/architecture.rs` holds them.

pub mod api;
pub mod cli;
pub mod cloudevents;
pub mod controller;
pub mod delivery;
pub mod descriptors;
pub mod filter;
pub mod http_url;
pub mod log;
pub mod memory;
pub mod router;
pub mod routing;
pub mod server;
pub mod source;
pub mod supervision;
pub mod telemetry;
pub mod trust;
