//! Applies the outcomes of attempts and of dead letters to a Trigger: its scheduler, figures, Sink health and log lines.

use std::time::Instant;

use jiff::Timestamp;

use super::{
    super::{
        attempt::{AttemptDetails, AttemptOutcome, CompletedAttempt, KeepOutcome, SendOutcome},
        dead_letter::DeadLetter,
        ending::Ending,
        letters::{LetterKept, LetterSent},
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
        CompletedAttempt { made, outcome }: CompletedAttempt,
    ) -> Result<(), LogError> {
        let ending = match &outcome {
            AttemptOutcome::Answered(answer, reply) => {
                self.attempt_ended(&made, answer.verdict == Verdict::Delivered);
                self.replied(made.about.as_ref(), reply.as_ref());
                Ending::from(answer)
            }
            // The Sink answered; a full log is not its failure.
            AttemptOutcome::ReplyNotStored(_) => {
                self.attempt_ended(&made, false);
                self.room_wanted.notify_one();
                Ending::Failed {
                    blame: None,
                    retry_after: None,
                }
            }
            AttemptOutcome::Expired => {
                self.attempt_ended(&made, false);
                self.lines.expired(made.about.as_ref());
                Ending::Expired
            }
            AttemptOutcome::NotFetched(error) => self.not_fetched(made.place, error)?,
            AttemptOutcome::NoRoom => Ending::Busy,
        };
        let was_down = self.scheduler.is_sink_down();
        let fate = self
            .scheduler
            .ended(made.place, ending, Instant::now(), fastrand::f64());
        if let AttemptOutcome::Answered(answer, _) = &outcome {
            self.heard(&made, answer, was_down);
        }
        if let AttemptOutcome::Answered(answer, _) | AttemptOutcome::ReplyNotStored(answer) = &outcome {
            self.answered(&made, answer, fate);
        }
        self.changed();
        Ok(())
    }

    fn attempt_ended(&self, made: &AttemptDetails, delivered: bool) {
        self.stats.attempt_ended(delivered, made.took);
    }

    /// Settles or postpones an event that could not be read again: an unreadable one is dropped, a temporarily
    /// unavailable one waits.
    fn not_fetched(&mut self, place: EventPosition, error: &FetchError) -> Result<Ending, LogError> {
        match error {
            FetchError::Log(error @ LogError::Failed(_)) => Err(error.clone()),
            FetchError::Log(error) => {
                self.lines.unread(error);
                Ok(Ending::Busy)
            }
            FetchError::Removed => {
                self.lines.removed(place);
                Ok(Ending::Gone)
            }
            FetchError::Damaged(error) => {
                self.lines.damaged(place, error);
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
    fn heard(&mut self, made: &AttemptDetails, answer: &Answer, was_down: bool) {
        if self.settings.target() != Some(&made.target) {
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

    fn answered(&mut self, made: &AttemptDetails, answer: &Answer, fate: Fate) {
        match fate {
            Fate::Settled => {
                self.lines.delivered(made.about.as_ref(), answer.code);
            }
            Fate::Waits => self.lines.attempt_failed(made.about.as_ref(), &answer.detail),
            Fate::GivenUp { attempts, reason } => self.give_up(made, answer, attempts, reason),
        }
    }

    fn give_up(&mut self, made: &AttemptDetails, answer: &Answer, attempts: u32, reason: &str) {
        let trigger = self.settings.trigger();
        let letter = DeadLetter {
            trigger: trigger.uid.clone(),
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            sink: made.target.uri(),
            reason: reason.to_owned(),
            status: answer.code,
            detail: answer.detail.clone(),
            attempts,
        };
        self.lines.dead_letter(made.about.as_ref(), &letter);
        let has_sink = self.settings.dead_letter_target().is_some();
        self.scheduler.bury(made.place, letter, has_sink, Instant::now());
    }

    pub(super) fn letter_sent(&mut self, place: EventPosition, sent: SendOutcome) -> Result<(), LogError> {
        let (ending, detail) = match sent {
            SendOutcome::Answered(answer) => (Some(Ending::from(&*answer)), answer.detail),
            SendOutcome::NoSink => (None, String::new()),
            SendOutcome::NoRoom => (Some(Ending::Busy), String::new()),
            SendOutcome::NotFetched(error) => (Some(self.not_fetched(place, &error)?), String::new()),
        };
        let sent = LetterSent { ending, detail };
        self.scheduler
            .letter_sent(place, sent, Instant::now(), fastrand::f64());
        self.changed();
        Ok(())
    }

    pub(super) fn letter_kept(&mut self, place: EventPosition, kept: KeepOutcome) -> Result<(), LogError> {
        let kept = match kept {
            KeepOutcome::Stored => LetterKept::Stored,
            KeepOutcome::NoRoom(detail) => {
                self.lines.without_room(place, &detail);
                self.room_wanted.notify_one();
                LetterKept::NoRoom
            }
            KeepOutcome::NotFetched(error) => match self.not_fetched(place, &error)? {
                Ending::Gone => LetterKept::Gone,
                _ => LetterKept::NoRoom,
            },
        };
        self.scheduler.letter_kept(place, kept, Instant::now());
        self.changed();
        Ok(())
    }
}
