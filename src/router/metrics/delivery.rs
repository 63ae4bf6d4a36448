//! Metrics of Triggers, dead letters and the event log.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter},
};

use super::gauge::gauge_value;
use crate::{
    delivery::{TriggerStats, TriggerView},
    log::{LogProvider, NamespaceShare, Partition},
    ownership::Shards,
};

/// Reads the engine's and the log's figures on each scrape, so that counting costs delivery nothing.
pub(super) struct DeliveryCollector {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) shards: Arc<Shards>,
}

impl fmt::Debug for DeliveryCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryCollector").finish_non_exhaustive()
    }
}

/// Encodes a figure of a Trigger, with its labels. With several partitions each has series of its own: a sum would jump
/// when a partition gets another owner.
fn encode_of(
    view: &TriggerView,
    outcome: Option<&'static str>,
    family: &mut MetricEncoder<'_>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    let Partition { number, of } = view.log.partition();
    let trigger = [
        ("namespace", view.namespace.as_str()),
        ("trigger", view.name.as_str()),
        ("broker", view.broker().name()),
    ];
    let outcome = outcome.map(|outcome| ("outcome", outcome));
    let partition = (of > 1).then_some(("partition", number));
    let labels = (trigger, (outcome.as_slice(), partition.as_slice()));
    metric.encode(family.encode_family(&labels)?)
}

impl Collector for DeliveryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let triggers = self.shards.parts();
        counter(
            &mut encoder,
            &triggers,
            "trigger_events_matched",
            "Events that the Trigger wanted",
            TriggerStats::matched,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_events_redriven",
            "Events that were dead letters and matched once more on request",
            TriggerStats::redriven,
        )?;
        settled(&mut encoder, &triggers)?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_events_missed",
            "Events that the Trigger could not look at, removed before or not readable, since the start",
            TriggerStats::missed,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_filter_errors",
            "Events not matched because a filter ended in an error, since the start",
            TriggerStats::filter_errors,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_filter_overruns",
            "Events not matched because the filters took more than their budget, since the start",
            TriggerStats::filter_overruns,
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_set_aside",
            "1 while the filters are not evaluated, as they took more than their budget too often",
            |view| u64::from(view.stats.is_set_aside()),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_events_pending",
            "Events wanted and not settled",
            |view| view.stats.pending(),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_backlog_events",
            "Events of the broker not looked at yet",
            |view| view.backlog(),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_held_events",
            "Events of the broker that the log keeps for the Trigger, from its first unsettled one on",
            TriggerView::held,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_attempts",
            "Delivery attempts since the start",
            TriggerStats::attempts,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_attempts_failed",
            "Delivery attempts since the start that did not deliver",
            TriggerStats::failed_attempts,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_attempts_put_off",
            "Delivery attempts that the router postponed since it started, for lack of memory or of a connection",
            TriggerStats::postponed,
        )?;
        attempts_took(&mut encoder, &triggers)?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_attempts_in_flight",
            "Delivery attempts under way",
            |view| view.stats.in_flight(),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_sink_down",
            "1 while the Sink keeps failing or has asked for a long pause",
            |view| u64::from(view.sink.outage().is_some()),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_stopped",
            "1 once delivery has ended because the event log cannot be read, or by a fault in Weir",
            |view| u64::from(view.stats.is_stopped()),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_waiting_full",
            "1 while so many events wait for retries or for others of their key that no new ones are taken",
            |view| u64::from(view.stats.is_full()),
        )?;
        replies(&mut encoder, &triggers)?;
        let dropped = ConstCounter::new(self.shards.dropped_with_trigger());
        dropped.encode(encoder.encode_descriptor(
            "events_dropped_with_trigger",
            "Matched, unsettled events of deleted Triggers whose checkpoints were discarded, since the router started; a backlog is not counted",
            None,
            MetricType::Counter,
        )?)?;
        let kept = gauge_value(self.shards.retained_count() as u64);
        kept.encode(encoder.encode_descriptor(
            "triggers_kept",
            "Deleted Triggers whose places are kept for others of their names",
            None,
            MetricType::Gauge,
        )?)?;
        let expired = ConstCounter::new(self.shards.dead_letters_expired());
        expired.encode(encoder.encode_descriptor(
            "dead_letters_expired",
            "Dead letters removed because of their age or their number, since the start",
            None,
            MetricType::Counter,
        )?)?;
        self.shards(&mut encoder)?;
        self.dropped_when_full(&mut encoder, &triggers)?;
        self.dead_letters(&mut encoder)?;
        self.log_bytes(&mut encoder)?;
        let read_errors = ConstCounter::new(self.logs.read_errors());
        read_errors.encode(encoder.encode_descriptor(
            "log_read_errors",
            "Attempts to read the event log that the disk failed; they are tried again, since the start",
            None,
            MetricType::Counter,
        )?)?;
        let Some(capacity) = self.logs.capacity() else {
            return Ok(());
        };
        gauge_value(capacity.capacity()).encode(encoder.encode_descriptor(
            "log_capacity_bytes",
            "Retained data, of all brokers together, at which the event log is full",
            None,
            MetricType::Gauge,
        )?)?;
        shares(&mut encoder, &capacity.shares())
    }
}

fn shares(encoder: &mut DescriptorEncoder<'_>, shares: &[NamespaceShare]) -> fmt::Result {
    type Bytes = fn(&NamespaceShare) -> u64;
    let gauges: [(&str, &str, Bytes); 2] = [
        (
            "log_namespace_bytes",
            "Data of a namespace retained in the event log, dead letters included",
            |share| share.held,
        ),
        (
            "log_namespace_limit_bytes",
            "Data of a namespace at which new events for it are rejected; it depends on what others retain",
            |share| share.limit,
        ),
    ];
    for (name, help, bytes) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for share in shares {
            let labels = [("namespace", share.namespace.as_str())];
            gauge_value(bytes(share)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

impl DeliveryCollector {
    fn shards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauges = [
            (
                "router_shards",
                "Shards that this router owns: it delivers the events of their brokers",
                self.shards.owned_count(),
            ),
            (
                "shards_without_owner",
                "Shards that no live router owns, as this router sees it: the events of their brokers are not delivered",
                self.shards.without_owner(),
            ),
        ];
        for (name, help, count) in gauges {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge_value(count as u64).encode(encoder)?;
        }
        Ok(())
    }

    /// For every broker with a Trigger, starting at 0: see [`REASONS_OF_OURS`](super::ingress::REASONS_OF_OURS).
    fn dropped_when_full(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        triggers: &[TriggerView],
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "events_dropped_when_full",
            "Events removed to make room before every Trigger had settled them, since the start",
            None,
            MetricType::Counter,
        )?;
        let mut dropped = self.shards.dropped_when_full();
        for view in triggers {
            dropped.entry(view.broker().clone()).or_default();
        }
        for (broker, count) in dropped {
            let labels = [("namespace", broker.namespace()), ("broker", broker.name())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn dead_letters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "dead_letters",
            "Dead letters that are kept",
            None,
            MetricType::Gauge,
        )?;
        for (broker, count) in self.shards.dead_letter_brokers() {
            let labels = [("namespace", broker.namespace()), ("broker", broker.name())];
            gauge_value(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn log_bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "log_retained_bytes",
            "Data retained in the event log",
            None,
            MetricType::Gauge,
        )?;
        for (name, bytes) in self.shards.usage() {
            let key = name.to_string();
            let (namespace, broker) = key.split_once('/').unwrap_or(("", &key));
            gauge_value(bytes)
                .encode(family.encode_family(&[("namespace", namespace), ("broker", broker)])?)?;
        }
        Ok(())
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    triggers: &[TriggerView],
    name: &str,
    help: &str,
    value: impl Fn(&TriggerStats) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for view in triggers {
        encode_of(view, None, &mut family, &ConstCounter::new(value(&view.stats)))?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    triggers: &[TriggerView],
    name: &str,
    help: &str,
    value: impl Fn(&TriggerView) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for view in triggers {
        encode_of(view, None, &mut family, &gauge_value(value(view)))?;
    }
    Ok(())
}

fn attempts_took(encoder: &mut DescriptorEncoder<'_>, triggers: &[TriggerView]) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "trigger_attempt_duration_seconds",
        "Time that ended delivery attempts took, all together, since the start",
        None,
        MetricType::Counter,
    )?;
    for view in triggers {
        let seconds = view.stats.attempts_took().as_secs_f64();
        encode_of(view, None, &mut family, &ConstCounter::new(seconds))?;
    }
    Ok(())
}

fn settled(encoder: &mut DescriptorEncoder<'_>, triggers: &[TriggerView]) -> fmt::Result {
    outcomes(
        encoder,
        triggers,
        "trigger_events_settled",
        "Events that the Trigger wanted, by how they ended",
        |stats| {
            [
                ("delivered", stats.delivered()),
                ("expired", stats.expired()),
                ("dead_lettered", stats.dead_lettered()),
                ("dropped", stats.dropped()),
            ]
        },
    )
}

fn replies(encoder: &mut DescriptorEncoder<'_>, triggers: &[TriggerView]) -> fmt::Result {
    outcomes(
        encoder,
        triggers,
        "trigger_replies",
        "Events that the Sink replied with, by what became of them, since the start",
        |stats| {
            [
                ("stored", stats.replies_stored()),
                ("beyond_max_hops", stats.replies_beyond_max_hops()),
                ("beyond_max_descendants", stats.replies_beyond_max_descendants()),
                ("invalid", stats.replies_invalid()),
            ]
        },
    )
}

/// A counter with the label `outcome` beside the Trigger's labels.
fn outcomes<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    triggers: &[TriggerView],
    name: &str,
    help: &str,
    values: impl Fn(&TriggerStats) -> [(&'static str, u64); N],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for view in triggers {
        for (outcome, value) in values(&view.stats) {
            encode_of(view, Some(outcome), &mut family, &ConstCounter::new(value))?;
        }
    }
    Ok(())
}
