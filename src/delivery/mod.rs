//! Delivery: from the event log to the Sinks.
//!
//! One [`reader`] follows each broker's log and offers what it reads to the broker's Triggers, each through a
//! bounded [`inbox`]. One [`dispatcher`] a Trigger takes from its inbox, sends, waits out retries and settles, in
//! any order within a bounded window. A Trigger whose inbox overflows leaves the shared reader and reads the log
//! from its own place until it has caught up; so memory is bounded and a slow Sink moves nobody else.
//!
//! What a Trigger has settled is its [`progress`], durable beside the log. After a crash what was settled since
//! the last save, [`SAVE_EVERY`] at most, is delivered again; nothing is left out.
//!
//! The router calls [`Engine::apply`] with each new routing table; nobody else calls in.

mod addresses;
mod attempt;
mod backoff;
mod breaker;
mod client;
mod connector;
mod dead_letter;
mod dead_letters;
mod dispatcher;
mod engine;
mod feed;
mod held;
mod holds;
mod inbox;
mod inspection;
mod keeper;
mod kept;
mod lanes;
mod letters;
mod lines;
mod names;
mod offsets;
mod place;
mod placement;
mod progress;
mod rate;
mod reader;
mod redrive;
mod reply;
mod retention;
mod running;
mod saver;
mod scheduler;
mod settings;
mod sink_health;
mod stage;
mod stats;
mod target;
mod throttle;
mod tls_error;
mod traced;
mod trimmer;
mod upkeep;
mod uri_addresses;
mod verdict;
mod view;
mod wall_clock;

pub use addresses::Addresses;
pub use client::{ATTEMPT_OVERHEAD, Client, ClientError, with_causes};
pub use dead_letter::{DeadLetter, DeadLetterError};
pub use dead_letters::{Dropped, KeptLetter, Page, Redriven, Selection};
pub use engine::{DeliveryOptions, Engine, EngineError};
pub use holds::Hold;
pub use keeper::KeptTrigger;
pub use retention::Retention;
pub use sink_health::{Outage, SinkHealth};
pub use stats::{Settlement, TriggerStats};
pub use trimmer::WhenFull;
pub use uri_addresses::UriAddresses;
pub use view::TriggerView;

use std::time::Duration;

/// How long what a Trigger has settled stays unsaved at most.
pub const SAVE_EVERY: Duration = Duration::from_millis(50);
