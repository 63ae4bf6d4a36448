//! Options about producers.

use crate::routing::UnlistedBrokers;

/// Options about producers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProducerOptions {
    /// Who may post to a broker whose Broker lists no producers.
    pub others: UnlistedBrokers,
    /// Whether rejected requests are let pass, and only counted and logged.
    pub audit: bool,
}
