//! What the runs of Sources share.

use kube::{Client, Config};

use super::{broker::BrokerClient, metrics::SourcesMetrics};

/// The process `weir sources`.
pub(super) struct SourcesProcess {
    /// How the API server is reached.
    pub(super) config: Config,
    /// A client as the process's own account.
    pub(super) client: Client,
    /// Label of the records.
    pub(super) owner: String,
    pub(super) broker: BrokerClient,
    pub(super) metrics: SourcesMetrics,
}
