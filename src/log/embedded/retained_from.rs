//! The filter that drops trimmed records whenever tables of a shared keyspace are rewritten.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockWriteGuard},
};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::layout::parse_shared_key;

/// First retained record of each log in a shared keyspace. Records of others are dropped as well.
#[derive(Debug, Default)]
pub(super) struct RetainedFrom(RwLock<HashMap<u32, u64>>);

impl RetainedFrom {
    /// Sets a log's first record. It must be durable; and a log must be known before it has records.
    pub(super) fn set(&self, id: u32, first: u64) {
        self.write().insert(id, first);
    }

    /// Forgets a log that was given back.
    pub(super) fn remove(&self, id: u32) {
        self.write().remove(&id);
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, u64>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Factory for RetainedFrom {
    fn name(&self) -> &str {
        "trimmed records"
    }

    /// Takes a copy: logs that come later have no records in the tables being merged.
    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        let retained_from = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Box::new(TrimmedFilter(retained_from.clone()))
    }
}

struct TrimmedFilter(HashMap<u32, u64>);

impl CompactionFilter for TrimmedFilter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let Some((id, offset)) = parse_shared_key(item.key()) else {
            return Ok(Verdict::Keep);
        };
        let is_retained = self.0.get(&id).is_some_and(|first| offset >= *first);
        Ok(if is_retained {
            Verdict::Keep
        } else {
            Verdict::Destroy
        })
    }
}
