//! `weir send`: creates an event and posts it.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use jiff::Timestamp;
use rustls::RootCertStore;
use uuid::Uuid;

use super::{
    Usage,
    http::{exchange, exchange_with, parse_url},
};
use crate::{
    cloudevents::{Event, EventBuilder, HttpMessage, Mode},
    trust,
};

/// Variable with the URL to post to, and the one with the authorities to trust there, in PEM.
const SINK: &str = "K_SINK";
const AUTHORITIES: &str = "K_CA_CERTS";

/// Content mode of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SendMode {
    /// Attributes in headers, data in the body.
    #[default]
    Binary,
    /// The whole event as JSON.
    Structured,
    /// Batch with one event.
    Batch,
}

/// Arguments of `weir send`.
#[derive(Debug, clap::Args)]
pub struct SendArgs {
    /// URL to post to: a broker, such as http://127.0.0.1:8080/default/default, or any CloudEvents endpoint.
    #[arg(value_name = "URL", env = SINK)]
    pub url: String,

    /// PEM file with the authorities to trust for an https URL. Default: those in the variable K_CA_CERTS, if the URL
    /// is that of K_SINK; else those of this machine.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// File with the token to authenticate with, such as a ServiceAccount token for the audience weir-broker. It is
    /// sent as "Authorization: Bearer TOKEN".
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Type of the event.
    #[arg(long = "type", value_name = "TYPE")]
    pub r#type: String,

    /// Source of the event, a URI-reference.
    #[arg(long, default_value = "/weir/send", value_name = "SOURCE")]
    pub source: String,

    /// ID of the event, unique within its source. Default: a new UUID.
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,

    /// Subject of the event.
    #[arg(long, value_name = "SUBJECT")]
    pub subject: Option<String>,

    /// Time of the event, in RFC 3339 format. Default: now.
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,

    /// Extension attribute. Can be repeated.
    #[arg(short, long = "extension", value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub extensions: Vec<(String, String)>,

    /// Data of the event.
    #[arg(long, value_name = "TEXT", conflicts_with = "data_file")]
    pub data: Option<String>,

    /// File to read the data from, or - for stdin.
    #[arg(long, value_name = "FILE")]
    pub data_file: Option<PathBuf>,

    /// Media type of the data. Default: application/json for JSON, text/plain for other text, else
    /// application/octet-stream.
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,

    /// Content mode of the request.
    #[arg(long, default_value = "binary", value_enum, value_name = "MODE")]
    pub mode: SendMode,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Sends one event and prints the response.
///
/// # Errors
/// If the event is invalid, cannot be sent, or is rejected.
pub async fn run(args: SendArgs) -> anyhow::Result<()> {
    let url = parse_url(&args.url)?;
    let authorities = authorities(&args)?;
    let token = args.token_file.as_deref().map(bearer_token).transpose()?;
    let mode = args.mode;
    let data = read_data(&args)?;
    let event = make(args, data)?;
    let HttpMessage { headers, body } = message(&event, mode);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url;
    *request.headers_mut() = headers;
    request
        .headers_mut()
        .extend(token.map(|token| (header::AUTHORIZATION, token)));
    let (status, _) = match authorities {
        Some(authorities) => exchange_with(request, trust::only(authorities)).await?,
        None => exchange(request).await?,
    };
    writeln!(
        io::stdout().lock(),
        "{status}  id={} source={}",
        event.id(),
        event.source()
    )?;
    Ok(())
}

/// Reads a token, as the value of the header.
fn bearer_token(file: &Path) -> anyhow::Result<HeaderValue> {
    let place = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {place}"))?;
    let value = HeaderValue::try_from(format!("Bearer {}", text.trim()));
    let mut value = value.with_context(|| format!("the content of {place} is not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the authorities to trust; `None` for those of this machine.
fn authorities(args: &SendArgs) -> anyhow::Result<Option<RootCertStore>> {
    let variable = |name| std::env::var(name).ok();
    let (text, place) = match &args.ca {
        Some(file) => {
            let place = file.display().to_string();
            let text = std::fs::read_to_string(file);
            (text.with_context(|| format!("cannot read {place}"))?, place)
        }
        None if variable(SINK).as_ref() == Some(&args.url) => match variable(AUTHORITIES) {
            Some(text) if !text.trim().is_empty() && args.url.starts_with("https:") => {
                (text, AUTHORITIES.to_owned())
            }
            _ => return Ok(None),
        },
        None => return Ok(None),
    };
    let authorities = trust::authorities(&text);
    Ok(Some(authorities.with_context(|| {
        format!("cannot use the authorities in {place}")
    })?))
}

fn read_data(args: &SendArgs) -> anyhow::Result<Option<Vec<u8>>> {
    match (&args.data, &args.data_file) {
        (Some(text), _) => Ok(Some(text.clone().into_bytes())),
        (None, Some(file)) if file.as_os_str() == "-" => {
            let mut data = Vec::new();
            io::stdin()
                .lock()
                .read_to_end(&mut data)
                .context("cannot read the data from stdin")?;
            Ok(Some(data))
        }
        (None, Some(file)) => std::fs::read(file)
            .map(Some)
            .with_context(|| format!("cannot read the data from {}", file.display())),
        (None, None) => Ok(None),
    }
}

fn make(args: SendArgs, data: Option<Vec<u8>>) -> anyhow::Result<Event> {
    let mut builder = EventBuilder::new()
        .attribute("type", args.r#type)
        .attribute("source", args.source)
        .attribute("id", args.id.unwrap_or_else(|| Uuid::new_v4().to_string()))
        .attribute("time", args.time.unwrap_or_else(|| Timestamp::now().to_string()));
    if let Some(subject) = args.subject {
        builder = builder.attribute("subject", subject);
    }
    for (name, value) in args.extensions {
        builder = builder.attribute(name, value);
    }
    if let Some(data) = data {
        let content_type = args.content_type.unwrap_or_else(|| guess(&data).to_owned());
        builder = builder.data(content_type, data);
    } else if let Some(content_type) = args.content_type {
        builder = builder.attribute("datacontenttype", content_type);
    }
    builder
        .build()
        .map_err(|invalid| Usage(invalid.to_string()).into())
}

fn guess(data: &[u8]) -> &'static str {
    match std::str::from_utf8(data) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    }
}

fn message(event: &Event, mode: SendMode) -> HttpMessage {
    match mode {
        SendMode::Binary => event.to_http(Some(Mode::Binary)),
        SendMode::Structured => event.to_http(Some(Mode::Structured)),
        SendMode::Batch => {
            let mut message = event.to_http(Some(Mode::Structured));
            message.body = [b"[", &message.body[..], b"]"].concat().into();
            let batch = HeaderValue::from_static("application/cloudevents-batch+json");
            message.headers.insert(header::CONTENT_TYPE, batch);
            message
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_content_type_from_the_data() {
        for (data, content_type) in [
            (&b"{\"a\": 1}"[..], "application/json"),
            (b"5", "application/json"),
            (b"hello", "text/plain; charset=utf-8"),
            (b"", "text/plain; charset=utf-8"),
            (b"\xff", "application/octet-stream"),
        ] {
            assert_eq!(guess(data), content_type);
        }
    }
}
