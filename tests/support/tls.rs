//! Certificates of an authority of the test's own: HTTPS in front of a consumer, and Secrets as a pod sees them.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Consumer, ReservedPort, Scratch, runtime};

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

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A Secret of type `kubernetes.io/tls` as Kubernetes mounts it: files that are links into `..data`, a link to a directory that
/// is replaced as a whole.
pub(crate) struct SecretVolume {
    scratch: Scratch,
    version: u32,
}

impl Pair {
    /// The certificate with the key of another.
    pub(crate) fn with_key_of(&self, other: &Self) -> Self {
        Self {
            certificate: self.certificate.clone(),
            key: other.key.clone(),
        }
    }
}

impl SecretVolume {
    pub(crate) fn new(pair: &Pair) -> Self {
        let mut volume = Self {
            scratch: Scratch::new(),
            version: 0,
        };
        volume.replace(pair);
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), volume.scratch.path().join(name)).unwrap();
        }
        volume
    }

    /// Replaces the content, as the kubelet does.
    pub(crate) fn replace(&mut self, Pair { certificate, key }: &Pair) {
        let root = self.scratch.path();
        let old = root.join(format!("..{}", self.version));
        self.version += 1;
        let new = format!("..{}", self.version);
        self.scratch.write(&format!("{new}/tls.crt"), certificate);
        self.scratch.write(&format!("{new}/tls.key"), key);
        symlink(&new, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if old.exists() {
            fs::remove_dir_all(old).unwrap();
        }
    }

    /// The flags that name the files.
    pub(crate) fn flags(&self) -> [String; 2] {
        let path = self.scratch.path().display();
        [
            format!("--tls-certificate={path}/tls.crt"),
            format!("--tls-key={path}/tls.key"),
        ]
    }
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

    /// A certificate for 127.0.0.1.
    pub(crate) fn pair(&self) -> Pair {
        self.pair_until(4000)
    }

    /// The same, which expires in this year.
    pub(crate) fn pair_until(&self, year: i32) -> Pair {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A certificate of a client with these names.
    pub(crate) fn client(&self, names: &[SanType]) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// Serves a consumer over TLS, with a certificate for this name.
    pub(crate) fn serve(&self, consumer: &Consumer, name: &str) -> HttpsFront {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        self.serve_with(consumer, params, WebPkiClientVerifier::no_client_auth())
    }

    /// The same, for clients whose certificate this authority has signed.
    pub(crate) fn serve_clients_of(&self, clients: &Self, consumer: &Consumer, name: &str) -> HttpsFront {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        self.serve_with(consumer, params, verifier)
    }

    /// The same as [`Self::serve`], with a certificate that has expired.
    pub(crate) fn serve_expired(&self, consumer: &Consumer, name: &str) -> HttpsFront {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.serve_with(consumer, params, WebPkiClientVerifier::no_client_auth())
    }

    fn serve_with(
        &self,
        consumer: &Consumer,
        params: CertificateParams,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> HttpsFront {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(clients)
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
            match acceptor.accept(stream).into_fallible().await {
                Ok(mut outside) => {
                    if let Ok(mut inside) = TcpStream::connect(consumer).await {
                        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                    }
                }
                // The alert is the client's to see: a reset, because of what it has sent meanwhile, would discard it.
                Err((_, mut stream)) => {
                    let _ = stream.shutdown().await;
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                }
            }
        });
    }
}
