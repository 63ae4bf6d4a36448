//! Properties of every event.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection, prelude::*};

use super::{Event, EventBuilder, Mode, TraceContext, Value, read_http};

/// Generates text for attributes, including what HTTP and JSON must escape.
fn text() -> impl Strategy<Value = String> {
    collection::vec(
        prop::sample::select(vec!['a', 'Z', '0', ' ', '"', '%', '\\', '/', 'ü', '€', '😀', '~']),
        1..12,
    )
    .prop_map(String::from_iter)
}

fn event() -> impl Strategy<Value = Event> {
    let extension = (
        "x[a-z0-9]{0,25}",
        prop_oneof![
            text().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
        ],
    );
    let data = prop_oneof![
        Just((None, Vec::new())),
        Just((Some("application/json"), br#"{"a": 1.10}"#.to_vec())),
        Just((Some("text/plain"), "grüezi".into())),
        collection::vec(any::<u8>(), 1..40).prop_map(|bytes| (Some("application/octet-stream"), bytes)),
        collection::vec(any::<u8>(), 1..40).prop_map(|bytes| (None, bytes)),
        collection::vec(any::<u8>(), 1..40).prop_map(|bytes| (Some("application/json"), bytes)),
    ];
    (
        text(),
        collection::btree_map(extension.0, extension.1, 0..6),
        data,
    )
        .prop_map(|(id, extensions, (kind, data))| {
            let mut builder = EventBuilder::new()
                .attribute("id", id)
                .attribute("source", "/s")
                .attribute("type", "t");
            for (name, value) in extensions {
                builder = builder.attribute(name, value);
            }
            if let Some(kind) = kind {
                builder = builder.attribute("datacontenttype", kind);
            }
            builder.untyped_data(data).build().unwrap()
        })
}

fn trace_context() -> impl Strategy<Value = Option<TraceContext>> {
    let state = "([a-z]{1,5}=[ -+]{0,5}[!-+]){0,3}";
    (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<u8>(), state).prop_map(
        |(trace_id, parent_id, flags, state)| {
            let context = TraceContext::new(trace_id, parent_id, flags)?;
            Some(context.with_state(&state))
        },
    )
}

fn with_context(event: Event, context: Option<TraceContext>) -> Event {
    match context {
        Some(context) => event.with_trace_context(context),
        None => event,
    }
}

fn through_http(event: &Event, mode: Mode) -> Event {
    let message = event.to_http(Some(mode));
    read_http(&message.headers, message.body)
        .unwrap()
        .into_events()
        .remove(0)
}

fn strings(event: &Event) -> Vec<(String, String)> {
    event
        .attributes()
        .map(|(name, value)| (name.to_owned(), value.canonical().into_owned()))
        .collect()
}

fn bytes(event: &Event) -> Vec<u8> {
    event
        .data()
        .map(|data| data.as_bytes().to_vec())
        .unwrap_or_default()
}

proptest! {
    #[test]
    fn every_mode_keeps_attributes_and_data(event in event()) {
        for modes in [vec![Mode::Binary], vec![Mode::Structured], vec![Mode::Structured, Mode::Binary, Mode::Structured]] {
            let mut sent = event.clone();
            for mode in modes {
                sent = through_http(&sent, mode);
                prop_assert_eq!(sent.mode(), mode);
                prop_assert_eq!(strings(&sent), strings(&event));
                prop_assert_eq!(bytes(&sent), bytes(&event));
                let again = sent.to_http(None);
                let twice = read_http(&again.headers, again.body.clone()).unwrap().into_events().remove(0);
                prop_assert_eq!(twice.to_http(None), again, "what came in goes out");
            }
        }
    }

    #[test]
    fn record_preserves_the_event(event in event(), structured in any::<bool>(), context in proptest::option::of(trace_context())) {
        let event = if structured { through_http(&event, Mode::Structured) } else { event };
        let context = context.flatten();
        let event = with_context(event, context.clone());
        let record = event.to_record();
        let read = Event::from_record(record.clone()).unwrap();
        prop_assert_eq!(&read, &event);
        prop_assert_eq!(read.trace_context(), context);
        prop_assert_eq!(read.to_record(), record.clone());
        for length in 0..record.len().min(200) {
            let _ = Event::from_record(record.slice(..length));
        }
    }

    #[test]
    fn damaged_records_do_not_panic(event in event(), context in trace_context(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut record = with_context(event, context).to_record().to_vec();
        let at = at.index(record.len());
        record[at] = byte;
        if let Ok(event) = Event::from_record(record.into()) {
            let _ = (event.to_http(Some(Mode::Binary)), event.to_json(), event.data());
        }
    }

    #[test]
    fn arbitrary_records_do_not_panic(record in collection::vec(any::<u8>(), 0..200)) {
        for start in [[1, 1], [2, 0]] {
            if let Ok(event) = Event::from_record([&start[..], &record].concat().into()) {
                let _ = (event.to_http(Some(Mode::Binary)), event.to_json(), event.data(), event.trace_context());
            }
        }
    }

    #[test]
    fn arbitrary_messages_do_not_panic(
        name in "ce-[a-z0-9]{1,10}",
        value in collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff], 0..20),
        kind in prop::sample::select(vec!["application/cloudevents+json", "application/cloudevents-batch+json", "a/b", ""]),
        body in prop_oneof![
            collection::vec(any::<u8>(), 0..60),
            "[\\[{]?\\{?(\"(id|specversion|data|x)\":(1|\"1.0\"|null|\\{\\}),?){0,5}\\}?\\]?".prop_map(String::into_bytes),
        ],
    ) {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(&value).unwrap());
        headers.insert("content-type", HeaderValue::from_static(kind));
        let _ = read_http(&headers, Bytes::from(body));
    }
}
