//! Connects a router to its controller: in plain text, or by TLS that trusts the authorities in a file.

use std::{
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tower::Service;

use crate::causes::with_causes;

/// Timeout of a TCP connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of connecting including the TLS handshake.
const SECURE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connector for the controller.
#[derive(Clone, Debug)]
pub(super) struct ControllerConnector {
    http: HttpConnector,
    /// PEM file of trusted authorities; read for each connection, as the kubelet renews the file. Without it the
    /// connection is plain text.
    authorities: Option<PathBuf>,
}

/// Reasons why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(
        "{} (--controller-ca) cannot be read: {source}; it is to be a mount of the ConfigMap that the controller makes \
         (weir controller --tls-ca-config-map)",
        .path.display()
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} (--controller-ca) holds no usable certificate, as PEM", .0.display())]
    NoAuthority(PathBuf),
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {SECURE_TIMEOUT:?}")]
    Timeout,
    #[error(
        "no authority of {} (--controller-ca) has signed its certificate; if the controller made a new authority, the \
         kubelet brings it within minutes, else the file is of another controller",
        .0.display()
    )]
    UnknownAuthority(PathBuf),
    #[error(
        "its certificate is not for the host of --controller, which has to be a name of the controller's --tls-service: {0}"
    )]
    OtherName(rustls::Error),
    #[error("it does not speak TLS; without --tls-secret a controller is reached by an http URL")]
    NoTls,
    #[error("it has no certificate to show: {0}; its log says why")]
    NoCertificate(rustls::Error),
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
}

impl ControllerConnector {
    pub(super) fn new(authorities: Option<PathBuf>) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_nodelay(true);
        Self { http, authorities }
    }

    async fn connect(self, uri: Uri) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, ConnectError> {
        let Self {
            mut http,
            authorities,
        } = self;
        let Some(path) = authorities else {
            let stream = http.call(uri).await;
            return stream
                .map(MaybeHttpsStream::Http)
                .map_err(|error| ConnectError::Unreachable(with_causes(&error)));
        };
        let mut https = HttpsConnectorBuilder::new()
            .with_tls_config(trusting(&path).await?)
            .https_only()
            .enable_http1()
            .wrap_connector(http);
        match tokio::time::timeout(SECURE_TIMEOUT, https.call(uri)).await {
            Ok(connected) => connected.map_err(|error| explained(&*error, path)),
            Err(_) => Err(ConnectError::Timeout),
        }
    }
}

impl Service<Uri> for ControllerConnector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// TLS configuration that trusts only the authorities in a file.
async fn trusting(path: &Path) -> Result<ClientConfig, ConnectError> {
    let text = tokio::fs::read(path).await;
    let text = text.map_err(|source| ConnectError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(ConnectError::NoAuthority(path.to_owned()));
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn explained(error: &(dyn StdError + Send + Sync + 'static), path: PathBuf) -> ConnectError {
    use rustls::{AlertDescription as Alert, Error};
    match tls_error(error) {
        None => ConnectError::Unreachable(with_causes(error)),
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            ConnectError::UnknownAuthority(path)
        }
        Some(
            error @ Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ),
        ) => ConnectError::OtherName(error.clone()),
        Some(Error::InvalidMessage(_)) => ConnectError::NoTls,
        Some(error @ Error::AlertReceived(Alert::AccessDenied | Alert::HandshakeFailure)) => {
            ConnectError::NoCertificate(error.clone())
        }
        Some(error) => ConnectError::Tls(error.clone()),
    }
}

/// Finds the TLS error within the errors around it.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = error.downcast_ref() {
        return Some(error);
    }
    match error.downcast_ref::<io::Error>() {
        Some(error) => tls_error(error.get_ref()?),
        None => tls_error(error.source()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, InvalidMessage};

    #[test]
    fn what_tls_says_is_explained() {
        let invalid = rustls::Error::InvalidCertificate;
        for (error, expected) in [
            (invalid(CertificateError::UnknownIssuer), "within minutes"),
            (invalid(CertificateError::NotValidForName), "--tls-service"),
            (invalid(CertificateError::Expired), "TLS failed"),
            (InvalidMessage::InvalidContentType.into(), "does not speak TLS"),
            (
                rustls::Error::AlertReceived(AlertDescription::AccessDenied),
                "no certificate to show",
            ),
        ] {
            let inner = io::Error::new(io::ErrorKind::InvalidData, error);
            let text = explained(&io::Error::other(inner), "/ca.crt".into()).to_string();
            assert!(text.contains(expected), "{text}");
        }
        let refused = io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused));
        let text = explained(&refused, "/ca.crt".into()).to_string();
        assert_eq!(text, "connection refused");
    }

    #[tokio::test]
    async fn a_file_without_authorities_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.crt");
        let missing = trusting(&path).await.unwrap_err().to_string();
        assert!(
            missing.contains("ca.crt") && missing.contains("No such file"),
            "{missing}"
        );
        for text in [
            "",
            "no PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = trusting(&path).await.unwrap_err();
            assert!(matches!(error, ConnectError::NoAuthority(_)), "{error}");
        }
    }
}
