//! The filter dialects of the CloudEvents Subscriptions API, CESQL among them, compiled once and evaluated on an
//! event's attributes.
//!
//! The same evaluator runs in the router, in the controller's validation and in the command line. Pure.

mod compiled;
mod cover;
mod explanation;
mod expression;
pub mod sql;

pub use compiled::{CompileError, Filter};
pub use cover::{Cover, IndexTerm, Requirement, Text};
pub use explanation::{Explanation, Outcome, Seen};
pub use expression::Expression;
