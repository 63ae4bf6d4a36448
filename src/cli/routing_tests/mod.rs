//! `weir test`: tests routing with a table of events and the Triggers that they should match.

mod objects;
mod suite;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::bail;
use clap::builder::styling::{AnsiColor, Style};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Usage,
    explain::text::write_reasons,
    manifests::{ManifestProblem, Position},
    validate::{Checked, CheckedSource, ValidateOutput, check, counted, write_problem},
};
use crate::{
    cloudevents::Event,
    routing::{self, RouteExplanation, RoutingTable, SourceKind, broker_key, explain},
    source::webhook::{Received, WebhookReceiver, WebhookRejection},
};
use objects::{ToldChange, UntoldChange};
use suite::{Case, ChangeCase, ExpectedEvents, RecordedRequest, RequestCase, SentEvent, Suite, TestCase};

/// Arguments of `weir test`.
#[derive(Debug, clap::Args)]
#[command(after_help = "A file of tests:\n\n  \
    manifests: [triggers/]        # files and directories, relative to this file; default: its own directory\n  \
    namespace: shop               # of the events below; default: default\n  \
    tests:\n  \
    - name: an order goes to billing and stock\n    \
      event: {type: com.example.order, source: /shop}   # in the JSON format; id and specversion are optional\n    \
      triggers: [billing, stock]  # exactly these match\n    \
      sends:                      # optional: what some of them send, after their transforms\n      \
        billing: {type: com.example.invoice, data: {id: o-1}, secretext: null}   # null: the event does not have it\n  \
    - name: a test matches no Trigger\n    \
      broker: other               # default: default; namespace may be set here as well\n    \
      event: {type: com.example.order, source: /test}\n    \
      triggers: []\n  \
    - name: a request becomes an event\n    \
      source: github              # a Source of kind webhook\n    \
      request:                    # as recorded; a body that is a mapping is sent as JSON\n      \
        headers: {x-github-event: issues, x-hub-signature-256: sha256=...}\n      \
        body: '{\"action\": \"opened\"}'\n      \
        received: 2026-11-24T08:00:00Z   # for signatures with a time; default: now\n    \
      result: accepted            # or filtered, challenge, or the reason of a rejection; default: accepted\n    \
      makes: {type: com.github.issues.opened, subject: null}\n  \
    - name: a change of an object becomes an event\n    \
      source: scaling             # a Source of kind kubernetes\n    \
      change: updated             # or deleted; default: added\n    \
      object: {apiVersion: apps/v1, kind: Deployment, metadata: {...}}      # as kubectl get -o yaml prints it\n    \
      oldObject: {apiVersion: apps/v1, kind: Deployment, metadata: {...}}   # the version before; default: not known\n    \
      result: accepted            # or filtered, not_watched, or the reason in status.lastRejection; default: accepted\n    \
      makes: {type: com.example.deployment.updated}\n\n\
    Name it like routing.test.yaml to keep it next to the manifests.\n\
    Exit codes: 0 all tests passed, 1 a test failed or a file has errors, 2 invalid command line or unreadable file.")]
pub struct TestArgs {
    /// Files with tests.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Output format.
    #[arg(short, long, default_value = "text", value_enum, value_name = "FORMAT")]
    pub output: ValidateOutput,
}

/// Result of a test.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TestResult<'a> {
    file: String,
    line: u64,
    column: u64,
    name: &'a str,
    /// `None` for what a Source makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<String>,
    passed: bool,
    /// Differences from the expectation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Difference<'a>>,
}

impl<'a> TestResult<'a> {
    fn new(
        file: &Path,
        Position { line, column }: Position,
        name: &'a str,
        broker: Option<String>,
        differences: Vec<Difference<'a>>,
    ) -> Self {
        Self {
            file: file.display().to_string(),
            line,
            column,
            name,
            broker,
            passed: differences.is_empty(),
            differences,
        }
    }
}

/// A difference between the expectation and the result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
enum Difference<'a> {
    /// The broker does not exist.
    UnknownBroker,
    /// The broker has no such Trigger.
    UnknownTrigger { trigger: &'a str, known: Vec<String> },
    /// A Trigger should match but does not.
    Missing { trigger: RouteExplanation },
    /// A Trigger should not match but does.
    Unexpected { trigger: RouteExplanation },
    /// A Trigger cannot transform the event.
    NotTransformed { trigger: &'a str, error: String },
    /// A Trigger sends something else. `None` for a member that the event does not have.
    Sends {
        trigger: &'a str,
        member: &'a str,
        expected: Option<&'a Value>,
        sent: Option<Value>,
    },
    /// There is no such webhook.
    UnknownSource { source: String },
    /// There is no such Source of kind kubernetes.
    UnknownKubernetesSource { source: String },
    /// The Source cannot be run.
    InvalidSource { source: String, error: String },
    /// The request, or the change, has another result.
    Result {
        expected: &'a str,
        result: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// The Source makes another event. `None` for a member that the event does not have.
    Makes {
        member: &'a str,
        expected: Option<&'a Value>,
        made: Option<Value>,
    },
    /// The Source makes another number of events.
    MakesCount { expected: usize, made: usize },
}

/// Number of tests, of failed tests, and of errors in files.
#[derive(Default)]
struct Sum {
    tests: usize,
    failed: usize,
    errors: usize,
}

/// Runs every test and prints the results.
///
/// # Errors
/// If a test fails, or a file has errors.
pub fn run(args: TestArgs) -> anyhow::Result<()> {
    let TestArgs { files, output } = args;
    let mut out = anstream::stdout().lock();
    let mut sum = Sum::default();
    for file in &files {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Usage(format!("cannot read {}: {error}", file.display())))?;
        run_file(&mut out, file, &text, output, &mut sum)?;
    }
    let Sum {
        tests,
        failed,
        errors,
    } = sum;
    match (failed, errors) {
        (0, 0) => {
            if output == ValidateOutput::Text {
                writeln!(out, "{} passed", counted(tests, "test"))?;
            }
            Ok(())
        }
        (failed, 0) => bail!("{failed} of {} failed", counted(tests, "test")),
        (failed, errors) => bail!(
            "{failed} of {} failed, {} in files",
            counted(tests, "test"),
            counted(errors, "error")
        ),
    }
}

fn run_file(
    out: &mut impl Write,
    file: &Path,
    text: &str,
    output: ValidateOutput,
    sum: &mut Sum,
) -> anyhow::Result<()> {
    let (suite, mut problems) = suite::read(file, text);
    let mut results = Vec::new();
    if let Some(Suite {
        manifests,
        position,
        cases,
    }) = &suite
    {
        match check(manifests.clone(), false, false) {
            Ok(Checked {
                configuration,
                sources: checked,
                errors,
                ..
            }) => {
                problems.extend(errors);
                let sources = configuration.sources.clone();
                let table = RoutingTable::compile(configuration);
                results.extend(cases.iter().map(|case| match case {
                    TestCase::Event(case) => judge(file, &table, case),
                    TestCase::Request(case) => judge_request(file, &sources, case),
                    TestCase::Change(case) => judge_change(file, &checked, case),
                }));
            }
            Err(error) => problems.push(ManifestProblem {
                file: file.to_owned(),
                position: *position,
                message: format!("manifests: {error}"),
            }),
        }
    }
    for problem in &problems {
        write_problem(out, problem, "error", output)?;
    }
    for result in &results {
        match output {
            ValidateOutput::Text => write_result(out, result)?,
            ValidateOutput::Json => writeln!(out, "{}", serde_json::to_string(result)?)?,
        }
    }
    sum.tests += results.len();
    sum.failed += results.iter().filter(|result| !result.passed).count();
    sum.errors += problems.len();
    Ok(())
}

fn judge<'a>(file: &Path, table: &RoutingTable, case: &'a Case) -> TestResult<'a> {
    let Case {
        position,
        name,
        namespace,
        broker,
        event,
        triggers,
        sends,
    } = case;
    let key = broker_key(namespace, broker);
    let explained = explain(table, &key, event);
    let known: Vec<_> = explained.iter().map(|trigger| trigger.name.clone()).collect();
    let mut differences = Vec::new();
    if table.has_broker(namespace, broker) {
        let unknown = triggers.iter().filter(|name| !known.contains(name));
        differences.extend(unknown.map(|trigger| Difference::UnknownTrigger {
            trigger,
            known: known.clone(),
        }));
    } else {
        differences.push(Difference::UnknownBroker);
    }
    for SentEvent { trigger, members } in sends {
        let matching = explained
            .iter()
            .find(|explained| explained.name == *trigger && explained.matches);
        // One that does not match is a difference of its own.
        let Some(explained) = matching else { continue };
        match sent(event, explained) {
            Ok(sent) => differences.extend(compare(trigger, members, &sent)),
            Err(error) => differences.push(Difference::NotTransformed { trigger, error }),
        }
    }
    for trigger in explained {
        match (triggers.contains(&trigger.name), trigger.matches) {
            (true, false) => differences.push(Difference::Missing { trigger }),
            (false, true) => differences.push(Difference::Unexpected { trigger }),
            (true, true) | (false, false) => {}
        }
    }
    TestResult::new(file, *position, name, Some(key), differences)
}

fn judge_request<'a>(file: &Path, sources: &[routing::Source], case: &'a RequestCase) -> TestResult<'a> {
    let differences = request_differences(sources, case);
    TestResult::new(file, case.position, &case.name, None, differences)
}

fn request_differences<'a>(sources: &[routing::Source], case: &'a RequestCase) -> Vec<Difference<'a>> {
    let RequestCase {
        namespace,
        source,
        request,
        expected,
        position: _,
        name: _,
    } = case;
    let key = format!("{namespace}/{source}");
    let found = sources
        .iter()
        .find(|found| found.namespace == *namespace && found.name == *source);
    let Some((SourceKind::Webhook(webhook), filters)) = found.map(|found| (&found.kind, &found.filters))
    else {
        return vec![Difference::UnknownSource { source: key }];
    };
    let receiver = match WebhookReceiver::compile(webhook, filters) {
        Ok(receiver) => receiver,
        Err(error) => {
            let error = error.to_string();
            return vec![Difference::InvalidSource { source: key, error }];
        }
    };
    let (outcome, error, events) = match received(&receiver, request) {
        Ok((outcome, events)) => (outcome, None, events),
        Err(rejection) => (rejection.label(), Some(rejection.to_string()), Vec::new()),
    };
    made_differences(expected, outcome, error, &events)
}

fn judge_change<'a>(file: &Path, sources: &[CheckedSource], case: &'a ChangeCase) -> TestResult<'a> {
    let source = format!("{}/{}", case.namespace, case.source);
    let differences = match objects::told(sources, case) {
        Ok(ToldChange { result, error, event }) => {
            made_differences(&case.expected, result, error, event.as_slice())
        }
        Err(UntoldChange::UnknownSource) => vec![Difference::UnknownKubernetesSource { source }],
        Err(UntoldChange::InvalidSource(error)) => vec![Difference::InvalidSource { source, error }],
    };
    TestResult::new(file, case.position, &case.name, None, differences)
}

/// Compares what a Source makes with what it should.
fn made_differences<'a>(
    expected: &'a ExpectedEvents,
    outcome: &'static str,
    error: Option<String>,
    events: &[Event],
) -> Vec<Difference<'a>> {
    let ExpectedEvents { result, makes } = expected;
    if outcome != result {
        return vec![Difference::Result {
            expected: result,
            result: outcome,
            error,
        }];
    }
    if !makes.is_empty() && makes.len() != events.len() {
        let (expected, made) = (makes.len(), events.len());
        return vec![Difference::MakesCount { expected, made }];
    }
    let mut differences = Vec::new();
    for (makes, event) in makes.iter().zip(events) {
        let made: Map<String, Value> = serde_json::from_slice(&event.to_json()).unwrap_or_default();
        let differing = differing(makes, &made);
        differences.extend(differing.map(|(member, expected)| Difference::Makes {
            member,
            expected,
            made: made.get(member).cloned(),
        }));
    }
    differences
}

/// What a webhook answers, as in its metric, and the events that it stores.
fn received(
    receiver: &WebhookReceiver,
    request: &RecordedRequest,
) -> Result<(&'static str, Vec<Event>), WebhookRejection> {
    let RecordedRequest {
        uri,
        headers,
        body,
        received,
    } = request;
    let now = received.unwrap_or_else(Timestamp::now);
    receiver.check_head(uri, headers)?;
    match receiver.receive(uri, headers, body, now, || "1".to_owned())? {
        Received::Event(event) => Ok(("accepted", vec![*event])),
        Received::Filtered => Ok(("filtered", Vec::new())),
        Received::Challenge(_) => Ok(("challenge", Vec::new())),
        Received::Events(events) => {
            let count = events.len();
            let request = receiver.request(uri, headers, now);
            let made = events.filter_map(|event| {
                let selected = event.map_err(WebhookRejection::from);
                selected
                    .and_then(|event| receiver.select(&request, event))
                    .transpose()
            });
            let made = made.collect::<Result<Vec<_>, _>>()?;
            match made.is_empty() && count > 0 {
                true => Ok(("filtered", made)),
                false => Ok(("accepted", made)),
            }
        }
    }
}

/// Returns the event that a Trigger sends, in the JSON format, or why it cannot.
fn sent(event: &Event, explained: &RouteExplanation) -> Result<Map<String, Value>, String> {
    let sent = match &explained.transform {
        Some(transform) => match (&transform.event, &transform.error) {
            (_, Some(error)) => return Err(error.clone()),
            (event, None) => event.clone(),
        },
        None => serde_json::from_slice(&event.to_json()).ok(),
    };
    match sent {
        Some(Value::Object(members)) => Ok(members),
        _ => Err("the event is nested too deeply to be compared".to_owned()),
    }
}

fn compare<'a>(
    trigger: &'a str,
    members: &'a [(String, Option<Value>)],
    sent: &Map<String, Value>,
) -> Vec<Difference<'a>> {
    differing(members, sent)
        .map(|(member, expected)| Difference::Sends {
            trigger,
            member,
            expected,
            sent: sent.get(member).cloned(),
        })
        .collect()
}

/// The members that an event has otherwise than expected.
fn differing<'a>(
    members: &'a [(String, Option<Value>)],
    event: &Map<String, Value>,
) -> impl Iterator<Item = (&'a str, Option<&'a Value>)> {
    let members = members.iter();
    members
        .map(|(member, expected)| (&**member, expected.as_ref()))
        .filter(|(member, expected)| event.get(*member) != *expected)
}

fn write_result(out: &mut impl Write, result: &TestResult<'_>) -> io::Result<()> {
    let TestResult {
        file,
        line,
        column,
        name,
        broker,
        passed,
        differences,
    } = result;
    let (style, word) = match passed {
        true => (AnsiColor::Green.on_default(), "ok"),
        false => (AnsiColor::Red.on_default().bold(), "FAILED"),
    };
    writeln!(out, "{file}:{line}:{column}: {style}{word}{style:#}: {name}")?;
    let bold = Style::new().bold();
    let broker = broker.as_deref().unwrap_or_default();
    for difference in differences {
        match difference {
            Difference::UnknownBroker => writeln!(
                out,
                "  broker {broker} does not exist, so events for it are rejected; it exists once a Trigger or a \
                 Source references it"
            )?,
            Difference::UnknownTrigger { trigger, known } => {
                let known = match known.as_slice() {
                    [] => "it has none".to_owned(),
                    known => format!("it has {}", known.join(", ")),
                };
                writeln!(
                    out,
                    "  broker {broker} has no Trigger {bold}{trigger}{bold:#}; {known}"
                )?;
            }
            Difference::Missing { trigger } => {
                writeln!(
                    out,
                    "  Trigger {bold}{}{bold:#} should match, and does not:",
                    trigger.name
                )?;
                write_reasons(out, trigger, 2)?;
            }
            Difference::Unexpected { trigger } => {
                writeln!(
                    out,
                    "  Trigger {bold}{}{bold:#} should not match, and does:",
                    trigger.name
                )?;
                write_reasons(out, trigger, 2)?;
            }
            Difference::NotTransformed { trigger, error } => writeln!(
                out,
                "  Trigger {bold}{trigger}{bold:#} cannot transform the event: {error}"
            )?,
            Difference::Sends {
                trigger,
                member,
                expected,
                sent,
            } => {
                writeln!(
                    out,
                    "  Trigger {bold}{trigger}{bold:#} should send {member} = {}, and sends {}",
                    shown(*expected),
                    shown(sent.as_ref())
                )?;
            }
            Difference::UnknownSource { source } => writeln!(
                out,
                "  there is no webhook {bold}{source}{bold:#}: the manifests must have its Source, not suspended, and its Secrets"
            )?,
            Difference::UnknownKubernetesSource { source } => writeln!(
                out,
                "  there is no Source {bold}{source}{bold:#} of kind kubernetes: the manifests must have it"
            )?,
            Difference::InvalidSource { source, error } => {
                writeln!(out, "  Source {bold}{source}{bold:#}: {error}")?;
            }
            Difference::Result {
                expected,
                result,
                error,
            } => {
                let error = error.as_ref().map_or(String::new(), |error| format!(": {error}"));
                writeln!(out, "  the result should be {expected}, and is {result}{error}")?;
            }
            Difference::Makes {
                member,
                expected,
                made,
            } => writeln!(
                out,
                "  the event should have {member} = {}, and has {}",
                shown(*expected),
                shown(made.as_ref())
            )?,
            Difference::MakesCount { expected, made } => {
                writeln!(out, "  it should make {expected} events, and makes {made}")?;
            }
        }
    }
    Ok(())
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("nothing".to_owned(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(name: &str, filters: &str) -> String {
        format!(
            "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             sink: {{service: {{name: s}}}}\n  filters: {filters}\n"
        )
    }

    /// Returns the output of tests of `all`, `orders` (exact type order) and `broken`, and the totals.
    fn ran(manifests: &str, tests: &str) -> (String, [usize; 3]) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("triggers.yaml"), manifests).unwrap();
        let (mut out, mut sum) = (Vec::new(), Sum::default());
        let file = directory.path().join("x.test.yaml");
        run_file(&mut out, &file, tests, ValidateOutput::Text, &mut sum).unwrap();
        let plain = anstream::adapter::strip_bytes(&out).into_vec();
        let text = String::from_utf8(plain).unwrap();
        let prefix = format!("{}/", directory.path().display());
        (text.replace(&prefix, ""), [sum.tests, sum.failed, sum.errors])
    }

    #[test]
    fn recorded_deliveries_of_cloud_events_become_events() {
        let manifests = "apiVersion: v1\nkind: Secret\nmetadata: {name: hooks, namespace: shop}\nstringData: {key: s3cret}\n---\n\
             apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: grid, namespace: shop}\nspec:\n  webhook:\n    \
             verification: {cloudEvents: {allowedOrigins: ['*'], secrets: [{secretKeyRef: {name: hooks, key: key}}]}}\n  \
             filters: [{not: {exact: {type: noise}}}]\n";
        let case = |query: &str, types: &[&str], more: &str| {
            let events: Vec<_> = types
                .iter()
                .map(|kind| format!("{{specversion: '1.0', id: '1', source: /s, type: {kind}}}"))
                .collect();
            format!(
                "namespace: shop\ntests:\n- name: a test\n  source: grid\n  request:\n    headers: {{content-type: \
                 application/cloudevents-batch+json}}\n    query: {query}\n    body: [{}]\n{more}",
                events.join(", ")
            )
        };
        let (known, failed) = ("access_token=s3cret", "x.test.yaml:3:3: FAILED: a test\n");
        let passed = "x.test.yaml:3:3: ok: a test\n";
        for (tests, expected) in [
            (
                case(
                    known,
                    &["a", "noise", "b"],
                    "  makes: [{type: a, id: '1'}, {type: b}]\n",
                ),
                passed.to_owned(),
            ),
            (case(known, &["a"], "  makes: {type: a}\n"), passed.to_owned()),
            (case(known, &["noise"], "  result: filtered\n"), passed.to_owned()),
            (
                case(known, &["a", "b"], "  makes: {type: a}\n"),
                format!("{failed}  it should make 1 events, and makes 2\n"),
            ),
            (
                case("access_token=guess", &["a"], "  result: invalid_signature\n"),
                passed.to_owned(),
            ),
        ] {
            assert_eq!(ran(manifests, &tests).0, expected, "{tests}");
        }
    }

    #[test]
    fn recorded_requests_become_events() {
        let manifests = "apiVersion: v1\nkind: Secret\nmetadata: {name: hooks, namespace: shop}\nstringData: {key: s3cret}\n---\n\
             apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: hook, namespace: shop}\nspec:\n  webhook:\n    \
             verification: {slack: {secrets: [{secretKeyRef: {name: hooks, key: key}}]}}\n    \
             event: {attributes: {subject: '${body.event.user}'}}\n  filters: [{prefix: {type: com.slack.}}, \
             {cel: 'event.subject != \"U0\" || data.team == \"T\"'}]\n";
        let body =
            r#"{"type": "event_callback", "event_id": "Ev1", "event": {"type": "message", "user": "U1"}}"#;
        let without_user = body.replace("user", "nobody");
        let without_team = body.replace("U1", "U0");
        // HMAC-SHA256 of `v0:1764000000:BODY`.
        let sign = |body: &str| {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"s3cret");
            let tag = ring::hmac::sign(&key, format!("v0:1764000000:{body}").as_bytes());
            let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("v0={digits}")
        };
        let case = |body: &str, received: &str, more: &str| {
            let signature = sign(body);
            format!(
                "namespace: shop\ntests:\n- name: a test\n  source: hook\n  request:\n    headers: {{x-slack-signature: \
                 {signature}, x-slack-request-timestamp: '1764000000', content-type: application/json}}\n    \
                 body: '{body}'\n    received: {received}\n{more}"
            )
        };
        let (passed, failed) = (
            "x.test.yaml:3:3: ok: a test\n",
            "x.test.yaml:3:3: FAILED: a test\n",
        );
        let on_time = "2025-11-24T16:02:00Z";
        for (tests, expected) in [
            (
                case(
                    body,
                    on_time,
                    "  makes: {type: com.slack.message, id: Ev1, subject: U1, team: null}\n",
                ),
                passed.to_owned(),
            ),
            (
                case(body, on_time, "  makes: {subject: U2, source: null}\n"),
                format!(
                    "{failed}  the event should have subject = \"U2\", and has \"U1\"\n  the event should have source = \
                     nothing, and has \"/apis/weir.dev/v1alpha1/namespaces/shop/sources/hook\"\n"
                ),
            ),
            (
                case(body, "2025-11-24T17:00:00Z", "  result: stale_signature\n"),
                passed.to_owned(),
            ),
            (
                case(&without_user, on_time, "  result: mapping_failed\n"),
                passed.to_owned(),
            ),
            (
                case(&without_user, on_time, ""),
                format!(
                    "{failed}  the result should be accepted, and is mapping_failed: \
                     spec.webhook.event.attributes.subject: there is no user\n"
                ),
            ),
            (
                case(&without_team, on_time, ""),
                format!(
                    "{failed}  the result should be accepted, and is filter_failed: spec.filters: cel: there is no team\n"
                ),
            ),
            (
                case(body, on_time, "").replace("source: hook", "source: other"),
                format!(
                    "{failed}  there is no webhook shop/other: the manifests must have its Source, not suspended, and its \
                     Secrets\n"
                ),
            ),
        ] {
            let is_passed = expected == passed;
            assert_eq!(
                ran(manifests, &tests),
                (expected, [1, usize::from(!is_passed), 0]),
                "{tests}"
            );
        }
    }

    #[test]
    fn changes_of_recorded_objects_become_events() {
        let manifests = "apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: scaling, namespace: shop}\nspec:\n  \
             kubernetes:\n    serviceAccountName: viewer\n    resources: [{apiVersion: apps/v1, kind: Deployment}]\n    \
             events: [Added, Updated]\n    event:\n      attributes: {type: 'scaled.${change}', team: \
             '${object.metadata.labels.team}'}\n      data: {before: '${oldObject == null ? 0 : oldObject.spec.replicas}'}\n  \
             filters: [{cel: 'data.before < 5'}]\n";
        let object = |replicas: u32, more: &str| {
            format!(
                "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web, namespace: shop, uid: 5f0a, resourceVersion: '7', \
                 {more}}}, spec: {{replicas: {replicas}}}}}"
            )
        };
        let case = |object: String, more: &str| {
            format!("namespace: shop\ntests:\n- name: a test\n  source: scaling\n  object: {object}\n{more}")
        };
        let (passed, failed) = (
            "x.test.yaml:3:3: ok: a test\n",
            "x.test.yaml:3:3: FAILED: a test\n",
        );
        let labels = "labels: {team: blue}";
        let old = |replicas: u32| format!("  change: updated\n  oldObject: {}\n", object(replicas, labels));
        for (tests, expected) in [
            (
                case(
                    object(2, labels),
                    "  makes: {type: scaled.added, team: blue, data: {before: 0}, id: 1.5f0a.7, source: \
                     /apis/apps/v1/namespaces/shop/deployments, subject: /apis/apps/v1/namespaces/shop/deployments/web}\n",
                ),
                passed.to_owned(),
            ),
            (
                case(
                    object(2, labels),
                    &format!("{}  makes: {{data: {{before: 4}}}}\n", old(4)),
                ),
                passed.to_owned(),
            ),
            (
                case(object(2, labels), &format!("{}  result: filtered\n", old(6))),
                passed.to_owned(),
            ),
            (
                case(object(2, labels), "  change: deleted\n  result: filtered\n"),
                passed.to_owned(),
            ),
            (
                case(object(2, labels), "  makes: {team: red}\n"),
                format!("{failed}  the event should have team = \"red\", and has \"blue\"\n"),
            ),
            (
                case(object(2, ""), ""),
                format!(
                    "{failed}  the result should be accepted, and is mapping_failed: \
                     spec.kubernetes.event.attributes.team: there is no labels\n"
                ),
            ),
            (
                case(object(2, labels).replace("Deployment", "Job"), ""),
                format!(
                    "{failed}  the result should be accepted, and is not_watched: spec.kubernetes.resources: there is no Job of \
                     apps/v1\n"
                ),
            ),
            (
                case(
                    object(2, labels).replace("namespace: shop", "namespace: other"),
                    "  result: not_watched\n",
                ),
                passed.to_owned(),
            ),
            (
                case(object(2, labels), "").replace("source: scaling", "source: other"),
                format!(
                    "{failed}  there is no Source shop/other of kind kubernetes: the manifests must have it\n"
                ),
            ),
        ] {
            let is_passed = expected == passed;
            let sums = [1, usize::from(!is_passed), 0];
            assert_eq!(ran(manifests, &tests), (expected, sums), "{tests}");
        }
        for (tests, expected) in [
            (
                case(object(2, labels), "  change: scaled\n"),
                "x.test.yaml:6:3: tests[0].change: must be added, updated or deleted\n",
            ),
            (
                case("{apiVersion: v1, kind: Pod}".to_owned(), ""),
                "x.test.yaml:5:11: tests[0].object: metadata is missing\n",
            ),
            (
                case(object(2, labels), "  seen: soon\n"),
                "x.test.yaml:6:3: tests[0].seen: is not a time such as 2026-11-24T08:00:00Z\n",
            ),
        ] {
            assert_eq!(
                ran(manifests, &tests),
                (expected.to_owned(), [0, 0, 1]),
                "{tests}"
            );
        }
    }

    #[test]
    fn reports_each_difference_with_its_reason() {
        let manifests = trigger("all", "[]") + &trigger("orders", "[{exact: {type: order}}]");
        let case = |event: &str, more: &str| {
            format!("tests:\n- name: a test\n  namespace: shop\n  event: {{source: /s, {event}}}\n  {more}\n")
        };
        let passed = "x.test.yaml:2:3: ok: a test\n";
        let failed = "x.test.yaml:2:3: FAILED: a test\n";
        for (tests, expected) in [
            (case("type: order", "triggers: [orders, all]"), passed.to_owned()),
            (case("type: other", "triggers: [all]"), passed.to_owned()),
            (
                case("type: other", "triggers: [all, orders]"),
                format!(
                    "{failed}  Trigger orders should match, and does not:\n    no   exact type = \"order\": the event has \"other\"\n"
                ),
            ),
            (
                case("type: order", "triggers: []"),
                format!(
                    "{failed}  Trigger all should not match, and does:\n    it has no filters, so it matches every event\n  \
                     Trigger orders should not match, and does:\n    yes  exact type = \"order\": the event has \"order\"\n"
                ),
            ),
            (
                case("type: other", "triggers: [all, order]"),
                format!("{failed}  broker shop/default has no Trigger order; it has all, orders\n"),
            ),
            (
                case("type: other", "triggers: []\n  broker: other"),
                format!(
                    "{failed}  broker shop/other does not exist, so events for it are rejected; it exists once a Trigger \
                     or a Source references it\n"
                ),
            ),
        ] {
            let is_passed = expected == passed;
            assert_eq!(
                ran(&manifests, &tests),
                (expected, [1, usize::from(!is_passed), 0]),
                "{tests}"
            );
        }
    }

    #[test]
    fn compares_what_a_trigger_sends() {
        let manifests = trigger("plain", "[]")
            + &trigger("changed", "[]")
            + "  transform:\n    attributes: {set: {type: \"${event.type}.v2\"}, remove: [ext]}\n    \
               data: {id: \"${data.order.id}\", n: \"${data.n}\"}\n";
        let case = |data: &str, sends: &str| {
            format!(
                "tests:\n- name: a test\n  namespace: shop\n  event: {{type: t, source: /s, ext: x, data: {data}}}\n  \
                 triggers: [plain, changed]\n  sends: {sends}\n"
            )
        };
        let passed = "x.test.yaml:2:3: ok: a test\n";
        let failed = "x.test.yaml:2:3: FAILED: a test\n";
        let data = "{order: {id: o-1}, n: 5}";
        for (tests, expected) in [
            (
                case(
                    data,
                    "{changed: {type: t.v2, ext: null, data: {id: o-1, n: 5}}, plain: {ext: x, type: t}}",
                ),
                passed.to_owned(),
            ),
            (
                case(data, "{changed: {type: t, source: null, n: 1}}"),
                format!(
                    "{failed}  Trigger changed should send type = \"t\", and sends \"t.v2\"\n  Trigger changed should send \
                     source = nothing, and sends \"/s\"\n  Trigger changed should send n = 1, and sends nothing\n"
                ),
            ),
            (
                case("{n: 5}", "{changed: {type: t.v2}}"),
                format!(
                    "{failed}  Trigger changed cannot transform the event: spec.transform.data.id: there is no order\n"
                ),
            ),
        ] {
            let is_passed = expected == passed;
            let sums = [1, usize::from(!is_passed), 0];
            assert_eq!(ran(&manifests, &tests), (expected, sums), "{tests}");
        }
    }

    #[test]
    fn errors_in_files_are_not_passes() {
        let tests = "tests:\n- {name: a, namespace: shop, event: {type: t, source: /}, triggers: []}\n";
        let (text, sums) = ran(&trigger("broken", "[{sql: type =}]"), tests);
        assert!(
            text.starts_with("triggers.yaml:7:14: Trigger shop/broken: "),
            "{text}"
        );
        assert!(text.ends_with("x.test.yaml:2:3: ok: a\n"), "{text}");
        assert_eq!(sums, [1, 0, 1]);
        let (text, sums) = ran("", &format!("manifests: [nowhere]\n{tests}"));
        assert!(
            text.starts_with("x.test.yaml:1:1: manifests: cannot read nowhere"),
            "{text}"
        );
        assert_eq!(sums, [0, 0, 1]);
    }
}
