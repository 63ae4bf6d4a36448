//! The CloudEvents SDKs of Python, JavaScript and Go, each as a producer and as a consumer of a running router: every
//! SDK's events reach every SDK with the same attributes and the same data, as they came and in both modes.
//!
//! `tests/interop/build.sh` installs the SDKs and says where; `WEIR_INTEROP` is that folder. What an SDK does not do by
//! itself, its program in `tests/interop` does, with the reason beside it; what it loses is said here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde_json::{Value, json};

use crate::support::{LocalRouter, PATIENCE, Process, Scratch, eventually};

/// How a Sink wants its events; the path that the consumer is posted to.
const SINKS: [(&str, &str); 3] = [
    ("as-received", "AsReceived"),
    ("binary", "Binary"),
    ("structured", "Structured"),
];

/// A CloudEvents SDK and the program that uses it.
#[derive(Clone, Copy, Debug)]
struct Sdk {
    name: &'static str,
    /// How it sends. `unencoded` is binary mode with headers that are not percent-encoded, as most producers send
    /// them; Python's SDK encodes, and Node.js refuses to send what is beyond Latin-1.
    modes: &'static [&'static str],
    /// The fraction of a second in which it keeps a time: it has a type for it, and not the text.
    precision: Unit,
}

const SDKS: [Sdk; 3] = [
    Sdk {
        name: "python",
        modes: &["binary", "structured", "batch"],
        precision: Unit::Microsecond,
    },
    Sdk {
        name: "javascript",
        modes: &["binary", "structured", "batch"],
        precision: Unit::Millisecond,
    },
    Sdk {
        name: "go",
        modes: &["binary", "unencoded", "structured", "batch"],
        precision: Unit::Nanosecond,
    },
];

impl Sdk {
    /// Runs its program.
    fn start(self, folder: &Path, arguments: &[&str]) -> Process {
        let installed = folder.join(self.name);
        let source =
            |file: &str| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop")).join(file);
        let (program, script) = match self.name {
            "python" => (installed.join("bin/python"), Some(source("python/interop.py"))),
            "javascript" => ("node".into(), Some(source("javascript/interop.js"))),
            _ => (installed.join("interop"), None),
        };
        let script = script.map(PathBuf::into_os_string);
        let arguments = script.into_iter().chain(arguments.iter().map(Into::into));
        Process::program(program, arguments)
            .env("NODE_PATH", installed.join("node_modules"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .quiet()
            .start()
    }
}

/// The events, by name, as the programs take them: attributes, and `json`, `text`, `base64` or no data. None has a
/// type like `application/vnd.example+json`: Go's SDK reads no structured event with one, against the JSON format,
/// section 3.1.1, and JavaScript's takes its data for text.
fn events() -> BTreeMap<&'static str, Value> {
    let attributes = json!({
        "specversion": "1.0",
        "source": "https://example.com/m%C3%BCnchen?a=b#c",
        "type": "com.example.interop",
        "subject": "100% of \"this\"/a%20b – Zürich, 東京 😀",
        "time": "2018-04-05T17:31:00.123456789Z",
        "dataschema": "https://example.com/schema/1%2C0",
        "exttext": "Grüße, \"€\" and 5% \\ more",
        "extinteger": i32::MIN,
        "extyes": true,
        "extno": false,
        "extbinary": "AAH+/w==",
        "exturi": "urn:example:a%2Cb",
        "exttimestamp": "2018-04-05T17:31:00Z",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    });
    let object =
        json!({"name": "Zürich 東京 😀", "none": null, "list": [1, 2.5, -3, true, ""], "deep": {"a": {}}});
    let text = "Grüße,\n\t\"東京\" 😀 100%\r\n";
    let bytes: Vec<u8> = (0..=255).collect();
    let with_data = |(name, content_type, kind, data): (_, &str, &str, Value)| {
        let mut event = json!({"attributes": attributes, kind: data});
        event["attributes"]["datacontenttype"] = content_type.into();
        (name, event)
    };
    [
        ("object", "application/json", "json", object),
        ("string", "application/json", "json", "a \"string\"".into()),
        ("text", "text/plain; charset=utf-8", "text", text.into()),
        (
            "bytes",
            "application/octet-stream",
            "base64",
            BASE64.encode(bytes).into(),
        ),
    ]
    .into_iter()
    .map(with_data)
    .chain([("nothing", json!({"attributes": attributes}))])
    .collect()
}

/// An event as it was given to a producer.
struct Sent {
    producer: Sdk,
    mode: &'static str,
    id: String,
    event: Value,
}

/// The events as a producer sends them in a mode.
fn sent(producer: Sdk, mode: &'static str) -> Vec<Sent> {
    let with_id = |(name, mut event): (&str, Value)| {
        let id = format!("{}-{mode}-{name}", producer.name);
        event["attributes"]["id"] = id.as_str().into();
        if mode == "unencoded" {
            remove_percent_codes(&mut event);
        }
        Sent {
            producer,
            mode,
            id,
            event,
        }
    };
    events().into_iter().map(with_id).collect()
}

/// What looks encoded and is sent without being encoded is decoded by whoever receives it.
fn remove_percent_codes(event: &mut Value) {
    for attribute in event["attributes"].as_object_mut().unwrap().values_mut() {
        if let Value::String(text) = attribute {
            *text = ["%20", "%C3%BC", "%2C"]
                .iter()
                .fold(text.clone(), |text, code| text.replace(code, "-"));
        }
    }
}

fn manifests(consumers: &[Sdk]) -> String {
    let mut text = String::new();
    for sdk in consumers {
        for (path, mode) in SINKS {
            let name = format!("{}-{path}", sdk.name);
            let resource = |kind: &str, spec: String| {
                format!(
                    "---\napiVersion: weir.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
                     spec: {spec}\n"
                )
            };
            text += &resource(
                "Sink",
                format!(
                    "{{service: {{name: {}, path: /{path}}}, contentMode: {mode}}}",
                    sdk.name
                ),
            );
            text += &resource(
                "Trigger",
                format!("{{filters: [], sink: {{ref: {{name: {name}}}}}}}"),
            );
        }
    }
    text
}

/// The folder with the SDKs and those that are in it; names the ones that are not.
fn installed() -> (PathBuf, Vec<Sdk>) {
    let folder = std::env::var_os("WEIR_INTEROP").map(PathBuf::from);
    let is_there = |sdk: &Sdk| {
        folder
            .as_ref()
            .is_some_and(|folder| folder.join(sdk.name).join("stamp").is_file())
    };
    let (there, missing): (Vec<Sdk>, Vec<Sdk>) = SDKS.iter().partition(|sdk| is_there(sdk));
    for sdk in missing {
        let why = match &folder {
            None => {
                "WEIR_INTEROP is not set; make integration sets it, to what tests/interop/build.sh prints"
                    .to_owned()
            }
            Some(folder) => format!(
                "{} has no {}; tests/interop/build.sh says why",
                folder.display(),
                sdk.name
            ),
        };
        // Not by a macro: what those print is shown only when the test fails.
        let line = format!(
            "skipped: interoperability with the CloudEvents SDK of {}: {why}\n",
            sdk.name
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    (folder.unwrap_or_default(), there)
}

#[test]
fn every_sdk_s_events_reach_every_sdk() {
    let (folder, sdks) = installed();
    if sdks.is_empty() {
        return;
    }
    let start = |&sdk: &Sdk| (sdk, sdk.start(&folder, &["consume"]));
    let consumers: Vec<_> = sdks.iter().map(start).collect();
    let service = |(sdk, consumer): &(Sdk, Process)| {
        let address = consumer.address("consumer");
        format!("--service=shop/{}=http://{address}", sdk.name)
    };
    let services: Vec<_> = consumers.iter().map(service).collect();
    let services: Vec<_> = services.iter().map(String::as_str).collect();
    let router = LocalRouter::start_with(&manifests(&sdks), &[], &services);

    let modes = |&producer: &Sdk| producer.modes.iter().map(move |&mode| (producer, mode));
    let all: Vec<_> = sdks
        .iter()
        .flat_map(modes)
        .flat_map(|(producer, mode)| produce(producer, mode, &folder, &router))
        .collect();
    for (consumer, process) in &consumers {
        let received = received(process, all.len() * SINKS.len());
        let differences: Vec<_> = all
            .iter()
            .flat_map(|sent| SINKS.map(|(path, _)| (sent, path)))
            .filter_map(|(sent, path)| {
                let came = &received[&(format!("/{path}"), sent.id.clone())];
                let difference = sent.difference(came, path, consumer.precision)?;
                Some(format!("{} at /{path}: {difference}", sent.id))
            })
            .collect();
        assert!(
            differences.is_empty(),
            "what {} received is not what was sent:\n{}",
            consumer.name,
            differences.join("\n")
        );
    }
}

/// Has an SDK send all events in a mode.
fn produce(producer: Sdk, mode: &'static str, folder: &Path, router: &LocalRouter) -> Vec<Sent> {
    let all = sent(producer, mode);
    let events: Vec<_> = all.iter().map(|sent| &sent.event).collect();
    let scratch = Scratch::new();
    let file = scratch.write("events.json", serde_json::to_vec(&events).unwrap());
    let arguments = ["produce", mode, &router.url(), file.to_str().unwrap()];
    let mut process = producer.start(folder, &arguments);
    let output = process.output();
    assert!(
        process.wait_for_exit(PATIENCE).success(),
        "{} cannot produce in {mode} mode: {output:?}",
        producer.name
    );
    all
}

/// What a consumer has printed, by path and id, once there are so many.
fn received(process: &Process, count: usize) -> BTreeMap<(String, String), Value> {
    eventually(PATIENCE, || {
        let lines = process.lines();
        let events = lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let events: BTreeMap<_, _> = events
            .filter(|line| line.get("attributes").is_some())
            .map(|line| ((text(&line["path"]), text(&line["attributes"]["id"])), line))
            .collect();
        if events.len() == count {
            Ok(events)
        } else {
            Err(format!(
                "{} of {count} events have arrived; the last line: {:?}",
                events.len(),
                lines.last()
            ))
        }
    })
}

impl Sent {
    /// How what came at a path is not what was sent.
    fn difference(&self, came: &Value, path: &str, precision: Unit) -> Option<String> {
        let sent_structured = matches!(self.mode, "structured" | "batch");
        let structured = path == "structured" || path == "as-received" && sent_structured;
        let content_type = came["contentType"].as_str().unwrap();
        if content_type.starts_with("application/cloudevents+json") != structured {
            return Some(format!("its content type is {content_type:?}"));
        }
        let [was, is] = [&self.event, came].map(|event| event["attributes"].as_object().unwrap());
        let names: BTreeSet<_> = was.keys().chain(is.keys()).collect();
        let precision = precision.max(self.producer.precision);
        for name in names {
            let [was, is] = [was, is].map(|all| all.get(name).cloned().unwrap_or_default());
            let same = match name.as_str() {
                "time" => instant(&was, precision) == instant(&is, precision),
                // A header does not say what is a Boolean or an integer.
                _ if sent_structured && structured => was == is,
                _ => canonical(&was) == canonical(&is),
            };
            if !same {
                return Some(format!("{name} was {was} and is {is}"));
            }
        }
        let data = BASE64.decode(came["data"].as_str().unwrap_or_default()).unwrap();
        (!self.has_data(&data)).then(|| format!("its data is {:?}", String::from_utf8_lossy(&data)))
    }

    fn has_data(&self, data: &[u8]) -> bool {
        let given = |kind| self.event.get(kind);
        match (given("json"), given("text"), given("base64")) {
            // SDKs parse JSON and write it again, so it is the value that arrives.
            (Some(json), ..) => serde_json::from_slice::<Value>(data).is_ok_and(|data| data == *json),
            (_, Some(text), _) => text.as_str().map(str::as_bytes) == Some(data),
            (_, _, Some(bytes)) => bytes == BASE64.encode(data).as_str(),
            (None, None, None) => data.is_empty(),
        }
    }
}

fn canonical(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn instant(time: &Value, precision: Unit) -> Timestamp {
    let time: Timestamp = time.as_str().unwrap().parse().unwrap();
    time.round(TimestampRound::new().smallest(precision).mode(RoundMode::Trunc))
        .unwrap()
}
