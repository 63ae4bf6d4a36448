//! Performs the steps of a Trigger's scheduler: attempts, and sending or keeping dead letters. Each is a future of
//! its own that reserves its memory first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;

use super::{
    Hold, TriggerStats,
    dead_letter::DeadLetter,
    held::{Held, Share},
    place::{BrokerLogs, FetchError, Place},
    reply::{self, Reply},
    settings::Settings,
};
use crate::{
    cloudevents::Event,
    destination::{ATTEMPT_OVERHEAD, Answer, Client, Outgoing, SendPurpose, Target, Verdict},
    intake::{Intake, UsableRoom},
    log::LogError,
    memory::Reservation,
};

/// Assumed size of an event that is not in memory, in bytes; corrected once the event is read.
const LIKELY_SIZE: usize = 4 * 1024;

/// Timeout of an attempt's wait for memory. On timeout the attempt has not begun and is postponed.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Shared state of one Trigger's attempts.
pub(super) struct Performer {
    pub(super) logs: BrokerLogs,
    pub(super) intake: Intake,
    pub(super) client: Client,
    pub(super) stats: Arc<TriggerStats>,
    pub(super) hold: Arc<Hold>,
    pub(super) memory: Share,
    /// `namespace/name`.
    pub(super) trigger: Arc<str>,
}

/// Outcome of an attempt, with what the dispatcher needs to account for it.
pub(super) struct Attempted {
    pub(super) made: Made,
    pub(super) outcome: Outcome,
}

/// An attempt that was made.
pub(super) struct Made {
    pub(super) place: Place,
    /// Target it went to; the Trigger's Sink may have changed since.
    pub(super) target: Target,
    /// Duration of the attempt.
    pub(super) took: Duration,
    /// The event, if it could be read.
    pub(super) about: Option<Event>,
}

pub(super) enum Outcome {
    Answered(Answer, Option<Reply>),
    ReplyNotStored(Answer),
    Expired,
    NotFetched(FetchError),
    /// No memory or no connection for it now.
    NoRoom,
}

/// Outcome of sending a dead letter to the dead-letter Sink.
pub(super) enum Sent {
    Answered(Box<Answer>),
    NoSink,
    NotFetched(FetchError),
    NoRoom,
}

/// Outcome of keeping a dead letter in the log.
pub(super) enum Kept {
    Stored,
    NoRoom(String),
    NotFetched(FetchError),
}

impl Performer {
    /// Attempts to deliver an event.
    pub(super) fn attempt(
        self: Arc<Self>,
        settings: &Settings,
        target: Target,
        place: Place,
        held: Option<Held>,
        number: u32,
    ) -> BoxFuture<'static, Attempted> {
        let timeout = settings.delivery().timeout;
        async move {
            let (event, _memory) = match self.take(place, held).await {
                Ok(taken) => taken,
                Err(outcome) => {
                    let made = Made {
                        place,
                        target,
                        took: Duration::ZERO,
                        about: None,
                    };
                    return Attempted { made, outcome };
                }
            };
            let (time, began) = (Timestamp::now(), Instant::now());
            self.stats.attempt_began();
            let outcome = if event.expires().is_some_and(|at| at <= time) {
                Outcome::Expired
            } else {
                let outgoing = self.outgoing(&event, SendPurpose::Delivery, number);
                let answer = self.client.send(&target, &outgoing, timeout).await;
                if answer.verdict == Verdict::RouterBusy {
                    self.stats.attempt_ended(false, began.elapsed());
                    self.stats.attempt_put_off();
                    Outcome::NoRoom
                } else {
                    self.with_reply(place, &event, answer).await
                }
            };
            let made = Made {
                place,
                target,
                took: began.elapsed(),
                about: Some(event),
            };
            Attempted { made, outcome }
        }
        .boxed()
    }

    fn outgoing<'a>(&'a self, event: &'a Event, purpose: SendPurpose, number: u32) -> Outgoing<'a> {
        Outgoing {
            event,
            purpose,
            trigger: &self.trigger,
            broker: self.logs.broker().as_str(),
            number,
        }
    }

    /// Returns the event together with memory for an attempt.
    async fn take(&self, place: Place, held: Option<Held>) -> Result<(Event, Reservation), Outcome> {
        let mut size = held.as_ref().map_or(LIKELY_SIZE, Held::size);
        loop {
            let memory = self.memory.reserve(ATTEMPT_OVERHEAD + size);
            let Ok(mut memory) = tokio::time::timeout(MEMORY_TIMEOUT, memory).await else {
                self.stats.attempt_put_off();
                return Err(Outcome::NoRoom);
            };
            if let Some(held) = &held {
                return Ok((held.event().clone(), memory));
            }
            let event = self.fetch(place).await.map_err(Outcome::NotFetched)?;
            if memory.try_grow(ATTEMPT_OVERHEAD + 2 * event.size()) {
                return Ok((event, memory));
            }
            // Read again once there is memory for its real size.
            size = 2 * event.size();
        }
    }

    async fn fetch(&self, place: Place) -> Result<Event, FetchError> {
        place.fetch(&self.logs).await
    }

    /// Stores the Sink's reply. If that fails, the delivery has failed.
    async fn with_reply(&self, place: Place, event: &Event, mut answer: Answer) -> Outcome {
        let reply = match answer.reply.take() {
            None => None,
            Some(Err(problem)) => Some(Reply::Invalid(problem)),
            Some(Ok(replies)) => {
                let stored = reply::store(
                    &self.intake,
                    self.logs.events.name(),
                    event,
                    &replies,
                    answer.context.as_ref(),
                    self.room(place),
                );
                match stored.await {
                    Ok(reply) => Some(reply),
                    Err(LogError::Full(detail) | LogError::Limit(detail)) => {
                        let detail = format!("the Sink's reply cannot be stored: {detail}");
                        return Outcome::ReplyNotStored(Answer::none(detail));
                    }
                    Err(error) => return Outcome::NotFetched(FetchError::Log(error)),
                }
            }
        };
        Outcome::Answered(answer, reply)
    }

    /// Sends a dead letter to the dead-letter Sink.
    pub(super) fn send_letter(
        self: Arc<Self>,
        settings: &Settings,
        place: Place,
        letter: DeadLetter,
        number: u32,
    ) -> BoxFuture<'static, (Place, Sent)> {
        let (target, timeout) = (
            settings.dead_letter_target().cloned(),
            settings.delivery().timeout,
        );
        async move {
            let Some(target) = target else {
                return (place, Sent::NoSink);
            };
            let (event, _memory) = match self.take(place, None).await {
                Ok(taken) => taken,
                Err(Outcome::NotFetched(error)) => return (place, Sent::NotFetched(error)),
                Err(_) => return (place, Sent::NoRoom),
            };
            let event = letter.mark(&event).unwrap_or(event);
            let outgoing = self.outgoing(&event, SendPurpose::DeadLetter, number);
            let answer = self.client.send(&target, &outgoing, timeout).await;
            if answer.verdict == Verdict::RouterBusy {
                self.stats.attempt_put_off();
            }
            (place, Sent::Answered(Box::new(answer)))
        }
        .boxed()
    }

    /// The room that settling this event may use.
    fn room(&self, place: Place) -> UsableRoom {
        if self.hold.is_first_unsettled(place) {
            UsableRoom::Reserve
        } else {
            UsableRoom::Common
        }
    }

    /// Keeps a dead letter in the log.
    pub(super) fn keep_letter(
        self: Arc<Self>,
        place: Place,
        letter: DeadLetter,
    ) -> BoxFuture<'static, (Place, Kept)> {
        async move {
            let event = match self.fetch(place).await {
                Ok(event) => event,
                Err(error) => return (place, Kept::NotFetched(error)),
            };
            let letter = vec![letter.encode(&event)];
            let log = self.logs.letters.name();
            let kept = match self.intake.settle(log, letter, self.room(place)).await {
                Ok(_) => Kept::Stored,
                Err(LogError::Full(detail) | LogError::Limit(detail)) => Kept::NoRoom(detail),
                Err(error) => Kept::NotFetched(FetchError::Log(error)),
            };
            (place, kept)
        }
        .boxed()
    }
}
