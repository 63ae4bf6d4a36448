//! `weir dead-letters`: lists, shows, redrives and drops the dead letters that a router keeps.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::bail;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde::de::DeserializeOwned;

use super::{
    Usage,
    admin::{AdminArgs, AdminClient, checked_broker},
};
use crate::{
    cloudevents::clean_text,
    filter::Expression,
    log::Offset,
    router::dead_letters::{
        BrokersWithDeadLetters, DeadLetterList, DeadLetterSummary, DropAnswer, FullLetter, RedriveAnswer,
        Selected,
    },
};

/// Time to wait for a full Trigger that settles nothing while redriving.
const NO_ROOM_PATIENCE: Duration = Duration::from_secs(30);

/// Delay before such a Trigger is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `weir dead-letters`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "In a cluster, run weir port-forward beside this command, or run it in a router's pod (kubectl exec POD -- /weir dead-letters ...). \
                  With --log embedded, each router keeps its own dead letters; with --log jetstream, any router answers for all."
)]
pub struct DeadLettersArgs {
    /// The router.
    #[command(flatten)]
    pub router: AdminArgs,

    /// Action to perform.
    #[command(subcommand)]
    pub action: DeadLettersAction,
}

/// Actions on dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum DeadLettersAction {
    /// List the dead letters of a broker, or, without a broker, the brokers that have any.
    List {
        /// Broker, as NAMESPACE/NAME.
        #[arg(value_name = "BROKER")]
        broker: Option<String>,
        /// Selection of letters.
        #[command(flatten)]
        which: Which,
        /// Output format.
        #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
        output: DeadLettersOutput,
    },
    /// Show a dead letter and its event.
    Show {
        /// Broker, as NAMESPACE/NAME.
        #[arg(value_name = "BROKER")]
        broker: String,
        /// ID of the letter, as shown by list.
        #[arg(value_name = "ID")]
        id: u64,
        /// Output format.
        #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
        output: DeadLettersOutput,
    },
    /// Redeliver dead letters to their Triggers. Each is then settled like any other event.
    Redrive(Many),
    /// Delete dead letters permanently.
    Drop {
        /// Selection of letters.
        #[command(flatten)]
        many: Many,
        /// Skip the confirmation of --all.
        #[arg(short, long)]
        yes: bool,
    },
}

/// A selection of a broker's dead letters.
#[derive(Debug, clap::Args)]
pub struct Many {
    /// Broker, as NAMESPACE/NAME.
    #[arg(value_name = "BROKER")]
    pub broker: String,

    /// IDs of letters.
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,

    /// Select all dead letters of the broker.
    #[arg(long, conflicts_with_all = ["ids", "trigger", "filters"])]
    pub all: bool,

    /// Selection by Trigger and attributes.
    #[command(flatten)]
    pub which: Which,
}

/// Selects the letters that satisfy all of these conditions.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// Only letters of the Trigger with this name.
    #[arg(long, value_name = "NAME")]
    pub trigger: Option<String>,

    /// Only letters whose event has this attribute value, for example type=com.example.order. Can be repeated.
    #[arg(long = "filter", value_name = "ATTRIBUTE=VALUE", value_parser = attribute_and_value)]
    pub filters: Vec<(String, String)>,
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeadLettersOutput {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON value per line.
    Json,
}

/// Asks for confirmation before dropping all dead letters.
fn confirm(broker: &str) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        return Err(Usage(format!(
            "--all permanently drops every dead letter of broker {broker}: add --yes to confirm"
        ))
        .into());
    }
    write!(
        io::stderr(),
        "Permanently drop every dead letter of broker {broker}? [y/N] "
    )?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        bail!("nothing was dropped")
    }
}

/// Fails if the selection matched nothing, or if some of the given IDs were not found.
fn check_all_found(broker: &str, selected: &Selected, found: u64) -> anyhow::Result<()> {
    let by_letter = selected.trigger.is_some() || !selected.filters.is_empty();
    if found == 0 && selected.ids.is_none() && by_letter {
        bail!(
            "no dead letter of broker {broker} matches: --trigger takes a Trigger's name without its namespace, --filter an \
             attribute of the event; weir dead-letters list {broker} lists them all"
        );
    }
    let named = selected.ids.as_ref().map_or(0, BTreeSet::len) as u64;
    let missing = named.saturating_sub(found);
    if missing > 0 {
        bail!(
            "{missing} of the IDs match no dead letter, or the letter is already gone: weir dead-letters list \
             {broker} shows the current ones"
        );
    }
    Ok(())
}

fn attribute_and_value(text: &str) -> Result<(String, String), String> {
    let (attribute, value) = text.split_once('=').ok_or("write ATTRIBUTE=VALUE")?;
    Ok((attribute.to_owned(), value.to_owned()))
}

impl Which {
    fn selected(self) -> Selected {
        let filters = self.filters.into_iter();
        Selected {
            trigger: self.trigger,
            filters: filters.map(|pair| Expression::Exact([pair].into())).collect(),
            ..Selected::default()
        }
    }
}

impl Many {
    /// The broker and the selection. Selecting everything must be explicit.
    fn selected(self) -> anyhow::Result<(String, Selected)> {
        let Self {
            broker,
            ids,
            all,
            which,
        } = self;
        let mut selected = which.selected();
        if !ids.is_empty() {
            selected.ids = Some(ids.into_iter().map(Offset).collect::<BTreeSet<_>>());
        }
        if !all && selected == Selected::default() {
            return Err(
                Usage("select dead letters by ID, --trigger or --filter, or use --all".to_owned()).into(),
            );
        }
        Ok((broker, selected))
    }
}

/// Sends the requests to the router and prints the responses.
///
/// # Errors
/// If the router cannot be reached or rejects a request, or some letters could not be redriven.
pub async fn run(args: DeadLettersArgs) -> anyhow::Result<()> {
    let DeadLettersArgs { router, action } = args;
    let router = RouterClient {
        admin: router.client()?,
    };
    match action {
        DeadLettersAction::List {
            broker: None,
            which: _,
            output,
        } => router.brokers(output).await,
        DeadLettersAction::List {
            broker: Some(broker),
            which,
            output,
        } => router.list(&broker, which.selected(), output).await,
        DeadLettersAction::Show { broker, id, output } => router.show(&broker, id, output).await,
        DeadLettersAction::Redrive(many) => {
            let (broker, selected) = many.selected()?;
            router.redrive(&broker, selected).await
        }
        DeadLettersAction::Drop { many, yes } => {
            if many.all && !yes {
                confirm(&many.broker)?;
            }
            let (broker, selected) = many.selected()?;
            router.remove(&broker, selected).await
        }
    }
}

/// Client of the router.
struct RouterClient {
    admin: AdminClient,
}

impl RouterClient {
    async fn brokers(&self, output: DeadLettersOutput) -> anyhow::Result<()> {
        let BrokersWithDeadLetters { brokers } = self.get("").await?;
        let mut out = io::stdout().lock();
        match output {
            DeadLettersOutput::Json => {
                for broker in brokers {
                    writeln!(out, "{}", serde_json::to_string(&broker)?)?;
                }
            }
            DeadLettersOutput::Text if brokers.is_empty() => writeln!(out, "no dead letters")?,
            DeadLettersOutput::Text => {
                let rows = brokers.into_iter().map(|row| [row.broker, row.count.to_string()]);
                write!(out, "{}", table(["BROKER", "DEAD LETTERS"], rows.collect()))?;
            }
        }
        Ok(())
    }

    async fn list(
        &self,
        broker: &str,
        mut selected: Selected,
        output: DeadLettersOutput,
    ) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        loop {
            let DeadLetterList { items, next } = self.ask(broker, "list", &selected).await?;
            match output {
                DeadLettersOutput::Json => {
                    let mut out = io::stdout().lock();
                    for letter in items {
                        writeln!(out, "{}", serde_json::to_string(&letter)?)?;
                    }
                }
                DeadLettersOutput::Text => rows.extend(items.into_iter().map(row)),
            }
            match next {
                Some(next) => selected.from = next,
                None => break,
            }
        }
        if output == DeadLettersOutput::Text {
            let text = if rows.is_empty() {
                format!("broker {broker} has no matching dead letters\n")
            } else {
                let columns = [
                    "ID",
                    "TIME",
                    "TRIGGER",
                    "EVENT TYPE",
                    "EVENT ID",
                    "ATTEMPTS",
                    "STATUS",
                    "REASON",
                ];
                table(columns, rows)
            };
            write!(io::stdout().lock(), "{text}")?;
        }
        Ok(())
    }

    async fn show(&self, broker: &str, id: u64, output: DeadLettersOutput) -> anyhow::Result<()> {
        let full: FullLetter = self
            .get(&format!("/{}/letters/{id}", checked_broker(broker)?))
            .await?;
        let mut out = io::stdout().lock();
        if output == DeadLettersOutput::Json {
            writeln!(out, "{}", serde_json::to_string(&full)?)?;
            return Ok(());
        }
        let FullLetter { letter, event } = full;
        // The Sink controls this text and could embed terminal control sequences.
        let lines: Vec<_> = letter.detail.lines().map(clean_text).collect();
        let status = letter
            .status
            .map_or_else(|| "none".to_owned(), |status| status.to_string());
        for (name, value) in [
            ("ID", letter.id.to_string()),
            ("Time", letter.time.to_string()),
            (
                "Trigger",
                format!("{}/{}", letter.trigger.namespace, letter.trigger.name),
            ),
            ("Sink", letter.sink),
            ("Reason", letter.reason),
            ("Attempts", letter.attempts.to_string()),
            ("Status", status),
            ("Last answer", lines.join("\n")),
        ] {
            writeln!(
                out,
                "{:<13}{}",
                format!("{name}:"),
                value.replace('\n', "\n             ")
            )?;
        }
        writeln!(out, "\n{}", event.get())?;
        Ok(())
    }

    async fn redrive(&self, broker: &str, mut selected: Selected) -> anyhow::Result<()> {
        let (mut redriven, mut without_trigger) = (0, 0);
        let mut last_progress = Instant::now();
        let left = loop {
            let answer: RedriveAnswer = self.ask(broker, "redrive", &selected).await?;
            redriven += answer.redriven;
            without_trigger += answer.without_trigger;
            if answer.redriven > 0 {
                last_progress = Instant::now();
            }
            let Some(next) = answer.next else { break 0 };
            selected.from = next;
            if answer.without_room > 0 {
                if last_progress.elapsed() > NO_ROOM_PATIENCE {
                    break answer.without_room;
                }
                tokio::time::sleep(NO_ROOM_PAUSE).await;
            }
        };
        writeln!(io::stdout().lock(), "{redriven} redriven")?;
        if without_trigger > 0 {
            bail!(
                "{without_trigger} belong to Triggers that no longer exist: apply a Trigger with the same name, or \
                 drop them"
            );
        }
        if left > 0 {
            bail!(
                "at least {left} were not redriven: their Trigger has reached its limit of unsettled events; check \
                 that its Sink responds and redrive again"
            );
        }
        check_all_found(broker, &selected, redriven)
    }

    async fn remove(&self, broker: &str, mut selected: Selected) -> anyhow::Result<()> {
        let mut dropped = 0;
        loop {
            let answer: DropAnswer = self.ask(broker, "drop", &selected).await?;
            dropped += answer.dropped;
            match answer.next {
                Some(next) => selected.from = next,
                None => break,
            }
        }
        writeln!(io::stdout().lock(), "{dropped} dropped")?;
        check_all_found(broker, &selected, dropped)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.exchange(Method::GET, path, Bytes::new()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        broker: &str,
        verb: &str,
        selected: &Selected,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(selected)?;
        let path = format!("/{}/{verb}", checked_broker(broker)?);
        self.exchange(Method::POST, &path, body.into()).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let json = HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json)]);
        let path = format!("/v1/dead-letters{path}");
        self.admin.exchange(method, &path, headers, body).await
    }
}

fn row(letter: DeadLetterSummary) -> [String; 8] {
    [
        letter.id.to_string(),
        format!("{:.0}", letter.time),
        letter.trigger.name,
        letter.event_type,
        letter.event_id,
        letter.attempts.to_string(),
        letter
            .status
            .map_or_else(|| "-".to_owned(), |status| status.to_string()),
        letter.reason,
    ]
}

/// Formats columns like kubectl does.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let all: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        all.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_table_columns() {
        let rows = vec![
            ["1".to_owned(), "a longer one".to_owned()],
            ["1000".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            table(["ID", "NAME"], rows),
            "ID     NAME\n1      a longer one\n1000   x\n"
        );
    }

    #[test]
    fn selects_everything_only_with_the_all_flag() {
        let many = |all, ids: &[u64]| Many {
            broker: "shop/default".to_owned(),
            ids: ids.to_vec(),
            all,
            which: Which {
                trigger: None,
                filters: Vec::new(),
            },
        };
        assert!(many(false, &[]).selected().is_err());
        assert_eq!(many(true, &[]).selected().unwrap().1, Selected::default());
        let ids = many(false, &[2, 1]).selected().unwrap().1.ids;
        assert_eq!(ids, Some([Offset(1), Offset(2)].into()));
    }
}
