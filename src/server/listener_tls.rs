//! TLS of a listener: its certificate, and the authorities of client certificates if clients may present one.
//!
//! A client without a certificate is let in, since it may authenticate otherwise; one with a certificate that cannot be
//! verified is not. Authorities that cannot be used do not replace those in use. Replaced ones come with a new
//! configuration, and so with a new cache of sessions: no session that the old ones let in is resumed.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_util::sync::CancellationToken;

use super::certificate::{CHECK_EVERY, CertificateError, CertificateStatus, FileCertificate, read};

/// TLS of a listener. Clones share it.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    certificate: FileCertificate,
    clients: Option<Arc<ClientAuthorities>>,
    /// For the next handshake.
    config: Arc<ArcSwap<ServerConfig>>,
}

/// The file with the authorities of client certificates.
#[derive(Debug)]
struct ClientAuthorities {
    file: PathBuf,
    /// What was last read from the file, or why it could not be read.
    seen: Mutex<Result<Vec<u8>, String>>,
    /// Whether those in use are those in the file.
    is_current: AtomicBool,
}

impl ListenerTls {
    /// Loads the authorities from a PEM file, if clients may present certificates.
    ///
    /// # Errors
    /// If the file cannot be read or has no usable certificate.
    pub async fn load(
        certificate: FileCertificate,
        client_authorities: Option<PathBuf>,
    ) -> Result<Self, CertificateError> {
        let Some(file) = client_authorities else {
            let config = certificate.server_config(WebPkiClientVerifier::no_client_auth());
            return Ok(Self {
                certificate,
                clients: None,
                config: Arc::new(ArcSwap::from_pointee(config)),
            });
        };
        let pem = read(&file).await?;
        let config = certificate.server_config(verifier(&pem, &file)?);
        let clients = ClientAuthorities {
            file,
            seen: Mutex::new(Ok(pem)),
            is_current: AtomicBool::new(true),
        };
        Ok(Self {
            certificate,
            clients: Some(Arc::new(clients)),
            config: Arc::new(ArcSwap::from_pointee(config)),
        })
    }

    /// TLS with a certificate that it makes itself.
    #[cfg(test)]
    pub(crate) async fn for_test() -> Self {
        Self::load(FileCertificate::for_test().await, None).await.unwrap()
    }

    /// Returns the status of the certificate in use. It is not current either if the authorities of clients are not.
    pub fn status(&self) -> CertificateStatus {
        let status = self.certificate.status();
        let clients = self.clients.as_ref();
        let are_current = clients.is_none_or(|clients| clients.is_current.load(Ordering::Relaxed));
        CertificateStatus {
            is_current: status.is_current && are_current,
            ..status
        }
    }

    /// Returns the configuration of a server, which changes with the authorities of clients.
    pub fn config(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.config.clone()
    }

    /// Replaces certificate and authorities whenever their files change, until told to stop. A change that cannot be
    /// used is logged once.
    pub async fn follow(self, stop: CancellationToken) {
        let certificate = self.certificate.clone().follow(stop.clone());
        let following = async {
            while let Some(clients) = &self.clients {
                self.check(clients).await;
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        tokio::join!(certificate, stop.run_until_cancelled(following));
    }

    async fn check(&self, clients: &ClientAuthorities) {
        let ClientAuthorities {
            file,
            seen,
            is_current,
        } = clients;
        let pem = read(file).await;
        let now_seen = match &pem {
            Ok(pem) => Ok(pem.clone()),
            Err(error) => Err(error.to_string()),
        };
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == now_seen {
                return;
            }
            *seen = now_seen;
        }
        let usable = pem.and_then(|pem| verifier(&pem, file));
        is_current.store(usable.is_ok(), Ordering::Relaxed);
        let shown = file.display();
        match usable {
            Ok(verifier) => {
                self.config
                    .store(Arc::new(self.certificate.server_config(verifier)));
                tracing::info!(file = %shown, "authorities of client certificates reloaded");
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "cannot reload the authorities of client certificates; the previous ones remain in use"
                );
            }
        }
    }
}

/// Verifies client certificates, but lets in clients without one.
fn verifier(pem: &[u8], file: &Path) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let unusable = |detail: String| CertificateError::UnusableAuthority {
        path: file.to_owned(),
        detail,
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    // The errors of the parser may quote the content, which must not end up in a log.
    let certificates = certificates.map_err(|_| CertificateError::Pem(file.to_owned()))?;
    if certificates.is_empty() {
        return Err(CertificateError::NoCertificate(file.to_owned()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), default_provider().into());
    let verifier = builder.allow_unauthenticated().build();
    verifier.map_err(|error| unusable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn authority() -> String {
        rcgen::generate_simple_self_signed(["an authority".to_owned()])
            .unwrap()
            .cert
            .pem()
    }

    #[tokio::test]
    async fn usable_authorities_replace_the_previous_and_others_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.crt");
        let certificate = FileCertificate::for_test().await;
        let load = || ListenerTls::load(certificate.clone(), Some(file.clone()));
        let damaged = authority().replace("\n-----END", "!\n-----END");
        let unusable = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let bad = [
            (String::new(), "contains no certificate"),
            (damaged, "is not valid PEM"),
            (unusable.to_owned(), "cannot use an authority"),
        ];
        assert!(load().await.unwrap_err().to_string().contains("cannot read"));
        for (text, part) in &bad {
            fs::write(&file, text).unwrap();
            let error = load().await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        fs::write(&file, authority()).unwrap();
        let tls = load().await.unwrap();
        let clients = tls.clients.as_ref().unwrap();
        let first = tls.config.load_full();
        for (text, _) in &bad {
            fs::write(&file, text).unwrap();
            tls.check(clients).await;
            assert!(!tls.status().is_current && Arc::ptr_eq(&tls.config.load(), &first));
        }
        fs::write(&file, authority() + &authority()).unwrap();
        tls.check(clients).await;
        let second = tls.config.load_full();
        assert!(tls.status().is_current && !Arc::ptr_eq(&second, &first));
        tls.check(clients).await;
        assert!(Arc::ptr_eq(&tls.config.load(), &second), "nothing has changed");
        fs::remove_file(&file).unwrap();
        tls.check(clients).await;
        assert!(!tls.status().is_current && Arc::ptr_eq(&tls.config.load(), &second));
    }
}
