//! Pending dead letters of one Trigger: not yet settled. Each is sent to the dead-letter Sink with the Trigger's
//! retries, and stored in the dead-letter log if there is no such Sink or it fails. Pure: a part of the scheduler.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    backoff, dead_letter::DeadLetter, ending::Ending, position::EventPosition, progress::FailedAttempts,
};
use crate::routing::Delivery;

/// Maximum dead letters in flight to the dead-letter Sink, and into the log.
const CONCURRENCY: usize = 8;

/// Maximum dead letters in flight to the dead-letter Sink or waiting for it. Further ones are stored in the log, so
/// that a slow dead-letter Sink does not stop deliveries.
const MAX_SENDING: usize = 512;

/// Maximum pending dead letters. At the limit no event is attempted, since it could become another one.
const MAX_LETTERS: usize = 1024;

/// Backoff while the log is full: initial, then maximum.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);
const MAX_NO_ROOM_PAUSE: Duration = Duration::from_secs(5);
/// Pause for the first unsettled event: settled events before it are trimmed shortly.
const AS_FIRST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct PendingLetters {
    letters: BTreeMap<EventPosition, PendingLetter>,
    to_send: DueQueue,
    to_store: DueQueue,
    /// Number of letters for the dead-letter Sink, including those in flight.
    sending: usize,
}

#[derive(Debug)]
struct PendingLetter {
    letter: DeadLetter,
    stage: LetterStage,
    is_in_flight: bool,
    /// Due time, unless it is in flight.
    due: Instant,
}

#[derive(Debug)]
enum LetterStage {
    Send(FailedAttempts),
    /// Store it in the log; contains the next pause while the log is full.
    Store(Duration),
}

/// Due letters, and the number of letters in flight.
#[derive(Debug, Default)]
struct DueQueue {
    due: BTreeSet<(Instant, EventPosition)>,
    in_flight: usize,
    /// Nothing is sent before this time.
    held_until: Option<Instant>,
}

/// Next step for dead letters.
pub(super) enum LetterStep {
    Send {
        position: EventPosition,
        letter: DeadLetter,
        number: u32,
    },
    Store {
        position: EventPosition,
        letter: DeadLetter,
    },
    /// Nothing to do before this time, or before one in flight has ended.
    Wait(Option<Instant>),
}

impl DueQueue {
    fn next(&mut self, now: Instant) -> Result<EventPosition, Option<Instant>> {
        if self.in_flight == CONCURRENCY {
            return Err(None);
        }
        if let Some(until) = self
            .held_until
            .filter(|&until| until > now && !self.due.is_empty())
        {
            return Err(Some(until));
        }
        match self.due.first() {
            Some(&(at, position)) if at <= now => {
                self.due.pop_first();
                self.in_flight += 1;
                Ok(position)
            }
            first => Err(first.map(|&(at, _)| at)),
        }
    }
}

impl PendingLetters {
    /// Whether the limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.letters.len() >= MAX_LETTERS
    }

    /// Adds a dead letter, to be sent if there is a dead-letter Sink and its queue is not full, otherwise stored.
    pub(super) fn add(
        &mut self,
        position: EventPosition,
        mut letter: DeadLetter,
        has_sink: bool,
        now: Instant,
    ) {
        let sends = has_sink && self.sending < MAX_SENDING;
        if has_sink && !sends {
            add_detail(
                &mut letter,
                &format!("{MAX_SENDING} dead letters wait for it already"),
            );
        }
        let stage = if sends {
            self.sending += 1;
            self.to_send.due.insert((now, position));
            LetterStage::Send(FailedAttempts::begin(now))
        } else {
            self.to_store.due.insert((now, position));
            LetterStage::Store(NO_ROOM_PAUSE)
        };
        let letter = PendingLetter {
            letter,
            stage,
            is_in_flight: false,
            due: now,
        };
        self.letters.insert(position, letter);
    }

    pub(super) fn next(&mut self, now: Instant) -> LetterStep {
        let mut waits = [None; 2];
        for (queue, wait) in [&mut self.to_store, &mut self.to_send]
            .into_iter()
            .zip(&mut waits)
        {
            let position = match queue.next(now) {
                Ok(position) => position,
                Err(at) => {
                    *wait = at;
                    continue;
                }
            };
            let Some(letter) = self.letters.get_mut(&position) else {
                // The letter was forgotten meanwhile.
                queue.in_flight -= 1;
                continue;
            };
            letter.is_in_flight = true;
            let text = letter.letter.clone();
            return match letter.stage {
                LetterStage::Send(attempts) => LetterStep::Send {
                    position,
                    letter: text,
                    number: attempts.failed.saturating_add(1),
                },
                LetterStage::Store(_) => LetterStep::Store {
                    position,
                    letter: text,
                },
            };
        }
        LetterStep::Wait(waits.into_iter().flatten().min())
    }

    /// Handles a letter that the dead-letter Sink did not accept: it is retried, or stored in the log.
    pub(super) fn sent(
        &mut self,
        position: EventPosition,
        sent: LetterSent,
        delivery: &Delivery,
        now: Instant,
        jitter: f64,
    ) {
        let Some(letter) = self.letters.get_mut(&position) else {
            return;
        };
        let LetterStage::Send(attempts) = &mut letter.stage else {
            return;
        };
        letter.is_in_flight = false;
        self.to_send.in_flight -= 1;
        let pause = match sent.ending {
            Some(Ending::Busy) => Some(backoff::busy(jitter)),
            Some(Ending::Failed { retry_after, .. }) => {
                attempts.failed = attempts.failed.saturating_add(1);
                if let Some(asked) = retry_after {
                    // `Retry-After` of the dead-letter Sink applies to all letters.
                    let until = now + asked.min(delivery.retry_after_max);
                    self.to_send.held_until = self.to_send.held_until.max(Some(until));
                }
                backoff::retry(delivery, *attempts, retry_after, now, jitter)
            }
            Some(
                Ending::Rejected | Ending::Delivered | Ending::Expired | Ending::Untransformed | Ending::Gone,
            )
            | None => None,
        };
        let queue = match pause {
            Some(_) => &mut self.to_send,
            None => {
                if !sent.detail.is_empty() {
                    add_detail(&mut letter.letter, &sent.detail);
                }
                self.sending -= 1;
                letter.stage = LetterStage::Store(NO_ROOM_PAUSE);
                &mut self.to_store
            }
        };
        letter.due = now + pause.unwrap_or_default();
        queue.due.insert((letter.due, position));
    }

    /// Postpones a letter for which the log has no room.
    pub(super) fn no_room_for(&mut self, position: EventPosition, is_first_unsettled: bool, now: Instant) {
        let Some(letter) = self.letters.get_mut(&position) else {
            return;
        };
        let LetterStage::Store(pause) = &mut letter.stage else {
            return;
        };
        letter.is_in_flight = false;
        self.to_store.in_flight -= 1;
        letter.due = now
            + if is_first_unsettled {
                AS_FIRST_PAUSE
            } else {
                *pause
            };
        *pause = (*pause * 2).min(MAX_NO_ROOM_PAUSE);
        self.to_store.due.insert((letter.due, position));
    }

    /// Retries the letter of the first unsettled event at once: it may use the log's reserve.
    pub(super) fn retry_now(&mut self, position: EventPosition, now: Instant) {
        if let Some(letter) = self.letters.get_mut(&position)
            && !letter.is_in_flight
            && matches!(letter.stage, LetterStage::Store(_))
            && self.to_store.due.remove(&(letter.due, position))
        {
            letter.due = letter.due.min(now);
            self.to_store.due.insert((letter.due, position));
        }
    }

    /// Forgets a settled letter.
    pub(super) fn forget(&mut self, position: EventPosition) {
        let Some(letter) = self.letters.remove(&position) else {
            return;
        };
        let queue = match letter.stage {
            LetterStage::Send(_) => {
                self.sending -= 1;
                &mut self.to_send
            }
            LetterStage::Store(_) => &mut self.to_store,
        };
        if letter.is_in_flight {
            queue.in_flight -= 1;
        } else {
            queue.due.remove(&(letter.due, position));
        }
    }
}

fn add_detail(letter: &mut DeadLetter, detail: &str) {
    letter.detail = format!("{}; then the dead-letter Sink: {detail}", letter.detail);
}

/// Result of sending a dead letter to the dead-letter Sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LetterSent {
    /// `None` if the Trigger has no dead-letter Sink any more.
    pub(super) ending: Option<Ending>,
    /// What the dead-letter Sink answered, or why there was no answer.
    pub(super) detail: String,
}

/// Result of storing a dead letter in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LetterStored {
    Stored,
    /// The log has no room for it, or is unavailable for now.
    NoRoom,
    /// The event can no longer be read.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{destination::Blame, log::Offset};

    fn log(offset: usize) -> EventPosition {
        EventPosition::Log(Offset(offset as u64))
    }

    fn begun(letters: &mut PendingLetters, now: Instant) -> (Vec<EventPosition>, Vec<EventPosition>) {
        let (mut sent, mut stored) = (Vec::new(), Vec::new());
        loop {
            match letters.next(now) {
                LetterStep::Send { position, .. } => sent.push(position),
                LetterStep::Store { position, .. } => stored.push(position),
                LetterStep::Wait(_) => return (sent, stored),
            }
        }
    }

    #[test]
    fn letters_beyond_the_queue_of_a_hanging_sink_are_stored() {
        let now = Instant::now();
        let mut letters = PendingLetters::default();
        for number in 0..=MAX_SENDING {
            letters.add(log(number), DeadLetter::for_test(), true, now);
        }
        let (sent, stored) = begun(&mut letters, now);
        assert_eq!((sent.len(), stored), (CONCURRENCY, vec![log(MAX_SENDING)]));
        assert!(!letters.is_full());
        for number in MAX_SENDING..MAX_LETTERS {
            letters.add(log(number), DeadLetter::for_test(), true, now);
        }
        assert!(letters.is_full());
        letters.forget(log(0));
        assert!(!letters.is_full());
    }

    #[test]
    fn a_letter_is_stored_once_its_retries_are_exhausted() {
        let mut now = Instant::now();
        let mut delivery = Delivery::default();
        delivery.retry.attempts = Some(2);
        let mut letters = PendingLetters::default();
        letters.add(log(0), DeadLetter::for_test(), true, now);
        let failed = || LetterSent {
            ending: Some(Ending::Failed {
                blame: Some(Blame::Unavailable),
                retry_after: None,
            }),
            detail: "503".to_owned(),
        };
        for number in 1..=3 {
            let LetterStep::Send { number: sent, .. } = letters.next(now) else {
                panic!("{number}")
            };
            assert_eq!(sent, number);
            letters.sent(log(0), failed(), &delivery, now, 1.0);
            if let LetterStep::Wait(Some(at)) = letters.next(now) {
                now = at;
            } else {
                assert_eq!(number, 3);
                break;
            }
        }
        let stored = letters.letters[&log(0)].letter.detail.clone();
        assert!(stored.ends_with("; then the dead-letter Sink: 503"), "{stored}");
    }

    #[test]
    fn pauses_grow_while_the_log_is_full_except_for_the_first_unsettled_event() {
        let mut now = Instant::now();
        let mut letters = PendingLetters::default();
        letters.add(log(0), DeadLetter::for_test(), false, now);
        for (is_first, pause) in [
            (false, 200),
            (false, 400),
            (true, 100),
            (false, 1600),
            (false, 3200),
            (false, 5000),
        ] {
            assert!(matches!(letters.next(now), LetterStep::Store { .. }));
            letters.no_room_for(log(0), is_first, now);
            let LetterStep::Wait(Some(at)) = letters.next(now) else {
                panic!()
            };
            assert_eq!(at - now, Duration::from_millis(pause));
            now = at;
        }
        assert!(matches!(letters.next(now), LetterStep::Store { .. }));
        letters.no_room_for(log(0), false, now);
        letters.retry_now(log(0), now);
        assert!(matches!(letters.next(now), LetterStep::Store { .. }));
        letters.forget(log(0));
        assert!(matches!(letters.next(now), LetterStep::Wait(None)));
    }
}
