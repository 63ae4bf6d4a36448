//! Addresses of Services for a process outside the cluster: `--service NAMESPACE/NAME=URL`.

use std::{collections::BTreeMap, str::FromStr};

use http::Uri;

use super::Usage;
use crate::{http_url, routing::ServiceName};

/// One `--service` flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The Service.
    pub service: ServiceName,
    /// URL to reach it at instead: scheme and authority only. The path of the Service's reference is kept.
    pub url: Uri,
}

/// Why a `--service` flag cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAddressError {
    /// Not of the form `NAMESPACE/NAME=URL`.
    #[error("use NAMESPACE/NAME=URL, for example shop/orders=http://127.0.0.1:8081")]
    Form,
    /// Invalid name of a namespace or Service.
    #[error("{0:?} is not a valid name of a namespace or Service: use lower-case letters, digits and -")]
    Name(String),
    /// Invalid URL.
    #[error("{url:?} {reason}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl FromStr for ServiceAddress {
    type Err = ServiceAddressError;

    fn from_str(text: &str) -> Result<Self, ServiceAddressError> {
        let (service, url) = text.split_once('=').ok_or(ServiceAddressError::Form)?;
        let (namespace, name) = service.split_once('/').ok_or(ServiceAddressError::Form)?;
        for label in [namespace, name] {
            if !is_label(label) {
                return Err(ServiceAddressError::Name(label.to_owned()));
            }
        }
        let wrong = |reason| ServiceAddressError::Url {
            url: url.to_owned(),
            reason,
        };
        let uri = http_url::parse(url).map_err(|error| wrong(error.to_string()))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong(
                "must not have a path or query: the path comes from the Service's reference".to_owned(),
            ));
        }
        let service = ServiceName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        Ok(Self { service, url: uri })
    }
}

/// Whether the text is an RFC 1123 label, as required for names of namespaces and Services.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|c| inner(c) || c == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Converts the flags to a map.
///
/// # Errors
/// [`Usage`] if a Service is given twice.
pub fn by_name(addresses: Vec<ServiceAddress>) -> anyhow::Result<BTreeMap<ServiceName, Uri>> {
    let mut map = BTreeMap::new();
    for ServiceAddress { service, url } in addresses {
        let ServiceName { namespace, name } = &service;
        let shown = format!("{namespace}/{name}");
        if map.insert(service, url).is_some() {
            return Err(Usage(format!("--service {shown} is given twice")).into());
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_namespace_name_and_url() {
        let address: ServiceAddress = "shop/orders=http://127.0.0.1:8081".parse().unwrap();
        assert_eq!(
            address.service,
            ServiceName {
                namespace: "shop".into(),
                name: "orders".into()
            }
        );
        assert_eq!(address.url, "http://127.0.0.1:8081");
        assert!(
            "shop/orders=https://[::1]:8443/"
                .parse::<ServiceAddress>()
                .is_ok()
        );
    }

    #[test]
    fn parse_errors_name_the_cause() {
        for (text, part) in [
            ("orders=http://x", "NAMESPACE/NAME=URL"),
            ("shop/orders", "NAMESPACE/NAME=URL"),
            ("Shop/orders=http://x", "\"Shop\""),
            ("shop/=http://x", "\"\""),
            ("shop/orders=127.0.0.1:80", "must start with http://"),
            ("shop/orders=ftp://x", "must start with http://"),
            ("shop/orders=http://x:99999", "a port is a number from 1 to 65535"),
            ("shop/orders=http://x/path", "must not have a path or query"),
            ("shop/orders=http://x?a=b", "must not have a path or query"),
        ] {
            let error = text.parse::<ServiceAddress>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn rejects_duplicate_services() {
        let twice = ["a/b=http://x", "a/b=http://y"].map(|text| text.parse().unwrap());
        assert_eq!(
            by_name(twice.into()).unwrap_err().to_string(),
            "--service a/b is given twice"
        );
    }
}
