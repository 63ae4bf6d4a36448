//! Who may post events, and what operators ask for. Verifies the credentials of producers and decides by the rules of the
//! routing configuration; names the requests of operators in terms of RBAC, by which the API server decides. Pure.
//!
//! The ingress asks twice: [`Access::admit`] with a request's head, before its body is read, and [`Permit::check`] with
//! each event. Routers verify tokens by themselves with the keys in their configuration, so they need neither access to
//! the API server nor a connection to the controller.

mod certificate;
mod challenges;
mod credential;
mod operation;
mod permit;
mod policy;
mod presented;
mod refusal;
mod token;
#[cfg(test)]
mod tokens_for_test;
mod verifier;

pub use certificate::PresentedCertificate;
pub use challenges::Challenges;
pub use operation::operation_of;
pub use permit::Permit;
pub use policy::Access;
pub use presented::Presented;
pub use refusal::{Refusal, RefusalKind};
