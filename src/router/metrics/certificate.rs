//! Metrics of TLS at the ingress.

use std::fmt;

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::gauge::gauge_value;
use crate::server::{CertificateStatus, ConnectionCounts, ListenerTls};

/// The certificate of the ingress, and the handshakes with it.
#[derive(Debug)]
pub(super) struct CertificateCollector {
    pub(super) tls: ListenerTls,
    pub(super) connections: ConnectionCounts,
}

impl Collector for CertificateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let CertificateStatus {
            not_before,
            expiry,
            is_current,
        } = self.tls.status();
        for (name, help, value) in [
            (
                "ingress_certificate_not_before_timestamp_seconds",
                "Start of the validity of the certificate in use",
                seconds(not_before),
            ),
            (
                "ingress_certificate_expiry_timestamp_seconds",
                "End of the validity of the certificate in use",
                seconds(expiry),
            ),
            (
                "ingress_certificate_reload_successful",
                "1 if the last change of the files of the certificate and of the authorities of clients was loaded, 0 if it could not be used",
                u64::from(is_current),
            ),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge_value(value).encode(family)?;
        }
        ConstCounter::new(self.connections.failed_handshakes()).encode(encoder.encode_descriptor(
            "ingress_handshakes_failed",
            "Connections of producers that ended before their TLS handshake was complete",
            None,
            MetricType::Counter,
        )?)
    }
}

/// Seconds since 1970.
fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}
