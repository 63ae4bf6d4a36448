//! The headers that a Sink may not set.

/// Whether a Sink may not set this header, because Weir or HTTP sets it or because it is hop-by-hop.
/// `authorization` is not reserved: it may be set if [`SinkSpec::authorization`](super::SinkSpec::authorization) is not.
pub fn is_reserved_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || RESERVED_HEADERS.contains(&name.as_str())
}

/// Prefixes of reserved header names.
pub(super) const RESERVED_PREFIXES: &[&str] = &["ce-", "content-", "proxy-", "weir-"];

/// The other reserved headers.
pub(super) const RESERVED_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "expect",
    "host",
    "keep-alive",
    "prefer",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_headers_set_by_weir_or_http() {
        for name in [
            "ce-id",
            "CE-Id",
            "Content-Type",
            "content-length",
            "HOST",
            "te",
            "Proxy-Authorization",
            "Prefer",
            "weir-hops",
        ] {
            assert!(is_reserved_header(name), "{name}");
        }
        for name in ["authorization", "x-api-key", "cookie", "ce", "hosts", "accept"] {
            assert!(!is_reserved_header(name), "{name}");
        }
    }
}
