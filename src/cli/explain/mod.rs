//! `weir explain`: explains which Triggers an event matches, and why.

pub mod event;
pub mod text;

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::{
    Usage,
    admin::{AdminArgs, AdminClient, checked_broker},
    validate::{Checked, check, counted},
};
use crate::{
    cloudevents::{Event, HttpMessage},
    router::api::{EventName, EventPlace, Explained, TriggerExplained},
    routing::{self, RoutingTable},
};

/// Arguments of `weir explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weir explain -f event.json -f triggers/              by manifests in files, without a router\n  \
    weir explain shop/default --event event.json         by the routing table of the router at --router\n  \
    weir explain --broker http://127.0.0.1:9090/shop/default --event event.json\n  \
    weir explain shop/default --id 42                    an event in the router's log\n\n\
    In a cluster, run weir port-forward beside this command, or run it in the router's pod (kubectl exec POD -- /weir explain ...).")]
pub struct ExplainArgs {
    /// Broker, as NAMESPACE/NAME or as a URL: the router's admin address followed by /NAMESPACE/NAME. Optional with
    /// manifests, where the default is all brokers.
    #[arg(value_name = "BROKER")]
    pub broker: Option<String>,

    /// Same as the argument BROKER.
    #[arg(long = "broker", value_name = "BROKER", conflicts_with = "broker")]
    pub broker_flag: Option<String>,

    /// File or directory with manifests. A file that contains an event is used like --event. Can be repeated.
    #[arg(short = 'f', long = "filename", value_name = "DIR|FILE")]
    pub files: Vec<PathBuf>,

    /// File with the event, in the JSON format or as HTTP headers, an empty line and the data; - for stdin.
    #[arg(long, value_name = "FILE")]
    pub event: Option<PathBuf>,

    /// ID of an event in the router's log. If there are several, the newest is used.
    #[arg(long, value_name = "ID", conflicts_with_all = ["event", "files"])]
    pub id: Option<String>,

    /// With --id: source of the event.
    #[arg(long, value_name = "SOURCE", requires = "id")]
    pub source: Option<String>,

    /// The router, if there are no manifests.
    #[command(flatten)]
    pub router: AdminArgs,

    /// Output format.
    #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
    pub output: ExplainOutput,
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ExplainOutput {
    /// Human-readable text, coloured on a terminal unless NO_COLOR is set.
    #[default]
    Text,
    /// One JSON object per line and Trigger.
    Json,
}

/// Explains an event.
///
/// # Errors
/// If the event or the broker does not exist, the router cannot be reached, or the manifests have errors.
pub async fn run(args: ExplainArgs) -> anyhow::Result<()> {
    let ExplainArgs {
        broker,
        broker_flag,
        files,
        event,
        id,
        source,
        router,
        output,
    } = args;
    let broker = broker.or(broker_flag);
    if let Some(id) = id {
        let (admin, broker) = place(&router, broker)?;
        let explained = ask_for(&admin, &broker, &id, source.as_deref()).await?;
        return print(&[explained], output);
    }
    let (manifests, event) = sort_out(files, event)?;
    if manifests.is_empty() {
        let (admin, broker) = place(&router, broker)?;
        let explained = ask(&admin, &broker, &event).await?;
        return print(&[explained], output);
    }
    let Checked {
        configuration,
        errors,
        ..
    } = check(manifests, false, false)?;
    for error in &errors {
        writeln!(io::stderr().lock(), "{error}")?;
    }
    let table = RoutingTable::compile(configuration);
    let explained = by_table(&table, broker.as_deref(), &event)?;
    print(&explained, output)?;
    match errors.len() {
        0 => Ok(()),
        count => bail!("{} in the manifests, see above", counted(count, "error")),
    }
}

/// Separates the one event from the manifests.
fn sort_out(files: Vec<PathBuf>, event: Option<PathBuf>) -> anyhow::Result<(Vec<PathBuf>, Event)> {
    let mut manifests = Vec::new();
    let mut events: Vec<PathBuf> = event.into_iter().collect();
    for file in files {
        let is_event = file.as_os_str() == "-"
            || (!file.is_dir() && std::fs::read(&file).is_ok_and(|bytes| event::is_event(&bytes)));
        if is_event {
            events.push(file);
        } else {
            manifests.push(file);
        }
    }
    match events.as_slice() {
        [file] => Ok((manifests, read_event(file)?)),
        [] => {
            Err(Usage("no event given: use --event FILE, or --id for an event in the log".to_owned()).into())
        }
        [first, second, ..] => Err(Usage(format!(
            "{} and {} are both events: explain one at a time",
            first.display(),
            second.display()
        ))
        .into()),
    }
}

fn read_event(file: &Path) -> anyhow::Result<Event> {
    let mut bytes = Vec::new();
    let (name, read) = if file.as_os_str() == "-" {
        (
            "standard input".to_owned(),
            io::stdin().lock().read_to_end(&mut bytes),
        )
    } else {
        let read = std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes));
        (file.display().to_string(), read)
    };
    read.with_context(|| format!("cannot read the event from {name}"))?;
    event::read(&bytes).map_err(|error| anyhow::anyhow!("{name} is not a valid event: {error}"))
}

/// The router and the broker to ask about.
fn place(router: &AdminArgs, broker: Option<String>) -> anyhow::Result<(AdminClient, String)> {
    let broker =
        broker.ok_or_else(|| Usage("give a broker, as NAMESPACE/NAME, or manifests with -f".to_owned()))?;
    let (url, broker) = split(&router.router, &broker);
    Ok((router.client_at(url)?, checked_broker(broker)?.to_owned()))
}

/// Splits router address and broker, which may be given as one URL or separately.
fn split<'a>(router: &'a str, broker: &'a str) -> (&'a str, &'a str) {
    let trimmed = broker.trim_end_matches('/');
    let name = trimmed.rfind('/').map_or(0, |at| at);
    let namespace = trimmed[..name].rfind('/').map_or(0, |at| at);
    match &trimmed[..namespace] {
        "" => (router, broker),
        // Nothing but the scheme is left, so the URL has no two path segments after the host.
        scheme if scheme.ends_with('/') || scheme.ends_with(':') => (router, broker),
        address => (address, &trimmed[namespace + 1..]),
    }
}

async fn ask(admin: &AdminClient, broker: &str, event: &Event) -> anyhow::Result<Explained> {
    let HttpMessage { headers, body } = event.to_http(None);
    let path = format!("/v1/explain/{broker}");
    admin.exchange(Method::POST, &path, headers, body).await
}

async fn ask_for(
    admin: &AdminClient,
    broker: &str,
    id: &str,
    source: Option<&str>,
) -> anyhow::Result<Explained> {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let mut path = format!("/v1/explain/{broker}/events?id={}", encoded(id));
    if let Some(source) = source {
        path.push_str(&format!("&source={}", encoded(source)));
    }
    admin
        .exchange(Method::GET, &path, HeaderMap::new(), Bytes::new())
        .await
}

/// Explains the event for the brokers of a routing table.
fn by_table(table: &RoutingTable, broker: Option<&str>, event: &Event) -> anyhow::Result<Vec<Explained>> {
    let brokers: Vec<_> = match broker {
        None => table.brokers().keys().cloned().collect(),
        Some(broker) => vec![checked_broker(broker)?.to_owned()],
    };
    if let Some(unknown) = brokers
        .iter()
        .find(|broker| !table.brokers().contains_key(*broker))
    {
        let known: BTreeSet<_> = table.brokers().keys().map(String::as_str).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        bail!("no Trigger in the manifests uses broker {unknown}; the brokers are {known}");
    }
    let explained = brokers.into_iter().map(|broker| Explained {
        triggers: routing::explain(table, &broker, event)
            .into_iter()
            .map(TriggerExplained::from)
            .collect(),
        broker,
        event: event.into(),
        found: None,
        deleted: Vec::new(),
        unanswered: Vec::new(),
    });
    Ok(explained.collect())
}

#[derive(Serialize)]
struct ExplanationLine<'a> {
    broker: &'a str,
    event: &'a EventName,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: &'a Option<EventPlace>,
    trigger: &'a TriggerExplained,
}

fn print(explained: &[Explained], output: ExplainOutput) -> anyhow::Result<()> {
    match output {
        ExplainOutput::Json => print_json(explained),
        ExplainOutput::Text => print_text(explained),
    }
}

fn print_json(explained: &[Explained]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for Explained {
        broker,
        event,
        found,
        triggers,
        deleted: _,
        unanswered: _,
    } in explained
    {
        for trigger in triggers {
            let line = ExplanationLine {
                broker,
                event,
                found,
                trigger,
            };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        }
    }
    Ok(())
}

fn print_text(explained: &[Explained]) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    let Some(first) = explained.first() else {
        writeln!(out, "there are no Triggers")?;
        return Ok(());
    };
    let EventName { id, source, r#type } = &first.event;
    writeln!(out, "Event {id} of type {type} from {source}")?;
    for explained in explained {
        text::write(&mut out, explained)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_url_may_include_the_router() {
        let router = "http://r:9090";
        for (broker, expected) in [
            ("shop/default", (router, "shop/default")),
            ("http://a:1/shop/default", ("http://a:1", "shop/default")),
            ("a:1/shop/default/", ("a:1", "shop/default")),
            (
                "https://a/below/shop/default",
                ("https://a/below", "shop/default"),
            ),
            ("shop", (router, "shop")),
            ("http://a:1/shop", (router, "http://a:1/shop")),
            ("http://a:1", (router, "http://a:1")),
            ("", (router, "")),
        ] {
            assert_eq!(split(router, broker), expected, "{broker}");
        }
        for wrong in ["shop", "http://a:1/shop", "http://a:1", ""] {
            let router = AdminArgs {
                router: router.to_owned(),
                router_token: None,
            };
            assert!(place(&router, Some(wrong.to_owned())).is_err(), "{wrong}");
        }
    }
}
