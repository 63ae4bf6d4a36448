//! Flags for TLS at the ingress.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;

use crate::{
    router::{Listeners, TlsListener},
    server::{CertificateFiles, FileCertificate, ListenerTls},
};

/// Flags shared by `weir router` and `weir run`.
#[derive(Debug, clap::Args)]
pub struct TlsArgs {
    /// Address that producers post events to over HTTPS, in addition to --listen, such as 0.0.0.0:8443.
    #[arg(
        long,
        env = "WEIR_LISTEN_TLS",
        value_name = "ADDRESS",
        requires_all = ["tls_certificate", "tls_key"],
        overrides_with = "listen_tls"
    )]
    pub listen_tls: Option<SocketAddr>,

    /// PEM file with the certificate for --listen-tls, followed by those of intermediate authorities. Changes to the
    /// file are picked up.
    #[arg(
        long,
        env = "WEIR_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "listen_tls"
    )]
    pub tls_certificate: Option<PathBuf>,

    /// PEM file with the private key of that certificate. Changes to the file are picked up.
    #[arg(long, env = "WEIR_TLS_KEY", value_name = "FILE", requires = "listen_tls")]
    pub tls_key: Option<PathBuf>,

    /// PEM file with the authorities of client certificates, by which producers can authenticate at --listen-tls. Clients
    /// without a certificate are let in, and can authenticate otherwise. Changes to the file are picked up.
    #[arg(
        long,
        env = "WEIR_LISTEN_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "listen_tls"
    )]
    pub listen_tls_client_ca: Option<PathBuf>,

    /// Do not listen on --listen: producers can post events only over HTTPS.
    #[arg(long, env = "WEIR_TLS_ONLY", requires_if("true", "listen_tls"))]
    pub tls_only: bool,
}

impl TlsArgs {
    /// Loads the certificate, and returns where to listen; `plain` is the address for HTTP.
    ///
    /// # Errors
    /// If the certificate or its key cannot be used.
    pub async fn into_listeners(self, plain: SocketAddr) -> anyhow::Result<Listeners> {
        let Self {
            listen_tls,
            tls_certificate,
            tls_key,
            listen_tls_client_ca,
            tls_only,
        } = self;
        let tls = match (listen_tls, tls_certificate, tls_key) {
            (Some(address), Some(certificate), Some(key)) => {
                let certificate = FileCertificate::load(CertificateFiles { certificate, key }).await;
                let certificate = certificate.context(
                    "cannot listen for HTTPS (--listen-tls): --tls-certificate and --tls-key must name a certificate and \
                     its key in PEM",
                )?;
                let tls = ListenerTls::load(certificate, listen_tls_client_ca).await;
                let tls = tls.context(
                    "cannot ask clients for certificates: --listen-tls-client-ca must name a file with the certificates \
                     of authorities in PEM",
                )?;
                Some(TlsListener { address, tls })
            }
            // clap requires the three together.
            _ => None,
        };
        Ok(Listeners {
            plain: (!tls_only).then_some(plain),
            tls,
            hooks: None,
        })
    }
}
