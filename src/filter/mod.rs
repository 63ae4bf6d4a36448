//! The filter dialects of the CloudEvents Subscriptions API, CESQL among them, and CEL: compiled once and evaluated on
//! an event's attributes and, by CEL, on its data.
//!
//! The same evaluator runs in the router, in the controller's validation and in the command line. Pure.

pub mod cel;
mod compiled;
mod cover;
mod explanation;
mod expression;
pub mod sql;
mod subject;

pub use compiled::{CompileError, Decision, Error, Filter};
pub use cover::{Cover, IndexTerm, Requirement, Text};
pub use explanation::{Explanation, Outcome, Seen};
pub use expression::Expression;
pub use subject::Subject;
