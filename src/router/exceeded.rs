//! The limits of brokers and namespaces that requests exceed.

/// A limit of a broker or its namespace that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExceededLimit {
    /// The namespace's share of the log.
    Share,
    /// The namespace's share of the log's places for brokers.
    Brokers,
    /// Bytes of the broker's unsettled events.
    Bytes,
    /// Events per second.
    Rate,
    /// The size of an event.
    Size,
}

impl ExceededLimit {
    pub(super) const ALL: [Self; 5] = [Self::Share, Self::Brokers, Self::Bytes, Self::Rate, Self::Size];

    /// Whether it limits what the log holds, so that a Broker's status tells of it.
    pub(super) fn is_of_the_log(self) -> bool {
        match self {
            Self::Share | Self::Brokers | Self::Bytes => true,
            Self::Rate | Self::Size => false,
        }
    }

    /// Label for metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Brokers => "brokers",
            Self::Bytes => "bytes",
            Self::Rate => "rate",
            Self::Size => "size",
        }
    }
}
