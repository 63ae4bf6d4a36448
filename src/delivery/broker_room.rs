//! Room for new events within the quota of a broker. A broker that seems full is looked at again, since Triggers may
//! have settled events; then its oldest events are dropped, if it does so.

use std::{sync::Arc, time::Instant};

use super::{
    broker_fills::BrokerFill,
    trimmer::{PORTION, ROOM_TIMEOUT, Trimmer},
};
use crate::{
    intake::{HeldRoom, RoomBy},
    log::{BrokerName, Capacity, LogError, LogName, Offset},
    routing::WhenFull,
};

/// How often events are dropped for the same request. What is removed is estimated.
const DROP_ATTEMPTS: usize = 3;

/// Unsettled events of a broker in the logs of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsettledEvents {
    /// Their number, from the first unsettled one on.
    pub events: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
    /// Bytes that they may take: the broker's quota, or else the namespace's share at present.
    pub limit: u64,
}

/// A broker that is asked for room, with its log.
struct RoomRequest<'a> {
    broker: &'a BrokerName,
    log: LogName,
    fill: Arc<BrokerFill>,
    capacity: &'a dyn Capacity,
    quota: u64,
    /// Bytes of the new events.
    bytes: u64,
}

impl RoomRequest<'_> {
    fn hold(&self) -> Option<HeldRoom> {
        let ever = self.capacity.bytes_ever(&self.log);
        self.fill.hold(ever, self.quota, self.bytes)
    }

    fn rejection(&self) -> LogError {
        let Self {
            broker, quota, bytes, ..
        } = self;
        let unsettled = self.fill.counts().unsettled(self.capacity.bytes_ever(&self.log));
        LogError::BrokerQuota(format!(
            "unsettled events of broker {broker} take {unsettled} bytes of the event log, and with {bytes} more they would exceed \
             the broker's {quota} bytes (spec.quota.bytes of its Broker, or the installation's limit); let them be delivered, or \
             delete Triggers that are not needed"
        ))
    }
}

impl Trimmer {
    /// Holds room for new events within the broker's quota, if it has one. With [`RoomBy::Dropping`], makes room if the
    /// broker drops its oldest events.
    ///
    /// # Errors
    /// [`LogError::BrokerQuota`] if there is none; otherwise as [`Capacity::bytes_below`].
    pub(super) async fn hold_within_quota(
        &self,
        broker: &BrokerName,
        bytes: u64,
        by: RoomBy,
    ) -> Result<Option<HeldRoom>, LogError> {
        let (Some(quota), Some(capacity)) = (self.quota_of(broker), self.logs.capacity()) else {
            return Ok(None);
        };
        let request = RoomRequest {
            broker,
            log: LogName::Events(broker.clone()),
            fill: self.fills.of(broker),
            capacity,
            quota,
            bytes,
        };
        if let Some(held) = request.hold() {
            return Ok(Some(held));
        }
        let may_drop = by == RoomBy::Dropping && self.when_full_of(broker) == WhenFull::DropOldest;
        let drops = may_drop && bytes <= quota;
        if !drops && request.fill.is_surely_full() {
            return Err(request.rejection());
        }
        match tokio::time::timeout(ROOM_TIMEOUT, self.look_for_room(&request, drops)).await {
            Ok(Ok(Some(held))) => Ok(Some(held)),
            Ok(Ok(None)) | Err(_) => Err(request.rejection()),
            Ok(Err(error)) => Err(error),
        }
    }

    async fn look_for_room(
        &self,
        request: &RoomRequest<'_>,
        drops: bool,
    ) -> Result<Option<HeldRoom>, LogError> {
        let _looking = request.fill.looking.lock().await;
        // Somebody else may have looked meanwhile.
        if let Some(held) = request.hold() {
            return Ok(Some(held));
        }
        let (_, mut unsettled) = self.look(request.broker, &request.fill, request.capacity).await?;
        if let Some(held) = request.hold() {
            return Ok(Some(held));
        }
        for _ in 0..if drops { DROP_ATTEMPTS } else { 0 } {
            self.drop_oldest_of(request, unsettled).await?;
            (_, unsettled) = self.look(request.broker, &request.fill, request.capacity).await?;
            if let Some(held) = request.hold() {
                return Ok(Some(held));
            }
        }
        request.fill.counts().full = Some(Instant::now());
        Ok(None)
    }

    /// Drops the oldest events of a broker, so that there is room for the new ones and somewhat more.
    async fn drop_oldest_of(&self, request: &RoomRequest<'_>, unsettled: u64) -> Result<(), LogError> {
        let RoomRequest {
            broker,
            log,
            fill,
            quota,
            bytes,
            ..
        } = request;
        let wanted = unsettled
            .saturating_add(fill.counts().in_flight)
            .saturating_add(*bytes)
            .saturating_sub(*quota)
            .max(quota / PORTION);
        // Settled events that are retained are older.
        let settled = self.logs.open(log).retained().saturating_sub(unsettled);
        self.drop_oldest(settled.saturating_add(wanted), |name| name == *broker)
            .await?;
        Ok(())
    }

    /// Looks at what Triggers have settled. Returns the first unsettled event, and the bytes from there on.
    async fn look(
        &self,
        broker: &BrokerName,
        fill: &BrokerFill,
        capacity: &dyn Capacity,
    ) -> Result<(Offset, u64), LogError> {
        let log = LogName::Events(broker.clone());
        let bounds = self.logs.open(&log).bounds().await?;
        let low = self.holds().unsettled(broker, bounds).max(bounds.first);
        let is_known = {
            let counts = fill.counts();
            counts.low == low && counts.settled > 0
        };
        if !is_known {
            let settled = capacity.bytes_below(&log, low).await?;
            let mut counts = fill.counts();
            (counts.low, counts.settled) = (low, settled);
        }
        let unsettled = fill.counts().unsettled(capacity.bytes_ever(&log));
        Ok((low, unsettled))
    }

    /// Returns the unsettled events of a broker; `None` if the log has no capacity of its own.
    ///
    /// # Errors
    /// As [`Capacity::bytes_below`].
    pub(super) async fn unsettled_events(
        &self,
        broker: &BrokerName,
    ) -> Result<Option<UnsettledEvents>, LogError> {
        let Some(capacity) = self.logs.capacity() else {
            return Ok(None);
        };
        let fill = self.fills.of(broker);
        let (low, bytes) = {
            let _looking = fill.looking.lock().await;
            self.look(broker, &fill, capacity).await?
        };
        let next = self
            .logs
            .open(&LogName::Events(broker.clone()))
            .cached_bounds()
            .next;
        let share = || {
            let mut shares = capacity.shares().into_iter();
            let share = shares.find(|share| share.namespace == broker.namespace());
            share.map(|share| share.limit.max(share.guaranteed))
        };
        Ok(Some(UnsettledEvents {
            events: next.0.saturating_sub(low.0),
            bytes,
            limit: self
                .quota_of(broker)
                .or_else(share)
                .unwrap_or_else(|| capacity.capacity()),
        }))
    }
}
