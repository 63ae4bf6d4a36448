//! The channel to routers: plain, or encrypted with certificates that the controller makes and renews itself, and open
//! only to whoever proves to be a router.
//!
//! ```text
//! keeper: Secret -> material -> plan: keep, or make and write -> what is served; authorities -> ConfigMap -> routers
//! token_check: token -> verdicts, else TokenReview -> callers: the caller, or why it is refused
//! ```
//! `plan`, `callers`, `verdicts` and `telling` are pure; `material` needs randomness for keys. The kubelet brings the
//! ConfigMap to the routers. When the Secret is deleted everything is made anew, and routers that connect before they
//! have the new authority are refused by themselves; connections that are open go on.

mod callers;
mod keeper;
mod material;
mod plan;
mod telling;
mod token_check;
mod verdicts;

pub use callers::{RouterAccount, RouterAccountError};

use std::{net::IpAddr, sync::Arc};

use axum::{Router, middleware};
use kube::Client;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::metrics::ControllerMetrics;
use crate::server::Server;
use keeper::{Keeper, Served};
use token_check::{TokenCheck, admit};

/// How the channel to routers is secured. By default it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Serve it over TLS.
    pub tls: Option<TlsOptions>,
    /// Let in only who has a token of this ServiceAccount.
    pub routers: Option<RouterAccount>,
}

/// Where the certificates are, and who they are for. All are in the namespace of the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// The Secret with the authority, the serving certificate and their keys.
    pub secret: String,
    /// The ConfigMap from which routers have the authorities that they trust.
    pub config_map: String,
    /// The Service by which routers reach the controller.
    pub service: String,
}

impl ChannelOptions {
    /// Whether the channel may carry what is secret: nobody can read along and nobody but a router is answered, or it
    /// does not leave the machine.
    pub fn is_secure(&self, listen: IpAddr) -> bool {
        listen.is_loopback() || (self.tls.is_some() && self.routers.is_some())
    }
}

/// The channel, which is served while the controller leads.
pub(super) struct Channel {
    tls: Option<(Arc<Served>, Keeper)>,
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
            let keeper = Keeper::new(
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

    /// Says whether routers can connect.
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
                let config = Arc::new(server_config(served.clone()));
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
    fn a_channel_is_secure_when_it_is_encrypted_and_for_routers_or_stays_on_the_machine() {
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
