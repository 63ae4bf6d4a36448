//! Weir routes CloudEvents inside a Kubernetes cluster.
//!
//! A single binary is the controller, the router and the command line. Dependencies between the modules point one
//! way, which `tests/architecture.rs` enforces.

mod access;
pub mod api;
mod causes;
pub mod cli;
pub mod cloudevents;
pub mod cluster_sources;
pub mod controller;
pub mod delivery;
pub mod descriptors;
pub mod destination;
pub mod election;
pub mod filter;
pub mod http_url;
pub mod intake;
pub mod log;
pub mod memory;
mod ownership;
pub mod resolve;
pub mod router;
pub mod routing;
pub mod server;
pub mod source;
pub mod supervision;
pub mod telemetry;
pub mod transform;
pub mod trust;
