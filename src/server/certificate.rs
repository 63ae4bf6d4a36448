//! The certificate of a TLS server, read from two files and replaced when they change.
//!
//! The files are read every few seconds and compared by content: in a volume with a Secret, Kubernetes replaces a
//! symbolic link of a directory above them, which a watch of the files would miss. A pair that cannot be used does
//! not replace the one in use.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    InconsistentKeys, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio_util::sync::CancellationToken;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// Interval at which the files are read.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(3);

/// The files of a certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file is damaged.
    #[error("{} is not valid PEM; is it complete?", .0.display())]
    Pem(PathBuf),
    /// There is no certificate in its file.
    #[error("{} contains no certificate, which starts with -----BEGIN CERTIFICATE-----", .0.display())]
    NoCertificate(PathBuf),
    /// There is no key in its file.
    #[error("{} contains no unencrypted private key, which starts with -----BEGIN PRIVATE KEY-----", .0.display())]
    NoKey(PathBuf),
    /// The key is another certificate's.
    #[error(
        "the key in {} does not match the first certificate in {}; the server's own certificate must come first",
        .0.key.display(), .0.certificate.display()
    )]
    Mismatch(CertificateFiles),
    /// The certificate or the key cannot be used for TLS.
    #[error("cannot use the certificate in {} with the key in {}: {detail}", files.certificate.display(), files.key.display())]
    Unusable {
        /// The files.
        files: CertificateFiles,
        /// What is wrong.
        detail: String,
    },
    /// The certificate of an authority cannot be used.
    #[error("cannot use an authority in {}: {detail}", path.display())]
    UnusableAuthority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The certificate has expired.
    #[error("the certificate in {} expired at {expiry}", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// End of its validity.
        expiry: Timestamp,
    },
}

/// Status of a certificate in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// Start of its validity.
    pub not_before: Timestamp,
    /// End of its validity.
    pub expiry: Timestamp,
    /// Whether it is the one in the files: the last reload has not failed.
    pub is_current: bool,
}

/// A certificate that is replaced when its files change. Clones share it.
#[derive(Clone, Debug)]
pub struct FileCertificate(Arc<WatchedFiles>);

#[derive(Debug)]
struct WatchedFiles {
    files: CertificateFiles,
    served: Arc<ServedPair>,
    /// What was last read from the files, or why they could not be read.
    seen: Mutex<Result<PemPair, String>>,
}

#[derive(Debug)]
struct ServedPair {
    key: ArcSwap<CertifiedKey>,
    status: Mutex<CertificateStatus>,
}

/// Contents of the files.
#[derive(Clone, PartialEq, Eq)]
struct PemPair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// A certificate that can be served.
#[derive(Debug)]
struct UsablePair {
    key: CertifiedKey,
    not_before: Timestamp,
    expiry: Timestamp,
}

impl fmt::Debug for PemPair {
    /// Omits the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemPair").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServedPair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl FileCertificate {
    /// Loads a certificate. One that has expired is used, with a warning: a router that restarts still has events
    /// to deliver.
    ///
    /// # Errors
    /// If the files cannot be read or do not contain a certificate and its key.
    pub async fn load(files: CertificateFiles) -> Result<Self, CertificateError> {
        let pair = PemPair::read(&files).await?;
        let UsablePair {
            key,
            not_before,
            expiry,
        } = UsablePair::parse(&pair, &files)?;
        if expiry <= Timestamp::now() {
            let certificate = files.certificate.display();
            tracing::warn!(%certificate, %expiry, "the certificate has expired; clients will reject it");
        }
        let status = CertificateStatus {
            not_before,
            expiry,
            is_current: true,
        };
        let served = ServedPair {
            key: ArcSwap::from_pointee(key),
            status: Mutex::new(status),
        };
        Ok(Self(Arc::new(WatchedFiles {
            files,
            served: Arc::new(served),
            seen: Mutex::new(Ok(pair)),
        })))
    }

    /// A certificate that it makes itself, and whose files are gone.
    #[cfg(test)]
    pub(crate) async fn for_test() -> Self {
        let made = rcgen::generate_simple_self_signed(["weir".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let [certificate, key] = ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Self::load(CertificateFiles { certificate, key }).await.unwrap()
    }

    /// Returns the status of the certificate in use.
    pub fn status(&self) -> CertificateStatus {
        *lock(&self.0.served.status)
    }

    /// Returns the configuration of a server with TLS 1.2 and 1.3, for HTTP/2 and HTTP/1.1, whose clients are verified by
    /// `clients`. Each handshake uses the certificate of that moment.
    pub(super) fn server_config(&self, clients: Arc<dyn ClientCertVerifier>) -> ServerConfig {
        let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13, &TLS12])
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.0.served.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    /// Replaces the certificate whenever the files change, until told to stop. A change that cannot be used is
    /// logged once.
    pub async fn follow(self, stop: CancellationToken) {
        let following = async {
            loop {
                self.0.check().await;
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        stop.run_until_cancelled(following).await;
    }
}

impl WatchedFiles {
    async fn check(&self) {
        let read = PemPair::read(&self.files).await;
        let now_seen = match &read {
            Ok(pair) => Ok(pair.clone()),
            Err(error) => Err(error.to_string()),
        };
        if *lock(&self.seen) == now_seen {
            return;
        }
        // If the pair was replaced between the two reads, the next check sees all of the new one.
        if read.is_ok() && PemPair::read(&self.files).await.ok() != read.as_ref().ok().cloned() {
            return;
        }
        *lock(&self.seen) = now_seen;
        let usable = read
            .and_then(|pair| UsablePair::parse(&pair, &self.files))
            .and_then(|pair| pair.unless_expired(&self.files, Timestamp::now()));
        let certificate = self.files.certificate.display();
        let mut status = lock(&self.served.status);
        match usable {
            Ok(UsablePair {
                key,
                not_before,
                expiry,
            }) => {
                self.served.key.store(Arc::new(key));
                *status = CertificateStatus {
                    not_before,
                    expiry,
                    is_current: true,
                };
                tracing::info!(%certificate, %expiry, "certificate reloaded");
            }
            Err(error) => {
                status.is_current = false;
                tracing::error!(%error, "cannot reload the certificate; the previous one remains in use");
            }
        }
    }
}

impl PemPair {
    async fn read(files: &CertificateFiles) -> Result<Self, CertificateError> {
        Ok(Self {
            certificate: read(&files.certificate).await?,
            key: read(&files.key).await?,
        })
    }
}

pub(super) async fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| CertificateError::Read {
            path: path.to_owned(),
            source,
        })
}

impl UsablePair {
    fn parse(pair: &PemPair, files: &CertificateFiles) -> Result<Self, CertificateError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pair.certificate).collect();
        // The errors of the parser may quote the content, which must not end up in a log.
        let chain = chain.map_err(|_| CertificateError::Pem(files.certificate.clone()))?;
        let Some(leaf) = chain.first().cloned() else {
            return Err(CertificateError::NoCertificate(files.certificate.clone()));
        };
        let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|error| match error {
            pem::Error::NoItemsFound => CertificateError::NoKey(files.key.clone()),
            _ => CertificateError::Pem(files.key.clone()),
        })?;
        let unusable = |detail: String| CertificateError::Unusable {
            files: files.clone(),
            detail,
        };
        let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CertificateError::Mismatch(files.clone())
            }
            error => unusable(error.to_string()),
        })?;
        let (_, leaf) = X509Certificate::from_der(&leaf).map_err(|error| unusable(error.to_string()))?;
        let time = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|error| unusable(error.to_string()))
        };
        let validity = leaf.validity();
        Ok(Self {
            key,
            not_before: time(validity.not_before)?,
            expiry: time(validity.not_after)?,
        })
    }

    fn unless_expired(self, files: &CertificateFiles, now: Timestamp) -> Result<Self, CertificateError> {
        if self.expiry <= now {
            return Err(CertificateError::Expired {
                path: files.certificate.clone(),
                expiry: self.expiry,
            });
        }
        Ok(self)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under a lock is a single assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A certificate that expires in this year, and its key.
    fn made(until: i32) -> (String, String) {
        let mut params = CertificateParams::new(["weir".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new((certificate, key): &(String, String)) -> Self {
            let this = Self(tempfile::tempdir().unwrap());
            this.write(certificate, key);
            this
        }

        fn write(&self, certificate: &str, key: &str) {
            let CertificateFiles {
                certificate: certificate_file,
                key: key_file,
            } = self.files();
            fs::write(certificate_file, certificate).unwrap();
            fs::write(key_file, key).unwrap();
        }

        fn files(&self) -> CertificateFiles {
            CertificateFiles {
                certificate: self.0.path().join("tls.crt"),
                key: self.0.path().join("tls.key"),
            }
        }
    }

    #[tokio::test]
    async fn unusable_pairs_are_rejected_with_what_is_wrong() {
        let (good, other) = (made(2900), made(2900));
        let cut = |text: &str| text[..text.len() / 2].to_owned();
        for (certificate, key, expected) in [
            ("", good.1.as_str(), "tls.crt contains no certificate"),
            (
                good.1.as_str(),
                good.1.as_str(),
                "tls.crt contains no certificate",
            ),
            (&cut(&good.0), good.1.as_str(), "tls.crt is not valid PEM"),
            (good.0.as_str(), "", "tls.key contains no unencrypted private key"),
            (good.0.as_str(), &cut(&good.1), "tls.key is not valid PEM"),
            (
                good.0.as_str(),
                other.1.as_str(),
                "tls.key does not match the first certificate",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
                good.1.as_str(),
                "cannot use the certificate in",
            ),
        ] {
            let directory = Directory::new(&(certificate.to_owned(), key.to_owned()));
            let error = FileCertificate::load(directory.files()).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}, not {expected}");
        }
        let directory = Directory::new(&good);
        fs::remove_file(directory.files().key).unwrap();
        let error = FileCertificate::load(directory.files()).await.unwrap_err();
        assert!(error.to_string().contains("cannot read"), "{error}");
    }

    #[tokio::test]
    async fn usable_pair_replaces_the_previous_and_another_does_not() {
        let (first, second) = (made(2900), made(2901));
        let directory = Directory::new(&first);
        let certificate = FileCertificate::load(directory.files()).await.unwrap();
        let served = || certificate.0.served.key.load().cert[0].clone();
        let of_first = served();
        assert!(certificate.status().is_current);
        for (certificate_text, key) in [
            (&second.0, &first.1),
            (&String::new(), &second.1),
            (&made(2021).0, &second.1),
        ] {
            directory.write(certificate_text, key);
            certificate.0.check().await;
            let status = certificate.status();
            assert!(!status.is_current && served() == of_first);
            assert_eq!(status.expiry.strftime("%Y").to_string(), "2900");
        }
        let expired = made(2021);
        directory.write(&expired.0, &expired.1);
        certificate.0.check().await;
        assert!(!certificate.status().is_current && served() == of_first);
        directory.write(&second.0, &second.1);
        certificate.0.check().await;
        let status = certificate.status();
        assert!(status.is_current && served() != of_first);
        assert_eq!(status.expiry.strftime("%Y").to_string(), "2901");
        fs::remove_file(directory.files().certificate).unwrap();
        certificate.0.check().await;
        assert!(!certificate.status().is_current);
    }

    #[tokio::test]
    async fn expired_pair_is_used_at_the_start() {
        let directory = Directory::new(&made(2021));
        assert!(FileCertificate::load(directory.files()).await.is_ok());
    }
}
