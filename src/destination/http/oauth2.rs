//! Requests for tokens by the client credentials grant of OAuth 2.0 (RFC 6749, section 4.4), and their answers. Pure.
//!
//! Messages never contain a token or the client's secret, and of an answer only the fields that explain a failure.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::hidden::HiddenValues;
use crate::{
    http_url::{self, HttpUrlError},
    routing::ClientCredentials,
};

/// Maximum length of a token, in bytes. Servers accept about 8 KiB of headers in total.
const MAX_TOKEN: usize = 8 * 1024;

/// Lifetime of a token if the answer has none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Limits of the lifetime: a token serves the events that waited for it, and is renewed within a day.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Maximum characters of an error's code and of its description.
const MAX_CODE: usize = 64;
const MAX_DESCRIPTION: usize = 256;

/// What `application/x-www-form-urlencoded` escapes, except for spaces.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b' ')
    .remove(b'*')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_');

/// A request for a token, which can be sent any number of times.
pub(super) struct TokenRequest {
    uri: Uri,
    authorization: HeaderValue,
    form: Bytes,
    secrets: HiddenValues,
}

/// Why a token cannot be requested. The controller rejects all of these.
#[derive(Debug, thiserror::Error)]
pub enum InvalidClientCredentials {
    /// The URI of the token endpoint is invalid.
    #[error("invalid token URL: it {0}")]
    Uri(#[from] HttpUrlError),
    /// The URI of the token endpoint is not `https`.
    #[error("invalid token URL: it must start with https://")]
    Insecure,
    /// The header cannot be sent.
    #[error("the client's identifier or its secret cannot be sent")]
    Header,
}

/// A token from an answer.
#[derive(PartialEq, Eq)]
pub(super) struct IssuedToken {
    /// The token: visible ASCII characters.
    pub(super) value: String,
    /// Time from the request until it expires.
    pub(super) lifetime: Duration,
}

impl TokenRequest {
    pub(super) fn new(client: &ClientCredentials) -> Result<Self, InvalidClientCredentials> {
        let ClientCredentials {
            token_url,
            id,
            secret,
            version: _,
            scopes,
            audience,
        } = client;
        let uri = http_url::parse(token_url)?;
        if uri.scheme_str() != Some("https") {
            return Err(InvalidClientCredentials::Insecure);
        }
        let (id, secret) = (id.reveal(), secret.reveal());
        let escaped = escape(secret);
        let basic = STANDARD.encode(format!("{}:{escaped}", escape(id)));
        let mut authorization =
            HeaderValue::from_str(&format!("Basic {basic}")).map_err(|_| InvalidClientCredentials::Header)?;
        authorization.set_sensitive(true);
        Ok(Self {
            uri,
            authorization,
            form: form(scopes, audience.as_deref()).into(),
            secrets: HiddenValues::new([id, secret, &*escaped, &*basic]),
        })
    }

    /// The token endpoint, for people: without its query.
    pub(super) fn endpoint(&self) -> String {
        let uri = self.uri.to_string();
        uri.split_once('?')
            .map_or(uri.as_str(), |(endpoint, _)| endpoint)
            .to_owned()
    }

    pub(super) fn to_http(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.form.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        for (name, value) in [
            (header::CONTENT_TYPE, "application/x-www-form-urlencoded"),
            (header::ACCEPT, "application/json"),
            (header::ACCEPT_ENCODING, "identity"),
            (header::USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION"))),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        request
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// The status and what the server says about it, without secrets.
    pub(super) fn read(&self, status: StatusCode, body: &[u8]) -> Result<IssuedToken, String> {
        let fields: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
        let text = |name| fields.get(name).and_then(Value::as_str);
        let token = text("access_token").filter(|_| status.is_success());
        let Some(token) = token else {
            return Err(self.refusal(status, text("error"), text("error_description")));
        };
        if !text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")) {
            return Err(format!("{status}: the token's type is not Bearer"));
        }
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{status}: the token is empty or has characters that a header cannot carry"
            ));
        }
        if token.len() > MAX_TOKEN {
            return Err(format!("{status}: the token is longer than {MAX_TOKEN} bytes"));
        }
        Ok(IssuedToken {
            value: token.to_owned(),
            lifetime: lifetime(fields.get("expires_in")),
        })
    }

    fn refusal(&self, status: StatusCode, code: Option<&str>, description: Option<&str>) -> String {
        let mut message = status.to_string();
        if status.is_redirection() {
            message.push_str(": redirects are not followed");
        } else if status.is_success() && code.is_none() {
            message.push_str(": the answer has no access_token");
        }
        for (part, most) in [(code, MAX_CODE), (description, MAX_DESCRIPTION)] {
            let part = part.map(|part| clean(&self.secrets.hide(part.to_owned()), most));
            if let Some(part) = part.filter(|part| !part.is_empty()) {
                message = format!("{message}: {part}");
            }
        }
        message
    }
}

fn form(scopes: &[String], audience: Option<&str>) -> String {
    let scope = (!scopes.is_empty()).then(|| format!("&scope={}", escape(&scopes.join(" "))));
    let audience = audience.map(|audience| format!("&audience={}", escape(audience)));
    format!(
        "grant_type=client_credentials{}{}",
        scope.unwrap_or_default(),
        audience.unwrap_or_default()
    )
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, FORM).to_string().replace(' ', "+")
}

/// Reads `expires_in`: seconds, which some servers send as text.
fn lifetime(expires_in: Option<&Value>) -> Duration {
    let seconds = match expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    let seconds = seconds.filter(|seconds| seconds.is_finite());
    let lifetime = seconds.map(|seconds| {
        let seconds = seconds.clamp(0.0, MAX_LIFETIME.as_secs_f64());
        Duration::from_secs_f64(seconds)
    });
    lifetime
        .unwrap_or(DEFAULT_LIFETIME)
        .clamp(MIN_LIFETIME, MAX_LIFETIME)
}

/// Makes a text one line of printable ASCII characters, at most so many.
fn clean(text: &str, most: usize) -> String {
    let printable = |character: char| match character {
        ' '..='~' => character,
        _ if character.is_whitespace() => ' ',
        _ => '?',
    };
    let cleaned: String = text.trim().chars().take(most).map(printable).collect();
    cleaned.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut ClientCredentials)) -> TokenRequest {
        let mut client = ClientCredentials {
            token_url: "https://id.example.com/token?tenant=1".to_owned(),
            id: "weir".to_owned().into(),
            secret: "s3cr3t:+ %".to_owned().into(),
            version: String::new(),
            scopes: Vec::new(),
            audience: None,
        };
        change(&mut client);
        TokenRequest::new(&client).unwrap()
    }

    fn read(status: u16, body: &str) -> Result<(String, u64), String> {
        let status = StatusCode::from_u16(status).unwrap();
        let read = request(|_| ()).read(status, body.as_bytes());
        read.map(|token| (token.value, token.lifetime.as_secs()))
    }

    #[test]
    fn client_is_authenticated_by_escaped_basic_credentials() {
        let request = request(|_| ()).to_http();
        let basic = STANDARD.encode("weir:s3cr3t%3A%2B+%25");
        let authorization = &request.headers()["authorization"];
        assert_eq!(authorization, &format!("Basic {basic}"));
        assert!(authorization.is_sensitive());
        assert_eq!(request.uri(), "https://id.example.com/token?tenant=1");
        assert_eq!(
            request.headers()["content-type"],
            "application/x-www-form-urlencoded"
        );
    }

    #[test]
    fn form_has_scopes_and_audience_if_set() {
        let scopes = ["a".to_owned(), "b:c&d".to_owned()];
        let table: [(&[String], Option<&str>, &str); 3] = [
            (&[], None, "grant_type=client_credentials"),
            (&scopes, None, "grant_type=client_credentials&scope=a+b%3Ac%26d"),
            (
                &scopes[..1],
                Some("https://x/"),
                "grant_type=client_credentials&scope=a&audience=https%3A%2F%2Fx%2F",
            ),
        ];
        for (scopes, audience, expected) in table {
            assert_eq!(form(scopes, audience), expected);
        }
    }

    #[test]
    fn reads_a_token_and_its_lifetime() {
        let table = [
            (r#""expires_in":3600"#, 3600),
            (r#""expires_in":"3599""#, 3599),
            (r#""expires_in":3600.5"#, 3600),
            (r#""expires_in":0"#, 1),
            (r#""expires_in":-5"#, 1),
            (r#""expires_in":1e300"#, 24 * 60 * 60),
            (r#""expires_in":null"#, 300),
            (r#""expires_in":"soon""#, 300),
            (r#""expires_in":"NaN""#, 300),
            (r#""scope":"a""#, 300),
        ];
        for (field, expected) in table {
            let body = format!(r#"{{"access_token":"t0ken","token_type":"bearer",{field}}}"#);
            assert_eq!(read(200, &body), Ok(("t0ken".to_owned(), expected)), "{field}");
        }
        assert_eq!(
            read(201, r#"{"access_token":"a.b-c~/+="}"#),
            Ok(("a.b-c~/+=".to_owned(), 300))
        );
    }

    #[test]
    fn failures_say_why_without_secrets() {
        let long = "x".repeat(300);
        let too_long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(MAX_TOKEN + 1));
        let described = format!(r#"{{"error":"invalid_scope","error_description":"{long}"}}"#);
        let table = [
            (
                401,
                r#"{"error":"invalid_client"}"#,
                "401 Unauthorized: invalid_client",
            ),
            (
                400,
                r#"{"error":"invalid_scope","error_description":" no\r\nscope\u001b \u00fc "}"#,
                "400 Bad Request: invalid_scope: no  scope? ?",
            ),
            (
                400,
                r#"{"error":"x","error_description":"weir with s3cr3t:+ % or s3cr3t%3A%2B+%25"}"#,
                "400 Bad Request: x: [secret] with [secret] or [secret]",
            ),
            (503, "<html>s3cr3t</html>", "503 Service Unavailable"),
            (302, "", "302 Found: redirects are not followed"),
            (200, "", "200 OK: the answer has no access_token"),
            (200, "[]", "200 OK: the answer has no access_token"),
            (
                200,
                r#"{"access_token":7}"#,
                "200 OK: the answer has no access_token",
            ),
            (
                200,
                r#"{"error":"incorrect_client_credentials"}"#,
                "200 OK: incorrect_client_credentials",
            ),
            // A token in a failure is not taken.
            (400, r#"{"access_token":"t0ken"}"#, "400 Bad Request"),
            (
                200,
                r#"{"access_token":"t0ken","token_type":"mac"}"#,
                "200 OK: the token's type is not Bearer",
            ),
            (
                200,
                r#"{"access_token":"t0 ken"}"#,
                "200 OK: the token is empty or has characters that a header cannot carry",
            ),
            (
                200,
                r#"{"access_token":""}"#,
                "200 OK: the token is empty or has characters that a header cannot carry",
            ),
            (200, &too_long, "200 OK: the token is longer than 8192 bytes"),
            (
                400,
                &described,
                &format!("400 Bad Request: invalid_scope: {}", &long[..MAX_DESCRIPTION]),
            ),
        ];
        for (status, body, expected) in table {
            assert_eq!(read(status, body), Err(expected.to_owned()), "{body}");
        }
    }

    #[test]
    fn endpoint_is_shown_without_its_query() {
        assert_eq!(request(|_| ()).endpoint(), "https://id.example.com/token");
        let bare = request(|client| client.token_url = "https://id/".to_owned());
        assert_eq!(bare.endpoint(), "https://id/");
    }

    #[test]
    fn secret_is_not_sent_over_http() {
        let mut client = ClientCredentials {
            token_url: "http://id/".to_owned(),
            id: "weir".to_owned().into(),
            secret: "s3cr3t".to_owned().into(),
            version: String::new(),
            scopes: Vec::new(),
            audience: None,
        };
        assert!(matches!(
            TokenRequest::new(&client),
            Err(InvalidClientCredentials::Insecure)
        ));
        client.token_url = "https://id:0/".to_owned();
        assert!(matches!(
            TokenRequest::new(&client),
            Err(InvalidClientCredentials::Uri(_))
        ));
    }
}
