//! `weir display`: a consumer that prints each event it gets.

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
use http_body_util::{BodyExt, Limited};
use tokio::sync::mpsc;

use super::shutdown;
use crate::{
    cloudevents::{Data, Event, read_http},
    server::Server,
};

/// How large a request may be, in bytes.
const MAX_BODY: usize = 2 * 1024 * 1024;

/// How events are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A block of lines for people.
    #[default]
    Text,
    /// One event in the JSON format a line.
    Json,
}

/// The flags of `weir display`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where events are received.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Put before each event, to tell several displays in one terminal apart.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// How events are printed.
    #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
    pub output: Output,
}

/// Prints events until it is told to end.
///
/// # Errors
/// When it cannot listen, or standard output takes nothing more.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { listen, name, output } = args;
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
    output: Output,
    /// Takes the error that ends printing.
    printed: mpsc::Sender<io::Error>,
}

async fn receive(State(display): State<Arc<Display>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "events are posted\n").into_response();
    }
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return (StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n")).into_response(),
    };
    let events = match read_http(&parts.headers, body) {
        Ok(received) => received.into_events(),
        Err(invalid) => return (invalid.status(), format!("{invalid}\n")).into_response(),
    };
    match display.print(&events) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            // Full means that an error is on its way already.
            let _ = display.printed.try_send(error);
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

impl Display {
    /// An event was taken only when it was printed.
    fn print(&self, events: &[Event]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for event in events {
            match self.output {
                Output::Text => writeln!(stdout, "{}", block(event, self.name.as_deref()))?,
                Output::Json => writeln!(stdout, "{}", line(event))?,
            }
        }
        stdout.flush()
    }
}

/// The JSON format without line breaks between its members.
fn line(event: &Event) -> String {
    let json = event.to_json();
    let text = String::from_utf8_lossy(&json);
    // In a JSON text a line break can only be white space between tokens.
    text.replace(['\n', '\r'], " ")
}

/// The attributes, one a line, and the data.
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
        // Writing to a string does not fail.
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
        Some(Data::Json(text)) => text.to_owned(),
        Some(Data::Text(text)) => text.into_owned(),
        Some(Data::Binary(bytes)) => match std::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => format!("({} bytes)", bytes.len()),
        },
    }
}

/// What a terminal would take for a command is shown instead of obeyed.
fn harmless(text: &str) -> Cow<'_, str> {
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
    fn a_terminal_is_not_given_commands() {
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let event = event.data("text/plain", "a\tb\u{1b}[2Jc\nd").build().unwrap();
        assert!(block(&event, None).ends_with("  | a\tb\\u{1b}[2Jc\n  | d\n"));
    }

    #[test]
    fn a_block_shows_attributes_and_data() {
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
             type             order\n  | {\"amount\":1.10}\n"
        );
        assert_eq!(
            line(&event),
            r#"{"datacontenttype":"application/json","id":"1","source":"/shop","specversion":"1.0","type":"order","data":{"amount":1.10}}"#
        );
    }
}
