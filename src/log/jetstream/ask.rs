//! Questions of one router to another, over the connections to NATS that both have. An answer comes in parts, since it can
//! be larger than a message.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, Message};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::time::sleep;

use super::{names, patience::Patience, streams::JetStream};
use crate::log::LogError;

/// Maximum bytes of a part.
const PART: usize = 256 * 1024;
/// Header of every part but the last.
const MORE: &str = "Weir-More";
/// Maximum questions that are answered at once; others wait.
const AT_ONCE: usize = 8;
/// Timeout of sending a part.
const SEND: Duration = Duration::from_secs(5);
/// Pause before subscribing again.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

impl JetStream {
    /// Asks a router, and waits for the whole answer.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the router or NATS does not answer in time; [`LogError::TooLarge`] if the question is
    /// larger than a message.
    pub(super) async fn ask(&self, router: &str, question: Bytes, wait: Duration) -> Result<Bytes, LogError> {
        let largest = self.session.client().max_payload();
        if question.len() > largest {
            return Err(LogError::TooLarge(format!(
                "a question of {} bytes to another router, and the NATS server accepts at most {largest}",
                question.len()
            )));
        }
        let mut answer = BytesMut::new();
        let subject = names::ask(router);
        let asked = self.session.request_many(&subject, question, wait, |part| {
            answer.extend_from_slice(&part.payload);
            Ok(part.headers.is_some_and(|headers| headers.get(MORE).is_some()))
        });
        match asked.await {
            Ok(()) => Ok(answer.freeze()),
            Err(error) => Err(LogError::Unavailable(format!(
                "router {router} does not answer: {error}"
            ))),
        }
    }

    /// Answers the questions to a router. Never ends.
    pub(super) async fn answer<F>(self: Arc<Self>, router: String, answer: impl Fn(Bytes) -> F)
    where
        F: Future<Output = Bytes>,
    {
        loop {
            match self.session.client().subscribe(names::ask(&router)).await {
                // The subscription survives a lost connection.
                Ok(questions) => {
                    let answering = questions.for_each_concurrent(AT_ONCE, async |question| {
                        self.send_answer(&question, answer(question.payload.clone()).await)
                            .await;
                    });
                    answering.await;
                }
                Err(error) => tracing::debug!(%error, "cannot subscribe to questions of other routers"),
            }
            sleep(SUBSCRIBE_AGAIN).await;
        }
    }

    async fn send_answer(&self, question: &Message, mut answer: Bytes) {
        let Some(inbox) = &question.reply else { return };
        loop {
            let part = answer.split_to(answer.len().min(PART));
            let mut headers = HeaderMap::new();
            if !answer.is_empty() {
                headers.insert(MORE, "1");
            }
            let mut patience = Patience::new(SEND);
            let send = |wait| self.session.publish(inbox, headers.clone(), part.clone(), wait);
            if let Err(error) = patience.retry(send).await {
                tracing::debug!(%error, "cannot answer another router");
                return;
            }
            if answer.is_empty() {
                return;
            }
        }
    }
}
