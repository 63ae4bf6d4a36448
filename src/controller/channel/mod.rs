//! The channel to routers: plain, or secured with TLS certificates that the controller issues and renews itself,
//! and with authentication of routers.
//!
//! ```text
//! keeper: Secret -> material -> plan: keep, or make and write -> what is served; authorities -> ConfigMap -> routers
//! token_check: token -> verdicts, else TokenReview -> callers: the caller, or why it is rejected
//! ```
//! `plan`, `callers`, `verdicts` and `telling` are pure; `material` needs randomness for keys. The kubelet brings
//! the ConfigMap to the routers. If the Secret is deleted, everything is created anew; routers that connect before
//! they have the new authority reject the certificate, and open connections continue.

mod callers;
mod keeper;
mod material;
mod options;
mod plan;
mod telling;
mod token_check;
mod verdicts;

pub use callers::{RouterAccount, RouterAccountError};
pub use options::{ChannelOptions, TlsOptions};

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{Router, middleware};
use kube::Client;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::metrics::ControllerMetrics;
use crate::server::Server;
use keeper::{CertificateKeeper, Served};
use token_check::{TokenCheck, admit};

/// The channel, served while the controller leads.
pub(super) struct Channel {
    tls: Option<(Arc<Served>, CertificateKeeper)>,
    check: Option<Arc<TokenCheck>>,
}

impl Channel {
    pub(super) fn new(
        options: &ChannelOptions,
        client: &Client,
        cluster_domain: &str,
        metrics: &Arc<ControllerMetrics>,
    ) -> Self {
        let ChannelOptions { tls, routers } = options.clone();
        let tls = tls.map(|tls| {
            let served = Arc::<Served>::default();
            let keeper = CertificateKeeper::new(
                tls,
                client.clone(),
                cluster_domain,
                served.clone(),
                metrics.clone(),
            );
            (served, keeper)
        });
        let check =
            routers.map(|account| Arc::new(TokenCheck::new(client.clone(), account, metrics.clone())));
        Self { tls, check }
    }

    /// Returns a check of whether routers can connect.
    pub(super) fn readiness(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let served = self.tls.as_ref().map(|(served, _)| served.clone());
        move || served.as_ref().is_none_or(|served| served.is_some())
    }

    /// Serves until told to stop.
    pub(super) async fn serve(&self, server: Server, service: Router, stop: &CancellationToken) {
        let service = match &self.check {
            Some(check) => service.route_layer(middleware::from_fn_with_state(check.clone(), admit)),
            None => service,
        };
        match &self.tls {
            None => server.serve(service, stop.clone()).await,
            Some((served, keeper)) => {
                let config = Arc::new(ArcSwap::from_pointee(server_config(served.clone())));
                tokio::join!(server.serve_tls(config, service, stop.clone()), keeper.run(stop));
            }
        }
    }
}

fn server_config(served: Arc<Served>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_cert_resolver(served);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_is_secure_if_encrypted_and_authenticated_or_on_loopback() {
        let tls = TlsOptions {
            secret: "s".into(),
            config_map: "c".into(),
            service: "w".into(),
        };
        let account: RouterAccount = "a/b".parse().unwrap();
        for (tls, routers, listen, secure) in [
            (None, None, "0.0.0.0", false),
            (None, None, "127.0.0.1", true),
            (None, None, "::1", true),
            (Some(tls.clone()), None, "0.0.0.0", false),
            (None, Some(account.clone()), "::", false),
            (Some(tls), Some(account), "0.0.0.0", true),
        ] {
            let options = ChannelOptions { tls, routers };
            assert_eq!(
                options.is_secure(listen.parse().unwrap()),
                secure,
                "{options:?} {listen}"
            );
        }
    }
}
