//! Producers of events: schedules and webhooks inside the router; the pure parts of the Sources that `weir sources` runs.
//!
//! The router calls [`Sources::apply`] with the Sources of each new routing configuration.

mod clock;
mod context;
mod cron;
mod event;
pub mod kubernetes;
mod last_runs;
mod progress;
mod runner;
mod statistics;
pub mod webhook;

pub use last_runs::{LastRuns, broker_of_last_run};
pub use progress::SourceProgress;
pub use runner::{SourcePlace, Sources};
pub use statistics::{SourceCounts, Statistics};
