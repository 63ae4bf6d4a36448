//! Settings of a dispatcher: its Trigger's route and destinations.

use std::sync::Arc;

use crate::{
    destination::{Client, Target},
    log::Partition,
    routing::{Authorities, BrokerTable, Delivery, Destination, Route, Trigger},
    transform::CompiledTransform,
};

/// A table, and the index of the Trigger's route in it.
#[derive(Clone)]
pub(super) struct Settings {
    table: Arc<BrokerTable>,
    index: usize,
    /// Prepared once; `None` while events have to wait.
    target: Option<Target>,
    dead_letter_target: Option<Target>,
    /// The part of the broker's events that is delivered here.
    partition: Partition,
}

impl Settings {
    /// Creates the settings for a partition of the broker's events. `authorities` are those that the table's
    /// destinations name.
    pub(super) fn new(
        client: &Client,
        authorities: &Authorities,
        table: Arc<BrokerTable>,
        index: usize,
        partition: Partition,
    ) -> Self {
        let trigger = &table.routes()[index].trigger;
        let target = trigger
            .destination
            .as_ref()
            .filter(|_| !trigger.suspend)
            .and_then(|destination| {
                ready(
                    client,
                    authorities,
                    trigger,
                    destination,
                    "unusable Sink; events wait",
                )
            });
        let dead_letter_target = trigger
            .delivery
            .dead_letter_sink
            .as_ref()
            .and_then(|destination| {
                ready(
                    client,
                    authorities,
                    trigger,
                    destination,
                    "unusable dead-letter Sink; dead letters are stored by the router",
                )
            });
        Self {
            table,
            index,
            target,
            dead_letter_target,
            partition,
        }
    }

    /// Whether events are delivered; otherwise they wait.
    pub(super) fn is_deliverable(&self) -> bool {
        self.target.is_some() && self.route().filter.is_ok()
    }

    /// Destination of events; `None` while they have to wait.
    pub(super) fn target(&self) -> Option<&Target> {
        self.target.as_ref().filter(|_| self.is_deliverable())
    }

    pub(super) fn route(&self) -> &Route {
        &self.table.routes()[self.index]
    }

    pub(super) fn trigger(&self) -> &Trigger {
        &self.route().trigger
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.trigger().delivery
    }

    /// The changes made to each event before it is sent.
    pub(super) fn transform(&self) -> Option<&Arc<CompiledTransform>> {
        self.route().transform.as_ref()
    }

    /// The part of the broker's events that is delivered here.
    pub(super) fn partition(&self) -> Partition {
        self.partition
    }

    /// Target of dead letters; `None` if the router stores them.
    pub(super) fn dead_letter_target(&self) -> Option<&Target> {
        self.dead_letter_target.as_ref()
    }
}

fn ready(
    client: &Client,
    authorities: &Authorities,
    trigger: &Trigger,
    destination: &Destination,
    consequence: &str,
) -> Option<Target> {
    let target = client.target(&trigger.namespace, destination, authorities).inspect_err(|error| {
        tracing::error!(
            trigger = format!("{}/{}", trigger.namespace, trigger.name), uri = destination.uri(), %error, "{consequence}"
        );
    });
    target.ok()
}
