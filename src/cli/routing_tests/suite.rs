//! A file with routing tests, parsed with the position of every error.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    cli::{
        explain::event::{self, NoEvent},
        manifests::{
            DocumentNode, ManifestProblem, Position,
            document::{self, Tree},
            unknown_field,
        },
    },
    cloudevents::Event,
    routing::ChangeKind,
};

/// Default namespace and broker.
const DEFAULT: &str = "default";

/// Default result of a request, or of a change.
const ACCEPTED: &str = "accepted";

/// Tests of the routing defined by some manifests.
#[derive(Debug)]
pub struct Suite {
    /// Paths of the manifests, relative to the working directory.
    pub manifests: Vec<PathBuf>,
    /// Position of `manifests` in the file.
    pub position: Position,
    /// Tests, in file order.
    pub cases: Vec<TestCase>,
}

/// A test.
#[derive(Debug)]
pub enum TestCase {
    /// Of the Triggers that match an event.
    Event(Box<Case>),
    /// Of the event that a webhook makes.
    Request(Box<RequestCase>),
    /// Of the event that a Source of kind kubernetes makes.
    Change(Box<ChangeCase>),
}

/// A recorded request to a webhook, and what should become of it.
#[derive(Debug)]
pub struct RequestCase {
    /// Position in the file.
    pub position: Position,
    /// Name of the test.
    pub name: String,
    /// Namespace of the Source.
    pub namespace: String,
    /// Name of the Source.
    pub source: String,
    /// The request.
    pub request: RecordedRequest,
    /// What should become of it.
    pub expected: ExpectedEvents,
}

/// What should become of a request or a change.
#[derive(Debug)]
pub struct ExpectedEvents {
    /// The result: of a request as in the metric of webhooks, of a change as in the status.
    pub result: String,
    /// The members of each event in the JSON format, `None` for those that it should not have. Others are not compared, and
    /// nothing is if there are none.
    pub makes: Vec<Vec<(String, Option<Value>)>>,
}

/// The change of a recorded object, and what should become of it.
#[derive(Debug)]
pub struct ChangeCase {
    /// Position in the file.
    pub position: Position,
    /// Name of the test.
    pub name: String,
    /// Namespace of the Source.
    pub namespace: String,
    /// Name of the Source.
    pub source: String,
    /// What happened to the object.
    pub change: ChangeKind,
    /// The object; of a deleted one, its last version.
    pub object: Value,
    /// The version before, if it is known.
    pub old_object: Option<Value>,
    /// When the change was seen; `None` for now.
    pub seen: Option<Timestamp>,
    /// What should become of it.
    pub expected: ExpectedEvents,
}

/// A request as it was received.
#[derive(Debug)]
pub struct RecordedRequest {
    /// Path and query.
    pub uri: Uri,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// When it was received; `None` for now.
    pub received: Option<Timestamp>,
}

/// An event, and the Triggers that should match it.
#[derive(Debug)]
pub struct Case {
    /// Position in the file.
    pub position: Position,
    /// Name of the test.
    pub name: String,
    /// Namespace that the event is posted to.
    pub namespace: String,
    /// Broker that the event is posted to.
    pub broker: String,
    /// The event.
    pub event: Event,
    /// Exactly the Triggers that should match.
    pub triggers: Vec<String>,
    /// What some of them should send.
    pub sends: Vec<SentEvent>,
}

/// The event that a Trigger should send.
#[derive(Debug)]
pub struct SentEvent {
    /// Name of the Trigger.
    pub trigger: String,
    /// Members of the event in the JSON format, `None` for those that it should not have. Others are not compared.
    pub members: Vec<(String, Option<Value>)>,
}

/// Defaults for all cases.
struct Defaults {
    namespace: String,
    broker: String,
}

/// Parses a file's text. Skips cases with errors.
///
/// # Errors
/// All problems, in addition to the part that could be parsed.
pub fn read(file: &Path, text: &str) -> (Option<Suite>, Vec<ManifestProblem>) {
    let mut reader = SuiteReader {
        file,
        problems: Vec::new(),
    };
    let suite = reader.suite(text);
    (suite, reader.problems)
}

struct SuiteReader<'a> {
    file: &'a Path,
    problems: Vec<ManifestProblem>,
}

impl SuiteReader<'_> {
    fn refuse(&mut self, position: Position, message: impl Into<String>) {
        self.problems.push(ManifestProblem {
            file: self.file.to_owned(),
            position,
            message: message.into(),
        });
    }

    fn suite(&mut self, text: &str) -> Option<Suite> {
        let documents = match document::read(text) {
            Ok(documents) => documents,
            Err(error) => {
                self.refuse(error.position, error.message);
                return None;
            }
        };
        let [root] = documents.as_slice() else {
            let position = documents.get(1).map_or(Position::START, |second| second.position);
            self.refuse(
                position,
                "a test file must be a single document with a list tests",
            );
            return None;
        };
        self.mapping(root, "", &["manifests", "namespace", "broker", "tests"])?;
        let defaults = Defaults {
            namespace: self
                .text(root, "", "namespace")
                .unwrap_or_else(|| DEFAULT.to_owned()),
            broker: self
                .text(root, "", "broker")
                .unwrap_or_else(|| DEFAULT.to_owned()),
        };
        let manifests = self.manifests(root);
        let tests = root.get("tests");
        if tests.is_none_or(|tests| tests.items().is_empty()) {
            self.refuse(root.position_of("tests"), "tests: must be a list of tests");
        }
        let items = tests.map(DocumentNode::items).unwrap_or_default();
        let cases = items.iter().enumerate();
        Some(Suite {
            manifests,
            position: root.position_of("manifests"),
            cases: cases
                .filter_map(|(index, node)| self.case(&format!("tests[{index}]"), node, &defaults))
                .collect(),
        })
    }

    /// Resolves the paths relative to the file's directory. Without paths, returns that directory.
    fn manifests(&mut self, root: &DocumentNode) -> Vec<PathBuf> {
        let directory = match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match root.get("manifests") {
            None => vec![directory.to_owned()],
            Some(list) => {
                let paths = self.texts(list, "manifests");
                paths.iter().map(|path| directory.join(path)).collect()
            }
        }
    }

    fn case(&mut self, path: &str, node: &DocumentNode, defaults: &Defaults) -> Option<TestCase> {
        match (node.get("request"), node.get("object")) {
            (Some(request), _) => {
                let case = self.request_case(path, node, request, defaults)?;
                Some(TestCase::Request(Box::new(case)))
            }
            (None, Some(object)) => {
                let case = self.change_case(path, node, object, defaults)?;
                Some(TestCase::Change(Box::new(case)))
            }
            (None, None) => Some(TestCase::Event(Box::new(self.event_case(path, node, defaults)?))),
        }
    }

    fn request_case(
        &mut self,
        path: &str,
        node: &DocumentNode,
        request: &DocumentNode,
        defaults: &Defaults,
    ) -> Option<RequestCase> {
        let before = self.problems.len();
        let members = ["name", "namespace", "source", "request", "result", "makes"];
        self.mapping(node, path, &members)?;
        let name = self.text(node, path, "name");
        let namespace = self.text(node, path, "namespace");
        let namespace = namespace.unwrap_or_else(|| defaults.namespace.clone());
        let source = self.text(node, path, "source");
        let webhook = format!("/{namespace}/{}", source.as_deref().unwrap_or_default());
        let request = self.request(&format!("{path}.request"), request, &webhook);
        let expected = self.expected(path, node);
        let required = [("name", name.is_some()), ("source", source.is_some())];
        self.accept(before, path, node, &required)?;
        Some(RequestCase {
            position: node.position,
            name: name?,
            namespace,
            source: source?,
            request: request?,
            expected,
        })
    }

    /// Returns nothing if a test has problems beyond the first `before`. If it has none, the first required member that is
    /// missing is one.
    fn accept(
        &mut self,
        before: usize,
        path: &str,
        node: &DocumentNode,
        required: &[(&str, bool)],
    ) -> Option<()> {
        let missing = required.iter().find(|(_, is_there)| !is_there);
        if let Some((member, _)) = missing
            && self.problems.len() == before
        {
            self.refuse(node.position, format!("{path}: {member} is missing"));
        }
        (self.problems.len() == before).then_some(())
    }

    fn expected(&mut self, path: &str, node: &DocumentNode) -> ExpectedEvents {
        let result = self.text(node, path, "result");
        let path = format!("{path}.makes");
        let makes = match node.get("makes") {
            Some(makes) if matches!(makes.tree, Tree::Map(_)) => vec![self.members(&path, makes)],
            Some(makes) => self.events_made(&path, makes),
            None => Vec::new(),
        };
        ExpectedEvents {
            result: result.unwrap_or_else(|| ACCEPTED.to_owned()),
            makes,
        }
    }

    fn change_case(
        &mut self,
        path: &str,
        node: &DocumentNode,
        object: &DocumentNode,
        defaults: &Defaults,
    ) -> Option<ChangeCase> {
        let before = self.problems.len();
        let members = [
            "name",
            "namespace",
            "source",
            "change",
            "object",
            "oldObject",
            "seen",
            "result",
            "makes",
        ];
        self.mapping(node, path, &members)?;
        let name = self.text(node, path, "name");
        let namespace = self.text(node, path, "namespace");
        let source = self.text(node, path, "source");
        let change = self.change(node, path);
        let object = self.object(&format!("{path}.object"), object);
        let old_object = node.get("oldObject");
        let old_object = old_object.and_then(|object| self.object(&format!("{path}.oldObject"), object));
        let seen = self.time(node, path, "seen");
        let expected = self.expected(path, node);
        let required = [("name", name.is_some()), ("source", source.is_some())];
        self.accept(before, path, node, &required)?;
        Some(ChangeCase {
            position: node.position,
            name: name?,
            namespace: namespace.unwrap_or_else(|| defaults.namespace.clone()),
            source: source?,
            change: change?,
            object: object?,
            old_object,
            seen,
            expected,
        })
    }

    fn change(&mut self, node: &DocumentNode, path: &str) -> Option<ChangeKind> {
        let Some(word) = self.text(node, path, "change") else {
            return Some(ChangeKind::Added);
        };
        let found = ChangeKind::ALL.into_iter().find(|change| change.word() == word);
        if found.is_none() {
            let message = format!("{path}.change: must be added, updated or deleted");
            self.refuse(node.position_of("change"), message);
        }
        found
    }

    /// An object as the API server has it. `metadata.uid` and `metadata.resourceVersion` are optional.
    fn object(&mut self, path: &str, node: &DocumentNode) -> Option<Value> {
        let mut object = node.to_json();
        for name in ["apiVersion", "kind"] {
            if object.get(name).and_then(Value::as_str).is_none() {
                self.refuse(node.position, format!("{path}: {name} is missing"));
                return None;
            }
        }
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            self.refuse(node.position, format!("{path}: metadata is missing"));
            return None;
        };
        for name in ["uid", "resourceVersion"] {
            metadata.entry(name).or_insert_with(|| "1".into());
        }
        Some(object)
    }

    /// A list of the events of a batch.
    fn events_made(&mut self, path: &str, node: &DocumentNode) -> Vec<Vec<(String, Option<Value>)>> {
        if node.items().is_empty() {
            let message = format!("{path}: must be an event, or a list of events");
            self.refuse(node.position, message);
        }
        let events = node.items().iter().enumerate();
        events
            .map(|(index, event)| self.members(&format!("{path}[{index}]"), event))
            .collect()
    }

    /// A request to the path of a webhook.
    fn request(&mut self, path: &str, node: &DocumentNode, webhook: &str) -> Option<RecordedRequest> {
        self.mapping(node, path, &["headers", "query", "body", "received"])?;
        let mut headers = HeaderMap::new();
        for (key, value) in node.get("headers").map(DocumentNode::entries).unwrap_or_default() {
            let path = format!("{path}.headers.{}", key.name);
            let name = HeaderName::try_from(&key.name);
            let value = self.string(value, &path).map(HeaderValue::try_from);
            match (name, value) {
                (Ok(name), Some(Ok(value))) => drop(headers.append(name, value)),
                (_, None) => {}
                _ => self.refuse(key.position, format!("{path}: is not a valid header")),
            }
        }
        let body = match node.get("body") {
            None => Bytes::new(),
            Some(body) => match body.text() {
                Some(text) => text.to_owned().into(),
                None => {
                    let json = HeaderValue::from_static("application/json");
                    headers.entry(header::CONTENT_TYPE).or_insert(json);
                    body.to_json().to_string().into()
                }
            },
        };
        let received = self.time(node, path, "received");
        let query = self.text(node, path, "query");
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let Ok(uri) = format!("{webhook}{query}").parse() else {
            let message =
                format!("{path}.query: is not a valid query; write spaces and other characters as in %20");
            self.refuse(node.position_of("query"), message);
            return None;
        };
        Some(RecordedRequest {
            uri,
            headers,
            body,
            received,
        })
    }

    fn time(&mut self, node: &DocumentNode, path: &str, name: &str) -> Option<Timestamp> {
        let time = self.text(node, path, name)?.parse();
        if time.is_err() {
            let message = format!("{path}.{name}: is not a time such as 2026-11-24T08:00:00Z");
            self.refuse(node.position_of(name), message);
        }
        time.ok()
    }

    fn event_case(&mut self, path: &str, node: &DocumentNode, defaults: &Defaults) -> Option<Case> {
        let before = self.problems.len();
        self.mapping(
            node,
            path,
            &["name", "event", "namespace", "broker", "triggers", "sends"],
        )?;
        let name = self.text(node, path, "name");
        let namespace = self.text(node, path, "namespace");
        let broker = self.text(node, path, "broker");
        let event = match node.get("event") {
            Some(event) => self.event(&format!("{path}.event"), event),
            None => None,
        };
        let triggers = node
            .get("triggers")
            .map(|list| self.texts(list, &format!("{path}.triggers")));
        let sends = match node.get("sends") {
            Some(sends) => self.sends(&format!("{path}.sends"), sends, triggers.as_deref()),
            None => Vec::new(),
        };
        let required = [
            ("name", name.is_some()),
            ("event", event.is_some()),
            ("triggers", triggers.is_some()),
        ];
        self.accept(before, path, node, &required)?;
        Some(Case {
            position: node.position,
            name: name?,
            namespace: namespace.unwrap_or_else(|| defaults.namespace.clone()),
            broker: broker.unwrap_or_else(|| defaults.broker.clone()),
            event: event?,
            triggers: triggers?,
            sends,
        })
    }

    /// A mapping of Triggers to members of the events that they send.
    fn sends(&mut self, path: &str, node: &DocumentNode, triggers: Option<&[String]>) -> Vec<SentEvent> {
        if !matches!(node.tree, Tree::Map(_)) {
            self.refuse(
                node.position,
                format!("{path}: must be a mapping, not {}", node.kind()),
            );
        }
        let mut sends = Vec::new();
        for (key, event) in node.entries() {
            let path = member(path, &key.name);
            if triggers.is_some_and(|triggers| !triggers.contains(&key.name)) {
                self.refuse(
                    key.position,
                    format!("{path}: is not one of the triggers of this test"),
                );
            }
            sends.push(SentEvent {
                trigger: key.name.clone(),
                members: self.members(&path, event),
            });
        }
        sends
    }

    /// Members of an event in the JSON format, `None` for those that are null.
    fn members(&mut self, path: &str, node: &DocumentNode) -> Vec<(String, Option<Value>)> {
        if !matches!(node.tree, Tree::Map(_)) {
            let message = format!("{path}: must be a mapping, not {}", node.kind());
            self.refuse(node.position, message);
        }
        let members = node.entries().iter().map(|(key, value)| {
            let value = (!value.is_null()).then(|| value.to_json());
            (key.name.clone(), value)
        });
        members.collect()
    }

    /// An event in the JSON format. `id` and `specversion` are optional.
    fn event(&mut self, path: &str, node: &DocumentNode) -> Option<Event> {
        let Value::Object(given) = node.to_json() else {
            self.refuse(
                node.position,
                format!("{path}: must be a mapping, not {}", node.kind()),
            );
            return None;
        };
        let defaults = [("id", "1"), ("specversion", "1.0")];
        let mut event: Map<_, _> = defaults
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into_iter()
            .collect();
        event.extend(given);
        let read = event::read(Value::Object(event).to_string().as_bytes());
        read.map_err(|error| {
            let attribute = match &error {
                NoEvent::Invalid(invalid) => invalid.attribute(),
                NoEvent::Count(_) | NoEvent::Line(_) => None,
            };
            let position = attribute.map_or(node.position, |attribute| node.position_of(attribute));
            self.refuse(position, format!("{path}: {error}"));
        })
        .ok()
    }

    /// Checks that the mapping has only these members.
    fn mapping(&mut self, node: &DocumentNode, path: &str, members: &[&str]) -> Option<()> {
        if !matches!(node.tree, Tree::Map(_)) {
            let what = if path.is_empty() { "a test file" } else { path };
            self.refuse(
                node.position,
                format!("{what} must be a mapping, not {}", node.kind()),
            );
            return None;
        }
        for (key, _) in node.entries() {
            if !members.contains(&key.name.as_str()) {
                let message = unknown_field(&key.name, members.iter().copied());
                let path = member(path, &key.name);
                self.refuse(key.position, format!("{path}: {message}"));
            }
        }
        Some(())
    }

    fn text(&mut self, node: &DocumentNode, path: &str, name: &str) -> Option<String> {
        let value = node.get(name)?;
        let path = member(path, name);
        self.string(value, &path)
    }

    fn texts(&mut self, list: &DocumentNode, path: &str) -> Vec<String> {
        if !matches!(list.tree, Tree::List(_)) {
            self.refuse(
                list.position,
                format!("{path}: must be a list, not {}", list.kind()),
            );
        }
        let items = list.items().iter().enumerate();
        items
            .filter_map(|(index, item)| self.string(item, &format!("{path}[{index}]")))
            .collect()
    }

    fn string(&mut self, node: &DocumentNode, path: &str) -> Option<String> {
        match node.text() {
            Some(text) if !text.is_empty() => Some(text.to_owned()),
            Some(_) => {
                self.refuse(node.position, format!("{path}: must not be empty"));
                None
            }
            None => {
                let message = format!("{path}: must be a string, not {}", node.kind());
                self.refuse(node.position, message);
                None
            }
        }
    }
}

fn member(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "manifests: [triggers/, sinks.yaml]\nnamespace: shop\ntests:\n- name: one\n  event: {type: t, source: /s, n: 5, data: {a: 1}}\n  triggers: [a, b]\n- name: two\n  broker: other\n  namespace: else\n  event:\n    type: t\n    source: /s\n    id: own\n  triggers: []\n";

    fn problems(text: &str) -> Vec<String> {
        let (_, problems) = read(Path::new("x.test.yaml"), text);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn fills_in_defaults() {
        let (suite, problems) = read(Path::new("dir/x.test.yaml"), GOOD);
        assert_eq!(problems, []);
        let Suite { manifests, cases, .. } = suite.unwrap();
        assert_eq!(
            manifests,
            [PathBuf::from("dir/triggers/"), PathBuf::from("dir/sinks.yaml")]
        );
        let cases = cases.into_iter().map(|case| match case {
            TestCase::Event(case) => case,
            other => panic!("{other:?}"),
        });
        let cases: Vec<_> = cases.collect();
        let places: Vec<_> = cases
            .iter()
            .map(|case| (&*case.namespace, &*case.broker, case.event.id()))
            .collect();
        assert_eq!(places, [("shop", "default", "1"), ("else", "other", "own")]);
        assert_eq!(cases[0].event.attribute("n"), Some(&5.into()));
        assert_eq!(cases[0].triggers, ["a", "b"]);
        assert_eq!(cases[1].position, Position { line: 7, column: 3 });

        let alone = GOOD.replace("manifests: [triggers/, sinks.yaml]\n", "");
        for (file, directory) in [("x.test.yaml", "."), ("a/b/x.test.yaml", "a/b")] {
            let (suite, _) = read(Path::new(file), &alone);
            assert_eq!(suite.unwrap().manifests, [PathBuf::from(directory)]);
        }
    }

    #[test]
    fn queries_of_requests_are_checked() {
        let suite = |query: &str| {
            format!("tests:\n- name: one\n  source: hook\n  namespace: shop\n  request: {{query: {query}}}\n")
        };
        let (read, found) = read(Path::new("x.test.yaml"), &suite("'a=b%20c&d'"));
        assert_eq!(found, []);
        let cases = read.unwrap().cases;
        let TestCase::Request(case) = &cases[0] else {
            panic!("{cases:?}")
        };
        assert_eq!(case.request.uri, "/shop/hook?a=b%20c&d");
        let expected = "x.test.yaml:5:13: tests[0].request.query: is not a valid query; write spaces and other characters as in %20";
        assert_eq!(problems(&suite("a b")), [expected]);
    }

    #[test]
    fn errors_have_positions() {
        for (from, to, expected) in [
            (
                "tests:",
                "test:",
                "x.test.yaml:3:1: test: unknown field; did you mean tests?",
            ),
            (
                "  triggers: [a, b]",
                "  trigger: [a, b]",
                "x.test.yaml:6:3: tests[0].trigger: unknown field; did you mean triggers?",
            ),
            (
                "  triggers: [a, b]",
                "",
                "x.test.yaml:4:3: tests[0]: triggers is missing",
            ),
            (
                "triggers: [a, b]",
                "triggers: [a, b]\n  sends: {c: {type: t}}",
                "x.test.yaml:7:11: tests[0].sends.c: is not one of the triggers",
            ),
            (
                "triggers: [a, b]",
                "triggers: [a, b]\n  sends: {a: t}",
                "x.test.yaml:7:14: tests[0].sends.a: must be a mapping, not a string",
            ),
            (
                "triggers: [a, b]",
                "triggers: a",
                "x.test.yaml:6:13: tests[0].triggers: must be a list, not a string",
            ),
            (
                "triggers: [a, b]",
                "triggers: [a, 5]",
                "x.test.yaml:6:17: tests[0].triggers[1]: must be a string, not an integer",
            ),
            (
                "n: 5",
                "n: 1.5",
                "x.test.yaml:5:32: tests[0].event: the attribute `n` is 1.5",
            ),
            ("n: 5", "fooBar: 5", "x.test.yaml:5:32: tests[0].event: "),
            ("type: t, source", "source", "x.test.yaml:5:10: tests[0].event: "),
            (
                "event: {type: t, source: /s, n: 5, data: {a: 1}}",
                "event: order.json",
                "x.test.yaml:5:10: tests[0].event: must be a mapping, not a string",
            ),
            (
                "namespace: shop",
                "namespace: ''",
                "x.test.yaml:2:12: namespace: must not be empty",
            ),
            (
                "manifests: [triggers/, sinks.yaml]",
                "manifests: .",
                "x.test.yaml:1:12: manifests: must be a list",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let found = problems(&GOOD.replacen(from, to, 1));
            assert!(
                found.iter().any(|problem| problem.starts_with(expected)),
                "{to}: {found:?}"
            );
        }
        for (text, expected) in [
            ("", "x.test.yaml:1:1: a test file must be a single document"),
            ("tests: []\n", "x.test.yaml:1:1: tests: must be a list of tests"),
            (
                "- a\n",
                "x.test.yaml:1:1: a test file must be a mapping, not a list",
            ),
            ("tests: [\n", "x.test.yaml:"),
            (
                "tests:\n- 5\n",
                "x.test.yaml:2:3: tests[0] must be a mapping, not an integer",
            ),
            (
                &format!("{GOOD}---\n{GOOD}"),
                "x.test.yaml:16:1: a test file must be a single document",
            ),
        ] {
            let found = problems(text);
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{text}: {found:?}"
            );
        }
    }
}
