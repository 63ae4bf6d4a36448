//! Regular expressions and networks: constants that are compiled with the expression.

use std::{any::Any, net::IpAddr};

use cel::common::{
    types::{Kind, Type},
    value::{StaticVal, Val},
};
use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

use super::Problem;

/// How much memory a compiled regular expression may take, in bytes.
const MAX_PATTERN: usize = 256 * 1024;

pub(super) const PATTERN: Type = Type::simple_type(Kind::Opaque, "regular expression");
pub(super) const NETWORK: Type = Type::simple_type(Kind::Opaque, "network");

static PATTERN_TYPE: Type = PATTERN;
static NETWORK_TYPE: Type = NETWORK;

/// A constant that CEL has no literal for.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    Pattern(Regex),
    Network(IpNet),
}

impl Constant {
    /// A regular expression, that takes time linear in the text it is tried on.
    pub(super) fn pattern(text: &str) -> Result<Self, Problem> {
        let pattern = RegexBuilder::new(text)
            .size_limit(MAX_PATTERN)
            .dfa_size_limit(MAX_PATTERN)
            .build();
        // The last line of the error is the reason, those before it draw the place.
        pattern.map(Self::Pattern).map_err(|error| {
            let text = error.to_string();
            Problem::Pattern(text.lines().last().unwrap_or_default().to_owned())
        })
    }

    /// An address with a prefix length, or an address alone.
    pub(super) fn network(text: &str) -> Result<Self, Problem> {
        let network = text.parse::<IpNet>();
        network
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(Self::Network)
            .map_err(|_| Problem::Network(text.to_owned()))
    }
}

impl Val for Constant {
    fn get_type(&self) -> &Type {
        match self {
            Self::Pattern(_) => &PATTERN_TYPE,
            Self::Network(_) => &NETWORK_TYPE,
        }
    }

    /// No function is declared by it.
    fn cel_type() -> &'static Type {
        &PATTERN_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Constant {}
