//! Producers of events inside Weir: at present, schedules.
//!
//! The router calls [`Sources::apply`] with the Sources of each new routing configuration.

mod clock;
mod cron;
mod event;
mod runner;

pub use runner::{SourceCounts, Sources, Statistics};
