//! Holds the arrows between the rooms of `src/`, keeps pure what says that it is, and finds circles between files and
//! names that two types have. Holds the table of dependencies in `docs/contributing.md` to `Cargo.toml`, too.
//!
//! It reads the sources' tokens, not their types: every path that is written down, in `use` and elsewhere, without
//! comments and strings; for the arrows in tests too. A new room needs a row in [`ROOMS`]; a new arrow is a decision about the
//! design, not a way to make this test pass.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/names.rs"]
mod names;
#[path = "architecture/purity.rs"]
mod purity;
#[path = "architecture/sources.rs"]
mod sources;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sources::{NamedPath, entries_of, is_rust, module_of, paths_in, rust_files_below, tokens_of};

/// A room and what it may know.
struct Room {
    name: &'static str,
    /// The rooms that it may name, besides itself. All of them stand above it in the table.
    knows: &'static [&'static str],
    /// The crates and modules that it may not name, with the reason.
    without: &'static [Ban],
    /// Whether it may read the clock or make random values; else time and randomness come in as arguments.
    clock: bool,
}

/// Crates, or modules and types of crates, that a room does without.
struct Ban {
    paths: &'static [&'static str],
    reason: &'static str,
}

const KUBERNETES: Ban = Ban {
    paths: &["kube", "k8s_openapi"],
    reason: "only api, resolve, election, controller, cluster_sources and cli know Kubernetes",
};
#[rustfmt::skip]
const API_SERVER: Ban = Ban {
    paths: &[
        "kube::Api", "kube::Client", "kube::Config", "kube::Discovery", "kube::api", "kube::client", "kube::config", "kube::discovery",
        "kube::runtime",
    ],
    reason: "what is pure knows the types of resources, not the API server",
};
#[rustfmt::skip]
const RUNNING: Ban = Ban {
    paths: &[
        "tokio", "tokio_util", "axum", "tower", "hyper", "hyper_util", "hyper_rustls", "tokio_rustls", "notify", "fjall",
        "opentelemetry", "opentelemetry_sdk", "opentelemetry_otlp", "opentelemetry_http",
    ],
    reason: "what is pure does no I/O and needs no runtime",
};
const TLS: Ban = Ban {
    paths: &["rustls"],
    reason: "a pure room makes no connections",
};
#[rustfmt::skip]
const SYSTEM: Ban = Ban {
    paths: &[
        "std::env", "std::fs", "std::process", "std::thread", "std::net::TcpListener", "std::net::TcpStream",
        "std::net::ToSocketAddrs", "std::net::UdpSocket",
    ],
    reason: "what is pure asks nothing of the system",
};
const HTTP: Ban = Ban {
    paths: &[
        "http",
        "http_body",
        "http_body_util",
        "hyper",
        "hyper_util",
        "hyper_rustls",
        "rustls",
    ],
    reason: "only destination knows the protocol that events are sent by",
};
const RANDOM: Ban = Ban {
    paths: &["rand", "getrandom", "fastrand"],
    reason: "where it is pure, randomness comes in as an argument",
};

#[rustfmt::skip]
const ROOMS: &[Room] = &[
    Room::new("api",         &[]),
    Room::new("causes",      &[]).pure(),
    Room::new("http_url",    &[]).pure(),
    Room::new("cloudevents", &[]).pure(),
    Room::new("filter",      &["cloudevents"]).pure(),
    Room::new("transform",   &["cloudevents", "filter"]).pure(),
    Room::new("routing",     &["cloudevents", "filter", "transform"]).pure(),
    Room::new("access",      &["cloudevents", "filter", "routing"]).pure(),
    Room::new("log",         &[]).without_kubernetes(),
    Room::new("memory",      &[]).without_kubernetes(),
    Room::new("descriptors", &[]).without_kubernetes(),
    Room::new("trust",       &[]).without_kubernetes(),
    Room::new("resolve",     &["api", "cloudevents", "http_url", "filter", "transform", "routing", "trust"]).pure_on_resources(),
    Room::new("supervision", &[]).without_kubernetes(),
    Room::new("telemetry",   &["cloudevents", "http_url", "trust"]).without_kubernetes(),
    Room::new("intake",      &["cloudevents", "log"]).without_kubernetes(),
    Room::new("destination", &["causes", "cloudevents", "http_url", "routing", "intake", "memory", "telemetry", "trust"]).without_kubernetes(),
    Room::new("delivery",    &[
        "cloudevents", "filter", "transform", "routing", "log", "intake", "memory", "telemetry", "destination", "supervision",
    ]).without_kubernetes().without_http(),
    Room::new("server",      &["memory"]).without_kubernetes(),
    Room::new("source",      &["cloudevents", "filter", "transform", "routing", "log", "intake", "supervision"]).without_kubernetes(),
    Room::new("ownership",   &["routing", "log", "intake", "destination", "delivery", "source", "supervision"]).without_kubernetes(),
    Room::new("election",    &[]),
    Room::new("controller",  &["api", "filter", "routing", "trust", "resolve", "server", "election"]),
    Room::new("cluster_sources", &[
        "api", "causes", "cloudevents", "filter", "routing", "trust", "resolve", "server", "source", "supervision", "election",
    ]),
    Room::new("router",      &[
        "access", "causes", "cloudevents", "http_url", "filter", "routing", "log", "intake", "memory", "descriptors", "telemetry", "destination", "delivery",
        "server", "source", "ownership", "supervision",
    ]).without_kubernetes(),
    Room::new("cli", &[
        "api", "causes", "cloudevents", "http_url", "filter", "transform", "routing", "log", "memory", "descriptors", "trust", "resolve", "telemetry",
        "destination", "delivery", "server", "source", "election", "controller", "cluster_sources", "router", "supervision",
    ]),
];

impl Room {
    const fn new(name: &'static str, knows: &'static [&'static str]) -> Self {
        Self {
            name,
            knows,
            without: &[],
            clock: true,
        }
    }

    const fn without_kubernetes(self) -> Self {
        Self {
            without: &[KUBERNETES],
            ..self
        }
    }

    const fn without_http(self) -> Self {
        Self {
            without: &[KUBERNETES, HTTP],
            ..self
        }
    }

    const fn pure(self) -> Self {
        Self {
            without: &[KUBERNETES, RUNNING, TLS, RANDOM],
            clock: false,
            ..self
        }
    }

    const fn pure_on_resources(self) -> Self {
        Self {
            without: &[API_SERVER, RUNNING, TLS, RANDOM],
            clock: false,
            ..self
        }
    }
}

/// Types that stand for the clock of this machine.
const CLOCK_TYPES: &[[&str; 3]] = &[["std", "time", "Instant"], ["std", "time", "SystemTime"]];
/// Calls that read the clock or make a random value, by the type's name and the function's.
const CLOCK_CALLS: &[[&str; 2]] = &[
    ["Instant", "now"],
    ["SystemTime", "now"],
    ["Timestamp", "now"],
    ["Zoned", "now"],
    ["Uuid", "new_v4"],
];

#[test]
fn the_arrows_hold() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut violations = Vec::new();
    for (room, files) in rooms_of(&source) {
        let Some(rules) = ROOMS.iter().find(|row| row.name == room) else {
            violations.push(format!(
                "src/{room}: the room has no row in the table of tests/architecture.rs"
            ));
            continue;
        };
        for file in files {
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let inside = file.strip_prefix(&source).expect("the file was found in there");
            for violation in violations_in(rules, &module_of(inside), &text) {
                violations.push(format!("src/{}:{violation}", inside.display()));
            }
        }
    }
    assert!(
        violations.is_empty(),
        "against the arrows of the design:\n{}\n",
        violations.join("\n")
    );
}

#[test]
fn the_table_points_one_way() {
    for (position, room) in ROOMS.iter().enumerate() {
        for known in room.knows {
            let above = ROOMS[..position].iter().any(|row| row.name == *known);
            assert!(
                above,
                "{} knows {known}, which does not stand above it",
                room.name
            );
        }
    }
}

#[test]
fn every_dependency_has_its_row_in_the_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).expect("it is in the repository");
    let wanted = dependencies_in(&read("Cargo.toml"));
    let page = read("docs/contributing.md");
    let (_, section) = page
        .split_once("\n## Dependencies\n")
        .expect("docs/contributing.md has the section Dependencies");
    let section = section.split("\n##").next().unwrap_or(section);
    let rows: Vec<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let missing: Vec<_> = wanted
        .iter()
        .filter(|name| !rows.contains(&name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/contributing.md has no row for {missing:?}"
    );
    let needless: Vec<_> = rows.iter().filter(|name| !wanted.contains(**name)).collect();
    assert!(
        needless.is_empty(),
        "docs/contributing.md has rows for {needless:?}, which Cargo.toml does not have"
    );
    assert_eq!(
        rows.len(),
        wanted.len(),
        "docs/contributing.md has two rows for one crate"
    );
}

/// The names of the direct dependencies of all kinds.
fn dependencies_in(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut in_dependencies = false;
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            in_dependencies = section.trim_end_matches(']').ends_with("dependencies");
        } else if in_dependencies
            && !line.starts_with('#')
            && let Some((name, _)) = line.split_once(" = ")
        {
            names.insert(name.to_owned());
        }
    }
    names
}

#[test]
fn dependencies_are_found() {
    let manifest = "[package]\nname = \"a\"\n[dependencies]\n# b = 1\nc-d = \"1\"\n\n[features]\nf = []\n\
                    [dev-dependencies]\ng = { version = \"1\" } # h = 1\n[target.'cfg(unix)'.build-dependencies]\ni = \"1\"\n";
    let names: Vec<_> = dependencies_in(manifest).into_iter().collect();
    assert_eq!(names, ["c-d", "g", "i"]);
}

/// The rooms with their files: each folder in `src/`, and each file but the two roots.
fn rooms_of(source: &Path) -> Vec<(String, Vec<PathBuf>)> {
    let mut rooms = Vec::new();
    for entry in entries_of(source) {
        let name = entry
            .file_stem()
            .expect("an entry has a name")
            .to_string_lossy()
            .into_owned();
        if entry.is_dir() {
            rooms.push((name, rust_files_below(&entry)));
        } else if is_rust(&entry) && name != "lib" && name != "main" {
            rooms.push((name, vec![entry]));
        }
    }
    rooms
}

/// What a file of a room names against the room's rules, each as `line: what`.
fn violations_in(room: &Room, module: &[String], text: &str) -> Vec<String> {
    let mut violations: Vec<_> = paths_in(module, &tokens_of(text))
        .iter()
        .filter_map(|path| Some(format!("{}: {}", path.line, violation(room, path)?)))
        .collect();
    violations.dedup();
    violations
}

fn violation(room: &Room, path: &NamedPath) -> Option<String> {
    let Room {
        name,
        knows,
        without,
        clock,
    } = room;
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let written = segments.join("::");
    if path.own {
        return match segments.first() {
            None => Some(format!("{name} takes in the root of the crate: name the rooms")),
            Some(other) if other == name || knows.contains(other) => None,
            Some(other) if ROOMS.iter().any(|row| row.name == *other) => Some(format!(
                "{name} -> {other}: crate::{written}; {name} may know {knows:?}"
            )),
            Some(_) => Some(format!(
                "{name} -> crate::{written}, which is in no room of the table"
            )),
        };
    }
    if let Some((written, reason)) = banned(without, path) {
        return Some(format!("{name} -> {written}: {reason}"));
    }
    let reads_clock = CLOCK_TYPES.iter().any(|kind| segments.starts_with(kind)) || calls_clock(path);
    (reads_clock && !clock)
        .then(|| format!("{name} -> {written}: in a pure room time and randomness come in as arguments"))
}

/// Returns the path as it is written, and why it may not be named, if one of the bans has it.
fn banned(bans: &[Ban], path: &NamedPath) -> Option<(String, &'static str)> {
    let NamedPath { own, segments, .. } = path;
    let is_named = |banned: &&str| {
        banned
            .split("::")
            .eq(segments.iter().take(banned.split("::").count()))
    };
    bans.iter()
        .find(|ban| !own && ban.paths.iter().any(is_named))
        .map(|ban| (segments.join("::"), ban.reason))
}

/// Whether a path is a call that reads the clock or makes a random value.
fn calls_clock(path: &NamedPath) -> bool {
    CLOCK_CALLS
        .iter()
        .any(|call| path.segments.windows(2).any(|pair| pair == call))
}

#[cfg(test)]
mod reading {
    use super::{ROOMS, module_of, paths_in, tokens_of, violations_in};
    use std::path::Path;

    fn violations(room: &str, file: &str, text: &str) -> Vec<String> {
        let room = ROOMS
            .iter()
            .find(|row| row.name == room)
            .expect("a room of the table");
        violations_in(room, &module_of(Path::new(file)), text)
    }

    #[track_caller]
    fn breaks(room: &str, text: &str, arrow: &str) {
        let found = violations(room, &format!("{room}/mod.rs"), text);
        assert!(found.len() == 1 && found[0].contains(arrow), "{text}: {found:?}");
    }

    #[track_caller]
    fn holds(room: &str, text: &str) {
        assert_eq!(
            violations(room, &format!("{room}/mod.rs"), text),
            [] as [&str; 0],
            "{text}"
        );
    }

    #[test]
    fn a_room_knows_only_what_its_row_says() {
        breaks(
            "delivery",
            "use crate::api::Trigger;",
            "1: delivery -> api: crate::api::Trigger",
        );
        breaks(
            "delivery",
            "use crate::{log::Offset, api::{Sink}};",
            "delivery -> api",
        );
        breaks(
            "delivery",
            "\n\nfn f(x: &crate::api::Sink) {}",
            "3: delivery -> api",
        );
        breaks(
            "delivery",
            "fn f() { let x = g::<crate::api::Sink>(y); }",
            "delivery -> api",
        );
        breaks(
            "delivery",
            "fn f() { for x in 0..crate::api::MAX {} }",
            "delivery -> api",
        );
        breaks("delivery", "pub use ::weir::api;", "delivery -> api");
        breaks("delivery", "use super::api;", "delivery -> api");
        breaks(
            "delivery",
            "macro_rules! m { () => { $crate::api::f() } }",
            "delivery -> api",
        );
        breaks("delivery", "use crate::*;", "takes in the root");
        breaks("delivery", "use crate as weir;", "takes in the root");
        breaks("delivery", "use crate::Something;", "in no room");
        holds(
            "delivery",
            "use crate::{log::{Offset, self}, routing::*}; use super::log; pub(crate) mod x {}",
        );
        holds(
            "delivery",
            "use self::attempt::Attempt; pub(in crate::delivery) fn f(api: u8) { x.api::<u8>() }",
        );
    }

    #[test]
    fn super_is_followed_through_files_and_inline_modules() {
        let text =
            "mod a { mod b { use super::super::super::super::api::Sink; } } use super::super::log::Offset;";
        let found = violations("delivery", "delivery/attempt.rs", text);
        assert!(
            found.len() == 1 && found[0].contains("delivery -> api"),
            "{found:?}"
        );
        holds("delivery", "#[cfg(test)] mod tests { use super::*; }");
        breaks(
            "delivery",
            "#[cfg(test)] mod tests { use super::super::*; }",
            "takes in the root",
        );
    }

    #[test]
    fn a_pure_room_names_no_runtime_no_clock_and_no_chance() {
        breaks(
            "filter",
            "use tokio::sync::watch;",
            "filter -> tokio::sync::watch",
        );
        breaks("filter", "fn f(x: ::kube::Client) {}", "filter -> kube::Client");
        breaks("filter", "extern crate rand;", "filter -> rand");
        breaks("filter", "use {std::fmt, hyper as h};", "filter -> hyper");
        breaks(
            "routing",
            "use std::{fmt, time::{Duration, Instant}};",
            "routing -> std::time::Instant",
        );
        breaks(
            "routing",
            "fn f() { time::Instant::now(); }",
            "routing -> time::Instant::now",
        );
        breaks(
            "cloudevents",
            "fn f() { let now = jiff::Timestamp::now(); }",
            "Timestamp::now",
        );
        breaks("cloudevents", "fn f() { Uuid::new_v4() }", "Uuid::new_v4");
        breaks("log", "use k8s_openapi::api;", "log -> k8s_openapi::api");
        breaks(
            "resolve",
            "use kube::{Resource, api::Patch};",
            "resolve -> kube::api::Patch",
        );
        holds(
            "log",
            "use tokio::sync::watch; fn f() { std::time::Instant::now() }",
        );
        holds(
            "filter",
            "use std::time::Duration; fn f(rand: u8, now: Timestamp) { rand.kube(); self.tokio }",
        );
    }

    #[test]
    fn what_is_no_code_is_not_read() {
        holds(
            "filter",
            "//! [`crate::api`]\n/* /* kube::Api */ tokio::spawn */ fn f() {}",
        );
        holds(
            "filter",
            r###"fn f() { g("a\" kube::Api", r#"" kube::Api"#, b"kube::Api", br"kube::Api") }"###,
        );
        let text = r"fn f<'a>(x: &'a str) { g('\'', '\u{1F600}', b'\\', '(', 'x', 1.0, 1..2, 0x1f_u8); crate::api::g() }";
        breaks("filter", text, "filter -> api");
        breaks(
            "filter",
            "fn r#type() { r#match::x() } use crate::api;",
            "filter -> api",
        );
    }

    #[test]
    fn lines_are_counted_through_everything() {
        let paths = paths_in(&[], &tokens_of("/*\n*/ \"\n\\\n\" // x\nuse a::b;\n"));
        assert_eq!(paths.len(), 1);
        assert_eq!(paths[0].line, 5);
        assert_eq!(paths[0].segments, ["a", "b"]);
    }
}
