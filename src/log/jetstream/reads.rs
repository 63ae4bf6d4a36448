//! Reads, by batched direct gets, which need no consumer and can begin at any sequence. Any replica may respond, even
//! one that is behind or damaged. Records that are missing or damaged are requested from the leader; they count as
//! damaged only if that fails until the timeout.

use std::{sync::atomic::Ordering, time::Duration};

use async_nats::{Message, header};
use serde_json::json;

use super::{
    layout, names::Location, patience::Patience, recent::Found, session::NatsError, streams::JetStream,
    tracked::Tracked,
};
use crate::log::{LogBounds, LogError, LogRecord, Offset, ReadLimit, record};

/// Maximum records of one request. Less than the client's message buffer holds.
const PAGE_RECORDS: usize = 1000;
/// Maximum bytes of a response.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

impl JetStream {
    /// Reads records from memory or from the servers.
    pub(super) async fn read(
        &self,
        log: &Tracked,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<LogRecord>, LogError> {
        if self
            .partitions
            .get(log.name.broker())
            .is_none_or(|partitions| partitions == 1)
        {
            return self.read_stored(log, from, limit).await;
        }
        let from = from.max(log.bounds().first);
        match log.recent.get(from, limit) {
            Found::Records(records) => return Ok(records),
            Found::Older => return self.read_stored(log, from, limit).await,
            Found::Newer(_) => {}
        }
        let patience = Patience::new(self.options.timeout);
        let _reading = patience.within("another read", log.recent.reading.lock()).await?;
        let found = log.recent.get(from, limit);
        if let Found::Records(records) = found {
            return Ok(records);
        }
        let records = self.read_stored(log, from, limit).await?;
        if let Found::Newer(generation) = found {
            log.recent.add(&records, generation);
        }
        Ok(records)
    }

    /// Reads records from the servers.
    async fn read_stored(
        &self,
        log: &Tracked,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<LogRecord>, LogError> {
        if !log.is_seen() && self.bounds(log).await? == LogBounds::default() {
            return Ok(Vec::new());
        }
        let mut next = from.max(log.bounds().first);
        let (mut records, mut bytes): (Vec<LogRecord>, usize) = (Vec::new(), 0);
        loop {
            let wanted = limit.records.max(1).saturating_sub(records.len());
            let room = limit.bytes.saturating_sub(bytes);
            let page = self.page(log, next, wanted, room).await?;
            let Some(last) = page.last() else {
                return Ok(records);
            };
            next = last.offset.plus(1);
            for record in page {
                bytes = bytes.saturating_add(record.payload.len());
                if !records.is_empty() && bytes > limit.bytes {
                    return Ok(records);
                }
                records.push(record);
            }
            if records.len() >= limit.records || bytes >= limit.bytes || next >= log.bounds().next {
                return Ok(records);
            }
        }
    }

    /// Reads some records, from an offset or the first retained record on. Returns none at the end of the log.
    async fn page(
        &self,
        log: &Tracked,
        mut from: Offset,
        records: usize,
        bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let mut patience = Patience::new(self.options.timeout);
        let mut attempts = 0;
        loop {
            let (error, is_damage) = match self.fetch(log, from, records, bytes, patience.attempt()).await {
                Ok(Fetched::Records(records)) => {
                    // Another replica may lack them. It must not be taken for the end of the log when they are read again.
                    if let Some(last) = records.last() {
                        log.ends_at_least_at(last.offset.plus(1));
                    }
                    return Ok(records);
                }
                Ok(Fetched::Nothing) if from >= log.bounds().next => return Ok(Vec::new()),
                Ok(Fetched::Nothing) => (format!("the record at offset {from} is missing"), false),
                Ok(Fetched::Later) => (format!("the record at offset {from} is missing"), true),
                Ok(Fetched::Damage(detail)) => (detail, true),
                Err(error) => {
                    self.read_errors.fetch_add(1, Ordering::Relaxed);
                    patience.after(error).await?;
                    continue;
                }
            };
            attempts += 1;
            // A replica is often slightly behind: retry once before asking the leader.
            if is_damage || attempts > 1 {
                let bounds = self.bounds(log).await?;
                if from >= bounds.next {
                    return Ok(Vec::new());
                }
                if from < bounds.first {
                    from = bounds.first;
                    continue;
                }
                self.read_errors.fetch_add(1, Ordering::Relaxed);
                if let Some(record) = self.ask_leader(log, from, patience.attempt()).await {
                    return Ok(vec![record]);
                }
            }
            // A server repairs its replica after a while. Until then it may be the leader and respond to every request.
            let paused = patience.after(NatsError::NoAnswer(error.clone())).await;
            if is_damage && paused.is_err() {
                return Err(self.damaged(&log.location.stream, &error));
            }
            paused?;
        }
    }

    /// Requests one record from the leader. Returns `None` if it is missing or damaged there, or on an error.
    async fn ask_leader(&self, log: &Tracked, offset: Offset, wait: Duration) -> Option<LogRecord> {
        let Location { stream, subject } = &log.location;
        let which = json!({ "seq": offset.plus(1).0 });
        let content = self.session.message(stream, &which, wait).await.ok()??;
        let (millis, payload) = layout::decode(subject, &content).ok()?;
        Some(LogRecord {
            offset,
            accepted: record::timestamp(millis),
            payload,
        })
    }

    /// Requests records from any replica.
    async fn fetch(
        &self,
        log: &Tracked,
        from: Offset,
        records: usize,
        bytes: usize,
        wait: Duration,
    ) -> Result<Fetched, NatsError> {
        let request = json!({
            "seq": from.plus(1).0,
            "batch": records.min(PAGE_RECORDS),
            "max_bytes": bytes.clamp(1, PAGE_BYTES),
        });
        let subject = format!("$JS.API.DIRECT.GET.{}", log.location.stream);
        let (mut found, mut problem) = (Vec::new(), None);
        self.session
            .request_many(&subject, request.to_string().into(), wait, |answer| {
                // A status ends the response, also if there are no records.
                if answer.status.is_some() {
                    return Ok(false);
                }
                let expected = from.plus(found.len() as u64);
                if problem.is_none() {
                    match parse(&log.location.subject, expected, &answer)? {
                        Ok(record) => found.push(record),
                        Err(other) => problem = Some(other),
                    }
                }
                Ok(true)
            })
            .await?;
        Ok(match problem {
            Some(problem) if found.is_empty() => problem,
            None if found.is_empty() => Fetched::Nothing,
            _ => Fetched::Records(found),
        })
    }
}

/// Response to a request for records.
enum Fetched {
    /// Records from the requested offset on.
    Records(Vec<LogRecord>),
    /// The replica has no records from this offset on.
    Nothing,
    /// The replica lacks the record at this offset and has later ones.
    Later,
    /// The record at this offset is damaged.
    Damage(String),
}

/// Parses the record at an offset. The inner error is the problem with it.
fn parse(subject: &str, expected: Offset, answer: &Message) -> Result<Result<LogRecord, Fetched>, NatsError> {
    let sequence = answer
        .headers
        .as_ref()
        .and_then(|headers| headers.get(header::NATS_SEQUENCE))
        .and_then(|sequence| sequence.as_str().parse::<u64>().ok())
        .ok_or_else(|| NatsError::Unexpected("a record without a sequence".to_owned()))?;
    if sequence != expected.plus(1).0 {
        return Ok(Err(Fetched::Later));
    }
    Ok(match layout::decode(subject, &answer.payload) {
        Ok((millis, payload)) => Ok(LogRecord {
            offset: expected,
            accepted: record::timestamp(millis),
            payload,
        }),
        Err(detail) => Err(Fetched::Damage(format!("offset {expected}: {detail}"))),
    })
}
