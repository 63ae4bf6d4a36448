//! The names in the certificate of a client.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// The subject alternative names of a client's certificate, which an authority of the listener has signed: an extension
/// of every request on a connection whose client presented one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientNames(Arc<CertificateNames>);

/// The names in a certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct CertificateNames {
    /// Names of hosts.
    pub dns_names: Vec<String>,
    /// URIs, such as SPIFFE IDs.
    pub uris: Vec<String>,
    /// End of the certificate's validity, which a connection may outlive.
    pub expiry: Timestamp,
}

/// The certificate of a client cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the client's certificate cannot be read: {0}")]
pub(super) struct UnreadableNames(String);

impl ClientNames {
    /// Returns the names.
    pub fn get(&self) -> &CertificateNames {
        &self.0
    }

    /// Reads them from a chain that was verified, which begins with the client's own certificate.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Result<Option<Self>, UnreadableNames> {
        chain.first().map(Self::read).transpose()
    }

    fn read(certificate: &CertificateDer<'_>) -> Result<Self, UnreadableNames> {
        let unreadable = |error: &dyn ToString| UnreadableNames(error.to_string());
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
        let names = certificate.subject_alternative_name();
        let names = names.map_err(|error| unreadable(&error))?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        let expiry = certificate.validity().not_after.timestamp();
        let expiry = Timestamp::from_second(expiry).map_err(|error| unreadable(&error))?;
        Ok(Self(Arc::new(CertificateNames {
            dns_names,
            uris,
            expiry,
        })))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};

    use super::*;

    #[test]
    fn reads_names_of_hosts_and_uris() {
        let of = |names: &[SanType]| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = names.to_vec();
            params.not_after = date_time_ymd(2900, 1, 1);
            let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let names = ClientNames::of(&[made.der().clone(), CertificateDer::from(vec![0])]);
            names.unwrap().unwrap()
        };
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let names = of(&[
            dns("orders.shop.example"),
            SanType::URI("spiffe://example/shop/orders".try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::Rfc822Name("a@example.com".try_into().unwrap()),
            dns("b"),
        ]);
        let CertificateNames {
            dns_names,
            uris,
            expiry,
        } = names.get();
        assert_eq!(*dns_names, ["orders.shop.example", "b"]);
        assert_eq!(*uris, ["spiffe://example/shop/orders"]);
        assert_eq!(expiry.strftime("%Y-%m-%d").to_string(), "2900-01-01");
        let none = of(&[]);
        assert!(none.get().dns_names.is_empty() && none.get().uris.is_empty());
        assert_eq!(ClientNames::of(&[]).unwrap(), None);
        assert!(ClientNames::of(&[CertificateDer::from(vec![0])]).is_err());
    }
}
