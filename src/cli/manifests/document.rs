//! YAML and JSON documents as trees that know where each value stands.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A place in a text; both numbers begin with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The character in the line.
    pub column: u64,
}

impl Position {
    /// Where a text begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        // What has no place is told of at the beginning.
        Self {
            line: location.line().max(1),
            column: location.column().max(1),
        }
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub position: Position,
    /// The value.
    pub tree: Tree,
}

/// A value.
#[derive(Clone, Debug)]
pub enum Tree {
    /// `null`, or nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order in which it was written.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it begins.
    pub position: Position,
    /// Its text.
    pub name: String,
}

/// How many values a file may have, and how many bytes of text in them. Each takes a hundred bytes of memory or more.
const MAX_NODES: usize = 1_000_000;
const MAX_TEXT: usize = 256 * 1024 * 1024;

/// Reads all documents of a text; empty ones are left out.
///
/// # Errors
/// Where the text is no YAML, and why.
pub fn read(text: &str) -> Result<Vec<Node>, (Position, String)> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: MAX_NODES * 2,
            max_nodes: MAX_NODES,
            max_documents: MAX_NODES,
            max_total_scalar_bytes: MAX_TEXT,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let position = error.location().map_or(Position::START, Position::from);
        if matches!(error, serde_saphyr::Error::Budget { .. }) {
            return (
                position,
                format!("the file is too large: it may have {MAX_NODES} values; split it"),
            );
        }
        (
            position,
            without_place(&error.render_with_formatter(&serde_saphyr::UserMessageFormatter)),
        )
    })
}

/// The message without the place that the parser puts into it, and in one line.
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

impl Node {
    /// The value without places. Members that are `null` are left out: Kubernetes takes them for absent.
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

    /// A member of a mapping that is there and not `null`.
    pub fn get(&self, name: &str) -> Option<&Self> {
        self.entries()
            .iter()
            .find(|(key, _)| key.name == name)
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())
    }

    /// Where a member's key stands, else where this value does.
    pub fn position_of(&self, name: &str) -> Position {
        self.entries()
            .iter()
            .find(|(key, _)| key.name == name)
            .map_or(self.position, |(key, _)| key.position)
    }

    /// The entries of a mapping; none if it is something else.
    pub fn entries(&self) -> &[(Key, Self)] {
        match &self.tree {
            Tree::Map(entries) => entries,
            Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::String(_) | Tree::List(_) => &[],
        }
    }

    /// The items of a list; none if it is something else.
    pub fn items(&self) -> &[Self] {
        match &self.tree {
            Tree::List(items) => items,
            Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::String(_) | Tree::Map(_) => &[],
        }
    }

    /// The text, if it is one.
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

    /// What kind of value it is, for a message.
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

    /// The place of what a path such as `spec.filters[0].exact` names, or of the nearest thing above it that is
    /// there: the key where it is a member.
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

impl<'de> Deserialize<'de> for Node {
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
        let mut entries: Vec<(Key, Node)> = Vec::new();
        while let Some((
            Spanned {
                value: name,
                referenced,
                ..
            },
            value,
        )) = access.next_entry::<Spanned<String>, Node>()?
        {
            if entries.iter().any(|(key, _)| key.name == name) {
                return Err(A::Error::custom(format!("{name:?} is there twice")));
            }
            entries.push((
                Key {
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
    fn a_list_of_a_whole_cluster_is_read() {
        let text = "items:\n".to_owned() + &"- {a: b}\n".repeat(100_000);
        assert_eq!(
            read(&text).unwrap()[0].get("items").unwrap().items().len(),
            100_000
        );
        assert_eq!(read(&"---\na: b\n".repeat(10_000)).unwrap().len(), 10_000);
        let (_, message) = read(&"- a\n".repeat(MAX_NODES + 1)).unwrap_err();
        assert!(message.contains("split it"), "{message}");
    }

    #[test]
    fn documents_with_places() {
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
        assert_eq!(documents[0].get("spec").unwrap().position, at(4, 3));
        assert_eq!(documents[1].to_json(), json!({"b": [true, -3, "x"]}));
        assert_eq!(documents[1].get("b").unwrap().items()[2].position, at(10, 18));
    }

    #[test]
    fn anchors_stand_where_they_are_used() {
        let documents = read("a: &x {n: 1}\nb: *x\n").unwrap();
        assert_eq!(documents[0].to_json(), json!({"a": {"n": 1}, "b": {"n": 1}}));
        assert_eq!(documents[0].locate("b"), at(2, 1));
    }

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        let documents =
            read("a: ~\nb: 'yes'\nc: 08:00\nd: 1e3\ne: '1'\nf: 2026-11-24\ng: |\n  x\n  y\n").unwrap();
        assert_eq!(
            documents[0].to_json(),
            json!({"b": "yes", "c": "08:00", "d": 1000.0, "e": "1", "f": "2026-11-24", "g": "x\ny\n"})
        );
    }

    #[test]
    fn what_is_no_yaml_says_where_and_why() {
        for (text, position, part) in [
            ("a: 1\nb: [1, 2\nc: 3\n", at(3, 2), ""),
            ("a: 1\na: 2\n", at(2, 1), "duplicate"),
            ("a: *nowhere\n", at(1, 4), "unknown value"),
            ("a:\n\tb: 1\n", at(2, 2), "tab"),
            ("a: 'x\n", at(1, 4), ""),
            ("a: .nan\n", at(1, 4), ""),
            ("{\"a\": 1,\n \"b\": ]", at(1, 1), ""),
        ] {
            let Err((found, message)) = read(text) else {
                panic!("{text:?} was read")
            };
            assert!(message.to_lowercase().contains(part), "{text:?}: {message}");
            assert!(!message.contains("line "), "{message}");
            assert_eq!(found, position, "{text:?}: {message}");
        }
    }
}
