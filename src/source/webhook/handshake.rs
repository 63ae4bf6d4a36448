//! The CloudEvents specification "HTTP 1.1 Web Hooks for Event Delivery", as far as it is about requests and not about the
//! events in them: who may send (section 4), and the token in the query (section 3.2). Pure.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

/// Header in which a sender names itself.
pub(super) const ORIGIN: &str = "webhook-request-origin";

/// Parameter of the query that has the token, where it is not in a header.
pub(super) const ACCESS_TOKEN: &str = "access_token";

/// Any origin.
const ANY: &str = "*";

/// Origins that may send.
#[derive(Debug)]
pub(super) struct AllowedOrigins(Vec<String>);

impl AllowedOrigins {
    pub(super) fn new(origins: &[String]) -> Self {
        Self(origins.to_vec())
    }

    /// Whether an origin may send. Names of hosts compare in any case.
    pub(super) fn allow(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        let origins = self.0.iter();
        !origin.is_empty()
            && origins
                .into_iter()
                .any(|allowed| allowed == ANY || allowed.eq_ignore_ascii_case(origin))
    }
}

/// What a validation request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validation {
    /// This origin may send.
    Allowed(HeaderValue),
    /// The origin may not send.
    Refused,
    /// The request names no origin, so it asks for nothing.
    Unasked,
}

impl AllowedOrigins {
    /// Answers a validation request (section 4.2). A callback that it names is not called: the answer needs none.
    pub(super) fn validate(&self, headers: &HeaderMap) -> Validation {
        let mut origins = headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => Validation::Unasked,
            (Some(origin), None) if self.allow(origin) => Validation::Allowed(origin.clone()),
            _ => Validation::Refused,
        }
    }
}

/// The decoded tokens in the query.
pub(super) fn access_tokens(uri: &Uri) -> impl Iterator<Item = Vec<u8>> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter(|pair| is_token(pair)).map(|pair| {
        let (_, value) = pair.split_once('=').unwrap_or_default();
        percent_decode_str(value).collect()
    })
}

/// The query without the tokens.
pub(super) fn without_access_tokens(query: &str) -> Cow<'_, str> {
    match query.split('&').any(is_token) {
        false => Cow::Borrowed(query),
        true => {
            let others: Vec<_> = query.split('&').filter(|pair| !is_token(pair)).collect();
            Cow::Owned(others.join("&"))
        }
    }
}

fn is_token(pair: &str) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    percent_decode_str(name).eq(ACCESS_TOKEN.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_told_without_their_tokens() {
        for (query, tokens, rest) in [
            ("", &[][..], ""),
            ("p=q", &[], "p=q"),
            ("access_token=mF_9.B5f-4.1JqM", &["mF_9.B5f-4.1JqM"], ""),
            ("access_token=mF_9.B5f-4.1JqM&p=q", &["mF_9.B5f-4.1JqM"], "p=q"),
            ("a=1&access_token=%2Bx%3D&p=q", &["+x="], "a=1&p=q"),
            ("access%5Ftoken=a+b&access_token=", &["a+b", ""], ""),
            ("access_token&Access_Token=y", &[""], "Access_Token=y"),
        ] {
            let uri: Uri = format!("/shop/hook?{query}").parse().unwrap();
            let found: Vec<_> = access_tokens(&uri)
                .map(|token| String::from_utf8(token).unwrap())
                .collect();
            assert_eq!(found, tokens, "{query}");
            assert_eq!(without_access_tokens(query), rest);
        }
    }

    #[test]
    fn validation_is_answered_as_the_specification_says() {
        let validated = |allowed: &[&str], asked: &[&str]| {
            let allowed: Vec<_> = allowed.iter().map(|origin| (*origin).to_owned()).collect();
            let mut headers = HeaderMap::new();
            for origin in asked {
                headers.append(ORIGIN, HeaderValue::from_str(origin).unwrap());
            }
            AllowedOrigins::new(&allowed).validate(&headers)
        };
        let allowed = |origin| Validation::Allowed(HeaderValue::from_static(origin));
        let one = &["eventemitter.example.com"][..];
        for (origins, asked, expected) in [
            (one, one, allowed("eventemitter.example.com")),
            (
                one,
                &["EventEmitter.example.com"],
                allowed("EventEmitter.example.com"),
            ),
            (&["*"], one, allowed("eventemitter.example.com")),
            (one, &["example.com"], Validation::Refused),
            (one, &["x.eventemitter.example.com"], Validation::Refused),
            (one, &["*"], Validation::Refused),
            (one, &[""], Validation::Refused),
            (&["*"], &[""], Validation::Refused),
            (
                one,
                &["eventemitter.example.com", "example.com"],
                Validation::Refused,
            ),
            (one, &[], Validation::Unasked),
        ] {
            assert_eq!(validated(origins, asked), expected, "{origins:?} {asked:?}");
        }
    }
}
