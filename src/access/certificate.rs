//! The client certificate of a connection.

use jiff::Timestamp;

use super::refusal::Refusal;
use crate::routing::CertificateName;

/// Names in the verified certificate of a client.
#[derive(Clone, Copy, Debug)]
pub struct PresentedCertificate<'a> {
    /// DNS names.
    pub dns_names: &'a [String],
    /// URIs.
    pub uris: &'a [String],
    /// End of the certificate's validity.
    pub expiry: Timestamp,
}

impl PresentedCertificate<'_> {
    /// Whether the certificate has this name. Upper and lower case are the same in DNS names only.
    pub(super) fn has(&self, name: &CertificateName) -> bool {
        match name {
            CertificateName::DnsName(name) => self.dns_names.iter().any(|own| own.eq_ignore_ascii_case(name)),
            CertificateName::Uri(uri) => self.uris.contains(uri),
        }
    }

    /// Returns the certificate unless it has expired, as it may have since the connection was opened.
    pub(super) fn unless_expired(self, now: Timestamp) -> Result<Self, Refusal> {
        match now < self.expiry {
            true => Ok(self),
            false => Err(Refusal::ExpiredCertificate),
        }
    }

    /// The first of its names, for messages.
    pub(super) fn shown(&self) -> String {
        let mut names = self.dns_names.iter().chain(self.uris);
        match names.next() {
            Some(name) => format!("{:?}", name.chars().take(MAX_SHOWN).collect::<String>()),
            None => "without names".to_owned(),
        }
    }
}

/// Maximum number of characters that are shown of a name.
const MAX_SHOWN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_full() {
        let (dns_names, uris) = (
            ["orders.shop.example", "*.wild.example", "UPPER.example"].map(str::to_owned),
            ["spiffe://example/shop/orders"].map(str::to_owned),
        );
        let presented = PresentedCertificate {
            dns_names: &dns_names,
            uris: &uris,
            expiry: Timestamp::MAX,
        };
        for (name, expected) in [
            ("orders.shop.example", true),
            ("Orders.shop.example", true),
            ("upper.example", true),
            ("shop.example", false),
            ("x.orders.shop.example", false),
            ("a.wild.example", false),
            ("spiffe://example/shop/orders", false),
            ("", false),
        ] {
            assert_eq!(
                presented.has(&CertificateName::DnsName(name.to_owned())),
                expected,
                "{name}"
            );
        }
        for (uri, expected) in [
            ("spiffe://example/shop/orders", true),
            ("spiffe://example/shop", false),
            ("spiffe://EXAMPLE/shop/orders", false),
            ("orders.shop.example", false),
        ] {
            assert_eq!(
                presented.has(&CertificateName::Uri(uri.to_owned())),
                expected,
                "{uri}"
            );
        }
    }

    #[test]
    fn shows_one_name_without_control_characters() {
        let shown = |dns_names: &[&str]| {
            let dns_names: Vec<_> = dns_names.iter().map(|&name| name.to_owned()).collect();
            let presented = PresentedCertificate {
                dns_names: &dns_names,
                uris: &[],
                expiry: Timestamp::MAX,
            };
            presented.shown()
        };
        assert_eq!(shown(&["a\nb", "c"]), "\"a\\nb\"");
        assert_eq!(shown(&[]), "without names");
        assert_eq!(shown(&[&"x".repeat(1000)]).len(), MAX_SHOWN + 2);
    }
}
