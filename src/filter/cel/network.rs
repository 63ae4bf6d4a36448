//! Networks: constants compiled with the expression.

use std::{any::Any, net::IpAddr};

use cel::common::{
    types::{Kind, Type},
    value::{StaticVal, Val},
};
use ipnet::IpNet;

use super::Disallowed;

static NETWORK: Type = Type::simple_type(Kind::Opaque, "network");

/// `cidr('10.0.0.0/8')`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network(pub(super) IpNet);

impl Network {
    /// Parses an address with a prefix length, or a single address.
    pub(super) fn new(text: &str) -> Result<Self, Disallowed> {
        let network = text.parse::<IpNet>();
        network
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| Disallowed::Network(text.to_owned()))
    }
}

impl Val for Network {
    fn get_type(&self) -> &Type {
        &NETWORK
    }

    fn cel_type() -> &'static Type {
        &NETWORK
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Network {}
