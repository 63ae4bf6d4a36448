//! What went wrong with TLS, for whoever has to mend it. Pure.

use std::{error::Error, io};

use rustls::CertificateError::{BadSignature, Expired, ExpiredContext, UnknownIssuer};

/// What to say of an error that TLS is the cause of; `None` of another.
pub(super) fn told(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = of_tls(error) {
            return Some(in_words(tls));
        }
        cause = error.source();
    }
    None
}

/// Input and output wrap the errors of TLS without naming them as their source.
fn of_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(inner) => of_tls(inner),
        None => error.downcast_ref(),
    }
}

fn in_words(error: &rustls::Error) -> String {
    match error {
        // An authority that was made anew has the same name and another key.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            "TLS: no authority that is trusted has signed the server's certificate; a Sink can name its authority in \
             caCerts"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            "TLS: the server's certificate has expired".to_owned()
        }
        rustls::Error::InvalidCertificate(problem) => {
            format!("TLS: the server's certificate cannot be accepted: {problem}")
        }
        rustls::Error::InvalidMessage(_) => "TLS: what answers there speaks no TLS".to_owned(),
        other => format!("TLS: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, InvalidMessage};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn the_error_of_tls_is_found_however_deep() {
        let table = [
            (
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
                "TLS: no authority that is trusted has signed",
            ),
            (
                rustls::Error::InvalidCertificate(CertificateError::Expired),
                "TLS: the server's certificate has expired",
            ),
            (
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "TLS: what answers there speaks no TLS",
            ),
            (rustls::Error::DecryptError, "TLS: cannot decrypt peer's message"),
        ];
        for (error, beginning) in table {
            for error in [
                Connect(error.clone().into()),
                Connect(io::Error::other(error.clone()).into()),
                Connect(Connect(io::Error::other(io::Error::other(error)).into()).into()),
            ] {
                let told = told(&error).unwrap();
                assert!(told.starts_with(beginning), "{told}");
            }
        }
        assert_eq!(told(&Connect(io::Error::other("refused").into())), None);
        assert_eq!(
            told(&Connect(io::Error::from(io::ErrorKind::ConnectionRefused).into())),
            None
        );
    }
}
