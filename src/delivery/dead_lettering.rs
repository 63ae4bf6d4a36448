//! What becomes of an event whose delivery ended without success: it goes to the Trigger's dead-letter Sink, and
//! where there is none, or that fails as well, into the dead-letter log. It is never lost in between.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    TriggerStats,
    backoff::{self, Attempts},
    client::Client,
    dead_letter::DeadLetter,
    dispatcher::WINDOW,
    place::{FetchError, Place},
    settings::Settings,
    traced::Traced,
    verdict::Verdict,
};
use crate::{
    log::{EventLog, LogError},
    telemetry::{Admitted, Attempt, Burst},
};

/// How many dead letters of a Trigger are under way to its dead-letter Sink at once, and how many into the log.
const CONCURRENCY: usize = 8;

/// How many may be with the dead-letter Sink, wait for it, or wait for it to be tried again. Those beyond are kept: they
/// must not hold up what the Sink itself would take.
const MAX_WAITING: usize = WINDOW / 2;

/// How long what found no room in the log waits before it is tried again: the first time, and at most.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_NO_ROOM_PAUSE: Duration = Duration::from_secs(5);
const AS_FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Takes the dead letters of one Trigger.
#[derive(Clone)]
pub(super) struct DeadLettering {
    log: Arc<dyn EventLog>,
    client: Client,
    /// `namespace/name`.
    trigger: Arc<str>,
    broker: String,
    settings: watch::Receiver<Settings>,
    room_wanted: Arc<Notify>,
    stats: Arc<TriggerStats>,
    settled: Arc<Notify>,
    sending: Arc<Semaphore>,
    keeping: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Bounds what is said of letters that find no room.
    without_room: Arc<Mutex<Burst>>,
}

impl DeadLettering {
    pub(super) fn new(
        log: Arc<dyn EventLog>,
        client: Client,
        trigger: Arc<str>,
        broker: String,
        settings: watch::Receiver<Settings>,
        room_wanted: Arc<Notify>,
        stats: Arc<TriggerStats>,
    ) -> Self {
        Self {
            log,
            client,
            trigger,
            broker,
            settings,
            room_wanted,
            stats,
            settled: Arc::default(),
            sending: Arc::new(Semaphore::new(CONCURRENCY)),
            keeping: Arc::new(Semaphore::new(CONCURRENCY)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            without_room: Arc::default(),
        }
    }

    /// Returns once the dead-letter Sink has taken the event, or it is durable in the dead-letter log.
    ///
    /// The event is read again for each step, so that however many wait, they are not held in memory.
    ///
    /// # Errors
    /// When the event cannot be had any more, or the log failed.
    pub(super) async fn settle(self, mut letter: DeadLetter, place: Place) -> Result<(), FetchError> {
        match self.send(&letter, place).await? {
            Sent::Taken => return Ok(()),
            Sent::NoSink => {}
            Sent::Failed(detail) => {
                letter.detail = format!("{}; then the dead-letter Sink: {detail}", letter.detail);
            }
        }
        self.keep(&letter, place).await
    }

    /// Tries the dead-letter Sink as the Trigger's delivery options say, and by what they say at each attempt.
    async fn send(&self, letter: &DeadLetter, place: Place) -> Result<Sent, FetchError> {
        let Ok(_waiting) = self.waiting.try_acquire() else {
            let detail = format!("{MAX_WAITING} others wait for it already");
            return Ok(Sent::Failed(detail));
        };
        let mut attempts = Attempts::default();
        loop {
            let settings = self.settings.borrow().clone();
            let Some((target, mode)) = settings.dead_letter_target() else {
                return Ok(Sent::NoSink);
            };
            let delivery = settings.delivery();
            let began = Timestamp::now();
            let answer = {
                // Never closed; without a permit there would be one more under way.
                let _permit = self.sending.acquire().await;
                let event = place.fetch(&*self.log, &self.broker).await?;
                let event = letter.mark(&event).unwrap_or(event);
                let traced = Traced::begin(
                    self.client.tracer(),
                    &Attempt {
                        event: &event,
                        trigger: &self.trigger,
                        broker: &self.broker,
                        target: &target.uri,
                        number: attempts.failed.saturating_add(1),
                        is_dead_letter: true,
                    },
                );
                let mut message = event.to_http(mode);
                traced.set_headers(&mut message.headers);
                let answer = self.client.post(target, message, delivery.timeout).await;
                traced.end(&answer);
                answer
            };
            attempts.failed = attempts.failed.saturating_add(1);
            attempts.since.get_or_insert(began);
            match answer.verdict {
                Verdict::Delivered => return Ok(Sent::Taken),
                Verdict::Refused => return Ok(Sent::Failed(answer.detail)),
                Verdict::Retry if backoff::exhausted(delivery, attempts, Timestamp::now()) => {
                    return Ok(Sent::Failed(answer.detail));
                }
                Verdict::Retry => {}
            }
            let pause = backoff::pause(delivery, attempts.failed, answer.retry_after, fastrand::f64());
            // A table that is not in force any more is not kept for the time of a pause.
            drop(settings);
            tokio::time::sleep(pause).await;
        }
    }

    async fn keep(&self, letter: &DeadLetter, place: Place) -> Result<(), FetchError> {
        let mut pause = NO_ROOM_PAUSE;
        loop {
            match self.store(letter, place).await? {
                Ok(()) => return Ok(()),
                Err(error) if pause == NO_ROOM_PAUSE => self.tell_without_room(place, &error),
                Err(_) => {}
            }
            self.room_wanted.notify_one();
            self.wait(place, pause).await;
            pause = if self.stats.is_first_unsettled(place) {
                // What was settled before it is removed in a moment.
                AS_FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_NO_ROOM_PAUSE)
            };
        }
    }

    fn tell_without_room(&self, place: Place, error: &str) {
        if let Some(Admitted { held_back }) = self.without_room().admit(Instant::now()) {
            let (trigger, broker) = (&*self.trigger, self.broker.as_str());
            tracing::warn!(trigger, broker, %place, error, held_back, "no room for a dead letter; it waits for some");
        }
    }

    /// Says how many lines were held back, where no later line has.
    pub(super) fn tell_overdue(&self, now: Instant) {
        if let Some(held_back) = self.without_room().overdue(now) {
            let (trigger, broker) = (&*self.trigger, self.broker.as_str());
            let of = "dead letters without room";
            tracing::warn!(trigger, broker, held_back, of, "log lines were held back");
        }
    }

    fn without_room(&self) -> MutexGuard<'_, Burst> {
        // No code that holds the lock can leave the counts half changed.
        self.without_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the letter, or tells why there is no room. The room that is kept for settling is for the first unsettled
    /// event alone: if others took it, that one could wait for good, and nothing could be removed before it.
    async fn store(&self, letter: &DeadLetter, place: Place) -> Result<Result<(), String>, FetchError> {
        let _permit = self.keeping.acquire().await;
        let event = place.fetch(&*self.log, &self.broker).await?;
        let (key, now) = (DeadLetter::log_of(&self.broker), Timestamp::now());
        let letter = vec![letter.encode(&event)];
        let stored = if self.stats.is_first_unsettled(place) {
            self.log.append_to_settle(&key, letter, now).await
        } else {
            self.log.append(&key, letter, now).await
        };
        match stored {
            Ok(_) => Ok(Ok(())),
            Err(LogError::Full(detail) | LogError::Limit(detail)) => Ok(Err(detail)),
            Err(error) => Err(FetchError::Log(error)),
        }
    }

    /// Waits for a while, or until the event has become the first that is not settled.
    async fn wait(&self, place: Place, pause: Duration) {
        let becomes_first = async {
            loop {
                self.settled.notified().await;
                if self.stats.is_first_unsettled(place) {
                    return;
                }
            }
        };
        // Either way it is tried again.
        let _ = tokio::time::timeout(pause, becomes_first).await;
    }

    /// The Trigger has settled an event: another may be the first now.
    pub(super) fn settled(&self) {
        self.settled.notify_waiters();
    }
}

/// What came of sending to the dead-letter Sink.
enum Sent {
    Taken,
    NoSink,
    Failed(String),
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use bytes::Bytes;
    use futures::{StreamExt, stream::FuturesUnordered};
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::Addresses,
        log::{
            Offset,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
        routing::{Configuration, ContentMode, Delivery, Destination, RoutingTable},
    };

    const BROKER: &str = "shop/default";
    const PATIENCE: Duration = Duration::from_secs(30);

    fn settings(client: &Client, dead_letter_sink: String) -> Settings {
        let delivery = Delivery {
            timeout: 100 * PATIENCE,
            dead_letter_sink: Some(Destination {
                uri: dead_letter_sink,
                service: None,
                content_mode: ContentMode::AsReceived,
                ca_certs: None,
                headers: Vec::new(),
            }),
            ..Delivery::default()
        };
        let trigger = json!({
            "uid": "u", "namespace": "shop", "name": "t", "generation": 1, "broker": "default", "filters": [],
            "destination": null, "delivery": delivery, "start": "Latest", "suspend": false,
        });
        let table = RoutingTable::compile(Configuration {
            triggers: vec![serde_json::from_value(trigger).unwrap()],
            ..Configuration::default()
        });
        Settings::new(client, table.authorities(), table.brokers()[BROKER].clone(), 0)
    }

    async fn log_of_one_event(directory: &tempfile::TempDir) -> Arc<dyn EventLog> {
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let payload: Bytes = event.build().unwrap().to_record();
        log.append(BROKER, vec![payload], Timestamp::now()).await.unwrap();
        Arc::new(log)
    }

    #[tokio::test]
    async fn letters_beyond_those_that_wait_for_a_sink_that_hangs_are_kept() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let directory = tempfile::tempdir().unwrap();
        let log = log_of_one_event(&directory).await;
        let client = Client::new(1, Addresses::any()).unwrap();
        // It takes connections and never answers.
        let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/", hanging.local_addr().unwrap());
        let (_changes, settings) = watch::channel(settings(&client, uri));
        let dead_lettering = DeadLettering::new(
            log.clone(),
            client,
            "shop/t".into(),
            BROKER.to_owned(),
            settings,
            Arc::default(),
            Arc::default(),
        );
        let letter = DeadLetter::of_a_test();
        let settle = |_| {
            dead_lettering
                .clone()
                .settle(letter.clone(), Place::Log(Offset(0)))
        };
        let mut settling: FuturesUnordered<_> = (0..=MAX_WAITING).map(settle).collect();
        let first = tokio::time::timeout(PATIENCE, settling.next()).await.unwrap();
        assert!(first.is_some_and(|settled| settled.is_ok()));
        assert_eq!(log.bounds(&DeadLetter::log_of(BROKER)).next, Offset(1));
    }
}
