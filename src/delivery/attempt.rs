//! Performs the steps of a Trigger's scheduler: delivery attempts, and sending or storing dead letters. Each step is
//! a separate future. The memory of an attempt is reserved before its future exists, so that the attempts of a Trigger
//! that wait for memory take none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;

use super::{
    Hold, TriggerStats,
    buffered::{BufferedEvent, MemoryShare},
    dead_letter::DeadLetter,
    position::{BrokerLogs, EventPosition, FetchError},
    reply::{self, ReplyOutcome},
    scheduler::Launch,
    settings::Settings,
};
use crate::{
    cloudevents::Event,
    destination::{ATTEMPT_OVERHEAD, Answer, Client, Outgoing, SendPurpose, Target, Verdict},
    intake::{Intake, UsableRoom},
    log::LogError,
    memory::Reservation,
    transform::{CompiledTransform, TransformFailure},
};

/// Assumed size of an event that is not in memory, in bytes; corrected once the event is read.
const LIKELY_SIZE: usize = 4 * 1024;

/// Maximum time that an attempt waits for memory; then it is postponed.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Shared state of one Trigger's attempts.
pub(super) struct AttemptPerformer {
    pub(super) logs: BrokerLogs,
    pub(super) intake: Intake,
    pub(super) client: Client,
    pub(super) stats: Arc<TriggerStats>,
    pub(super) hold: Arc<Hold>,
    pub(super) memory: MemoryShare,
    /// `namespace/name`.
    pub(super) trigger: Arc<str>,
}

/// A completed attempt: its outcome and the details that the dispatcher needs to account for it.
pub(super) struct CompletedAttempt {
    pub(super) details: AttemptDetails,
    pub(super) outcome: AttemptOutcome,
}

/// Details of an attempt.
pub(super) struct AttemptDetails {
    pub(super) position: EventPosition,
    /// Target of the attempt; the Trigger's Sink may have changed since.
    pub(super) target: Target,
    /// Duration of the attempt.
    pub(super) took: Duration,
    /// The event, if it could be read.
    pub(super) event: Option<Event>,
}

pub(super) enum AttemptOutcome {
    Answered(Answer, Option<ReplyOutcome>),
    ReplyNotStored(Answer),
    Expired,
    /// The transform failed; nothing was sent.
    NotTransformed(TransformFailure),
    NotFetched(FetchError),
    /// No memory or no connection was available.
    NoRoom,
}

/// Outcome of sending a dead letter to the dead-letter Sink.
pub(super) enum SendOutcome {
    Answered(Box<Answer>),
    NoSink,
    NotFetched(FetchError),
    NoRoom,
}

/// Outcome of storing a dead letter in the log.
pub(super) enum StoreOutcome {
    Stored,
    NoRoom(String),
    NotFetched(FetchError),
}

impl AttemptPerformer {
    /// Reserves the memory of an attempt, if it can be had now.
    pub(super) fn try_reserve(&self, event: Option<&BufferedEvent>) -> Option<Reservation> {
        self.memory.try_reserve(needed(event))
    }

    /// Reserves the memory of an attempt. Returns `None` after a while.
    pub(super) fn reserve(
        &self,
        event: Option<&BufferedEvent>,
    ) -> impl Future<Output = Option<Reservation>> + Send + 'static {
        let reserved = tokio::time::timeout(MEMORY_TIMEOUT, self.memory.reserve(needed(event)));
        async move { reserved.await.ok() }
    }

    /// Attempts to deliver an event with the memory that was reserved for it.
    pub(super) fn attempt(
        self: Arc<Self>,
        settings: &Settings,
        target: Target,
        Launch {
            position,
            event,
            number,
        }: Launch<BufferedEvent>,
        memory: Reservation,
    ) -> BoxFuture<'static, CompletedAttempt> {
        let (timeout, transform) = (settings.delivery().timeout, settings.transform().cloned());
        async move {
            let taken = match event {
                Some(buffered) => Ok((buffered.event().clone(), memory)),
                None => self.read(position, memory).await,
            };
            let (event, mut memory) = match taken {
                Ok(taken) => taken,
                Err(outcome) => {
                    let details = AttemptDetails {
                        position,
                        target,
                        took: Duration::ZERO,
                        event: None,
                    };
                    return CompletedAttempt { details, outcome };
                }
            };
            let (time, began) = (Timestamp::now(), Instant::now());
            let outcome = if event.expires().is_some_and(|at| at <= time) {
                self.stats.attempt_began();
                AttemptOutcome::Expired
            } else {
                match transformed(&event, transform.as_deref(), &mut memory) {
                    Ok(Some(sent)) => self.send(&target, position, &event, &sent, timeout, number).await,
                    Ok(None) => {
                        self.stats.attempt_postponed();
                        AttemptOutcome::NoRoom
                    }
                    Err(failure) => AttemptOutcome::NotTransformed(failure),
                }
            };
            let details = AttemptDetails {
                position,
                target,
                took: began.elapsed(),
                event: Some(event),
            };
            CompletedAttempt { details, outcome }
        }
        .boxed()
    }

    /// Sends `sent`, which is made of `event`, and stores the reply to it.
    async fn send(
        &self,
        target: &Target,
        position: EventPosition,
        event: &Event,
        sent: &Event,
        timeout: Duration,
        number: u32,
    ) -> AttemptOutcome {
        let began = Instant::now();
        self.stats.attempt_began();
        let outgoing = self.outgoing(sent, SendPurpose::Delivery, number);
        let answer = self.client.send(target, &outgoing, timeout).await;
        if answer.verdict == Verdict::RouterBusy {
            self.stats.attempt_ended(false, began.elapsed());
            self.stats.attempt_postponed();
            return AttemptOutcome::NoRoom;
        }
        let outcome = self.store_reply(position, event, answer).await;
        // The dispatcher takes this for an event that could not be read, for which no attempt began.
        if let AttemptOutcome::NotFetched(_) = outcome {
            self.stats.attempt_ended(false, began.elapsed());
        }
        outcome
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

    /// Reads the event of an attempt, with more memory if it needs more.
    async fn read(
        &self,
        position: EventPosition,
        mut memory: Reservation,
    ) -> Result<(Event, Reservation), AttemptOutcome> {
        loop {
            let event = self.fetch(position).await.map_err(AttemptOutcome::NotFetched)?;
            let needed = ATTEMPT_OVERHEAD + 2 * event.size();
            if memory.try_grow(needed) {
                return Ok((event, memory));
            }
            // Read it again once enough memory is reserved for its actual size.
            drop((event, memory));
            memory = self.reserve_bytes(needed).await?;
        }
    }

    async fn reserve_bytes(&self, bytes: usize) -> Result<Reservation, AttemptOutcome> {
        let reserved = tokio::time::timeout(MEMORY_TIMEOUT, self.memory.reserve(bytes)).await;
        reserved.map_err(|_| {
            self.stats.attempt_postponed();
            AttemptOutcome::NoRoom
        })
    }

    async fn fetch(&self, position: EventPosition) -> Result<Event, FetchError> {
        position.fetch(&self.logs).await
    }

    /// Stores the Sink's reply, if any. If storing fails, the delivery fails.
    async fn store_reply(
        &self,
        position: EventPosition,
        event: &Event,
        mut answer: Answer,
    ) -> AttemptOutcome {
        let reply = match answer.reply.take() {
            None => None,
            Some(Err(problem)) => Some(ReplyOutcome::Invalid(problem)),
            Some(Ok(replies)) => {
                let stored = reply::store(
                    &self.intake,
                    self.logs.events.name().broker(),
                    event,
                    &replies,
                    answer.context.as_ref(),
                    self.room(position),
                );
                match stored.await {
                    Ok(reply) => Some(reply),
                    Err(
                        LogError::Full(detail)
                        | LogError::Quota(detail)
                        | LogError::TooManyBrokers(detail)
                        | LogError::Limit(detail)
                        | LogError::TooLarge(detail),
                    ) => {
                        let detail = format!("cannot store the Sink's reply: {detail}");
                        return AttemptOutcome::ReplyNotStored(Answer::none(detail));
                    }
                    Err(error) => return AttemptOutcome::NotFetched(FetchError::Log(error)),
                }
            }
        };
        AttemptOutcome::Answered(answer, reply)
    }

    /// Sends a dead letter to the dead-letter Sink.
    pub(super) fn send_letter(
        self: Arc<Self>,
        settings: &Settings,
        position: EventPosition,
        letter: DeadLetter,
        number: u32,
    ) -> BoxFuture<'static, (EventPosition, SendOutcome)> {
        let (target, timeout) = (
            settings.dead_letter_target().cloned(),
            settings.delivery().timeout,
        );
        async move {
            let Some(target) = target else {
                return (position, SendOutcome::NoSink);
            };
            let read = match self.reserve_bytes(needed(None)).await {
                Ok(memory) => self.read(position, memory).await,
                Err(outcome) => Err(outcome),
            };
            let (event, _memory) = match read {
                Ok(read) => read,
                Err(AttemptOutcome::NotFetched(error)) => return (position, SendOutcome::NotFetched(error)),
                Err(_) => return (position, SendOutcome::NoRoom),
            };
            let event = letter.mark(&event).unwrap_or(event);
            let outgoing = self.outgoing(&event, SendPurpose::DeadLetter, number);
            let answer = self.client.send(&target, &outgoing, timeout).await;
            if answer.verdict == Verdict::RouterBusy {
                self.stats.attempt_postponed();
            }
            (position, SendOutcome::Answered(Box::new(answer)))
        }
        .boxed()
    }

    /// Part of the log's capacity that settling this event may use.
    fn room(&self, position: EventPosition) -> UsableRoom {
        if self.hold.is_first_unsettled(position) {
            UsableRoom::Reserve
        } else {
            UsableRoom::Common
        }
    }

    /// Stores a dead letter in the log.
    pub(super) fn store_letter(
        self: Arc<Self>,
        position: EventPosition,
        letter: DeadLetter,
    ) -> BoxFuture<'static, (EventPosition, StoreOutcome)> {
        async move {
            let event = match self.fetch(position).await {
                Ok(event) => event,
                Err(error) => return (position, StoreOutcome::NotFetched(error)),
            };
            let id = format!("{}/{position}", letter.trigger);
            let (log, letter) = (self.logs.letters.name(), letter.encode(&event));
            let stored = self.intake.settle_once(log, &id, letter, self.room(position));
            let stored = match stored.await {
                Ok(_) => StoreOutcome::Stored,
                Err(
                    LogError::Full(detail)
                    | LogError::Quota(detail)
                    | LogError::TooManyBrokers(detail)
                    | LogError::Limit(detail)
                    | LogError::TooLarge(detail),
                ) => StoreOutcome::NoRoom(detail),
                Err(error) => StoreOutcome::NotFetched(FetchError::Log(error)),
            };
            (position, stored)
        }
        .boxed()
    }
}

/// Bytes to reserve for an attempt to deliver an event, if it is in memory, or else for one of a likely size.
fn needed(event: Option<&BufferedEvent>) -> usize {
    ATTEMPT_OVERHEAD + event.map_or(LIKELY_SIZE, BufferedEvent::size)
}

/// Returns the event to send, whose memory is reserved, or `None` if there is no memory for it.
fn transformed(
    event: &Event,
    transform: Option<&CompiledTransform>,
    memory: &mut Reservation,
) -> Result<Option<Event>, TransformFailure> {
    let Some(transform) = transform else {
        return Ok(Some(event.clone()));
    };
    let sent = transform.apply(event)?;
    let has_room = memory.try_grow(memory.bytes() + sent.size());
    Ok(has_room.then_some(sent))
}
