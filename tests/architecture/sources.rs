//! Reads the sources: their files, their tokens, and the paths that they name.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A file of `src/`, without what is compiled for tests only.
pub struct Source {
    /// Its path below `src/`.
    pub file: PathBuf,
    pub module: Vec<String>,
    /// Its first comment, as one line.
    pub header: String,
    pub tokens: Vec<Token>,
    pub paths: Vec<NamedPath>,
}

/// Every file below `folder` that is not for tests only.
pub fn all_sources(folder: &Path) -> Vec<Source> {
    let mut for_tests = Vec::new();
    let mut sources = Vec::new();
    for path in rust_files_below(folder) {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = path.strip_prefix(folder).expect("the file was found in there");
        let (source, modules) = source_of(file, &text);
        for_tests.extend(modules);
        sources.push(source);
    }
    sources.retain(|source| !for_tests.iter().any(|test| source.module.starts_with(test)));
    sources
}

/// Reads a file; also returns the modules that it declares for tests only.
pub fn source_of(file: &Path, text: &str) -> (Source, Vec<Vec<String>>) {
    let module = module_of(file);
    let (tokens, names) = without_tests(tokens_of(text));
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    let source = Source {
        file: file.to_owned(),
        header: lines.map(|line| line.trim_start_matches("//!")).collect(),
        paths: paths_in(&module, &tokens),
        tokens,
        module: module.clone(),
    };
    let for_tests = names
        .into_iter()
        .map(|name| [module.clone(), vec![name]].concat());
    (source, for_tests.collect())
}

/// Leaves out items that are marked `#[cfg(test)]`. Also returns the names of such modules that are files.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut files = Vec::new();
    let mut kept = Vec::new();
    let mut rest = tokens.into_iter().peekable();
    let mut ahead: Vec<Token> = Vec::new();
    while let Some(token) = rest.next() {
        ahead.push(token);
        if !ahead
            .iter()
            .map(|token| token.text.as_str())
            .eq(MARK[..ahead.len()].iter().copied())
        {
            kept.append(&mut ahead);
        } else if ahead.len() == MARK.len() {
            ahead.clear();
            let mut depth = 0_usize;
            let mut name_follows = false;
            let mut name = None;
            for token in rest.by_ref() {
                match token.text.as_str() {
                    "{" | "(" | "[" => depth += 1,
                    "}" | ")" | "]" => depth = depth.saturating_sub(1),
                    text if name_follows => name = Some(text.to_owned()),
                    _ => {}
                }
                name_follows = depth == 0 && token.text == "mod";
                if depth == 0 && token.text == ";" {
                    files.extend(name);
                    break;
                }
                if depth == 0 && token.text == "}" {
                    break;
                }
            }
        }
    }
    kept.append(&mut ahead);
    (kept, files)
}

pub fn rust_files_below(folder: &Path) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) = entries_of(folder).into_iter().partition(|entry| entry.is_dir());
    let below = folders.iter().flat_map(|folder| rust_files_below(folder));
    files
        .into_iter()
        .filter(|file| is_rust(file))
        .chain(below)
        .collect()
}

pub fn entries_of(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.expect("a folder can be read to its end").path())
        .collect()
}

pub fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "rs")
}

/// The module that a file of `src/` is: `log/mod.rs` is `log`, `log/tail.rs` is `log::tail`.
pub fn module_of(file: &Path) -> Vec<String> {
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

/// A path that a source file names.
#[derive(Debug, PartialEq)]
pub struct NamedPath {
    pub line: usize,
    /// Whether it is in this crate, with the segments from the crate's root on; else as it is written.
    pub own: bool,
    pub segments: Vec<String>,
    /// What a `use` makes of it.
    pub import: Option<Import>,
}

/// What a `use` brings into scope.
#[derive(Debug, PartialEq)]
pub struct Import {
    /// The name in scope, or `*`.
    pub name: String,
    /// Whether others see it there: `pub use`.
    pub exported: bool,
}

/// Every path of more than one segment, and every single one that is used or linked as a crate.
pub fn paths_in(module: &[String], tokens: &[Token]) -> Vec<NamedPath> {
    let mut reader = Reader {
        tokens,
        position: 0,
        exported: false,
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
                let before = reader
                    .position
                    .checked_sub(1)
                    .and_then(|before| tokens.get(before));
                reader.exported = before.is_some_and(|before| matches!(before.text.as_str(), "pub" | ")"));
                reader.position += 1;
                reader.tree(&module, &mut Vec::new(), true);
                reader.exported = false;
                continue;
            }
            // The `in crate::room` of a visibility: always one of the modules around.
            "pub" if reader.text(1) == "(" && reader.text(2) == "in" => {
                while !matches!(reader.text(0), ")" | "") {
                    reader.position += 1;
                }
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
    exported: bool,
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

    /// The name by which the path that was just read is in scope.
    fn name_in_scope(&self, segments: &[String]) -> String {
        let before = self
            .position
            .checked_sub(1)
            .and_then(|before| self.tokens.get(before));
        match (before.map(|token| token.text.as_str()), self.text(0)) {
            (Some("*"), _) => "*".to_owned(),
            (_, "as") => self.text(1).to_owned(),
            _ => segments.last().cloned().unwrap_or_default(),
        }
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
        let import = used.then(|| Import {
            name: self.name_in_scope(&segments),
            exported: self.exported,
        });
        self.paths.push(NamedPath {
            line,
            own,
            segments,
            import,
        });
    }
}

#[derive(Debug)]
pub struct Token {
    pub line: usize,
    pub text: String,
}

pub fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The tokens of a source: names, `::`, and single characters. Comments, strings, characters, numbers and
/// lifetimes are left out.
pub fn tokens_of(text: &str) -> Vec<Token> {
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
