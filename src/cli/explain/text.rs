//! Explanations as human-readable text, with colour where supported.

use std::io::{self, Write};

use clap::builder::styling::{AnsiColor, Style};

use super::super::{display::harmless, validate::counted};
use crate::{
    filter::{ClauseOutcome, Explanation},
    router::api::{DeletedTrigger, DeliveryProgress, EventState, Explained, TriggerExplained},
    routing::{RouteExplanation, WaitReason},
    transform::{TransformExplanation, TransformedField},
};

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Writes the explanation for every Trigger of a broker.
pub fn write(out: &mut impl Write, explained: &Explained) -> io::Result<()> {
    let Explained {
        broker,
        event: _,
        found,
        triggers,
        deleted,
        unanswered,
    } = explained;
    writeln!(out, "\nBroker {broker}")?;
    if let Some(found) = found {
        writeln!(
            out,
            "  the event is in its log: accepted {:.0}, at offset {}",
            found.accepted, found.offset
        )?;
    }
    if triggers.is_empty() {
        writeln!(out, "  it has no Triggers, so the event is not delivered")?;
    }
    for trigger in triggers {
        let RouteExplanation {
            namespace,
            name,
            matches,
            held,
            ..
        } = &trigger.route;
        let (style, verdict) = match matches {
            true => (GOOD.bold(), "matches"),
            false => (BAD.bold(), "does not match"),
        };
        writeln!(
            out,
            "\n  {BOLD}Trigger {namespace}/{name}{BOLD:#} {style}{verdict}{style:#}"
        )?;
        write_reasons(out, &trigger.route, 2)?;
        if *held == Some(WaitReason::FilterTooExpensive) {
            writeln!(
                out,
                "    {BOLD}delivery:{BOLD:#} its filters exceeded the step limit too often and are no longer \
                 evaluated: events wait until its spec changes"
            )?;
        }
        if let Some(transform) = &trigger.route.transform {
            write_transform(out, transform, 2)?;
        }
        if *matches {
            write_delivery(out, broker, found.is_some(), trigger)?;
        }
    }
    for deleted in deleted {
        write_deleted(out, deleted)?;
    }
    for router in unanswered {
        writeln!(
            out,
            "\n  {BAD}no answer{BAD:#} from router {router}:\n    what it knows of its partitions of the broker is missing"
        )?;
    }
    Ok(())
}

/// Writes a deleted Trigger and what is kept for a new one with its name.
fn write_deleted(out: &mut impl Write, deleted: &DeletedTrigger) -> io::Result<()> {
    let DeletedTrigger {
        namespace,
        name,
        pending,
        not_looked_at,
        seconds_left,
    } = deleted;
    writeln!(
        out,
        "\n  {BOLD}Trigger {namespace}/{name}{BOLD:#} {DIM}was deleted{DIM:#}"
    )?;
    let (pending, minutes) = (counted_events(*pending), seconds_left.div_ceil(60));
    writeln!(
        out,
        "    {pending} pending and {} not yet read are kept for another {minutes} min,\n    \
         for a Trigger with its name",
        counted_events(*not_looked_at)
    )
}

fn counted_events(events: u64) -> String {
    counted(usize::try_from(events).unwrap_or(usize::MAX), "event")
}

/// Writes why a Trigger matches the event or not, one clause per line, indented by `level` steps.
pub fn write_reasons(out: &mut impl Write, trigger: &RouteExplanation, level: usize) -> io::Result<()> {
    let indent = "  ".repeat(level);
    let RouteExplanation {
        matches,
        filters,
        invalid,
        ..
    } = trigger;
    if let Some(invalid) = invalid {
        return writeln!(
            out,
            "{indent}its filters or its transform do not compile, so events wait until they are fixed: {invalid}"
        );
    }
    if filters.is_empty() {
        return writeln!(out, "{indent}it has no filters, so it matches every event");
    }
    // If all filters match, or there is only one line, no clause needs to be pointed out.
    let pointed = !matches && filters.iter().map(lines).sum::<usize>() > 1;
    for filter in filters {
        write_clause(out, filter, level, pointed && !filter.holds())?;
    }
    Ok(())
}

/// `decides` marks the clause as the reason why the event does not match.
fn write_clause(
    out: &mut impl Write,
    explanation: &Explanation,
    level: usize,
    decides: bool,
) -> io::Result<()> {
    let indent = "  ".repeat(level);
    let (style, outcome) = match explanation.outcome {
        ClauseOutcome::Holds => (GOOD, "yes"),
        ClauseOutcome::Fails => (BAD, "no "),
        ClauseOutcome::NotReached => (DIM, "-  "),
    };
    write!(
        out,
        "{indent}{style}{outcome}{style:#}  {explanation}{}",
        remark(explanation)
    )?;
    if decides && explanation.clauses.is_empty() {
        write!(out, "   {BOLD}<-- because of this{BOLD:#}")?;
    }
    writeln!(out)?;
    for clause in &explanation.clauses {
        let decides = decides && is_decisive(explanation, clause);
        write_clause(out, clause, level + 2, decides)?;
    }
    Ok(())
}

/// A remark that the clause's own line does not convey.
fn remark(explanation: &Explanation) -> &'static str {
    if explanation.outcome == ClauseOutcome::NotReached {
        return ": not evaluated, the result was already decided";
    }
    if explanation.clauses.is_empty() {
        return "";
    }
    match &*explanation.clause {
        "not" => " this:",
        "any" => " of these:",
        "all" | "exact" | "prefix" | "suffix" => ", each of these:",
        _ => ":",
    }
}

/// Whether a clause determined the result of its parent: its result equals the parent's, or no clause's does, as in
/// `not`.
fn is_decisive(around: &Explanation, clause: &Explanation) -> bool {
    let alike = around
        .clauses
        .iter()
        .any(|clause| clause.outcome == around.outcome);
    match alike {
        true => clause.outcome == around.outcome,
        false => clause.outcome != ClauseOutcome::NotReached,
    }
}

fn lines(explanation: &Explanation) -> usize {
    1 + explanation.clauses.iter().map(lines).sum::<usize>()
}

/// Writes what a transform makes of the event, one field per line, indented by `level` steps.
pub fn write_transform(
    out: &mut impl Write,
    transform: &TransformExplanation,
    level: usize,
) -> io::Result<()> {
    let indent = "  ".repeat(level);
    let TransformExplanation {
        fields,
        event: _,
        error,
    } = transform;
    writeln!(out, "{indent}{BOLD}sent with these changes:{BOLD:#}")?;
    for TransformedField { path, value, error } in fields {
        match (value, error) {
            (_, Some(error)) => writeln!(out, "{indent}    {BAD}{path}{BAD:#}: {error}")?,
            (Some(value), None) => writeln!(out, "{indent}    {path} = {}", harmless(value))?,
            (None, None) => writeln!(out, "{indent}    {path}: removed")?,
        }
    }
    match error {
        Some(error) => writeln!(
            out,
            "{indent}{BAD}it cannot be sent like this, and becomes a dead letter:{BAD:#} {error}"
        ),
        None => Ok(()),
    }
}

/// Writes the state of delivery of an event that a Trigger matches.
fn write_delivery(
    out: &mut impl Write,
    broker: &str,
    is_in_log: bool,
    trigger: &TriggerExplained,
) -> io::Result<()> {
    let mut tell = |text: String| writeln!(out, "    {BOLD}delivery:{BOLD:#} {text}");
    match trigger.route.held {
        Some(WaitReason::Suspended) => tell("the Trigger is suspended: its events wait".to_owned())?,
        Some(WaitReason::NoDestination) => {
            tell("the Trigger's sink cannot be resolved: its events wait".to_owned())?
        }
        // Reported for Triggers that do not match, too.
        Some(WaitReason::FilterTooExpensive) | None => {}
    }
    let Some(progress) = &trigger.progress else {
        if is_in_log {
            tell("the router does not deliver for this Trigger yet".to_owned())?;
        }
        return Ok(());
    };
    let DeliveryProgress {
        state,
        next,
        low: _,
        pending,
        sink_unproven,
        outage,
        dead_letter,
    } = progress;
    let pending = usize::try_from(*pending).unwrap_or(usize::MAX);
    if let Some(outage) = outage {
        tell(format!(
            "the Sink has been down since {:.0}: {}",
            outage.since,
            harmless(&outage.detail)
        ))?;
    } else if *sink_unproven {
        tell("the Sink has not responded since the router started or the Sink was changed".to_owned())?;
    }
    if let Some(letter) = dead_letter {
        return tell(format!(
            "the event became dead letter {id} ({}: {}); weir dead-letters show {broker} {id}",
            letter.reason,
            harmless(&letter.detail),
            id = letter.id
        ));
    }
    match state {
        EventState::Ahead => tell(format!(
            "not yet read: the Trigger is at offset {next}, with {} pending before it",
            counted(pending, "event")
        )),
        EventState::Pending => tell("the event is waiting for delivery or for a retry".to_owned()),
        EventState::PendingOrSettled => tell(format!(
            "the event is one of {pending} pending events, or already settled"
        )),
        EventState::Settled => tell(
            "settled: delivered or expired, unless the Trigger or its filters are newer than the event"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        routing::{Configuration, Delivery, RoutingTable},
    };

    fn reasons(filters: serde_json::Value) -> String {
        let trigger = serde_json::from_value(json!({
            "uid": "t", "namespace": "shop", "name": "t", "generation": 1, "broker": "default", "filters": filters,
            "destination": null, "delivery": Delivery::default(), "start": "Latest", "suspend": false,
        }));
        let table = RoutingTable::compile(Configuration {
            triggers: vec![trigger.unwrap()],
            ..Configuration::default()
        });
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "order")
            .attribute("priority", 7)
            .build()
            .unwrap();
        let explained = crate::routing::explain(&table, "shop/default", &event);
        let mut out = Vec::new();
        write_reasons(&mut out, &explained[0], 0).unwrap();
        let text = String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap();
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn writes_each_field_of_a_transform() {
        let transform = |data: serde_json::Value| {
            let trigger = serde_json::from_value(json!({
                "uid": "t", "namespace": "shop", "name": "t", "generation": 1, "broker": "default", "filters": [],
                "transform": {"set": {"type": "${event.type}.v2"}, "remove": ["priority"], "data": data},
                "destination": null, "delivery": Delivery::default(), "start": "Latest", "suspend": false,
            }));
            let table = RoutingTable::compile(Configuration {
                triggers: vec![trigger.unwrap()],
                ..Configuration::default()
            });
            let event = EventBuilder::new()
                .attribute("id", "1")
                .attribute("source", "/s")
                .attribute("type", "order");
            let explained = crate::routing::explain(&table, "shop/default", &event.build().unwrap());
            let mut out = Vec::new();
            write_transform(&mut out, explained[0].transform.as_ref().unwrap(), 0).unwrap();
            String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap()
        };
        assert_eq!(
            transform(json!({"from": "${event.source}"})),
            "sent with these changes:\n    attributes.set.type = \"order.v2\"\n    attributes.remove.priority: removed\n    \
             data.from = \"/s\"\n"
        );
        let failed = transform(json!("${data.x}"));
        assert!(
            failed.ends_with(
                "    data: there is no data in the event\nit cannot be sent like this, and becomes a dead letter: \
                 spec.transform.data: there is no data in the event\n"
            ),
            "{failed}"
        );
    }

    #[test]
    fn writes_one_clause_per_line_and_marks_the_decisive_ones() {
        for (filters, expected) in [
            (json!([]), "it has no filters, so it matches every event"),
            (
                json!([{"exact": {"type": "order"}}]),
                "yes  exact type = \"order\": the event has \"order\"",
            ),
            (
                json!([{"exact": {"type": "other"}}]),
                "no   exact type = \"other\": the event has \"order\"",
            ),
            (
                json!([{"exact": {"type": "order", "source": "/x"}}, {"not": {"prefix": {"type": "or"}}}, {"exact": {"x": "y"}}]),
                "no   exact, each of these:\n    \
                     no   exact source = \"/x\": the event has \"/s\"   <-- because of this\n    \
                     yes  exact type = \"order\": the event has \"order\"\n\
                 no   not this:\n    \
                     yes  prefix type = \"or\": the event has \"order\"   <-- because of this\n\
                 no   exact x = \"y\": the event has no x   <-- because of this",
            ),
            (
                json!([{"any": [{"exact": {"type": "order"}}, {"exact": {"type": "other"}}]}, {"suffix": {"source": "/x"}}]),
                "yes  any of these:\n    \
                     yes  exact type = \"order\": the event has \"order\"\n    \
                     no   exact type = \"other\": the event has \"order\"\n\
                 no   suffix source = \"/x\": the event has \"/s\"   <-- because of this",
            ),
            (
                json!([{"sql": "priority > 7 AND type = 'order'"}]),
                "no   sql priority > 7 AND type = 'order':\n    \
                     no   priority > 7: the event has \"7\"   <-- because of this\n    \
                     -    type = 'order': not evaluated, the result was already decided",
            ),
            (
                json!([{"sql": "any OR type = 'x'"}]),
                "no   sql any OR type = 'x':\n    \
                     no   any: the event has no attribute any   <-- because of this\n    \
                     -    type = 'x': not evaluated, the result was already decided",
            ),
            (
                json!([{"exact": {}}]),
                "its filters or its transform do not compile, so events wait until they are fixed: filters[0].exact: has no attribute: \
                 at least one is required",
            ),
        ] {
            assert_eq!(reasons(filters.clone()), expected, "{filters}");
        }
    }
}
