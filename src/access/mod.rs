//! Who may post events: verifies the tokens of producers and decides by the rules of the routing configuration. Pure.
//!
//! The ingress asks twice: [`Access::admit`] with a request's head, before its body is read, and [`Permit::check`] with
//! each event. Routers verify tokens by themselves with the keys in their configuration, so they need neither access to
//! the API server nor a connection to the controller.

mod policy;
mod refusal;
mod token;
#[cfg(test)]
mod tokens_for_test;
mod verifier;

pub use policy::{Access, Permit};
pub use refusal::{Refusal, RefusalKind};
