//! Parses the URLs of requests. The `http` crate treats an invalid port as absent, and drops fragments, so a
//! request would go to port 80 or elsewhere than intended. Here both are errors. Pure.

use std::net::Ipv6Addr;

use http::Uri;

/// Why a text is not a URL for HTTP requests. Each message continues the text: "`x` is not a valid URL".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpUrlError {
    /// Invalid syntax.
    #[error("is not a valid URL: {0}")]
    Syntax(String),
    /// The scheme is neither `http` nor `https`.
    #[error("must start with http:// or https://")]
    Scheme,
    /// It has a user name or password.
    #[error("must not have a user name or password")]
    UserInfo,
    /// The host is empty or invalid.
    #[error("has no host")]
    Host,
    /// The text in brackets is not an IPv6 address.
    #[error("has the host {0:?}, which is not an IPv6 address in brackets")]
    Address(String),
    /// The port is not a number from 1 to 65535.
    #[error("has the port {0:?}; a port is a number from 1 to 65535")]
    Port(String),
    /// It has a fragment.
    #[error("must not have a fragment (#...), which is never sent")]
    Fragment,
}

/// Parses an absolute `http` or `https` URL. An empty port means the scheme's default (RFC 3986, section 3.2.3).
///
/// # Errors
/// If it is invalid, or has a part that would not be used as written.
pub fn parse(text: &str) -> Result<Uri, HttpUrlError> {
    let uri: Uri = text
        .parse()
        .map_err(|error: http::uri::InvalidUri| HttpUrlError::Syntax(error.to_string()))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(HttpUrlError::Scheme);
    }
    if text.contains('#') {
        return Err(HttpUrlError::Fragment);
    }
    let authority = uri.authority().ok_or(HttpUrlError::Host)?.as_str();
    if authority.contains('@') {
        return Err(HttpUrlError::UserInfo);
    }
    let (host, port) = split(authority);
    if host.is_empty() {
        return Err(HttpUrlError::Host);
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'))
        && address.parse::<Ipv6Addr>().is_err()
    {
        return Err(HttpUrlError::Address(host.to_owned()));
    }
    match port {
        None | Some("") => Ok(uri),
        Some(port) if is_port(port) => Ok(uri),
        Some(port) => Err(HttpUrlError::Port(port.to_owned())),
    }
}

/// Splits an authority into the host and the text after its colon.
fn split(authority: &str) -> (&str, Option<&str>) {
    let end_of_host = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    match authority[end_of_host..].find(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(end_of_host + colon);
            (host, Some(&port[1..]))
        }
        None => (authority, None),
    }
}

fn is_port(text: &str) -> bool {
    // `parse` would accept a sign.
    text.bytes().all(|c| c.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_urls_with_parts_that_would_be_ignored() {
        for good in [
            "http://h",
            "http://h/",
            "https://h:1/a?b",
            "http://h:65535",
            "http://h:0080/",
            "http://h:/",
            "http://[::1]/",
            "http://[::1]:8443/",
            "HTTP://H/",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good));
        }
        let port = |port: &str| HttpUrlError::Port(port.to_owned());
        for (bad, error) in [
            ("http://h:99999/", port("99999")),
            ("http://h:80800", port("80800")),
            ("http://h:abc/", port("abc")),
            ("http://h:8080x", port("8080x")),
            ("http://h:0/", port("0")),
            ("http://h:+80/", port("+80")),
            ("http://h:-1/", port("-1")),
            ("http://[::1]:x/", port("x")),
            ("ftp://h/", HttpUrlError::Scheme),
            ("/path", HttpUrlError::Scheme),
            ("h:80", HttpUrlError::Scheme),
            ("http://u:p@h/", HttpUrlError::UserInfo),
            ("http://u@h/", HttpUrlError::UserInfo),
            ("http://:80/", HttpUrlError::Host),
            ("http://[h]/", HttpUrlError::Address("[h]".to_owned())),
            ("http://h/#top", HttpUrlError::Fragment),
        ] {
            assert_eq!(parse(bad), Err(error), "{bad}");
        }
        for broken in ["", "http://", "http://h /", "http://h:80:80/", "http://[::1/"] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }
}
