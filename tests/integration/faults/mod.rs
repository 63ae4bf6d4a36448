//! What must hold whatever happens to the router: no acknowledged event is lost, and the accounting adds up.

mod answers;
mod arrivals;
mod connections;
mod delivery;
mod filters;
mod full;
mod kills;
mod loops;
mod memory;
mod neighbour;
mod poison;
mod producers;
#[cfg(feature = "failpoints")]
mod reads;
mod salvage;
mod shares;
mod sinks;
mod sockets;
mod sources;
mod storage;
mod undo;

pub(crate) use arrivals::{all_arrive, check_order_by_key, check_order_of_acknowledged, id_of};
pub(crate) use producers::{Producers, post_event};

use crate::support::{LocalRouter, Setup, mapped};

/// How often the router is killed at random: `WEIR_KILLS`, else a few times.
pub(crate) fn kills() -> u32 {
    kills_asked_for().unwrap_or(6)
}

/// Whether the long form of the tests was asked for, by `WEIR_KILLS`.
pub(crate) fn is_long() -> bool {
    kills_asked_for().is_some()
}

fn kills_asked_for() -> Option<u32> {
    std::env::var("WEIR_KILLS").ok()?.parse().ok()
}

/// The manifest of a Trigger that takes everything, in order by key or not; `delivery` is what else its delivery says.
fn trigger(name: &str, delivery: &str) -> String {
    let delivery =
        ["backoffDelay: 20ms, backoffMax: 200ms", delivery].join(if delivery.is_empty() { "" } else { ", " });
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{service: {{name: {name}}}}}\n  delivery: {{{delivery}}}\n"
    )
}
