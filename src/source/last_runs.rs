//! How far each Source of a shard has come, stored with the shard's checkpoints. Only Sources that make up for missed times
//! have one.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    log::{BrokerName, CheckpointKey, Checkpoints, LogError},
    routing::{self, broker_key},
};

/// The last runs of a shard's Sources.
pub struct LastRuns {
    checkpoints: Arc<dyn Checkpoints>,
    /// By UID; `None` if it cannot be decoded.
    known: Mutex<BTreeMap<String, Option<LastRun>>>,
}

/// How far a Source has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LastRun {
    broker: String,
    /// Generation of the Source. Another one may have another schedule, or may have been suspended in between.
    generation: i64,
    /// Time until which every scheduled time has its event, or is given up.
    until: Timestamp,
}

impl LastRuns {
    /// Decodes what is stored, by UID. A value that cannot be decoded is as if the Source had never run.
    pub fn new(checkpoints: Arc<dyn Checkpoints>, stored: &HashMap<String, Bytes>) -> Self {
        let known = stored.iter().map(|(uid, value)| {
            let run = serde_json::from_slice(value).inspect_err(
                |error| tracing::error!(uid, %error, "cannot read when a Source last ran; it starts now"),
            );
            (uid.clone(), run.ok())
        });
        Self {
            checkpoints,
            known: Mutex::new(known.collect()),
        }
    }

    /// Time until which this generation of a Source is settled, if it has run.
    pub(super) fn of(&self, source: &routing::Source) -> Option<Timestamp> {
        let known = self.known();
        let run = known.get(&source.uid)?.as_ref()?;
        (run.generation == source.generation).then_some(run.until)
    }

    /// Stores the time until which a Source is settled.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub(super) async fn save(&self, source: &routing::Source, until: Timestamp) -> Result<(), LogError> {
        let run = LastRun {
            broker: broker_key(&source.namespace, &source.broker),
            generation: source.generation,
            until,
        };
        // Serializing it cannot fail.
        let value = serde_json::to_vec(&run).unwrap_or_default();
        // Known first: should the Source be deleted meanwhile, it is removed with the others.
        self.known().insert(source.uid.clone(), Some(run));
        let change = (CheckpointKey::LastRun(source.uid.clone()), Some(value.into()));
        self.checkpoints.save(vec![change]).await
    }

    /// Removes those of all other Sources.
    ///
    /// # Errors
    /// As [`Checkpoints::save`]. They are then removed by the next call.
    pub async fn keep_only(&self, uids: &HashSet<&str>) -> Result<(), LogError> {
        let gone: Vec<_> = {
            let known = self.known();
            let gone = known.keys().filter(|uid| !uids.contains(&***uid));
            gone.cloned().collect()
        };
        if gone.is_empty() {
            return Ok(());
        }
        let removals = gone.iter().map(|uid| (CheckpointKey::LastRun(uid.clone()), None));
        self.checkpoints.save(removals.collect()).await?;
        self.known().retain(|uid, _| !gone.contains(uid));
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Option<LastRun>>> {
        // No panic under the lock leaves the map half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the broker of a Source whose last run is stored; `None` if the value cannot be decoded.
pub fn broker_of_last_run(value: &[u8]) -> Option<BrokerName> {
    let run: LastRun = serde_json::from_slice(value).ok()?;
    Some(run.broker.as_str().into())
}
