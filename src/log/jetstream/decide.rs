//! Decides the number of partitions of each broker: the first router that uses a broker stores it in the state stream. It
//! never changes, since the positions of Triggers are stored by partition.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    names::{self, SHARDS},
    patience::Patience,
    publish::NatsMessage,
    state::Expected,
    streams::JetStream,
};
use crate::log::{BrokerName, LogError, LogName};

/// Maximum brokers decided at once.
const AT_ONCE: usize = 16;

impl JetStream {
    /// Loads the numbers of partitions that routers have decided.
    pub(super) async fn load_partitions(&self) -> Result<(), LogError> {
        for (subject, value) in self.load_subjects(names::PARTITIONS).await? {
            if let Some(broker) = names::partitioned_broker(&subject) {
                self.partitions.insert(&broker, self.number(&subject, &value)?);
            }
        }
        Ok(())
    }

    /// Decides the number of partitions of brokers that have none yet.
    pub(super) async fn decide_partitions(&self, mut brokers: Vec<BrokerName>) -> Result<(), LogError> {
        let is_undecided = |broker: &BrokerName| self.partitions.get(broker).is_none();
        if !brokers.iter().any(is_undecided) {
            return Ok(());
        }
        let all = async {
            let _deciding = self.partitions.deciding.lock().await;
            brokers.retain(is_undecided);
            let deciding = brokers
                .into_iter()
                .map(|broker| async move { self.decide(&broker).await });
            let mut decided = stream::iter(deciding).buffer_unordered(AT_ONCE);
            while decided.try_next().await?.is_some() {}
            Ok(())
        };
        let patience = Patience::new(self.options.timeout);
        patience.within("the number of partitions", all).await?
    }

    /// Learns or decides the number of partitions of all brokers with a stream, which other routers may have created.
    pub(super) async fn decide_existing(&self) -> Result<(), LogError> {
        let logs = self.logs().into_iter().filter(|log| log.is_seen());
        let brokers: BTreeSet<_> = logs.map(|log| log.name.broker().clone()).collect();
        self.decide_partitions(brokers.into_iter().collect()).await
    }

    async fn decide(&self, broker: &BrokerName) -> Result<(), LogError> {
        let subject = names::partitions(broker);
        let partitions = match self.load_value(&subject).await? {
            Some(value) => self.number(&subject, &value)?,
            None => self.propose(broker, &subject).await?,
        };
        self.partitions.insert(broker, partitions);
        Ok(())
    }

    /// Stores the number of partitions of a broker, unless another router does so first. Returns the stored number.
    async fn propose(&self, broker: &BrokerName, subject: &str) -> Result<u16, LogError> {
        let log = self.log(&LogName::Events(broker.clone()));
        let mut patience = Patience::new(self.options.timeout);
        let exists = |wait| self.session.has_stream(&log.location.subject, wait);
        // A stream that is older than its number of partitions has one.
        let partitions = match patience.retry(exists).await? {
            true => 1,
            false => self.partitions.wanted(broker).unwrap_or(self.options.partitions),
        };
        let message = NatsMessage::encoded(subject, 0, partitions.to_string().as_bytes());
        let first = Expected {
            subject: subject.to_owned().into(),
            sequence: 0,
        };
        match self.store_state(&[message], Some(first)).await {
            Ok(_) => Ok(partitions),
            Err(LogError::Fenced(_)) => match self.load_value(subject).await? {
                Some(value) => self.number(subject, &value),
                None => Err(LogError::Unavailable(format!(
                    "the number of partitions of broker {broker} is being decided"
                ))),
            },
            Err(error) => Err(error),
        }
    }

    fn number(&self, subject: &str, value: &[u8]) -> Result<u16, LogError> {
        let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number
            .filter(|number| (1..=SHARDS).contains(number))
            .ok_or_else(|| {
                let text = String::from_utf8_lossy(value);
                self.damaged(
                    names::STATE,
                    &format!("{subject}: {text:?} is not a valid number of partitions (1 to {SHARDS})"),
                )
            })
    }
}
