//! Why an event matches or does not, and whether manifests are in order: `weir validate`, `weir explain` and
//! `weir test` as processes.

use std::path::Path;

use serde_json::Value;

use crate::support::{PATIENCE, Process, Scratch};

/// Runs `weir` with colours off; its exit code and what it printed on both outputs.
fn weir(arguments: &[&str]) -> (i32, String) {
    let mut process = Process::weir(arguments).quiet().start();
    let code = process.wait_for_exit(PATIENCE).code();
    (code.expect("it ended by itself"), process.output().join("\n"))
}

fn path(scratch: &Scratch, name: &str) -> String {
    scratch.path().join(name).to_str().unwrap().to_owned()
}

fn trigger(name: &str, filters: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{service: {{name: {name}}}}}\n  filters: {filters}\n"
    )
}

#[test]
fn the_manifests_of_the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    assert_eq!(
        weir(&["validate", examples.to_str().unwrap()]),
        (0, "5 resources: no errors".to_owned())
    );
}

#[test]
fn manifests_are_validated_with_the_place_of_each_problem() {
    let scratch = Scratch::new();
    scratch.write("good.yaml", trigger("good", "[{exact: {type: a}}]"));
    let file = path(&scratch, "good.yaml");
    assert_eq!(
        weir(&["validate", &file]),
        (0, "1 resource: no errors".to_owned())
    );
    let (code, output) = weir(&["validate", "--strict", &file]);
    assert_eq!(
        (code, output.lines().next().unwrap()),
        (
            1,
            &*format!("{file}:6:3: Trigger shop/good: Service shop/good is not among the files")
        )
    );

    let foreign = trigger("foreign", "[]").replace(
        "service: {name: foreign}",
        "ref: {name: audit, namespace: platform}",
    );
    scratch.write(
        "bad.yaml",
        trigger("bad", "[{exact: {type: a}}, {sql: type =}]") + &foreign,
    );
    let directory = scratch.path().to_str().unwrap();
    let (code, output) = weir(&["validate", directory, "-o", "json"]);
    assert_eq!(code, 1, "{output}");
    let lines: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let places: Vec<_> = lines
        .iter()
        .map(|line| (line["line"].as_u64(), line["column"].as_u64(), &line["severity"]))
        .collect();
    assert_eq!(
        places,
        [
            (Some(7), Some(34), &"error".into()),
            (Some(13), Some(3), &"warning".into())
        ],
        "{output}"
    );
    assert_eq!(output.lines().last(), Some("weir: 1 error"));
    let (_, output) = weir(&["validate", directory]);
    assert!(
        output.contains("bad.yaml:13:3: warning: Trigger shop/foreign: Sink platform/audit is not among"),
        "{output}"
    );

    for wrong in [&["validate"][..], &["validate", "/nonexistent"]] {
        assert_eq!(weir(wrong).0, 2, "{wrong:?}");
    }
    let empty = Scratch::new();
    let (code, output) = weir(&["validate", empty.path().to_str().unwrap()]);
    assert_eq!(
        (code, output.contains("no Source, Trigger or Sink")),
        (1, true),
        "{output}"
    );
}
