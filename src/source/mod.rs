//! Producers of events inside Weir: at present, schedules.
//!
//! The router calls [`Sources::apply`] with the Sources of each new routing configuration.

mod clock;
mod context;
mod cron;
mod event;
mod runner;
mod statistics;
pub mod webhook;

pub use runner::Sources;
pub use statistics::{SourceCounts, Statistics};
