//! Checks the examples in README.md and docs/ with `weir validate`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use regex::Regex;

use super::{routing_tests, validate};

static BLOCK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?ms)^```yaml\n(.*?)^```$").unwrap());

/// Matches complete Weir resources; fragments have no `kind`.
static OURS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)^kind: (Trigger|Sink|Source)$").unwrap());

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> = docs
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    pages.push(root.join("README.md"));
    pages
}

#[test]
fn resources_in_docs_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let mut shown = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (number, block) in BLOCK.captures_iter(&text).enumerate() {
            if !OURS.is_match(&block[1]) {
                continue;
            }
            let name = page.file_stem().unwrap().to_str().unwrap();
            // One file per example, so that two pages may name the same resource.
            let file = directory.path().join(format!("{name}-{}.yaml", number + 1));
            fs::write(&file, &block[1]).unwrap();
            let checked = validate::check(vec![file], false, false).unwrap();
            // A Sink may be defined in another example.
            let problems: Vec<_> = checked
                .errors
                .iter()
                .filter(|problem| !problem.message.contains("there is no Sink"))
                .collect();
            assert!(
                problems.is_empty(),
                "{}: {problems:#?} in\n{}",
                page.display(),
                &block[1]
            );
            assert!(
                checked.resources > 0,
                "{}: nothing is in\n{}",
                page.display(),
                &block[1]
            );
            shown += checked.resources;
        }
    }
    assert!(shown > 0, "found no examples");
}

/// The examples of Sources, and the tests of them on the same page.
#[test]
fn tests_of_sources_in_docs_pass() {
    for page in ["docs/webhooks.md", "docs/kubernetes-source.md"] {
        tests_of_page_pass(&Path::new(env!("CARGO_MANIFEST_DIR")).join(page));
    }
}

fn tests_of_page_pass(page: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (number, block) in BLOCK.captures_iter(&text).enumerate() {
        let is_test = block[1].contains("\ntests:\n");
        let name = format!("{number}{}.yaml", if is_test { ".test" } else { "" });
        let file = directory.path().join(name);
        if is_test {
            files.push(file.clone());
        }
        if is_test || OURS.is_match(&block[1]) {
            fs::write(&file, &block[1]).unwrap();
        }
    }
    assert!(!files.is_empty());
    let output = validate::ValidateOutput::Text;
    routing_tests::run(routing_tests::TestArgs { files, output }).unwrap();
}
