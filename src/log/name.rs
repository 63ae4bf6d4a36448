//! The names of logs. Pure.

use std::{fmt, sync::Arc};

/// Marks the dead-letter log of a broker in its key. No broker can have it in its name: names have no dot.
const DEAD_LETTERS: &str = ".dead-letters";

/// A broker, as `namespace/name`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerName(Arc<str>);

impl BrokerName {
    /// The broker `name` of a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(namespace, _)| namespace)
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for BrokerName {
    /// From `namespace/name`.
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

/// One log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogName {
    /// The events that a broker accepted.
    Events(BrokerName),
    /// The dead letters of a broker's Triggers.
    DeadLetters(BrokerName),
}

impl LogName {
    /// The broker.
    pub fn broker(&self) -> &BrokerName {
        match self {
            Self::Events(broker) | Self::DeadLetters(broker) => broker,
        }
    }

    /// Reads the form that [`fmt::Display`] writes, which is also the key under which a log is stored.
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
