//! What a Trigger's transform makes of an event: other attributes, and new data from a JSON template. Pure.
//!
//! A [`Transform`] is plain data, as in the routing configuration. [`CompiledTransform::compile`] checks and compiles
//! it once; [`CompiledTransform::apply`] is a pure function of event and transform, so every attempt to deliver an
//! event sends the same. The controller and the command line compile it for their diagnoses, routers apply it just
//! before they send, and [`CompiledTransform::explain`] shows the result field by field.
//!
//! The `event` of a webhook is a [`Transform`] too: of the event that would be made of a request otherwise, with
//! expressions on the request ([`CompiledTransform::apply_to_request`]). So is that of a Source of kind kubernetes, with
//! expressions on the change of an object ([`CompiledTransform::apply_to_change`]).
//!
//! The expressions are those of `cel` filters, with the same variables, checks and budget. A transform has one budget
//! per event ([`crate::filter::BUDGET`]), and its size and that of its results are bounded (`limits.rs`).

mod apply;
mod compile;
mod error;
mod explanation;
mod limits;
mod owner;
mod path;
mod template;
#[cfg(test)]
mod tests;
mod text;

pub use compile::CompiledTransform;
pub use error::{TransformError, TransformFailure, TransformProblem};
pub use explanation::{TransformExplanation, TransformedField};
pub use limits::{MAX_ATTRIBUTE, MAX_DEPTH, MAX_WRITTEN};
pub use owner::TemplateOwner;
pub use template::Transform;
