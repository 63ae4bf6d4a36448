//! Derives the revision of a routing configuration from its content. Pure.

use std::io;

use serde::Serialize;

use crate::routing::{self, BrokerPolicy, Configuration, Revision};

/// Computes the revision. Secrets enter it only by their version, so that values cannot be guessed from it.
pub(super) fn of(configuration: &Configuration) -> Revision {
    let Configuration {
        revision: _,
        namespaces,
        // Brokers, Triggers and Sources name them.
        brokers: _,
        policies,
        quota,
        deduplication,
        triggers,
        sources,
        // Triggers reference them by digest.
        authorities: _,
        producers,
        closed,
        unread,
        undecodable: _,
    } = configuration;
    let policies: Vec<_> = policies.iter().map(BrokerPolicy::without_secrets).collect();
    let triggers: Vec<_> = triggers.iter().map(routing::Trigger::without_secrets).collect();
    Revision(format!(
        "{:016x}",
        fingerprint(&(
            namespaces,
            policies,
            (quota, deduplication),
            producers,
            closed,
            triggers,
            sources,
            unread
        ))
    ))
}

/// Hashes plain data: 64-bit FNV-1a over its JSON form. Unlike `std::hash`, it is stable across builds.
pub fn fingerprint(data: &impl Serialize) -> u64 {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    // Neither serialization of plain data nor this writer can fail.
    let _ = serde_json::to_writer(&mut hash, data);
    hash.0
}

/// Hashes text of any length without buffering it.
struct Hash(u64);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.iter().fold(self.0, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
