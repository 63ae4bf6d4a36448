//! Notices what other routers append and trim. Routers tell each other of the ends of logs by plain messages, which
//! are cheap and may be lost; a regular look at all streams finds what was not told. No log has a consumer.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use futures::StreamExt as _;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{names, streams::JetStream};
use crate::log::Offset;

/// Interval between looks at all streams.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Timeout of a look.
const LOOK: Duration = Duration::from_secs(10);
/// Least time between two messages about the same log.
const TELL_EVERY: Duration = Duration::from_millis(5);
/// Pause before listening again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Starts the tasks; they end when the set is dropped.
pub(super) fn start(streams: &Arc<JetStream>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(look(streams.clone()));
    tasks.spawn(tell(streams.clone()));
    tasks.spawn(listen(streams.clone()));
    tasks
}

async fn look(streams: Arc<JetStream>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = streams.look(LOOK).await {
            tracing::debug!(%error, "the streams cannot be listed");
        }
    }
}

async fn tell(streams: Arc<JetStream>) {
    loop {
        streams.growth.notified().await;
        for name in streams.take_grown() {
            let log = streams.log(&name);
            let subject = names::end(&log.location.stream);
            let end = log.bounds().next.to_string();
            let told = streams
                .session
                .publish(&subject, HeaderMap::new(), end.into(), LOOK_EVERY);
            if let Err(error) = told.await {
                tracing::debug!(%error, "other routers were not told of new records");
            }
        }
        sleep(TELL_EVERY).await;
    }
}

async fn listen(streams: Arc<JetStream>) {
    loop {
        match streams.session.client().subscribe(names::ENDS).await {
            // It survives a lost connection.
            Ok(mut ends) => {
                while let Some(message) = ends.next().await {
                    told(&streams, &message);
                }
            }
            Err(error) => tracing::debug!(%error, "cannot listen to other routers"),
        }
        sleep(LISTEN_AGAIN).await;
    }
}

fn told(streams: &JetStream, message: &async_nats::Message) {
    let name = names::ended(&message.subject).and_then(names::log_of);
    let end = str::from_utf8(&message.payload)
        .ok()
        .and_then(|end| end.parse().ok());
    if let (Some(name), Some(end)) = (name, end) {
        streams.log(&name).told(Offset(end));
    }
}
