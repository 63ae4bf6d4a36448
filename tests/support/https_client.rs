//! The HTTPS client of the tests, which trusts what a test tells it to.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::Authority;

/// A TLS connection to 127.0.0.1.
pub(crate) type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// A client of 127.0.0.1.
#[derive(Clone)]
pub(crate) struct HttpsClient {
    config: ClientConfig,
    http: Version,
}

impl HttpsClient {
    /// Trusts these authorities, and speaks these versions of TLS.
    pub(crate) fn new(
        authorities: &[&Authority],
        http: Version,
        tls: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            let certificate = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
            roots.add(certificate).unwrap();
        }
        let config = ClientConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(tls)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { config, http }
    }

    /// A client that reuses its connections.
    pub(crate) fn pooled(&self) -> PooledClient {
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(self.config.clone())
            .https_only();
        let connector = match self.http {
            Version::HTTP_2 => builder.enable_http2().build(),
            _ => builder.enable_http1().build(),
        };
        PooledClient(
            Client::builder(TokioExecutor::new())
                .http2_only(self.http == Version::HTTP_2)
                .build(connector),
        )
    }

    /// Opens a connection, for HTTP/1.1.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<TlsStream, String> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        connector
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())
    }
}

/// A client that reuses its connections.
pub(crate) struct PooledClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl PooledClient {
    /// Posts an event of this id to `shop/default`; returns the status and the version of HTTP.
    pub(crate) async fn post(&self, address: SocketAddr, id: &str) -> Result<(u16, Version), String> {
        let request = Request::post(format!("https://{address}/shop/default"))
            .header("ce-specversion", "1.0")
            .header("ce-source", "/p")
            .header("ce-type", "t")
            .header("ce-id", id)
            .body(Full::new(Bytes::from_static(b"data")))
            .unwrap();
        let response = self
            .0
            .request(request)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let answer = (response.status().as_u16(), response.version());
        let body = response.into_body().collect().await;
        body.map_err(|error| format!("{error:?}"))?;
        Ok(answer)
    }
}
