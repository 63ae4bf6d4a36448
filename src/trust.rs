//! Trust of TLS clients: the authorities of this machine, or certificates in PEM; and the certificate by which a client
//! authenticates. The controller validates with it what routers then use.

mod client_certificate;

pub use client_certificate::{ClientCertificateError, client_certificate};

use std::io;

use http::Uri;
use hyper_rustls::ConfigBuilderExt as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem, pem::PemObject as _, pem::SectionKind},
};

/// Why a text is not a valid set of authorities.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Invalid PEM.
    #[error("invalid PEM: {0}")]
    Pem(String),
    /// It contains something other than certificates.
    #[error("section {part} is a {kind}; only certificates are allowed")]
    NoCertificate {
        /// Index of the section, starting at 1.
        part: usize,
        /// Kind of the section.
        kind: &'static str,
    },
    /// A certificate is invalid.
    #[error("certificate {part} is invalid: {detail}")]
    Unusable {
        /// Index of the certificate, starting at 1.
        part: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// It contains no certificates.
    #[error("no certificate found, which starts with -----BEGIN CERTIFICATE-----")]
    Empty,
}

/// Returns the TLS configuration for requests to a URI, with the authorities of this machine. Reads them only for
/// `https`, since an empty image has none.
///
/// # Errors
/// If the machine's authorities cannot be read.
pub fn for_uri(uri: &Uri) -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder();
    let builder = if uri.scheme_str() == Some("https") {
        builder.with_native_roots()?
    } else {
        builder.with_root_certificates(RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

/// Returns the TLS configuration that trusts only these authorities.
pub fn only(authorities: RootCertStore) -> ClientConfig {
    ClientConfig::builder()
        .with_root_certificates(authorities)
        .with_no_client_auth()
}

/// Parses the authorities in a PEM text with one or more certificates.
///
/// # Errors
/// If it contains anything other than certificates, or none.
pub fn authorities(text: &str) -> Result<RootCertStore, TrustError> {
    let mut store = RootCertStore::empty();
    for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).enumerate() {
        let part = index + 1;
        let (kind, der) = section.map_err(|error| TrustError::Pem(problem(&error)))?;
        if kind != SectionKind::Certificate {
            let kind = named(kind);
            return Err(TrustError::NoCertificate { part, kind });
        }
        let added = store.add(CertificateDer::from(der));
        added.map_err(|error| TrustError::Unusable {
            part,
            detail: error.to_string(),
        })?;
    }
    if store.is_empty() {
        return Err(TrustError::Empty);
    }
    Ok(store)
}

/// Describes the error without quoting the content, which may be a misplaced key.
fn problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section has an invalid start".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not valid base64".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

fn named(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::PublicKey => "public key",
        SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => "private key",
        SectionKind::Crl => "certificate revocation list",
        SectionKind::Csr => "certificate signing request",
        _ => "section of another kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_certificates() {
        let [one, two] =
            ["one", "two"].map(|name| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap());
        let (one, key, two) = (one.cert.pem(), one.signing_key.serialize_pem(), two.cert.pem());
        let count = |text: &str| authorities(text).map(|store| store.len());
        assert_eq!(count(&one), Ok(1));
        assert_eq!(count(&format!("# ours\n{one}\n# theirs\n{two}")), Ok(2));
        assert_eq!(count(""), Err(TrustError::Empty));
        assert_eq!(count("nonsense"), Err(TrustError::Empty));
        let wrong = |text: &str| count(text).unwrap_err().to_string();
        assert_eq!(
            wrong(&format!("{one}{key}")),
            "section 2 is a private key; only certificates are allowed"
        );
        let cut = &one[..one.len() - 30];
        assert_eq!(wrong(cut), "invalid PEM: a section has no end");
        let broken = one.replacen("\nM", "\n!", 1);
        assert_eq!(wrong(&broken), "invalid PEM: a section is not valid base64");
        let short = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let unusable = wrong(&format!("{one}{short}"));
        assert!(unusable.starts_with("certificate 2 is invalid: "), "{unusable}");
    }
}
