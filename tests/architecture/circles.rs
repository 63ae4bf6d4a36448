//! Finds circles between the files of a room: files of which each needs the others.
//!
//! A file needs another if it names something that is defined there, be it through the `pub use` of a module's root.
//! To pass something on by `pub use` is not to need it. Code for tests does not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::sources::{Import, Source, all_sources};

type Module = Vec<String>;

#[test]
fn files_of_a_room_form_no_circles() {
    let sources = all_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let needs = Needs::of(&sources);
    let circles: Vec<_> = needs.circles().iter().map(|circle| needs.told(circle)).collect();
    assert!(
        circles.is_empty(),
        "files need each other in a circle; move what they share into a file of its own:\n{}",
        circles.join("\n")
    );
}

/// Which module needs which of the same room, and the places where it names it.
#[derive(Default)]
struct Needs(BTreeMap<Module, BTreeMap<Module, BTreeSet<String>>>);

impl Needs {
    fn of(sources: &[Source]) -> Self {
        let modules: BTreeMap<_, _> = sources
            .iter()
            .map(|source| (source.module.clone(), imports_of(source)))
            .collect();
        let mut needs = Self::default();
        for source in sources {
            let Source { module, paths, .. } = source;
            let named = names_outside_of_use(source);
            for path in paths {
                let Some(absolute) = absolute(&modules, module, path.own, &path.segments) else {
                    continue;
                };
                let Some(target) = defining(&modules, &absolute, 0) else {
                    continue;
                };
                if let Some(Import { name, exported }) = &path.import {
                    let is_passed_on = *exported && !named.contains(name.as_str());
                    // Then each `name::Something` is looked at by itself.
                    let is_prefix = target == absolute && goes_on(source, name);
                    if is_passed_on || is_prefix {
                        continue;
                    }
                }
                if target != *module && target.first() == module.first() {
                    needs
                        .0
                        .entry(module.clone())
                        .or_default()
                        .entry(target)
                        .or_default()
                        .insert(format!("{}: {}", path.line, path.segments.join("::")));
                }
            }
        }
        needs
    }

    fn reachable(&self, from: &Module) -> BTreeSet<Module> {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![from.clone()];
        while let Some(module) = waiting.pop() {
            for next in self.0.get(&module).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(next.clone()) {
                    waiting.push(next.clone());
                }
            }
        }
        reached
    }

    /// The largest sets of modules of which each reaches all others.
    fn circles(&self) -> BTreeSet<BTreeSet<Module>> {
        let reachable: BTreeMap<_, _> = self
            .0
            .keys()
            .map(|module| (module, self.reachable(module)))
            .collect();
        let circle = |module: &&Module| -> BTreeSet<Module> {
            let others = reachable[module].iter();
            others
                .filter(|other| {
                    reachable
                        .get(other)
                        .is_some_and(|reached| reached.contains(*module))
                })
                .cloned()
                .collect()
        };
        reachable
            .keys()
            .map(circle)
            .filter(|circle| circle.len() > 1)
            .collect()
    }

    fn told(&self, circle: &BTreeSet<Module>) -> String {
        let mut told = String::new();
        for module in circle {
            for (target, places) in self.0.get(module).into_iter().flatten() {
                if circle.contains(target) {
                    let places: Vec<_> = places.iter().take(3).map(String::as_str).collect();
                    told += &format!(
                        "  {} -> {} ({})\n",
                        module.join("/"),
                        target.join("/"),
                        places.join(", ")
                    );
                }
            }
        }
        told
    }
}

type Imports = BTreeMap<String, Module>;

/// What the `use`s of a file bring into scope, where it is in this crate.
fn imports_of(source: &Source) -> Imports {
    let imports = source.paths.iter().filter_map(|path| {
        let Import { name, .. } = path.import.as_ref()?;
        let child = [source.module.clone(), path.segments.clone()].concat();
        Some((name.clone(), if path.own { path.segments.clone() } else { child }))
    });
    imports.filter(|(name, _)| name != "*").collect()
}

/// The path from the crate's root on, if it is in this crate.
fn absolute(
    modules: &BTreeMap<Module, Imports>,
    module: &Module,
    own: bool,
    segments: &[String],
) -> Option<Module> {
    if own {
        return Some(segments.to_vec());
    }
    let (first, rest) = segments.split_first()?;
    let child = [module.as_slice(), std::slice::from_ref(first)].concat();
    let stem = if modules.contains_key(&child) {
        child
    } else {
        let imported = modules.get(module)?.get(first)?;
        modules
            .contains_key(imported.get(..1)?)
            .then(|| imported.clone())?
    };
    Some([stem.as_slice(), rest].concat())
}

/// The file that defines what a path names, through the `use`s of the files on the way.
fn defining(modules: &BTreeMap<Module, Imports>, path: &[String], depth: usize) -> Option<Module> {
    let length = (1..=path.len())
        .rev()
        .find(|length| modules.contains_key(&path[..*length]))?;
    let (module, rest) = path.split_at(length);
    let through = rest.split_first().and_then(|(name, rest)| {
        let target = modules[module].get(name)?;
        let target = [target.as_slice(), rest].concat();
        (depth < 8).then(|| defining(modules, &target, depth + 1))?
    });
    Some(through.unwrap_or_else(|| module.to_vec()))
}

/// Every name of a file, but for those in a `use` and of a `mod`.
fn names_outside_of_use(source: &Source) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut tokens = source.tokens.iter().map(|token| token.text.as_str());
    while let Some(token) = tokens.next() {
        match token {
            "use" => _ = tokens.find(|token| *token == ";"),
            "mod" => _ = tokens.next(),
            _ => _ = names.insert(token),
        }
    }
    names
}

/// Whether a file has a path that begins with this name.
fn goes_on(source: &Source, name: &str) -> bool {
    let begins = |path: &crate::NamedPath| {
        path.import.is_none() && path.segments.first().is_some_and(|first| first == name)
    };
    source.paths.iter().any(begins)
}

#[cfg(test)]
mod reading {
    use std::{collections::BTreeSet, path::Path};

    use super::Needs;
    use crate::sources::source_of;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[&[&str]]) {
        let sources: Vec<_> = files
            .iter()
            .map(|(file, text)| source_of(Path::new(file), text).0)
            .collect();
        let found: BTreeSet<BTreeSet<String>> = Needs::of(&sources)
            .circles()
            .into_iter()
            .map(|circle| circle.iter().map(|module| module.join("/")).collect())
            .collect();
        let expected = expected
            .iter()
            .map(|circle| circle.iter().map(|&module| module.to_owned()).collect());
        assert_eq!(found, expected.collect::<BTreeSet<_>>(), "{files:?}");
    }

    #[test]
    fn finds_circles_of_any_length() {
        let (a, b) = ("use super::b::B;", "fn f(a: crate::room::a::A) {}");
        check(
            &[("room/mod.rs", ""), ("room/a.rs", a), ("room/b.rs", b)],
            &[&["room/a", "room/b"]],
        );
        check(&[("room/mod.rs", ""), ("room/a.rs", a), ("room/b.rs", "")], &[]);
        check(
            &[
                ("room/mod.rs", ""),
                ("room/a.rs", a),
                ("room/b.rs", "use super::c;\nfn f() { c::g() }"),
                ("room/c.rs", "use super::a::{self as other}; fn f(x: other::X) {}"),
            ],
            &[&["room/a", "room/b", "room/c"]],
        );
    }

    #[test]
    fn looks_through_what_a_root_passes_on() {
        let root = "mod a; mod b; pub use a::A; pub use b::{B as Other};";
        let (a, b) = ("use super::Other;", "use crate::room::{A};");
        check(
            &[("room/mod.rs", root), ("room/a.rs", a), ("room/b.rs", b)],
            &[&["room/a", "room/b"]],
        );
        check(&[("room/mod.rs", root), ("room/a.rs", a), ("room/b.rs", "")], &[]);
        let root = "mod a; pub use a::A; pub const X: u8 = 1;";
        check(&[("room/mod.rs", root), ("room/a.rs", "use super::X;")], &[]);
        let root = "mod a; pub use a::A; pub fn f(a: A) {}";
        check(
            &[("room/mod.rs", root), ("room/a.rs", "use super::f;")],
            &[&["room", "room/a"]],
        );
    }

    #[test]
    fn tests_and_visibilities_do_not_count() {
        let b = "pub(in crate::room::a) fn f() {} #[cfg(test)] mod tests { use crate::room::a::A; }";
        check(
            &[
                ("room/mod.rs", ""),
                ("room/a.rs", "use super::b::B;"),
                ("room/b.rs", b),
            ],
            &[],
        );
    }
}
