//! What produces events inside Weir: at present schedules.
//!
//! The router calls [`Sources::apply`] with the Sources of each new routing configuration. [`Schedule`] and
//! [`event`] are pure, and the controller and the command line check Sources by them.

mod clock;
mod cron;
mod runner;

pub use cron::{Schedule, ScheduleError, event};
pub use runner::{SourceCounts, Sources, Statistics};
