//! What routers and the controller say to each other over HTTP.
//!
//! A router asks `GET /v1/configuration?router=NAME&revision=APPLIED`. It is answered 200 with a [`Configuration`]
//! as soon as there is one of another revision, and 204 when there is none within [`POLL_TIMEOUT`]. Asking is also
//! the acknowledgement: the router routes by the revision that it names, or by none yet if that is empty.
//!
//! [`Configuration`]: super::Configuration

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::Revision;

/// Where the controller answers routers.
pub const CONFIGURATION_PATH: &str = "/v1/configuration";

/// How long the controller holds a request when there is nothing new.
pub const POLL_TIMEOUT: Duration = Duration::from_secs(25);

/// What a router says when it asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationQuery {
    /// The router's name.
    pub router: String,
    /// The revision that it has applied; empty before the first.
    #[serde(default)]
    pub revision: Revision,
}

impl ConfigurationQuery {
    /// As the query of a URI.
    pub fn encode(&self) -> String {
        let Self {
            router,
            revision: Revision(revision),
        } = self;
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        format!("router={}&revision={}", encode(router), encode(revision))
    }
}
