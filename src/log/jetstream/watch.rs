//! Follows the appends and trims of other routers, without consumers. Routers announce the ends of logs by plain
//! messages, which are cheap but can be lost; polling all streams finds the rest.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use futures::StreamExt as _;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{names, streams::JetStream};
use crate::log::Offset;

/// Interval at which all streams are polled.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// Timeout of a poll.
const POLL: Duration = Duration::from_secs(10);
/// Minimum time between two announcements for the same log.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(5);
/// Pause before subscribing again.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

/// Starts the tasks; they end when the set is dropped.
pub(super) fn start(streams: &Arc<JetStream>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(poll(streams.clone()));
    tasks.spawn(announce(streams.clone()));
    tasks.spawn(listen(streams.clone()));
    tasks
}

async fn poll(streams: Arc<JetStream>) {
    let mut ticks = interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = streams.refresh_all(POLL).await {
            tracing::debug!(%error, "cannot list the streams");
        }
        streams.set_windows().await;
        if let Err(error) = streams.decide_existing().await {
            tracing::debug!(%error, "cannot read the numbers of partitions");
        }
        streams.logs().iter().for_each(|log| log.recent.forget_idle());
    }
}

async fn announce(streams: Arc<JetStream>) {
    loop {
        streams.growth.notified().await;
        for name in streams.take_grown() {
            let log = streams.log(&name);
            let subject = names::end(&log.location.stream);
            let end = log.seen_end().acknowledged.0.to_string();
            let announced = streams
                .session
                .publish(&subject, HeaderMap::new(), end.into(), POLL_EVERY);
            if let Err(error) = announced.await {
                tracing::debug!(%error, "cannot announce new records to other routers");
            }
        }
        sleep(ANNOUNCE_EVERY).await;
    }
}

async fn listen(streams: Arc<JetStream>) {
    loop {
        match streams.session.client().subscribe(names::ENDS).await {
            // The subscription survives a lost connection.
            Ok(mut ends) => {
                while let Some(message) = ends.next().await {
                    receive(&streams, &message);
                }
            }
            Err(error) => tracing::debug!(%error, "cannot subscribe to announcements of other routers"),
        }
        sleep(SUBSCRIBE_AGAIN).await;
    }
}

fn receive(streams: &JetStream, message: &async_nats::Message) {
    if *message.subject == *names::OWNERS_CHANGED {
        streams.owners_changed.notify_one();
        return;
    }
    let name = names::ended(&message.subject).and_then(names::log_of);
    let end = str::from_utf8(&message.payload)
        .ok()
        .and_then(|end| end.parse().ok());
    if let (Some(name), Some(end)) = (name, end) {
        streams.log(&name).acknowledged_to(Offset(end));
    }
}
