//! A gauge of a number that is read when it is asked for.

use prometheus_client::metrics::gauge::ConstGauge;

pub(super) fn gauge_value(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}
