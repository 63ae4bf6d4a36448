//! The certificate and the key by which a TLS client authenticates. Pure.

use rustls::{
    InconsistentKeys,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    sign::CertifiedKey,
};

/// Why a certificate and a key cannot be used. The messages do not quote them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientCertificateError {
    /// The certificate is invalid PEM.
    #[error("the certificate is not valid PEM; is it complete?")]
    CertificatePem,
    /// There is no certificate.
    #[error("no certificate found, which starts with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// The key is invalid PEM.
    #[error("the private key is not valid PEM; is it complete?")]
    KeyPem,
    /// There is no key.
    #[error("no unencrypted private key found, which starts with -----BEGIN PRIVATE KEY-----")]
    NoKey,
    /// The key is another certificate's.
    #[error(
        "the private key is not that of the first certificate; the client's own certificate must come first"
    )]
    Mismatch,
    /// The certificate or the key cannot be used for TLS.
    #[error("the certificate and the private key cannot be used for TLS: {0}")]
    Unusable(String),
}

/// Parses a client's certificate, which may be followed by those of intermediate authorities, and its key, in PEM.
///
/// # Errors
/// If they are not a certificate and its key.
pub fn client_certificate(certificate: &str, key: &str) -> Result<CertifiedKey, ClientCertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(|_| ClientCertificateError::CertificatePem)?;
    if chain.is_empty() {
        return Err(ClientCertificateError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound => ClientCertificateError::NoKey,
        _ => ClientCertificateError::KeyPem,
    })?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => ClientCertificateError::Mismatch,
        error => ClientCertificateError::Unusable(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn accepts_a_chain_with_the_key_of_its_first_certificate() {
        let ((one, key), (two, other)) = (pair("one"), pair("two"));
        let count = |certificate: &str, key: &str| {
            client_certificate(certificate, key).map(|certified| certified.cert.len())
        };
        assert_eq!(count(&one, &key), Ok(1));
        assert_eq!(count(&format!("{one}{two}"), &key), Ok(2));
        let cut = |text: &str| text[..text.len() / 2].to_owned();
        let table = [
            (one.clone(), other, ClientCertificateError::Mismatch),
            (
                format!("{two}{one}"),
                key.clone(),
                ClientCertificateError::Mismatch,
            ),
            (String::new(), key.clone(), ClientCertificateError::NoCertificate),
            (key.clone(), key.clone(), ClientCertificateError::NoCertificate),
            (cut(&one), key.clone(), ClientCertificateError::CertificatePem),
            (one.clone(), String::new(), ClientCertificateError::NoKey),
            (one.clone(), one.clone(), ClientCertificateError::NoKey),
            (one.clone(), cut(&key), ClientCertificateError::KeyPem),
        ];
        for (certificate, key, expected) in table {
            assert_eq!(count(&certificate, &key), Err(expected));
        }
        let short = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let unusable = count(short, &key);
        assert!(
            matches!(unusable, Err(ClientCertificateError::Unusable(_))),
            "{unusable:?}"
        );
    }
}
