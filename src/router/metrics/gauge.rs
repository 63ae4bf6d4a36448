//! A gauge whose value is read on each scrape.

use prometheus_client::metrics::gauge::ConstGauge;

pub(super) fn gauge_value(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}
