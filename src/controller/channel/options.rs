//! How the channel to routers is secured.

use std::net::IpAddr;

use super::callers::RouterAccount;

/// Security of the channel to routers. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Serve over TLS.
    pub tls: Option<TlsOptions>,
    /// Admit only callers with a token of this ServiceAccount.
    pub routers: Option<RouterAccount>,
}

/// Objects that hold the certificates, and the Service they are for, all in the controller's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Secret with the authority, the serving certificate and their keys.
    pub secret: String,
    /// ConfigMap with the authorities that routers trust.
    pub config_map: String,
    /// Service that routers use to reach the controller.
    pub service: String,
}

impl ChannelOptions {
    /// Whether the channel may carry secrets: it is encrypted and open to routers only, or it does not leave the
    /// machine.
    pub fn is_secure(&self, listen: IpAddr) -> bool {
        listen.is_loopback() || (self.tls.is_some() && self.routers.is_some())
    }
}
