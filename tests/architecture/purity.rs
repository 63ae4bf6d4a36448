//! Keeps pure every file whose header says "Pure": without I/O, runtime, clock and randomness, but for its tests. A
//! module's root that says so speaks for the files below it.

use std::path::Path;

use crate::{
    API_SERVER, Ban, RANDOM, ROOMS, RUNNING, SYSTEM, banned, calls_clock,
    sources::{Source, all_sources},
};

const BANS: &[Ban] = &[API_SERVER, RUNNING, SYSTEM, RANDOM];

#[test]
fn what_says_that_it_is_pure_is() {
    let sources = all_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let pure: Vec<_> = sources.iter().filter(|source| says_pure(source)).collect();
    for room in ROOMS.iter().filter(|room| !room.clock) {
        let says_so = pure.iter().any(|source| source.module == [room.name]);
        assert!(
            says_so,
            "{} is a pure room and its header does not say so",
            room.name
        );
    }
    let violations: Vec<_> = sources
        .iter()
        .filter(|source| pure.iter().any(|pure| source.module.starts_with(&pure.module)))
        .flat_map(violations_in)
        .collect();
    assert!(
        violations.is_empty(),
        "these files say that they are pure:\n{}\n",
        violations.join("\n")
    );
}

fn says_pure(source: &Source) -> bool {
    let mut words = source
        .header
        .split(|character: char| !character.is_alphanumeric());
    words.any(|word| word == "Pure")
}

fn violations_in(source: &Source) -> Vec<String> {
    let named = source.paths.iter().filter_map(|path| {
        let why = if calls_clock(path) {
            (
                path.segments.join("::"),
                "time and randomness come in as arguments",
            )
        } else {
            banned(BANS, path)?
        };
        Some(format!(
            "src/{}:{}: {}: {}",
            source.file.display(),
            path.line,
            why.0,
            why.1
        ))
    });
    named.collect()
}

#[cfg(test)]
mod reading {
    use std::path::Path;

    use super::{says_pure, violations_in};
    use crate::sources::source_of;

    #[track_caller]
    fn check(text: &str, pure: bool, violations: usize) {
        let (source, _) = source_of(Path::new("delivery/rate.rs"), text);
        assert_eq!(says_pure(&source), pure, "{text}");
        assert_eq!(violations_in(&source).len(), violations, "{text}");
    }

    #[test]
    fn header_decides_and_tests_are_free() {
        check(
            "//! A rate. Pure: time is\n//! an argument.\nuse std::time::Instant;",
            true,
            0,
        );
        check("//! A purely local rate.\n", false, 0);
        check("//! A rate.\nuse std::fmt;\n//! Pure.", false, 0);
        check("//! Pure.\nfn f() { Instant::now() }", true, 1);
        check("//! Pure.\nuse std::{fs, net::{IpAddr, TcpStream}};", true, 2);
        check(
            "//! Pure.\n#[cfg(test)]\nmod tests { use tokio::time; fn f() { Instant::now() } }",
            true,
            0,
        );
        check(
            "//! Pure.\n#[cfg(test)]\nuse tokio::time;\nfn f() { tokio::spawn() }",
            true,
            1,
        );
    }
}
