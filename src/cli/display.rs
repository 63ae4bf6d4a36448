//! `weir display`: a consumer that prints each event it receives.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use super::shutdown;
use crate::{
    cloudevents::{Data, Event, read_http},
    server::Server,
};

/// Maximum size of a request body, in bytes.
const MAX_BODY: usize = 2 * 1024 * 1024;

/// Maximum size of JSON to pretty-print, in bytes. Pretty-printing could multiply the size of larger texts.
const MAX_PRETTY: usize = 64 * 1024;

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DisplayOutput {
    /// Human-readable block of lines.
    #[default]
    Text,
    /// One event per line, in the JSON format. With --name, {"name": NAME, "event": EVENT}.
    Json,
}

/// Arguments of `weir display`.
#[derive(Debug, clap::Args)]
pub struct DisplayArgs {
    /// Address to receive events on.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Name to print before each event, to tell several displays in one terminal apart.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Output format.
    #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
    pub output: DisplayOutput,
}

/// Prints events until it is told to stop.
///
/// # Errors
/// If it cannot listen, or stdout cannot be written.
pub async fn run(args: DisplayArgs) -> anyhow::Result<()> {
    let DisplayArgs { listen, name, output } = args;
    let stop = shutdown::token()?;
    let server = Server::bind("display", listen).await?;
    let (printed, mut failed) = mpsc::channel(1);
    let display = Arc::new(Display {
        name,
        output,
        printed,
    });
    let service = Router::new().fallback(receive).with_state(display);
    let serving = server.serve(service, stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => Ok(()),
        Some(error) = failed.recv() => Err(anyhow::Error::from(error).context("cannot print")),
    }
}

struct Display {
    name: Option<String>,
    output: DisplayOutput,
    /// Receives the error that ends printing.
    printed: mpsc::Sender<io::Error>,
}

async fn receive(State(display): State<Arc<Display>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "post events here\n").into_response();
    }
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let reason = format!("the body is longer than {MAX_BODY} bytes\n");
            return (StatusCode::PAYLOAD_TOO_LARGE, reason).into_response();
        }
        Err(error) => {
            let reason = format!("cannot read the body: {error}\n");
            return (StatusCode::BAD_REQUEST, reason).into_response();
        }
    };
    let events = match read_http(&parts.headers, body) {
        Ok(received) => received.into_events(),
        Err(invalid) => return (invalid.status(), format!("{invalid}\n")).into_response(),
    };
    match display.print(&events) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            // The channel is full if an error has already been sent.
            let _ = display.printed.try_send(error);
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

impl Display {
    /// Prints the events. A request succeeds only after its events were printed.
    fn print(&self, events: &[Event]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for event in events {
            match self.output {
                DisplayOutput::Text => writeln!(stdout, "{}", block(event, self.name.as_deref()))?,
                DisplayOutput::Json => writeln!(stdout, "{}", line(event, self.name.as_deref()))?,
            }
        }
        stdout.flush()
    }
}

/// The event in the JSON format, on a single line.
fn line(event: &Event, name: Option<&str>) -> String {
    let json = event.to_json();
    let text = String::from_utf8_lossy(&json);
    // In JSON text a line break can only be whitespace between tokens.
    let event = text.replace(['\n', '\r'], " ");
    match name {
        Some(name) => format!(r#"{{"name":{},"event":{event}}}"#, serde_json::Value::from(name)),
        None => event,
    }
}

/// One attribute per line, followed by the data.
fn block(event: &Event, name: Option<&str>) -> String {
    let before = name.map(|name| format!("[{name}] ")).unwrap_or_default();
    let mut block = format!("{before}{}\n", event.r#type());
    let width = event
        .attributes()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    for (attribute, value) in event
        .attributes()
        .filter(|(attribute, _)| *attribute != "specversion")
    {
        // Writing to a `String` cannot fail.
        let _ = writeln!(block, "  {attribute:width$}  {value}");
    }
    for line in data(event).lines() {
        let _ = writeln!(block, "  | {}", harmless(line));
    }
    block
}

fn data(event: &Event) -> String {
    match event.data() {
        None => String::new(),
        Some(Data::Json(text)) => pretty(text),
        Some(Data::Text(text)) => text.into_owned(),
        Some(Data::Binary(bytes)) => match std::str::from_utf8(&bytes) {
            Ok(text) if is_json(event) => pretty(text),
            Ok(text) => text.to_owned(),
            Err(_) => format!("({} bytes)", bytes.len()),
        },
    }
}

fn is_json(event: &Event) -> bool {
    let content_type = event.attribute("datacontenttype").map(|value| value.canonical());
    content_type.is_some_and(|content_type| {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let essence = essence.to_ascii_lowercase();
        essence.ends_with("/json") || essence.ends_with("+json")
    })
}

/// Pretty-prints JSON. Changes only whitespace: numbers keep their digits and members their order. Returns text
/// that is not JSON, or too long, unchanged.
fn pretty(text: &str) -> String {
    if text.len() > MAX_PRETTY || serde_json::from_str::<IgnoredAny>(text).is_err() {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len() * 2);
    let mut depth = 0_usize;
    let mut characters = text.chars().peekable();
    let new_line = |shown: &mut String, depth: usize| {
        shown.push('\n');
        shown.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | '\r' => {}
            '"' => {
                shown.push('"');
                while let Some(inner) = characters.next() {
                    shown.push(inner);
                    match inner {
                        '\\' => shown.extend(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                shown.push(character);
                while characters.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    shown.push(end);
                } else {
                    depth += 1;
                    new_line(&mut shown, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut shown, depth);
                shown.push(character);
            }
            ',' => {
                shown.push(',');
                new_line(&mut shown, depth);
            }
            ':' => shown.push_str(": "),
            _ => shown.push(character),
        }
    }
    shown
}

/// Escapes terminal control sequences.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(|character: char| character.is_control()) {
        return Cow::Borrowed(text);
    }
    let shown = |character: char| match character {
        '\t' => character.to_string(),
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    #[test]
    fn escapes_terminal_control_sequences() {
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let event = event.data("text/plain", "a\tb\u{1b}[2Jc\nd").build().unwrap();
        assert!(block(&event, None).ends_with("  | a\tb\\u{1b}[2Jc\n  | d\n"));
    }

    #[test]
    fn block_shows_attributes_and_data() {
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/shop")
            .attribute("type", "order")
            .data("application/json", r#"{"amount":1.10}"#)
            .build()
            .unwrap();
        assert_eq!(
            block(&event, Some("orders")),
            "[orders] order\n  datacontenttype  application/json\n  id               1\n  source           /shop\n  \
             type             order\n  | {\n  |   \"amount\": 1.10\n  | }\n"
        );
        assert_eq!(
            line(&event, None),
            r#"{"datacontenttype":"application/json","id":"1","source":"/shop","specversion":"1.0","type":"order","data":{"amount":1.10}}"#
        );
        let named = line(&event, Some("a\"b"));
        assert_eq!(
            named,
            format!(r#"{{"name":"a\"b","event":{}}}"#, line(&event, None))
        );
    }

    #[test]
    fn pretty_printing_changes_only_whitespace() {
        assert_eq!(
            pretty(r#" {"b":1.10,"a":[1e400, {"c" : "x,{:}\" \\"}],"e":{ },"f":[]} "#),
            "{\n  \"b\": 1.10,\n  \"a\": [\n    1e400,\n    {\n      \"c\": \"x,{:}\\\" \\\\\"\n    }\n  ],\n  \
             \"e\": {},\n  \"f\": []\n}"
        );
        for same in ["5", "\"a: b\"", "{\"a\":", "", "plain, text"] {
            assert_eq!(pretty(same), same);
        }
        let long = format!("[{}0]", "0,".repeat(MAX_PRETTY));
        assert_eq!(pretty(&long), long);
    }

    #[test]
    fn leaves_other_text_unchanged() {
        for (content_type, shown) in [
            ("Application/JSON; charset=utf-8", "[\n  1\n]"),
            ("application/vnd.shop+json", "[\n  1\n]"),
            ("text/plain", "[1]"),
        ] {
            let event = EventBuilder::new()
                .attribute("id", "1")
                .attribute("source", "/s")
                .attribute("type", "t");
            let event = event.data(content_type, "[1]").build().unwrap();
            assert_eq!(data(&event), shown, "{content_type}");
        }
    }
}
