//! The control plane: watches the resources, computes routing, gives it to routers, writes status.

mod compile;
mod diagnosis;
mod observed;
mod resolve;

pub use compile::{Outcome, compile};
pub use diagnosis::{Diagnoses, Finding, SinkDiagnosis, SourceDiagnosis, Subject, TriggerDiagnosis};
pub use observed::{Namespace, Observed, Port, Service};
