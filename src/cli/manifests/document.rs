//! YAML and JSON documents as trees that record the position of each value.

use std::{
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::{Issue, Position};

/// A value and its position.
#[derive(Clone, Debug)]
pub struct DocumentNode {
    /// Start of the value.
    pub position: Position,
    /// The value.
    pub tree: Tree,
}

/// A value.
#[derive(Clone, Debug)]
pub enum Tree {
    /// `null`, or empty.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// A list.
    List(Vec<DocumentNode>),
    /// A mapping, in source order.
    Map(Vec<(MappingKey, DocumentNode)>),
}

/// A key of a mapping and its position.
#[derive(Clone, Debug)]
pub struct MappingKey {
    /// Start of the key.
    pub position: Position,
    /// Name of the key.
    pub name: String,
}

/// Maximum number of values in a document, and of bytes of text in them. Each value takes a hundred bytes of memory
/// or more.
const MAX_NODES: usize = 1_000_000;
const MAX_TEXT: usize = 256 * 1024 * 1024;

/// Parses the documents of a text one by one, up to the first error. Empty ones are skipped. Only one of them is in
/// memory at a time.
pub fn stream<'a>(text: &'a mut &[u8]) -> impl Iterator<Item = Result<DocumentNode, Issue>> + 'a {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: MAX_NODES * 2,
            max_nodes: MAX_NODES,
            max_documents: usize::MAX,
            max_total_scalar_bytes: MAX_TEXT,
            max_reader_input_bytes: None,
        },
    };
    let mut failed = false;
    serde_saphyr::read_with_options(text, options)
        .map(|document| document.map_err(|error| issue(&error)))
        .take_while(move |document| !std::mem::replace(&mut failed, document.is_err()))
}

/// Parses all documents of a text. Empty ones are skipped.
///
/// # Errors
/// The first error, and its position.
pub fn read(text: &str) -> Result<Vec<DocumentNode>, Issue> {
    stream(&mut text.as_bytes()).collect()
}

fn issue(error: &serde_saphyr::Error) -> Issue {
    let error = error.without_snippet();
    let position = error.location().map_or(Position::START, Position::from);
    if matches!(error, serde_saphyr::Error::Budget { .. }) {
        return Issue {
            position,
            message: format!("the document is too large: it has more than {MAX_NODES} values; split it"),
        };
    }
    Issue {
        position,
        message: without_place(&error.render_with_formatter(&serde_saphyr::UserMessageFormatter)),
    }
}

/// Strips the position that the parser includes, and joins the message into one line.
fn without_place(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = match (message.starts_with("error: line "), message.split_once(": ")) {
        (true, Some((_, rest))) => rest.split_once(": ").map_or(rest, |(_, rest)| rest).to_owned(),
        (_, _) => message,
    };
    match message.rfind(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message,
    }
}

impl DocumentNode {
    /// Converts the value to JSON. Drops members that are `null`, which Kubernetes treats as absent.
    pub fn to_json(&self) -> Value {
        match &self.tree {
            Tree::Null => Value::Null,
            Tree::Bool(bool) => Value::Bool(*bool),
            Tree::Number(number) => Value::Number(number.clone()),
            Tree::String(text) => Value::String(text.clone()),
            Tree::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Tree::Map(entries) => {
                let entries = entries
                    .iter()
                    .filter(|(_, value)| !matches!(value.tree, Tree::Null));
                Value::Object(
                    entries
                        .map(|(key, value)| (key.name.clone(), value.to_json()))
                        .collect::<Map<_, _>>(),
                )
            }
        }
    }

    /// Returns a member of a mapping that is present and not `null`.
    pub fn get(&self, name: &str) -> Option<&Self> {
        self.entries()
            .iter()
            .find(|(key, _)| key.name == name)
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())
    }

    /// Returns the position of a member's key, or else of this value.
    pub fn position_of(&self, name: &str) -> Position {
        self.entries()
            .iter()
            .find(|(key, _)| key.name == name)
            .map_or(self.position, |(key, _)| key.position)
    }

    /// Returns the entries of a mapping, or an empty slice for any other value.
    pub fn entries(&self) -> &[(MappingKey, Self)] {
        match &self.tree {
            Tree::Map(entries) => entries,
            Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::String(_) | Tree::List(_) => &[],
        }
    }

    /// Returns the items of a list, or an empty slice for any other value.
    pub fn items(&self) -> &[Self] {
        match &self.tree {
            Tree::List(items) => items,
            Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::String(_) | Tree::Map(_) => &[],
        }
    }

    /// Returns the text of a string.
    pub fn text(&self) -> Option<&str> {
        match &self.tree {
            Tree::String(text) => Some(text),
            Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::List(_) | Tree::Map(_) => None,
        }
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self.tree, Tree::Null)
    }

    /// Returns the kind of value, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.tree {
            Tree::Null => "null",
            Tree::Bool(_) => "a boolean",
            Tree::Number(number) if number.is_f64() => "a number",
            Tree::Number(_) => "an integer",
            Tree::String(_) => "a string",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a mapping",
        }
    }

    /// Returns the number of values, including this one.
    pub fn values(&self) -> usize {
        let entries = self.entries().iter().map(|(_, value)| value.values());
        let items = self.items().iter().map(Self::values);
        entries.chain(items).sum::<usize>() + 1
    }

    /// Returns the position of the value at a path such as `spec.filters[0].exact`, or of its nearest existing
    /// ancestor. For a member this is the position of the key.
    pub fn locate(&self, path: &str) -> Position {
        let mut node = self;
        let mut position = self.position;
        for segment in path.split(['.', '[']).filter(|segment| !segment.is_empty()) {
            let next = match segment.strip_suffix(']') {
                Some(index) => index
                    .parse()
                    .ok()
                    .and_then(|index: usize| node.items().get(index))
                    .map(|item| (item.position, item)),
                None => node
                    .entries()
                    .iter()
                    .find(|(key, _)| key.name == segment)
                    .map(|(key, value)| (key.position, value)),
            };
            let Some(found) = next else { break };
            (position, node) = found;
        }
        position
    }
}

/// Positions of a document's values, by path. Takes 24 bytes per value, and outlives the document.
#[derive(Clone, Debug, Default)]
pub struct ValuePositions(Vec<(u64, Position)>);

impl ValuePositions {
    /// Collects the positions of a value and of everything in it.
    pub fn of(node: &DocumentNode) -> Self {
        let mut places = Self::default();
        places.add(node, node.position, &mut String::new());
        places.0.sort_unstable_by_key(|(path, _)| *path);
        places.0.shrink_to_fit();
        places
    }

    /// Returns the position of the value at a path such as `spec.filters[0].exact`, like [`DocumentNode::locate`].
    pub fn locate(&self, path: &str) -> Position {
        let mut path = path;
        loop {
            if let Ok(index) = self.0.binary_search_by_key(&hash(path), |(path, _)| *path) {
                return self.0[index].1;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None if path.is_empty() => return Position::START,
                None => path = "",
            }
        }
    }

    fn add(&mut self, node: &DocumentNode, position: Position, path: &mut String) {
        self.0.push((hash(path), position));
        let length = path.len();
        for (key, value) in node.entries() {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&key.name);
            self.add(value, key.position, path);
            path.truncate(length);
        }
        for (index, item) in node.items().iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = write!(path, "[{index}]");
            self.add(item, item.position, path);
            path.truncate(length);
        }
    }
}

/// Hashes a path. A collision within a document is unlikely and harmless: an error would name the wrong line.
fn hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

impl<'de> Deserialize<'de> for DocumentNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value: tree,
            referenced,
            ..
        } = Spanned::deserialize(deserializer)?;
        Ok(Self {
            position: referenced.into(),
            tree,
        })
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has too")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(bool))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Tree, E> {
        Number::from_f64(number)
            .map(Tree::Number)
            .ok_or_else(|| E::custom("not a number that JSON has"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Tree, E> {
        Ok(Tree::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries: Vec<(MappingKey, DocumentNode)> = Vec::new();
        while let Some((
            Spanned {
                value: name,
                referenced,
                ..
            },
            value,
        )) = access.next_entry::<Spanned<String>, DocumentNode>()?
        {
            if entries.iter().any(|(key, _)| key.name == name) {
                return Err(A::Error::custom(format!("duplicate key {name:?}")));
            }
            entries.push((
                MappingKey {
                    position: referenced.into(),
                    name,
                },
                value,
            ));
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(line: u64, column: u64) -> Position {
        Position { line, column }
    }

    #[test]
    fn reads_large_lists() {
        let text = "items:\n".to_owned() + &"- {a: b}\n".repeat(100_000);
        assert_eq!(
            read(&text).unwrap()[0].get("items").unwrap().items().len(),
            100_000
        );
        assert_eq!(read(&"---\na: b\n".repeat(10_000)).unwrap().len(), 10_000);
    }

    #[test]
    fn reads_documents_up_to_an_oversized_one() {
        let text = "a: b\n---\n".to_owned() + &"- a\n".repeat(MAX_NODES + 1) + "---\nc: d\n";
        let mut bytes = text.as_bytes();
        let documents: Vec<_> = stream(&mut bytes).collect();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].as_ref().unwrap().to_json(), json!({"a": "b"}));
        let error = documents[1].as_ref().unwrap_err();
        assert!(error.message.contains("split it"), "{error:?}");
    }

    #[test]
    fn reads_documents_with_positions() {
        let text = "# first\napiVersion: v1\nspec:\n  items:\n  - name: a\n    n: 1.5\n  - null\n---\n---\n{\"b\": [true, -3, \"x\"]}\n";
        let documents = read(text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].position, at(2, 1));
        assert_eq!(
            documents[0].to_json(),
            json!({"apiVersion": "v1", "spec": {"items": [{"name": "a", "n": 1.5}, null]}})
        );
        assert_eq!(documents[0].locate("spec.items[0].n"), at(6, 5));
        assert_eq!(documents[0].locate("spec.items[0].missing.x"), at(5, 5));
        assert_eq!(documents[0].locate("spec.items[7]"), at(4, 3));
        assert_eq!(documents[0].locate(""), at(2, 1));
        let places = ValuePositions::of(&documents[0]);
        for path in [
            "",
            "spec",
            "spec.items",
            "spec.items[0].n",
            "spec.items[0].missing.x",
            "spec.items[7]",
            "other",
        ] {
            assert_eq!(places.locate(path), documents[0].locate(path), "{path}");
        }
        assert_eq!(documents[0].get("spec").unwrap().position, at(4, 3));
        assert_eq!(documents[1].to_json(), json!({"b": [true, -3, "x"]}));
        assert_eq!(documents[1].get("b").unwrap().items()[2].position, at(10, 18));
    }

    #[test]
    fn aliases_have_the_position_of_their_use() {
        let documents = read("a: &x {n: 1}\nb: *x\n").unwrap();
        assert_eq!(documents[0].to_json(), json!({"a": {"n": 1}, "b": {"n": 1}}));
        assert_eq!(documents[0].locate("b"), at(2, 1));
    }

    #[test]
    fn scalars_have_the_type_that_kubernetes_gives_them() {
        let documents =
            read("a: ~\nb: 'yes'\nc: 08:00\nd: 1e3\ne: '1'\nf: 2026-11-24\ng: |\n  x\n  y\n").unwrap();
        assert_eq!(
            documents[0].to_json(),
            json!({"b": "yes", "c": "08:00", "d": 1000.0, "e": "1", "f": "2026-11-24", "g": "x\ny\n"})
        );
    }

    #[test]
    fn syntax_errors_have_position_and_cause() {
        for (text, position, part) in [
            ("a: 1\nb: [1, 2\nc: 3\n", at(3, 2), ""),
            ("a: 1\na: 2\n", at(2, 1), "duplicate"),
            ("a: *nowhere\n", at(1, 4), "unknown value"),
            ("a:\n\tb: 1\n", at(2, 2), "tab"),
            ("a: 'x\n", at(1, 4), ""),
            ("a: .nan\n", at(1, 4), ""),
            ("{\"a\": 1,\n \"b\": ]", at(1, 1), ""),
        ] {
            let Err(Issue {
                position: found,
                message,
                ..
            }) = read(text)
            else {
                panic!("{text:?} was read")
            };
            assert!(message.to_lowercase().contains(part), "{text:?}: {message}");
            assert!(!message.contains("line "), "{message}");
            assert_eq!(found, position, "{text:?}: {message}");
        }
    }
}
