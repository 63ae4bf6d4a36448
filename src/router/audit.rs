//! Sums up in the log what only the audit of producers lets pass: one line a minute.
//!
//! The first refusal after a quiet minute is logged at once. The line at the end of each minute counts the others, and
//! names the most frequent kinds of them: broker, reason, and the text of the first one.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::access::Refusal;

/// Minimum time between two lines.
const PERIOD: Duration = Duration::from_secs(60);

/// Interval of looks for a line that is due.
const TICK: Duration = Duration::from_secs(5);

/// Maximum kinds that are told apart in a period.
const MAX_KINDS: usize = 256;

/// Maximum kinds that a line names.
const MAX_NAMED: usize = 5;

/// Maximum length of the text of a refusal in a line, in bytes.
const MAX_TEXT: usize = 400;

/// Collects refusals.
#[derive(Debug, Default)]
pub(super) struct AuditLog(Mutex<AuditPeriod>);

#[derive(Debug, Default)]
struct AuditPeriod {
    /// Time of the last line.
    told: Option<Instant>,
    /// Refusals since then.
    count: u64,
    /// By broker and reason.
    kinds: BTreeMap<(String, &'static str), AuditedKind>,
}

#[derive(Debug)]
struct AuditedKind {
    count: u64,
    /// Text of the first refusal.
    first: String,
}

/// A line of the log.
#[derive(Debug, PartialEq)]
struct AuditLine {
    count: u64,
    kinds: String,
}

impl AuditLog {
    /// Adds a refusal, and logs it if a line may be written.
    pub(super) fn add(&self, broker: &str, refusal: &Refusal, now: Instant) {
        let mut period = self.period();
        period.add(broker, refusal);
        if let Some(line) = period.due(now) {
            drop(period);
            line.write();
        }
    }

    /// Logs what is due. Never ends.
    pub(super) async fn keep(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Some(line) = self.period().due(Instant::now()) {
                line.write();
            }
        }
    }

    /// Logs what is left, once no more requests come.
    pub(super) fn finish(&self) {
        if let Some(line) = self.period().take(Instant::now()) {
            line.write();
        }
    }

    fn period(&self) -> MutexGuard<'_, AuditPeriod> {
        // No panic under the lock leaves the counts half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditPeriod {
    fn add(&mut self, broker: &str, refusal: &Refusal) {
        self.count += 1;
        let key = (broker.to_owned(), refusal.label());
        if let Some(kind) = self.kinds.get_mut(&key) {
            kind.count += 1;
        } else if self.kinds.len() < MAX_KINDS {
            let mut first = refusal.to_string();
            first.truncate(first.floor_char_boundary(MAX_TEXT));
            self.kinds.insert(key, AuditedKind { count: 1, first });
        }
    }

    /// Takes the line that is due.
    fn due(&mut self, now: Instant) -> Option<AuditLine> {
        let is_due = self
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= PERIOD);
        is_due.then(|| self.take(now)).flatten()
    }

    fn take(&mut self, now: Instant) -> Option<AuditLine> {
        if self.count == 0 {
            return None;
        }
        let Self { count, kinds, .. } = std::mem::replace(
            self,
            Self {
                told: Some(now),
                ..Self::default()
            },
        );
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        // The sort is stable, so equal counts stay in the order of their names.
        kinds.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.count));
        let named = kinds.iter().take(MAX_NAMED);
        let named_count: u64 = named.clone().map(|(_, kind)| kind.count).sum();
        let mut text = String::new();
        for ((broker, reason), AuditedKind { count, first }) in named {
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator}{broker} {reason} {count}: {first}");
        }
        if named_count < count {
            let _ = write!(
                text,
                "; and {} more, see weir_producers_audited_total",
                count - named_count
            );
        }
        Some(AuditLine { count, kinds: text })
    }
}

impl AuditLine {
    fn write(self) {
        let Self { count, kinds } = self;
        tracing::warn!(count, "would be rejected without --producers-audit: {kinds}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn first_refusal_is_told_at_once_and_the_others_once_a_minute() {
        let (mut period, start) = (AuditPeriod::default(), Instant::now());
        assert_eq!(period.due(start), None);
        period.add("shop/orders", &Refusal::NoToken);
        let first = period.due(start).unwrap();
        assert_eq!(first.count, 1);
        assert!(
            first
                .kinds
                .starts_with("shop/orders no_token 1: this broker takes")
        );
        period.add("shop/a", &Refusal::NoToken);
        for _ in 0..3 {
            period.add("shop/orders", &Refusal::NoKeys);
            assert_eq!(period.due(start + seconds(59)), None);
        }
        let second = period.due(start + seconds(60)).unwrap();
        assert_eq!(second.count, 4);
        assert!(second.kinds.starts_with("shop/orders no_keys 3: "), "{second:?}");
        assert!(second.kinds.contains("; shop/a no_token 1: "), "{second:?}");
        assert_eq!(period.due(start + seconds(200)), None);
        period.add("shop/orders", &Refusal::NoToken);
        assert!(period.due(start + seconds(200)).is_some());
    }

    #[test]
    fn line_is_bounded_and_counts_what_it_does_not_name() {
        let (mut period, now) = (AuditPeriod::default(), Instant::now());
        for number in 0..2 * MAX_KINDS {
            period.add(&format!("shop/b{number}"), &Refusal::NoToken);
        }
        assert_eq!(period.kinds.len(), MAX_KINDS);
        let line = period.take(now).unwrap();
        assert_eq!(line.count, 512);
        assert!(
            line.kinds
                .ends_with("; and 507 more, see weir_producers_audited_total")
        );
        assert!(line.kinds.len() < 3000, "{}", line.kinds.len());
    }
}
