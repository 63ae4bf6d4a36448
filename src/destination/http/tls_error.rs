//! Messages for TLS errors that say how to fix them. Pure.

use std::{error::Error, io};

use rustls::{
    AlertDescription,
    CertificateError::{BadSignature, Expired, ExpiredContext, Other, UnknownIssuer},
};

/// The verifier's untyped error for a certificate made with the defaults of `openssl req -x509`.
const AUTHORITY_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Message for an error caused by TLS; `None` for other errors.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = tls_error_in(error) {
            return Some(message(tls));
        }
        cause = error.source();
    }
    None
}

/// I/O errors wrap TLS errors without exposing them as their source.
fn tls_error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(inner) => tls_error_in(inner),
        None => error.downcast_ref(),
    }
}

fn message(error: &rustls::Error) -> String {
    match error {
        // A recreated authority has the same name and another key.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            "TLS: no trusted authority has signed the server's certificate; name its authority in the Sink's caCerts"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            "TLS: the server's certificate has expired".to_owned()
        }
        rustls::Error::InvalidCertificate(Other(problem)) if problem.to_string() == AUTHORITY_AS_SERVER => {
            "TLS: the server's certificate is that of an authority (CA:TRUE); use one that an authority has signed, or a \
             self-signed one with CA:FALSE"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(problem) => {
            format!("TLS: invalid server certificate: {problem}")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "TLS: the server requires a client certificate; set tls.clientCertificate in the Sink".to_owned()
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => format!("TLS: the server rejected the client certificate: {alert:?}"),
        rustls::Error::InvalidMessage(_) => "TLS: the server does not speak TLS".to_owned(),
        other => format!("TLS: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        CertificateError, InvalidMessage,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::UnixTime,
    };

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn explains_an_authority_used_as_a_server_certificate() {
        let mut parameters = rcgen::CertificateParams::new(["sink".to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let own = parameters
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let mut trusted = rustls::RootCertStore::empty();
        trusted.add(own.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(trusted.into(), provider)
            .build()
            .unwrap();
        let error = verifier
            .verify_server_cert(own.der(), &[], &"sink".try_into().unwrap(), &[], UnixTime::now())
            .unwrap_err();
        let message = explain(&error).unwrap();
        assert!(message.contains("CA:FALSE"), "{message}");
    }

    #[test]
    fn finds_tls_errors_in_any_cause() {
        let table = [
            (
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
                "TLS: no trusted authority has signed",
            ),
            (
                rustls::Error::InvalidCertificate(CertificateError::Expired),
                "TLS: the server's certificate has expired",
            ),
            (
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "TLS: the server does not speak TLS",
            ),
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
                "TLS: the server requires a client certificate",
            ),
            (
                rustls::Error::AlertReceived(AlertDescription::UnknownCA),
                "TLS: the server rejected the client certificate: UnknownCA",
            ),
            (rustls::Error::DecryptError, "TLS: cannot decrypt peer's message"),
        ];
        for (error, beginning) in table {
            for error in [
                Connect(error.clone().into()),
                Connect(io::Error::other(error.clone()).into()),
                Connect(Connect(io::Error::other(io::Error::other(error)).into()).into()),
            ] {
                let message = explain(&error).unwrap();
                assert!(message.starts_with(beginning), "{message}");
            }
        }
        assert_eq!(explain(&Connect(io::Error::other("refused").into())), None);
        assert_eq!(
            explain(&Connect(io::Error::from(io::ErrorKind::ConnectionRefused).into())),
            None
        );
    }
}
