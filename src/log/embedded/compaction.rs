//! Compacts the shared keyspaces, where the records of many logs lie among each other: merges their tables, and
//! removes trimmed records.
//!
//! - A filter (`retained_from.rs`) drops the records below each log's first retained one whenever they are
//!   rewritten, so trimming writes nothing but the log's entry in `meta`. A record that comes back from a journal is
//!   below the first one again.
//! - Tables are merged level by level as the storage library does it, in small steps ([`merge`]).
//! - Where at least as much was trimmed as is retained, all tables of the keyspace are rewritten, level by level
//!   ([`rewrite`]). So each byte is rewritten about once for each byte that it gives back.
//!
//! All of it is done by the keeper (`keeper.rs`), and only with room for it on the disk: new events leave as much free
//! as the largest shared keyspace has.

use std::sync::Arc;

use fjall::{AbstractTree, Keyspace, compaction::Leveled};
use lsm_tree::compaction::PullDown;

use super::{
    fail_points,
    store::{MIB, forget_past},
};

/// Number of tables written from memory at which they are merged with the next level.
const MERGE_RUNS: u8 = 4;
/// Number of them at which a keyspace takes no more records. At 30 the storage library blocks a commit until they are
/// merged, however long that takes; a few more can be written from what is in memory.
const MAX_RUNS: usize = 20;
/// Size of merged tables.
const TABLE: u64 = 4 * MIB;
/// Maximum number of steps of one call. A keyspace is looked at again with each table written.
const STEPS: usize = 64;
const LEVELS: u8 = 7;

/// Whether a shared keyspace can take no more records until its tables are merged.
pub(super) fn is_overdue(keyspace: &Keyspace) -> bool {
    keyspace.tree.l0_run_count() >= MAX_RUNS
}

/// Merges the tables written from memory with those below, if there are many, and so on level by level. Returns
/// whether there were. `has_room` tells whether there is room on the disk for so many more bytes.
pub(super) fn merge(
    keyspace: &Keyspace,
    past: fjall::SeqNo,
    has_room: impl Fn(u64) -> bool,
) -> fjall::Result<bool> {
    if keyspace.tree.l0_run_count() < usize::from(MERGE_RUNS) {
        return Ok(false);
    }
    let strategy = Leveled::default()
        .with_l0_threshold(MERGE_RUNS)
        .with_table_target_size(TABLE);
    let strategy = Arc::new(strategy);
    for _ in 0..STEPS {
        if !has_room(keyspace.disk_space()) {
            break;
        }
        let before = keyspace.tree.current_version().id();
        keyspace.tree.compact(strategy.clone(), past)?;
        if keyspace.tree.current_version().id() == before {
            break;
        }
    }
    forget_past(keyspace)?;
    Ok(true)
}

/// Rewrites all tables without trimmed records. Returns false if there is no room on the disk for it: for the
/// `retained` bytes with their overhead, or all that there are.
pub(super) fn rewrite(
    keyspace: &Keyspace,
    past: fjall::SeqNo,
    retained: u64,
    has_room: impl Fn(u64) -> bool,
) -> fjall::Result<bool> {
    let has_tables = |level: u8| {
        let tables = keyspace.tree.level_table_count(level.into());
        tables.is_some_and(|tables| tables > 0)
    };
    let below = (1..LEVELS).find(|level| has_tables(*level)).unwrap_or(LEVELS - 1);
    for level in below..LEVELS {
        let from = if level == below { 0 } else { level };
        if !has_tables(from) && !has_tables(level) {
            continue;
        }
        if !has_room(keyspace.disk_space().min(retained + TABLE)) {
            return Ok(false);
        }
        // With two times the same level it is rewritten in place. Levels below the first have no overlapping tables.
        fail_points::pass("log-before-compaction")?;
        keyspace.tree.compact(Arc::new(PullDown(from, level)), past)?;
        forget_past(keyspace)?;
        fail_points::pass("log-after-compaction")?;
    }
    Ok(true)
}
