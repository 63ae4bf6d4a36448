//! The HTTPS client of the tests, which trusts what a test tells it to.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, Version};
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
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        sign::{CertifiedKey, SingleCertAndKey},
    },
};

use super::{Authority, Pair};

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

    /// The same, with a certificate of its own.
    pub(crate) fn presenting(mut self, Pair { certificate, key }: &Pair) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let pair = CertifiedKey::from_der(chain, key, &default_provider()).unwrap();
        self.config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(pair));
        self
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
        let answer = self
            .post_as(&format!("https://{address}/shop/default"), id, None)
            .await?;
        Ok((answer.status().as_u16(), answer.version()))
    }

    /// Posts an event of this id to a broker, with this authorization.
    pub(crate) async fn post_as(
        &self,
        url: &str,
        id: &str,
        authorization: Option<&str>,
    ) -> Result<Response<String>, String> {
        let mut request = Request::post(url)
            .header("ce-specversion", "1.0")
            .header("ce-source", "/p")
            .header("ce-type", "t")
            .header("ce-id", id);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(Full::new(Bytes::from_static(b"data"))).unwrap();
        let failed = |error: &dyn std::fmt::Debug| format!("{error:?}");
        let response = self.0.request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
        Ok(Response::from_parts(
            head,
            String::from_utf8_lossy(&body).into_owned(),
        ))
    }
}
