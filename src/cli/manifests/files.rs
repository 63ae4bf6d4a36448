//! A set of files and directories with manifests, and their last valid content.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    Manifest, ManifestProblem, Position, ResourceKey, Surroundings,
    resource::{FileResources, ManifestReader},
};

/// Extensions of manifest files in a directory.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The path that means stdin.
pub const STDIN: &str = "-";

/// Suffix before the extension of a file with routing tests, which may be next to the manifests.
const TESTS: &str = ".test";

/// Files and directories with manifests.
pub struct Manifests {
    paths: Vec<PathBuf>,
    /// Whether to read subdirectories too.
    recursive: bool,
    reader: ManifestReader,
    files: BTreeMap<PathBuf, CachedFile>,
}

/// Cached content of a file.
struct CachedFile {
    read: FileResources,
    /// Whether the whole file was valid. Only valid content is kept while the file is broken.
    whole: bool,
}

/// The content of the files.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The resources, without duplicates, in order of files and of their positions.
    pub manifests: Vec<Manifest>,
    /// Other resources of a cluster that the files contain.
    pub surroundings: Surroundings,
    /// All problems.
    pub problems: Vec<ManifestProblem>,
    /// Resources that exist but cannot be used because of errors.
    pub unusable: BTreeSet<ResourceKey>,
}

impl Manifests {
    /// Uses these files, and the files `*.yaml`, `*.yml` and `*.json` of these directories. Skips subdirectories
    /// and files such as `*.test.yaml`.
    ///
    /// # Errors
    /// If a path does not exist or cannot be read.
    pub fn new(paths: Vec<PathBuf>) -> Result<Self, (PathBuf, io::Error)> {
        for path in paths.iter().filter(|path| path.as_os_str() != STDIN) {
            let readable = match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => fs::read_dir(path).map(drop),
                Ok(_) => fs::File::open(path).map(drop),
                Err(error) => Err(error),
            };
            readable.map_err(|error| (path.clone(), error))?;
        }
        Ok(Self {
            paths,
            recursive: false,
            reader: ManifestReader::new(),
            files: BTreeMap::new(),
        })
    }

    /// Sets whether to read subdirectories too.
    #[must_use]
    pub fn recursive(self, recursive: bool) -> Self {
        Self { recursive, ..self }
    }

    /// The paths as given.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Reads all files. A file that is broken, or was named explicitly and is gone, keeps its last valid content.
    /// The resources of a file that was removed from a directory are removed.
    pub fn load(&mut self) -> Loaded {
        let mut problems = Vec::new();
        let mut files = BTreeSet::new();
        let mut gone = Vec::new();
        for path in &self.paths {
            match list(path, self.recursive) {
                Ok(listed) => files.extend(listed),
                Err(error) => {
                    gone.push(path);
                    problems.push(problem(
                        path,
                        format!("cannot be read: {error}; its previous content stays in force"),
                    ));
                }
            }
        }
        self.files
            .retain(|file, _| files.contains(file) || gone.iter().any(|path| file.starts_with(path)));
        for file in files {
            self.read(&file, &mut problems);
        }
        let manifests = self.unique(&mut problems);
        let mut surroundings = Surroundings::default();
        for content in self.files.values() {
            surroundings.extend(content.read.surroundings.clone());
        }
        problems.sort();
        problems.dedup();
        let unusable = self
            .files
            .values()
            .flat_map(|content| content.read.unusable.clone());
        Loaded {
            unusable: unusable.collect(),
            manifests,
            surroundings,
            problems,
        }
    }

    fn read(&mut self, file: &Path, problems: &mut Vec<ManifestProblem>) {
        let mut found = Vec::new();
        let read = match bytes_of(file) {
            Ok(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => self.reader.read(file, without_mark(text), &mut found),
                Err(error) => {
                    let line = bytes
                        .iter()
                        .take(error.valid_up_to())
                        .filter(|byte| **byte == b'\n')
                        .count();
                    let position = Position {
                        line: line as u64 + 1,
                        column: 1,
                    };
                    found.push(ManifestProblem {
                        file: file.to_owned(),
                        position,
                        message: "not UTF-8".to_owned(),
                    });
                    FileResources::default()
                }
            },
            // The file was removed after the directory was listed, or a directory has such a name.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::IsADirectory
                ) && !self.paths.iter().any(|path| path == file) =>
            {
                self.files.remove(file);
                return;
            }
            Err(error) => {
                found.push(problem(file, format!("cannot be read: {error}")));
                FileResources::default()
            }
        };
        let whole = found.is_empty();
        if !whole
            && self
                .files
                .get(file)
                .is_some_and(|content| content.whole && !content.read.manifests.is_empty())
        {
            if let Some(first) = found.first_mut() {
                first
                    .message
                    .push_str("; the previous content of the file stays in force");
            }
        } else if whole || !self.files.get(file).is_some_and(|content| content.whole) {
            self.files.insert(file.to_owned(), CachedFile { read, whole });
        }
        problems.extend(found);
    }

    fn unique(&self, problems: &mut Vec<ManifestProblem>) -> Vec<Manifest> {
        let mut first = BTreeMap::new();
        let mut unique = Vec::new();
        for manifest in self.files.values().flat_map(|content| &content.read.manifests) {
            let key = manifest.key();
            let (kind, namespace, name) = &key;
            match first.get(&key) {
                None => {
                    first.insert(key, manifest.problem("", String::new()));
                    unique.push(manifest.clone());
                }
                Some(ManifestProblem { file, position, .. }) => {
                    let message = format!(
                        "{kind} {namespace}/{name} is already defined in {}:{}; this one is ignored",
                        file.display(),
                        position.line
                    );
                    problems.push(manifest.problem("metadata.name", message));
                }
            }
        }
        unique
    }
}

/// Strips the byte order mark that some editors add.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn problem(file: &Path, message: String) -> ManifestProblem {
    ManifestProblem {
        file: file.to_owned(),
        position: Position::START,
        message,
    }
}

/// Lists the files of a path.
fn list(path: &Path, recursive: bool) -> io::Result<Vec<PathBuf>> {
    if path.as_os_str() == STDIN || !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let file = entry.path();
        // Does not follow symbolic links, which may form a cycle.
        if recursive && entry.file_type()?.is_dir() {
            files.extend(list(&file, recursive)?);
        } else if is_manifest(&file) {
            files.push(file);
        }
    }
    Ok(files)
}

fn bytes_of(file: &Path) -> io::Result<Vec<u8>> {
    if file.as_os_str() != STDIN {
        return fs::read(file);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Skips dot files: editors create them next to the file being edited.
fn is_manifest(file: &Path) -> bool {
    let hidden = file
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let tests = file
        .file_stem()
        .is_some_and(|stem| stem.as_encoded_bytes().ends_with(TESTS.as_bytes()));
    !hidden
        && !tests
        && file
            .extension()
            .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(name: &str, uri: &str) -> String {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}}}\nspec: {{uri: '{uri}'}}\n"
        )
    }

    fn names(loaded: &Loaded) -> Vec<String> {
        loaded.manifests.iter().map(|manifest| manifest.key().2).collect()
    }

    fn shown(loaded: &Loaded, below: &Path) -> Vec<String> {
        let prefix = format!("{}/", below.display());
        loaded
            .problems
            .iter()
            .map(|problem| problem.to_string().replace(&prefix, ""))
            .collect()
    }

    #[test]
    fn reads_directories_and_files() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("b.yaml"), sink("b", "http://x")).unwrap();
        fs::write(at("a.yml"), sink("a", "http://x")).unwrap();
        fs::write(at("c.json"), "{\"apiVersion\": \"weir.dev/v1alpha1\", \"kind\": \"Sink\", \"metadata\": {\"name\": \"c\"}, \"spec\": {\"uri\": \"http://x\"}}").unwrap();
        for ignored in ["notes.txt", ".a.yaml", "b.yaml~", ".b.yaml.swp", "b.test.yaml"] {
            fs::write(at(ignored), "not: [a manifest").unwrap();
        }
        fs::write(at("event.json"), "{\"specversion\": \"1.0\", \"id\": \"1\"}").unwrap();
        fs::create_dir(at("below.yaml")).unwrap();
        fs::write(at("below.yaml/d.yaml"), sink("d", "http://x")).unwrap();
        let mut manifests = Manifests::new(vec![directory.path().to_owned(), at("b.yaml")]).unwrap();
        let loaded = manifests.load();
        assert_eq!(names(&loaded), ["a", "b", "c"]);
        assert_eq!(loaded.problems, []);
        let mut manifests = Manifests::new(vec![directory.path().to_owned()])
            .unwrap()
            .recursive(true);
        assert_eq!(names(&manifests.load()), ["a", "b", "d", "c"]);

        let (path, error) = Manifests::new(vec![at("nowhere")]).err().unwrap();
        assert_eq!((path, error.kind()), (at("nowhere"), io::ErrorKind::NotFound));
    }

    #[test]
    fn broken_file_keeps_its_last_valid_content() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let mut manifests = Manifests::new(vec![directory.path().to_owned()]).unwrap();
        let good = format!("{}---\n{}", sink("a", "http://x"), sink("b", "http://x"));
        fs::write(&file, &good).unwrap();
        assert_eq!(names(&manifests.load()), ["a", "b"]);

        fs::write(
            &file,
            good.replace(
                "kind: Sink\nmetadata: {name: b}",
                "kind: Sinc\nmetadata: {name: b}",
            ),
        )
        .unwrap();
        let loaded = manifests.load();
        assert_eq!(names(&loaded), ["a", "b"]);
        assert!(
            shown(&loaded, directory.path())[0].starts_with("a.yaml:7:1: kind: "),
            "{:?}",
            loaded.problems
        );
        assert!(
            loaded.problems[0]
                .message
                .ends_with("the previous content of the file stays in force")
        );

        fs::write(&file, "a: [").unwrap();
        assert_eq!(names(&manifests.load()), ["a", "b"]);

        fs::write(&file, sink("c", "http://x")).unwrap();
        let loaded = manifests.load();
        assert_eq!((names(&loaded), loaded.problems), (vec!["c".to_owned()], vec![]));

        fs::remove_file(&file).unwrap();
        assert_eq!(names(&manifests.load()), Vec::<String>::new());
    }

    #[test]
    fn file_that_was_never_valid_yields_its_valid_resources() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.yaml");
        let mut manifests = Manifests::new(vec![directory.path().to_owned()]).unwrap();
        fs::write(&file, format!("{}---\nkind: x\n", sink("a", "http://x"))).unwrap();
        assert_eq!(names(&manifests.load()), ["a"]);
        fs::write(&file, format!("{}---\nkind: x\n", sink("b", "http://x"))).unwrap();
        let loaded = manifests.load();
        assert_eq!(names(&loaded), ["b"]);
        assert_eq!(
            shown(&loaded, directory.path()),
            ["a.yaml:6:1: not a manifest: apiVersion and kind are missing"]
        );
    }

    #[test]
    fn missing_named_file_or_directory_keeps_its_last_content() {
        let directory = tempfile::tempdir().unwrap();
        let (file, below) = (directory.path().join("a"), directory.path().join("below"));
        fs::create_dir(&below).unwrap();
        fs::write(&file, sink("a", "http://x")).unwrap();
        fs::write(below.join("b.yaml"), sink("b", "http://x")).unwrap();
        let mut manifests = Manifests::new(vec![file.clone(), below.clone()]).unwrap();
        assert_eq!(names(&manifests.load()), ["a", "b"]);
        fs::remove_file(&file).unwrap();
        fs::remove_dir_all(&below).unwrap();
        let loaded = manifests.load();
        assert_eq!(names(&loaded), ["a", "b"]);
        assert_eq!(loaded.problems.len(), 2, "{:?}", loaded.problems);
    }

    #[test]
    fn duplicate_resource_is_a_problem() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.yaml"), sink("a", "http://first")).unwrap();
        fs::write(directory.path().join("b.yaml"), sink("a", "http://second")).unwrap();
        let loaded = Manifests::new(vec![directory.path().to_owned()]).unwrap().load();
        assert_eq!(names(&loaded), ["a"]);
        assert_eq!(
            shown(&loaded, directory.path()),
            ["b.yaml:3:12: Sink default/a is already defined in a.yaml:1; this one is ignored"]
        );
    }

    #[test]
    fn ignores_byte_order_mark() {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("\u{feff}{}", sink("a", "http://x"));
        fs::write(directory.path().join("a.yaml"), text).unwrap();
        let loaded = Manifests::new(vec![directory.path().to_owned()]).unwrap().load();
        assert_eq!((names(&loaded), loaded.problems), (vec!["a".to_owned()], vec![]));
    }

    #[test]
    fn reports_file_that_is_not_text() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.yaml"), b"a: 1\nb: \xff\n").unwrap();
        let loaded = Manifests::new(vec![directory.path().to_owned()]).unwrap().load();
        assert_eq!(shown(&loaded, directory.path()), ["a.yaml:2:1: not UTF-8"]);
    }
}
