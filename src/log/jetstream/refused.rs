//! Events that were stored and then refused, because their stream had lost records at its end: Triggers may be past them.
//! The servers know their ids. The state stream has their sequences, so that a repeat is not taken for an event that was
//! accepted.

use serde::{Deserialize, Serialize};

use super::{
    names, patience::Patience, publish::NatsMessage, session::NatsError, state::Expected, streams::JetStream,
    tracked::Tracked,
};
use crate::log::LogError;

/// Maximum number of ranges. Beyond it the two oldest become one: repeats of events between them are stored twice.
const MOST: usize = 64;

/// Sequences of refused events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RefusedEvents {
    /// First and last sequence of each range, in order.
    ranges: Vec<(u64, u64)>,
}

impl RefusedEvents {
    pub(super) fn has(&self, sequence: u64) -> bool {
        self.ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&sequence))
    }

    fn add(&mut self, sequences: &[u64]) {
        self.ranges
            .extend(sequences.iter().map(|sequence| (*sequence, *sequence)));
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|(first, last), (_, before)| {
            let is_joined = *first <= before.saturating_add(1);
            if is_joined {
                *before = (*last).max(*before);
            }
            is_joined
        });
        while let [(first, _), (_, last), ..] = self.ranges[..]
            && self.ranges.len() > MOST
        {
            self.ranges.splice(..2, [(first, last)]);
        }
    }
}

impl JetStream {
    /// Loads the refused events of a log.
    pub(super) async fn refused(&self, log: &Tracked) -> Result<RefusedEvents, LogError> {
        Ok(self.load_refused(log).await?.1)
    }

    /// Notes that the events with these sequences were refused.
    pub(super) async fn note_refused(&self, log: &Tracked, sequences: &[u64]) -> Result<(), LogError> {
        let subject = names::refused(&log.location.stream);
        let mut patience = Patience::new(self.options.timeout);
        let _noting = patience
            .within("other refused events", log.refusing.lock())
            .await?;
        loop {
            let (sequence, before) = self.load_refused(log).await?;
            let mut refused = before.clone();
            refused.add(sequences);
            if refused == before {
                return Ok(());
            }
            let value = serde_json::to_vec(&refused)
                .map_err(|error| LogError::Unavailable(format!("refused events cannot be noted: {error}")))?;
            let expected = Expected {
                subject: subject.clone().into(),
                sequence,
            };
            let message = NatsMessage::encoded(&subject, 0, &value);
            match self.store_state(&[message], Some(expected)).await {
                Ok(_) => return Ok(()),
                Err(LogError::Fenced(reason)) => patience.after(NatsError::NoAnswer(reason)).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn load_refused(&self, log: &Tracked) -> Result<(u64, RefusedEvents), LogError> {
        let subject = names::refused(&log.location.stream);
        let (sequence, value) = self.load_with_sequence(&subject).await?;
        let refused = match value {
            None => RefusedEvents::default(),
            Some(value) => serde_json::from_slice(&value)
                .map_err(|error| self.damaged(names::STATE, &format!("{subject}: {error}")))?,
        };
        Ok((sequence, refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_bounded() {
        let mut refused = RefusedEvents::default();
        refused.add(&[7, 5, 6]);
        refused.add(&[6, 9]);
        assert_eq!(refused.ranges, [(5, 7), (9, 9)]);
        refused.add(&[8]);
        assert_eq!(refused.ranges, [(5, 9)]);
        let apart: Vec<_> = (10..100).map(|number| number * 10).collect();
        refused.add(&apart);
        assert_eq!(refused.ranges.len(), MOST);
        assert!(
            refused.has(5) && refused.has(990) && apart.iter().all(|sequence| refused.has(*sequence)),
            "{refused:?}"
        );
        assert!(!refused.has(4) && !refused.has(985), "{refused:?}");
    }
}
