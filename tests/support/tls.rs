//! HTTPS in front of a consumer, with certificates of an authority of the test's own.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Consumer, ReservedPort, runtime};

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Takes TLS off for a consumer, for as long as it lives.
pub(crate) struct HttpsFront {
    port: ReservedPort,
    _stop: DropGuard,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Serves a consumer over TLS, with a certificate for this name.
    pub(crate) fn serve(&self, consumer: &Consumer, name: &str) -> HttpsFront {
        self.serve_with(consumer, CertificateParams::new([name.to_owned()]).unwrap())
    }

    /// The same, with a certificate that has expired.
    pub(crate) fn serve_expired(&self, consumer: &Consumer, name: &str) -> HttpsFront {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.serve_with(consumer, params)
    }

    fn serve_with(&self, consumer: &Consumer, params: CertificateParams) -> HttpsFront {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let port = ReservedPort::new();
        let listener = std::net::TcpListener::bind(port.address()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let _context = runtime().enter();
        let listener = TcpListener::from_std(listener).unwrap();
        let stop = CancellationToken::new();
        let accept = accept(listener, TlsAcceptor::from(Arc::new(config)), consumer.address());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        HttpsFront {
            port,
            _stop: stop.drop_guard(),
        }
    }
}

impl HttpsFront {
    /// Its URL by this name, with `/` for a path.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("https://{name}:{}/", self.port.address().port())
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, consumer: SocketAddr) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // What fails is the client's to see, and the test's to expect.
            let Ok(mut outside) = acceptor.accept(stream).await else {
                return;
            };
            if let Ok(mut inside) = TcpStream::connect(consumer).await {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}
