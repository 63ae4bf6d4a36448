//! The filter dialects of the CloudEvents Subscriptions API, including CESQL, and CEL: compiled once and evaluated
//! on an event's attributes and, by CEL, on its data.
//!
//! The router, the controller's validation and the command line use the same evaluator. Pure.
//!
//! The cost of a Trigger's filters is bounded: their size when they are compiled (`limits.rs`, `sizes.rs`), and their steps per
//! event when they are evaluated (`fuel.rs`).

pub mod cel;
mod compiled;
mod cover;
mod error;
mod explanation;
mod expression;
mod fuel;
mod limits;
mod sizes;
pub mod sql;
mod subject;

pub use compiled::{CompiledFilter, Decision, Error};
pub use cover::{Cover, IndexTerm, Requirement, Text};
pub use error::{CompileError, CompileProblem};
pub use explanation::{ClauseOutcome, Explanation, ReadAttribute};
pub use expression::Expression;
pub use fuel::BUDGET;
pub use limits::{MAX_PARTS, MAX_SIZE, MAX_TEXT};
pub use subject::Subject;
