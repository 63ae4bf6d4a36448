//! Names of logs. Pure.

use std::{fmt, sync::Arc};

/// Marks the dead-letter log of a broker in its key. Names of brokers cannot contain it: they have no dot.
const DEAD_LETTERS: &str = ".dead-letters";

/// A broker, as `namespace/name`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerName(Arc<str>);

impl BrokerName {
    /// Creates the name of a namespace's broker `name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// Namespace of the broker.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(namespace, _)| namespace)
    }

    /// Name within the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for BrokerName {
    /// Parses `namespace/name`.
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for BrokerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for BrokerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogName {
    /// Accepted events of a broker.
    Events(BrokerName),
    /// Dead letters of a broker's Triggers.
    DeadLetters(BrokerName),
}

impl LogName {
    /// Broker of the log.
    pub fn broker(&self) -> &BrokerName {
        match self {
            Self::Events(broker) | Self::DeadLetters(broker) => broker,
        }
    }

    /// Parses the form that [`fmt::Display`] writes, which is also the key under which a log is stored.
    pub fn from_key(key: &str) -> Self {
        match key.strip_suffix(DEAD_LETTERS) {
            Some(broker) => Self::DeadLetters(broker.into()),
            None => Self::Events(key.into()),
        }
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events(broker) => write!(f, "{broker}"),
            Self::DeadLetters(broker) => write!(f, "{broker}{DEAD_LETTERS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        let broker = BrokerName::new("shop", "orders");
        assert_eq!((broker.namespace(), broker.name()), ("shop", "orders"));
        for (name, key) in [
            (LogName::Events(broker.clone()), "shop/orders"),
            (LogName::DeadLetters(broker.clone()), "shop/orders.dead-letters"),
        ] {
            assert_eq!(name.to_string(), key);
            assert_eq!(LogName::from_key(key), name);
            assert_eq!(name.broker(), &broker);
        }
    }
}
