//! Checks docs/metrics.md, the dashboard and the alerts against the existing metrics.

use std::{collections::BTreeSet, sync::LazyLock};

use prometheus_client::{encoding::text, registry::Registry};
use regex::Regex;

const PAGE: &str = include_str!("../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../charts/weir/files/dashboard.json");
const ALERTS: &str = include_str!("../../charts/weir/files/alerts.yaml");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// Name of a metric, as Prometheus stores it, and its type.
type Metric = (String, String);

/// The first two columns of a row in the page's tables.
static ROW: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^\| `((?:weir|process)_[a-z_]+)` \| ([a-z]+) \|").unwrap());

fn on_the_page() -> BTreeSet<Metric> {
    let rows = ROW.captures_iter(PAGE);
    rows.map(|row| (row[1].to_owned(), row[2].to_owned())).collect()
}

fn exposed(registry: &Registry) -> BTreeSet<Metric> {
    let mut body = String::new();
    text::encode(&mut body, registry).unwrap();
    let types = body.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let total = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{total}"), kind.to_owned())
        })
        .collect()
}

/// Asserts that the page lists exactly the metrics that the registry exposes, among the names for which `ours` is
/// true. Every family with labels must have a member, because an empty family is not exposed.
pub(crate) fn assert_documented(registry: &Registry, ours: impl Fn(&str) -> bool) {
    let (mut page, exposed) = (on_the_page(), exposed(registry));
    page.retain(|(name, _)| ours(name));
    let missing: Vec<_> = exposed.difference(&page).collect();
    let gone: Vec<_> = page.difference(&exposed).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/metrics.md lacks a row for {missing:?}, and has one for {gone:?}, which does not exist"
    );
}

#[test]
fn dashboard_and_alerts_use_existing_metrics() {
    let mut known = BTreeSet::new();
    for (name, kind) in on_the_page() {
        let suffixes: &[&str] = match kind.as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        known.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    let names = Regex::new("weir_[a-z_]+").unwrap();
    for (file, text) in [("dashboard.json", DASHBOARD), ("alerts.yaml", ALERTS)] {
        let asked: BTreeSet<_> = names.find_iter(text).map(|name| name.as_str()).collect();
        assert!(!asked.is_empty(), "{file} uses no metrics");
        for name in asked {
            assert!(known.contains(name), "{file} uses {name}, which does not exist");
        }
    }
}

#[test]
fn every_alert_has_a_section_in_the_runbook() {
    let names = |pattern: &str, text: &str| -> BTreeSet<String> {
        let pattern = Regex::new(pattern).unwrap();
        pattern
            .captures_iter(text)
            .map(|found| found[1].to_owned())
            .collect()
    };
    let alerts = names(r"(?m)^ *- alert: (\w+)$", ALERTS);
    assert!(!alerts.is_empty());
    assert_eq!(alerts, names(r"(?m)^### (Weir\w+)$", OPERATIONS));
}
