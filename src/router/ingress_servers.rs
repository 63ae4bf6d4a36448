//! The servers of the ingress, for HTTP and HTTPS, and of webhooks. They share all limits.

use axum::Router;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    error::RouterError,
    options::{Listeners, TlsListener},
};
use crate::{
    server::{ListenerTls, Server, ServerLimits},
    supervision::Supervisor,
};

/// Sockets that producers post to, ready to serve.
pub(super) struct IngressServers {
    plain: Option<Server>,
    hooks: Option<Server>,
    tls: Option<TlsServer>,
}

struct TlsServer {
    server: Server,
    tls: ListenerTls,
}

impl IngressServers {
    /// Starts to listen.
    ///
    /// # Errors
    /// If an address cannot be listened on.
    pub(super) async fn bind(listeners: Listeners, limits: ServerLimits) -> Result<Self, RouterError> {
        let Listeners { plain, tls, hooks } = listeners;
        let hooks = match hooks {
            Some(address) => Some(Server::bind("hooks", address).await?.with_limits(limits.clone())),
            None => None,
        };
        let plain = match plain {
            Some(address) => Some(
                Server::bind("ingress", address)
                    .await?
                    .with_limits(limits.clone()),
            ),
            None => None,
        };
        let tls = match tls {
            Some(TlsListener { address, tls }) => Some(TlsServer {
                server: Server::bind("ingress-tls", address).await?.with_limits(limits),
                tls,
            }),
            None => None,
        };
        Ok(Self { plain, hooks, tls })
    }

    /// Serves until told to stop: `service` for producers, `hooks` for webhooks.
    pub(super) fn serve(
        self,
        service: &Router,
        hooks: Router,
        tasks: &TaskTracker,
        supervisor: &Supervisor,
        stop: &CancellationToken,
    ) {
        let Self {
            plain,
            hooks: server,
            tls,
        } = self;
        if let Some(server) = server {
            let serving = server.serve(hooks, stop.clone());
            tasks.spawn(supervisor.clone().watch("the port for webhooks", serving));
        }
        if let Some(server) = plain {
            let serving = server.serve(service.clone(), stop.clone());
            tasks.spawn(supervisor.clone().watch("the ingress", serving));
        }
        if let Some(TlsServer { server, tls }) = tls {
            let serving = server.serve_tls(tls.config(), service.clone(), stop.clone());
            tasks.spawn(supervisor.clone().watch("the ingress with TLS", serving));
            let following = tls.follow(stop.clone());
            tasks.spawn(
                supervisor
                    .clone()
                    .watch("the certificates of the ingress", following),
            );
        }
    }
}
