//! Whom TLS trusts: the authorities of this machine, or certificates as PEM. The controller checks with it what routers
//! then use.

use std::io;

use http::Uri;
use hyper_rustls::ConfigBuilderExt as _;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem, pem::PemObject as _, pem::SectionKind},
};

/// Why a text names no authorities.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// It is no PEM.
    #[error("it is no PEM: {0}")]
    Pem(String),
    /// There is something else than certificates.
    #[error("its part {part} is a {kind}; only certificates belong there")]
    NoCertificate {
        /// Which, counted from one.
        part: usize,
        /// What it is.
        kind: &'static str,
    },
    /// A certificate cannot be read.
    #[error("its certificate {part} cannot be used: {detail}")]
    Unusable {
        /// Which, counted from one.
        part: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// There is nothing in it.
    #[error("it has no certificate, which begins with -----BEGIN CERTIFICATE-----")]
    Empty,
}

/// TLS for requests to a URI, by the authorities that this machine trusts. `http` asks nobody whom to trust, and an empty
/// image has no authorities: they are read for `https` only.
///
/// # Errors
/// When the machine's authorities cannot be read.
pub fn for_uri(uri: &Uri) -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder();
    let builder = if uri.scheme_str() == Some("https") {
        builder.with_native_roots()?
    } else {
        builder.with_root_certificates(RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

/// The authorities of a PEM text with one certificate or more.
///
/// # Errors
/// When there is anything in it that is no certificate, or no certificate.
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

/// What is wrong, without what stands there: it may be a key that was put into the wrong place.
fn problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a part has no end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a part does not begin as it should".to_owned(),
        pem::Error::Base64Decode(_) => "what stands in a part is no base64".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

fn named(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::PublicKey => "public key",
        SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => "private key",
        SectionKind::Crl => "list of revoked certificates",
        SectionKind::Csr => "request for a certificate",
        _ => "thing of another kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_and_nothing_else() {
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
            "its part 2 is a private key; only certificates belong there"
        );
        let cut = &one[..one.len() - 30];
        assert_eq!(wrong(cut), "it is no PEM: a part has no end");
        let broken = one.replacen("\nM", "\n!", 1);
        assert_eq!(wrong(&broken), "it is no PEM: what stands in a part is no base64");
        let short = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let unusable = wrong(&format!("{one}{short}"));
        assert!(
            unusable.starts_with("its certificate 2 cannot be used: "),
            "{unusable}"
        );
    }
}
