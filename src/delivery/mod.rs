//! Delivery: reads the event logs and delivers each event to the Sinks of the Triggers that want it.
//!
//! One reader follows each broker's log and fills a bounded inbox for each Trigger, and one dispatcher per Trigger
//! sends, retries and settles; a Trigger whose inbox overflows reads the log independently until it has caught up, so
//! that memory is bounded and a slow Sink delays no other Trigger. Progress is checkpointed beside the log, so a crash
//! repeats the deliveries since the last checkpoint but loses none.
//!
//! Reading order:
//!
//! - [`engine`] starts and stops everything and applies each routing table; [`placement`] finds the start position of a
//!   Trigger, [`running`] spawns the tasks, [`upkeep`] runs the periodic work.
//! - [`reader`] follows a broker's log, [`inbox`] queues events for one Trigger, [`feed`] merges the log and the
//!   inbox for it.
//! - [`scheduler`] decides the next step, without I/O, from [`lanes`] (order by key), [`backoff`], [`breaker`],
//!   [`throttle`], [`rate`] and [`letters`] (dead letters in flight). [`keys`] has the keys of events, and tells which
//!   are in the partition that is delivered here.
//! - [`dispatcher`] is the loop that performs those steps, [`attempt`] performs one, [`ending`] is its result.
//!   [`progress`] tracks what is settled, [`saver`] checkpoints it.
//! - [`reply`] stores the events that a Sink replies with; [`crate::destination`] sends.
//! - [`dead_letter`] is the stored form of a dead letter, [`dead_letters`] lists, redrives and drops them, [`redrive`]
//!   hands them back to their Triggers.
//! - [`holds`] limits what may be trimmed, [`trimmer`] trims by retention and size, [`deleted_triggers`] and
//!   [`retained`] retain the checkpoints of deleted Triggers.
//! - [`stats`], [`sink_health`], [`view`] and [`inspection`] report to metrics, statuses and the API.

mod attempt;
mod backoff;
mod breaker;
mod broker_fills;
mod broker_room;
mod buffered;
mod dead_letter;
mod dead_letters;
mod deleted_triggers;
mod dispatcher;
mod ending;
mod engine;
mod feed;
mod gone_brokers;
mod holds;
mod inbox;
mod inspection;
mod keys;
mod lanes;
mod letters;
mod lines;
mod offsets;
mod options;
mod placement;
mod position;
mod progress;
mod rate;
mod reader;
mod redrive;
mod reply;
mod retained;
mod retention;
mod room;
mod running;
mod saver;
mod scheduler;
mod settings;
mod settlement;
mod sink_health;
mod stats;
mod taking;
mod throttle;
mod trimmer;
mod upkeep;
mod view;
mod wall_clock;

pub use broker_room::UnsettledEvents;
pub use dead_letter::{DeadLetter, DeadLetterError};
pub use dead_letters::{DeadLetterPage, Dropped, Redriven, Selection, StoredLetter};
pub use deleted_triggers::RetainedTrigger;
pub use engine::{Engine, broker_of_checkpoint};
pub use holds::Hold;
pub use keys::partition_of;
pub use options::{DeliveryOptions, EngineError};
pub use rate::{TokenBucket, TokenRate};
pub use retention::Retention;
pub use settlement::Settlement;
pub use sink_health::{Outage, SinkHealth};
pub use stats::TriggerStats;
pub use view::TriggerView;

use std::time::Duration;

/// Interval at which changed progress is saved. Large checkpoints are saved less often; see `saver.rs`.
pub const SAVE_EVERY: Duration = Duration::from_millis(50);
