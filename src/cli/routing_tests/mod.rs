//! `weir test`: tests routing with a table of events and the Triggers that they should match.

mod suite;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::bail;
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Usage,
    explain::text::write_reasons,
    manifests::ManifestProblem,
    validate::{Checked, ValidateOutput, check, counted, write_problem},
};
use crate::{
    cloudevents::Event,
    routing::{RouteExplanation, RoutingTable, broker_key, explain},
};
use suite::{Case, SentEvent, Suite};

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
      triggers: []\n\n\
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
    broker: String,
    passed: bool,
    /// Differences from the expectation, per Trigger.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Difference<'a>>,
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
                errors,
                ..
            }) => {
                problems.extend(errors);
                let table = RoutingTable::compile(configuration);
                results.extend(cases.iter().map(|case| judge(file, &table, case)));
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
    TestResult {
        file: file.display().to_string(),
        line: position.line,
        column: position.column,
        name,
        broker: key,
        passed: differences.is_empty(),
        differences,
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
    let differing = members
        .iter()
        .filter(|(member, expected)| sent.get(member) != expected.as_ref());
    differing
        .map(|(member, expected)| Difference::Sends {
            trigger,
            member,
            expected: expected.as_ref(),
            sent: sent.get(member).cloned(),
        })
        .collect()
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
                let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
                writeln!(
                    out,
                    "  Trigger {bold}{trigger}{bold:#} should send {member} = {}, and sends {}",
                    shown(*expected),
                    shown(sent.as_ref())
                )?;
            }
        }
    }
    Ok(())
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
