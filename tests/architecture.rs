//! Holds the arrows between the rooms of `src/`, and keeps the pure rooms pure.
//!
//! It reads the sources' tokens, not their types: every path that is written down, in `use` and elsewhere, in tests
//! too, without comments and strings. A new room needs a row in [`ROOMS`]; a new arrow is a decision about the
//! design, not a way to make this test pass.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

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
    reason: "only api, resolve, controller and cli know Kubernetes",
};
#[rustfmt::skip]
const API_SERVER: Ban = Ban {
    paths: &[
        "kube::Api", "kube::Client", "kube::Config", "kube::Discovery", "kube::api", "kube::client", "kube::config", "kube::discovery",
        "kube::runtime",
    ],
    reason: "a pure room knows the types of resources, not the API server",
};
#[rustfmt::skip]
const RUNNING: Ban = Ban {
    paths: &[
        "tokio", "tokio_util", "axum", "tower", "hyper", "hyper_util", "hyper_rustls", "rustls", "tokio_rustls", "notify", "fjall",
        "opentelemetry", "opentelemetry_sdk", "opentelemetry_otlp", "opentelemetry_http",
    ],
    reason: "a pure room does no I/O and needs no runtime",
};
const RANDOM: Ban = Ban {
    paths: &["rand", "getrandom", "fastrand"],
    reason: "in a pure room randomness comes in as an argument",
};

#[rustfmt::skip]
const ROOMS: &[Room] = &[
    Room::new("api",         &[]),
    Room::new("http_url",    &[]).pure(),
    Room::new("cloudevents", &[]).pure(),
    Room::new("filter",      &["cloudevents"]).pure(),
    Room::new("routing",     &["cloudevents", "filter"]).pure(),
    Room::new("log",         &[]).without_kubernetes(),
    Room::new("memory",      &[]).without_kubernetes(),
    Room::new("descriptors", &[]).without_kubernetes(),
    Room::new("trust",       &[]).without_kubernetes(),
    Room::new("resolve",     &["api", "cloudevents", "http_url", "filter", "routing", "trust"]).pure_on_resources(),
    Room::new("supervision", &[]).without_kubernetes(),
    Room::new("telemetry",   &["cloudevents", "http_url", "trust"]).without_kubernetes(),
    Room::new("intake",      &["cloudevents", "log"]).without_kubernetes(),
    Room::new("delivery",    &[
        "cloudevents", "http_url", "filter", "routing", "log", "intake", "memory", "telemetry", "trust", "supervision",
    ]).without_kubernetes(),
    Room::new("server",      &["memory"]).without_kubernetes(),
    Room::new("source",      &["cloudevents", "routing", "log", "intake", "supervision"]).without_kubernetes(),
    Room::new("controller",  &["api", "filter", "routing", "resolve", "server"]),
    Room::new("router",      &[
        "cloudevents", "http_url", "filter", "routing", "log", "intake", "memory", "descriptors", "telemetry", "delivery", "server",
        "source", "supervision",
    ]).without_kubernetes(),
    Room::new("cli", &[
        "api", "cloudevents", "http_url", "filter", "routing", "log", "memory", "descriptors", "trust", "resolve", "telemetry", "delivery",
        "server", "source", "controller", "router", "supervision",
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

    const fn pure(self) -> Self {
        Self {
            without: &[KUBERNETES, RUNNING, RANDOM],
            clock: false,
            ..self
        }
    }

    const fn pure_on_resources(self) -> Self {
        Self {
            without: &[API_SERVER, RUNNING, RANDOM],
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

fn rust_files_below(folder: &Path) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) = entries_of(folder).into_iter().partition(|entry| entry.is_dir());
    let below = folders.iter().flat_map(|folder| rust_files_below(folder));
    files
        .into_iter()
        .filter(|file| is_rust(file))
        .chain(below)
        .collect()
}

fn entries_of(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.expect("a folder can be read to its end").path())
        .collect()
}

fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "rs")
}

/// The module that a file of `src/` is: `log/mod.rs` is `log`, `log/tail.rs` is `log::tail`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<_> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// What a file of a room names against the room's rules, each as `line: what`.
fn violations_in(room: &Room, module: &[String], text: &str) -> Vec<String> {
    let mut violations: Vec<_> = paths_in(module, text)
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
    for Ban { paths, reason } in *without {
        let is_banned = |banned: &&str| segments.starts_with(&banned.split("::").collect::<Vec<_>>());
        if paths.iter().any(is_banned) {
            return Some(format!("{name} -> {written}: {reason}"));
        }
    }
    let reads_clock = CLOCK_TYPES.iter().any(|kind| segments.starts_with(kind))
        || CLOCK_CALLS
            .iter()
            .any(|call| segments.windows(2).any(|pair| pair == call));
    (reads_clock && !clock)
        .then(|| format!("{name} -> {written}: in a pure room time and randomness come in as arguments"))
}

/// A path that a source file names.
#[derive(Debug, PartialEq)]
struct NamedPath {
    line: usize,
    /// Whether it is in this crate, with the segments from the crate's root on; else as it is written.
    own: bool,
    segments: Vec<String>,
}

/// Every path of more than one segment, and every single one that is used or linked as a crate.
fn paths_in(module: &[String], text: &str) -> Vec<NamedPath> {
    let tokens = tokens_of(text);
    let mut reader = Reader {
        tokens: &tokens,
        position: 0,
        paths: Vec::new(),
    };
    let mut module = module.to_vec();
    let mut modules_end = Vec::new(); // the depths at which the inline modules began
    let mut depth = 0_usize;
    while let Some(token) = tokens.get(reader.position) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if modules_end.last() == Some(&depth) {
                    modules_end.pop();
                    module.pop();
                }
            }
            "mod" if reader.text(2) == "{" => {
                module.push(reader.text(1).to_owned());
                modules_end.push(depth);
                depth += 1;
                reader.position += 2;
            }
            "use" => {
                reader.position += 1;
                reader.tree(&module, &mut Vec::new(), true);
                continue;
            }
            "extern" if reader.text(1) == "crate" => {
                reader.position += 2;
                reader.tree(&module, &mut Vec::new(), true);
                continue;
            }
            "::" => {
                reader.tree(&module, &mut Vec::new(), false);
                continue;
            }
            text if is_name(text) => {
                // What follows one dot is a field or a method; two are a range.
                let dots = tokens[..reader.position]
                    .iter()
                    .rev()
                    .take_while(|token| token.text == ".")
                    .count();
                if dots == 1 {
                    reader.position += 1;
                } else {
                    reader.tree(&module, &mut Vec::new(), false);
                }
                continue;
            }
            _ => {}
        }
        reader.position += 1;
    }
    reader.paths
}

struct Reader<'a> {
    tokens: &'a [Token],
    position: usize,
    paths: Vec<NamedPath>,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens
            .get(self.position + ahead)
            .map_or("", |token| &token.text)
    }

    /// Reads a path or a tree of them, beginning with the segments of `stem`.
    fn tree(&mut self, module: &[String], stem: &mut Vec<String>, used: bool) {
        let length = stem.len();
        if stem.is_empty() && self.text(0) == "::" {
            self.position += 1;
        }
        let line = self.tokens.get(self.position).map_or(0, |token| token.line);
        loop {
            match self.text(0) {
                "{" if used || stem.len() > length => {
                    self.position += 1;
                    while !matches!(self.text(0), "}" | "") {
                        self.tree(module, stem, used);
                        if self.text(0) == "as" {
                            self.position += 2;
                        }
                        if self.text(0) != "}" {
                            self.position += 1;
                        }
                    }
                    self.position += 1;
                    break;
                }
                "*" if used => {
                    self.position += 1;
                    self.add(line, module, stem, used);
                    break;
                }
                text if is_name(text) => {
                    let text = text.to_owned();
                    self.position += 1;
                    if text != "self" || stem.is_empty() {
                        stem.push(text);
                    }
                    let goes_on =
                        self.text(0) == "::" && (is_name(self.text(1)) || matches!(self.text(1), "{" | "*"));
                    if !goes_on {
                        self.add(line, module, stem, used);
                        break;
                    }
                    self.position += 1;
                }
                _ => break,
            }
        }
        stem.truncate(length);
    }

    fn add(&mut self, line: usize, module: &[String], written: &[String], used: bool) {
        let (mut segments, own) = match written.first().map(String::as_str) {
            Some("crate" | "weir") => (Vec::new(), true),
            Some("self" | "super") => (module.to_vec(), true),
            _ => (Vec::new(), false),
        };
        if !used && written.len() < 2 {
            return; // a variable, a type in scope, the `crate` in `pub(crate)`
        }
        for segment in written {
            match segment.as_str() {
                "super" => _ = segments.pop(),
                "crate" | "weir" if own && segments.is_empty() => {}
                "self" => {}
                _ => segments.push(segment.clone()),
            }
        }
        self.paths.push(NamedPath { line, own, segments });
    }
}

#[derive(Debug)]
struct Token {
    line: usize,
    text: String,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The tokens of a source: names, `::`, and single characters. Comments, strings, characters, numbers and
/// lifetimes are left out.
fn tokens_of(text: &str) -> Vec<Token> {
    let characters: Vec<char> = text.chars().collect();
    let at = |position: usize| characters.get(position).copied().unwrap_or('\0');
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    let mut tokens = Vec::new();
    let (mut position, mut line, mut counted) = (0, 1, 0);
    while position < characters.len() {
        line += characters[counted..position]
            .iter()
            .filter(|character| **character == '\n')
            .count();
        counted = position;
        let begin = position;
        match (at(position), at(position + 1)) {
            ('/', '/') => {
                while position < characters.len() && at(position) != '\n' {
                    position += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0_usize;
                while position < characters.len() {
                    match (at(position), at(position + 1)) {
                        ('/', '*') => (depth, position) = (depth + 1, position + 2),
                        ('*', '/') => (depth, position) = (depth - 1, position + 2),
                        _ => position += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            ('"', _) => position = after_string(&characters, position + 1),
            ('\'', next) => {
                if next == '\\' {
                    position += 3; // the quote, the backslash, and what it escapes
                    while position < characters.len() && at(position) != '\'' {
                        position += 1;
                    }
                    position += 1;
                } else if at(position + 2) == '\'' {
                    position += 3;
                } else {
                    position += 1; // a lifetime
                    while is_part(at(position)) {
                        position += 1;
                    }
                }
            }
            (':', ':') => {
                position += 2;
                tokens.push(Token {
                    line,
                    text: "::".to_owned(),
                });
            }
            (first, _) if is_part(first) => {
                while is_part(at(position)) {
                    position += 1;
                }
                let word: String = characters[begin..position].iter().collect();
                let hashes = characters[position..]
                    .iter()
                    .take_while(|character| **character == '#')
                    .count();
                if matches!(word.as_str(), "r" | "br" | "cr") && at(position + hashes) == '"' {
                    position = after_raw_string(&characters, position + hashes + 1, hashes);
                } else if word == "r" && hashes == 1 {
                    position += 1; // a raw name: what follows is a name like any other
                } else if !first.is_numeric() && at(position) != '"' && !(word == "b" && at(position) == '\'')
                {
                    tokens.push(Token { line, text: word });
                }
            }
            (other, _) => {
                position += 1;
                if !other.is_whitespace() {
                    tokens.push(Token {
                        line,
                        text: other.to_string(),
                    });
                }
            }
        }
    }
    tokens
}

fn after_string(characters: &[char], mut position: usize) -> usize {
    while position < characters.len() && characters[position] != '"' {
        position += if characters[position] == '\\' { 2 } else { 1 };
    }
    position + 1
}

fn after_raw_string(characters: &[char], mut position: usize, hashes: usize) -> usize {
    while position < characters.len() {
        let end = characters[position] == '"'
            && characters[position + 1..]
                .iter()
                .take(hashes)
                .filter(|character| **character == '#')
                .count()
                == hashes;
        position += 1;
        if end {
            return position + hashes;
        }
    }
    position
}

#[cfg(test)]
mod reading {
    use super::{ROOMS, module_of, paths_in, violations_in};
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
        let paths = paths_in(&[], "/*\n*/ \"\n\\\n\" // x\nuse a::b;\n");
        assert_eq!(paths.len(), 1);
        assert_eq!(paths[0].line, 5);
        assert_eq!(paths[0].segments, ["a", "b"]);
    }
}
