//! The filter dialects of the CloudEvents Subscriptions API, CESQL among them, and CEL: compiled once and evaluated on
//! an event's attributes and, by CEL, on its data.
//!
//! The same evaluator runs in the router, in the controller's validation and in the command line. Pure.
//!
//! No filter takes more than its part: what a Trigger's filters may be is bounded when they are compiled
//! (`limits.rs`), and what they may cost for one event when they are evaluated (`fuel.rs`).

pub mod cel;
mod compiled;
mod cover;
mod explanation;
mod expression;
mod fuel;
mod limits;
pub mod sql;
mod subject;

pub use compiled::{CompileError, CompileProblem, Decision, Error, Filter};
pub use cover::{Cover, IndexTerm, Requirement, Text};
pub use explanation::{Explanation, Outcome, Seen};
pub use expression::Expression;
pub use fuel::BUDGET;
pub use limits::{MAX_PARTS, MAX_SIZE, MAX_TEXT};
pub use subject::Subject;
