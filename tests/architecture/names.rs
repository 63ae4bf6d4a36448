//! Holds that the name of a type is defined in one file of `src/`, but for its tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::sources::{Source, Token, all_sources, is_name};

/// Names that may be defined twice.
const SHARED: &[&str] = &[
    // A field of a resource in `api`, and the value in `routing` that it resolves to.
    "BackoffPolicy",
    "CatchUp",
    "ClientCertificate",
    "ClientCredentials",
    "ContentMode",
    "Destination",
    "Header",
    "HmacAlgorithm",
    "HmacEncoding",
    "Ordering",
    "Producer",
    "RateLimit",
    "ServiceAccountToken",
    "Start",
    "WhenFull",
];

#[test]
fn type_names_are_defined_once() {
    let sources = all_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let shared = shared_names(&sources);
    let not_allowed: Vec<_> = shared.iter().filter(|(name, _)| !SHARED.contains(name)).collect();
    assert!(
        not_allowed.is_empty(),
        "give each of these types a name of its own: {not_allowed:#?}"
    );
    let defined_once: Vec<_> = SHARED.iter().filter(|name| !shared.contains_key(*name)).collect();
    assert!(
        defined_once.is_empty(),
        "remove from the list in tests/architecture/names.rs: {defined_once:?}"
    );
}

/// The names that several files define, with these files.
fn shared_names(sources: &[Source]) -> BTreeMap<&str, BTreeSet<PathBuf>> {
    let mut files: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for source in sources {
        for name in type_names(&source.tokens) {
            files.entry(name).or_default().insert(source.file.clone());
        }
    }
    files.retain(|_, files| files.len() > 1);
    files
}

/// The names of the types and traits that are defined, without associated types.
fn type_names(tokens: &[Token]) -> Vec<&str> {
    let texts: Vec<_> = tokens.iter().map(|token| token.text.as_str()).collect();
    let mut names: Vec<&str> = Vec::new();
    // For each open brace, whether it is that of an inline module.
    let mut braces = Vec::new();
    for (position, text) in texts.iter().enumerate() {
        match *text {
            "{" => braces.push(position > 1 && texts[position - 2] == "mod"),
            "}" => drop(braces.pop()),
            "struct" | "enum" | "union" | "trait" => names.extend(texts.get(position + 1)),
            "type" if braces.iter().all(|is_module| *is_module) => names.extend(texts.get(position + 1)),
            _ => {}
        }
    }
    names.retain(|name| is_name(name));
    names
}

#[cfg(test)]
mod reading {
    use std::path::Path;

    use super::{shared_names, type_names};
    use crate::sources::{source_of, tokens_of};

    #[test]
    fn finds_types_traits_and_aliases() {
        let text = "struct A; pub(super) enum B<T> { C(T) } trait D {} union E {} type F = A; mod g { type H = u8; }";
        assert_eq!(type_names(&tokens_of(text)), ["A", "B", "D", "E", "F", "H"]);
    }

    #[test]
    fn ignores_associated_types_and_uses() {
        let text = "impl A for B { type Item = C; } trait D { type Err; } macro_rules! m { () => { struct $name; } } \
                    fn f(r#type: E) { let r#struct = r#type; }";
        assert_eq!(type_names(&tokens_of(text)), ["D"]);
    }

    #[test]
    fn compares_files_without_their_tests() {
        let sources = [
            ("a.rs", "struct A; struct B;"),
            ("b.rs", "struct A;"),
            ("c.rs", "#[cfg(test)] mod tests { struct B; }"),
        ]
        .map(|(file, text)| source_of(Path::new(file), text).0);
        let shared = shared_names(&sources);
        assert_eq!(shared.keys().collect::<Vec<_>>(), [&"A"]);
        assert_eq!(shared["A"].len(), 2);
    }
}
