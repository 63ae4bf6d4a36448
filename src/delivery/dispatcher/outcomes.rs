//! Applies the outcomes of attempts and of dead letters to a Trigger's scheduler, stats, Sink health and log.

use std::time::Instant;

use jiff::Timestamp;

use super::{
    super::{
        attempt::{AttemptDetails, AttemptOutcome, CompletedAttempt, SendOutcome, StoreOutcome},
        dead_letter::DeadLetter,
        ending::Ending,
        letters::{LetterSent, LetterStored},
        position::{EventPosition, FetchError},
        reply::ReplyOutcome,
        scheduler::Fate,
    },
    Dispatcher,
};
use crate::{
    cloudevents::Event,
    destination::{Answer, Verdict},
    log::LogError,
};

impl Dispatcher {
    pub(super) fn attempted(
        &mut self,
        CompletedAttempt { details, outcome }: CompletedAttempt,
    ) -> Result<(), LogError> {
        let ending = match &outcome {
            AttemptOutcome::Answered(answer, reply) => {
                self.attempt_ended(&details, answer.verdict == Verdict::Delivered);
                self.replied(details.event.as_ref(), reply.as_ref());
                Ending::from(answer)
            }
            // The Sink answered; a full log is not its failure.
            AttemptOutcome::ReplyNotStored(_) => {
                self.attempt_ended(&details, false);
                self.room.want();
                Ending::Failed {
                    blame: None,
                    retry_after: None,
                }
            }
            AttemptOutcome::Expired => {
                self.attempt_ended(&details, false);
                self.lines.expired(details.event.as_ref());
                Ending::Expired
            }
            AttemptOutcome::NotTransformed(_) => Ending::Untransformed,
            AttemptOutcome::NotFetched(error) => self.not_fetched(details.position, error)?,
            AttemptOutcome::NoRoom => Ending::Busy,
        };
        let was_down = self.scheduler.is_sink_down();
        let fate = self
            .scheduler
            .ended(details.position, ending, Instant::now(), fastrand::f64());
        if let AttemptOutcome::Answered(answer, _) = &outcome {
            self.update_sink_health(&details, answer, was_down);
        }
        match &outcome {
            AttemptOutcome::Answered(answer, _) | AttemptOutcome::ReplyNotStored(answer) => {
                self.report_attempt(&details, answer, fate);
            }
            AttemptOutcome::NotTransformed(failure) => {
                self.report_attempt(&details, &Answer::none(failure.to_string()), fate);
            }
            AttemptOutcome::Expired | AttemptOutcome::NotFetched(_) | AttemptOutcome::NoRoom => {}
        }
        self.changed();
        Ok(())
    }

    fn attempt_ended(&self, details: &AttemptDetails, delivered: bool) {
        self.stats.attempt_ended(delivered, details.took);
    }

    /// Settles or postpones an event that could not be read again: an unreadable one is dropped, a temporarily
    /// unavailable one waits.
    fn not_fetched(&mut self, position: EventPosition, error: &FetchError) -> Result<Ending, LogError> {
        match error {
            FetchError::Log(error @ LogError::Failed(_)) => Err(error.clone()),
            FetchError::Log(error) => {
                self.lines.unread(error);
                Ok(Ending::Busy)
            }
            FetchError::Removed => {
                self.lines.removed(position);
                Ok(Ending::Gone)
            }
            FetchError::Damaged(error) => {
                self.lines.damaged(position, error);
                Ok(Ending::Gone)
            }
        }
    }

    fn replied(&mut self, delivered: Option<&Event>, reply: Option<&ReplyOutcome>) {
        let Some(reply) = reply else { return };
        self.stats.replied(reply);
        match reply {
            ReplyOutcome::Stored(_) => {}
            ReplyOutcome::BeyondMaxHops => self.lines.reply_beyond_max_hops(delivered),
            ReplyOutcome::BeyondMaxDescendants => self.lines.reply_beyond_max_descendants(delivered),
            ReplyOutcome::Invalid(problem) => self.lines.invalid_reply(delivered, problem),
        }
    }

    /// Updates the health of the Sink from an answer, or from none.
    fn update_sink_health(&mut self, details: &AttemptDetails, answer: &Answer, was_down: bool) {
        if self.settings.target() != Some(&details.target) {
            return;
        }
        if matches!(answer.verdict, Verdict::Delivered | Verdict::Rejected) {
            self.sink.answered();
        }
        match (was_down, self.scheduler.is_sink_down()) {
            (_, true) => {
                self.sink.down(Timestamp::now(), &answer.detail);
                if !was_down {
                    self.lines.sink_fails(&answer.detail);
                }
            }
            (true, false) => {
                self.sink.up();
                self.lines.sink_answers();
            }
            (false, false) => {}
        }
    }

    fn report_attempt(&mut self, details: &AttemptDetails, answer: &Answer, fate: Fate) {
        match fate {
            Fate::Settled => {
                self.lines.delivered(details.event.as_ref(), answer.code);
            }
            Fate::Waits => self.lines.attempt_failed(details.event.as_ref(), &answer.detail),
            Fate::GivenUp { attempts, reason } => self.give_up(details, answer, attempts, reason),
        }
    }

    fn give_up(&mut self, details: &AttemptDetails, answer: &Answer, attempts: u32, reason: &str) {
        let trigger = self.settings.trigger();
        let letter = DeadLetter {
            trigger: trigger.uid.clone(),
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            sink: details.target.uri(),
            reason: reason.to_owned(),
            status: answer.code,
            detail: answer.detail.clone(),
            attempts,
        };
        self.lines.dead_letter(details.event.as_ref(), &letter);
        let has_sink = self.settings.dead_letter_target().is_some();
        self.scheduler
            .dead_letter(details.position, letter, has_sink, Instant::now());
    }

    pub(super) fn letter_sent(&mut self, position: EventPosition, sent: SendOutcome) -> Result<(), LogError> {
        let (ending, detail) = match sent {
            SendOutcome::Answered(answer) => (Some(Ending::from(&*answer)), answer.detail),
            SendOutcome::NoSink => (None, String::new()),
            SendOutcome::NoRoom => (Some(Ending::Busy), String::new()),
            SendOutcome::NotFetched(error) => (Some(self.not_fetched(position, &error)?), String::new()),
        };
        let sent = LetterSent { ending, detail };
        self.scheduler
            .letter_sent(position, sent, Instant::now(), fastrand::f64());
        self.changed();
        Ok(())
    }

    pub(super) fn letter_stored(
        &mut self,
        position: EventPosition,
        stored: StoreOutcome,
    ) -> Result<(), LogError> {
        let stored = match stored {
            StoreOutcome::Stored => LetterStored::Stored,
            StoreOutcome::NoRoom(detail) => {
                self.lines.without_room(position, &detail);
                self.room.want();
                LetterStored::NoRoom
            }
            StoreOutcome::NotFetched(error) => match self.not_fetched(position, &error)? {
                Ending::Gone => LetterStored::Gone,
                _ => LetterStored::NoRoom,
            },
        };
        self.scheduler.letter_stored(position, stored, Instant::now());
        self.changed();
        Ok(())
    }
}
