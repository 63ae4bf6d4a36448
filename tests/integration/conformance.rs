//! CloudEvents 1.0 as a running router holds it: what it takes, what arrives at a Sink byte for byte, and what a Sink's
//! answer does. Each row is named by the rule that it holds, with the section of the specification: "core" is
//! spec.md, "HTTP" http-protocol-binding.md, "JSON" formats/json-format.md, "webhook" http-webhook.md.
//!
//! Not every rule is a row here. Where each is tested (`checks`, `http`, `json`, `media_type`, `syntax`, `properties` are
//! the unit tests in `src/cloudevents`; REFUSED, ARRIVES and ANSWERS the tables in this file):
//!
//! | rule | tested in |
//! | --- | --- |
//! | **Core** | |
//! | Names are `[a-z0-9]+`, at any length, `data` is none, each at most once | `checks::accepts_and_rejects_names`, `checks::each_attribute_at_most_once`; REFUSED, ARRIVES |
//! | What is required is there and not empty, and so is what is optional | `checks::required_attributes_are_present_and_not_empty`; REFUSED |
//! | `source` is a URI-reference; `dataschema` too, since producers send `#` | `syntax::recognizes_uri_references`, `checks::validates_uris_timestamps_and_media_types`; ARRIVES |
//! | Booleans, 32-bit integers, strings without control characters, noncharacters, surrogates | `checks::rejects_forbidden_characters`, `json::maps_json_types_to_attribute_types`, `json::errors_name_the_attribute`; REFUSED |
//! | A timestamp is RFC 3339 and stays as it was written | `syntax::recognizes_timestamps`; ARRIVES |
//! | 64 KiB pass in every mode, more up to the limit, then 413; nothing is cut off | `cluster::an_event_of_64_kib_passes_in_every_mode`; ARRIVES, `the_limit_is_exact_and_nothing_is_cut_off` |
//! | Another `specversion` is rejected | `checks::rejects_other_versions_before_anything_else`; REFUSED |
//! | Media types compare without case, parameters included | `media_type`; ARRIVES |
//! | **HTTP binding** | |
//! | The mode is told by the content type; an unknown format is 415 | `http::content_type_determines_the_mode`; REFUSED, ARRIVES |
//! | `Content-Type` is `datacontenttype`; other headers are no attributes; the body is the data | `http::binary_mode_rejects_invalid_messages`, `http::binary_mode_keeps_the_body_and_no_other_header`; REFUSED, ARRIVES |
//! | Header values are encoded and decoded once | `http::decodes_binary_headers_once`, `properties`; REFUSED, ARRIVES |
//! | In the mode it came in, a header goes on as it came | `http::accepts_encoded_and_unencoded_sources`; ARRIVES |
//! | A batch is stored whole or not at all; `[]` is one; it leaves as single events | `http::batch_keeps_each_event_verbatim`; `a_batch_is_taken_whole_or_not_at_all` |
//! | **JSON format** | |
//! | `null` unsets an attribute, and is data; `data` and `data_base64` exclude each other | `json::reads_data_of_every_kind`; REFUSED, ARRIVES |
//! | What is JSON, text and Base64; a string stays one; numbers keep their text | `media_type::recognizes_json_by_subtype_or_suffix`, `http::binary_to_structured_follows_the_json_format`; ARRIVES |
//! | Structured to binary: the content type that is implied | `http::structured_to_binary_follows_the_json_format`; ARRIVES |
//! | An extension is a string, Boolean or 32-bit integer | `json::errors_name_the_attribute`; REFUSED |
//! | **Delivery over HTTP** | |
//! | What each status means; no answer; redirects are not followed | `verdict::what_each_status_means` (`src/delivery`); ANSWERS |
//! | `Retry-After`, up to a limit | `verdict::retry_after_is_seconds_or_a_date`, `backoff` (`src/delivery`); `retry_after_is_obeyed_up_to_a_limit` |
//! | The validation handshake | as it is answered: `the_ingress_answers_the_validation_handshake`. Weir does not ask Sinks for it |
//! | **Extensions** | |
//! | All pass through untouched, `traceparent` and `sequence` among them | ARRIVES |
//! | `expirytime` is looked at before each attempt | `an_event_past_its_time_is_not_delivered` |
//! | `partitionkey` orders | `lanes` (`src/delivery`), `faults::events_of_one_key_stay_in_order_and_a_failing_key_holds_only_itself` |

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json, value::RawValue};

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, RawResponse, Received, eventually, exchange};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// A Trigger for everything, to Service `web`.
fn trigger(name: &str, sink: &str, delivery: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{filters: [], sink: {sink}, delivery: {{{delivery}}}}}\n"
    )
}

/// Posts exactly these bytes as headers and body: a client library would change or reject some.
fn post_raw(router: &LocalRouter, headers: &[(&str, &[u8])], body: &[u8]) -> RawResponse {
    let mut request = b"POST /shop/default HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n".to_vec();
    for (name, value) in headers {
        request.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    request.extend_from_slice(body);
    exchange(router.process.address("ingress"), &request)
}

/// A message of one event, without the attributes that every row has.
enum Message<'a> {
    /// Header fields and the body.
    Binary(&'a [(&'a str, &'a [u8])], &'a [u8]),
    /// The content type and members of the JSON text.
    Structured(&'a str, &'a str),
}

impl Message<'_> {
    fn headers(&self, id: &str) -> Vec<(String, Vec<u8>)> {
        match self {
            Self::Binary(headers, _) => {
                let required = [
                    ("ce-specversion", "1.0"),
                    ("ce-id", id),
                    ("ce-source", "/s"),
                    ("ce-type", "t"),
                ];
                let is_set = |name: &str| headers.iter().any(|(set, _)| *set == name);
                let required = required.iter().filter(|(name, _)| !is_set(name));
                let required = required.map(|(name, value)| (*name, value.as_bytes()));
                let all = required.chain(headers.iter().copied());
                all.map(|(name, value)| (name.to_owned(), value.to_vec()))
                    .collect()
            }
            Self::Structured(content_type, _) => {
                vec![("content-type".to_owned(), content_type.as_bytes().to_vec())]
            }
        }
    }

    fn body(&self, id: &str) -> Vec<u8> {
        match self {
            Self::Binary(_, body) => body.to_vec(),
            Self::Structured(_, members) => {
                let mut text = format!(r#"{{ "specversion":"1.0","id":"{id}", "type":"t""#);
                if !members.contains("\"source\"") {
                    text += r#","source":"/s""#;
                }
                format!("{text}{members} }}").into_bytes()
            }
        }
    }

    fn post(&self, router: &LocalRouter, id: &str) -> RawResponse {
        let headers = self.headers(id);
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        post_raw(router, &headers, &self.body(id))
    }
}

/// What is rejected: the rule, the message, the status, the reason, and the attribute that is named.
type Refused<'a> = (&'a str, Message<'a>, u16, &'a str, Option<&'a str>);

#[rustfmt::skip]
const REFUSED: &[Refused<'_>] = {
    use Message::{Binary, Structured};
    const J: &str = STRUCTURED;
    &[
    ("core, naming conventions: lower-case letters and digits", Binary(&[("ce-my_ext", b"x")], b""), 400, "invalid_attribute_name", Some("my_ext")),
    ("core, naming conventions: no capitals", Structured(J, r#","myExt":"x""#), 400, "invalid_attribute_name", Some("myExt")),
    ("core, naming conventions: `data` is no attribute", Binary(&[("ce-data", b"x")], b""), 400, "invalid_attribute_name", Some("data")),
    ("core, context attributes: at most once", Binary(&[("ce-x", b"1"), ("ce-x", b"1")], b""), 400, "duplicate_attribute", Some("x")),
    ("core, context attributes: at most once, whatever the case of the header", Binary(&[("ce-x", b"1"), ("CE-X", b"1")], b""), 400, "duplicate_attribute", Some("x")),
    ("core, context attributes: at most once, as the content type is", Binary(&[("content-type", b"a/b"), ("content-type", b"a/b")], b""), 400, "duplicate_attribute", Some("datacontenttype")),
    ("core, context attributes: at most once, in JSON too", Structured(J, r#","x":"1","x":"1""#), 400, "duplicate_attribute", Some("x")),
    ("core, required attributes: not empty", Binary(&[("ce-id", b"")], b""), 400, "empty_attribute", Some("id")),
    ("core, required attributes: present, and null is absent", Structured(J, r#","source":null"#), 400, "missing_attribute", Some("source")),
    ("core, optional attributes: not empty", Binary(&[("ce-subject", b"")], b""), 400, "empty_attribute", Some("subject")),
    ("core, optional attributes: not empty, in JSON too", Structured(J, r#","dataschema":"""#), 400, "empty_attribute", Some("dataschema")),
    ("core, source: a URI-reference", Structured(J, r#","source":"a b""#), 400, "invalid_attribute_value", Some("source")),
    ("core, time: RFC 3339", Binary(&[("ce-time", b"2018-04-05 17:31:00Z")], b""), 400, "invalid_attribute_value", Some("time")),
    ("core, datacontenttype: a media type", Binary(&[("content-type", b"json")], b""), 400, "invalid_attribute_value", Some("datacontenttype")),
    ("core, type system: no control characters", Binary(&[("ce-x", b"a%07b")], b""), 400, "invalid_attribute_value", Some("x")),
    ("core, type system: no noncharacters", Structured(J, r#","x":"\uffff""#), 400, "invalid_attribute_value", Some("x")),
    ("core, type system: no lone surrogates", Structured(J, r#","x":"\udc00""#), 400, "invalid_attribute_value", Some("x")),
    ("core, specversion: 1.0", Binary(&[("ce-specversion", b"1.0.2")], b""), 400, "unsupported_specversion", Some("specversion")),
    ("HTTP 3: no mode at all", Structured("application/json", ""), 400, "not_a_cloudevent", None),
    ("HTTP 3: an event format that is not read", Structured("application/cloudevents+avro", ""), 415, "unsupported_format", None),
    ("HTTP 3: nor in batches", Structured("application/cloudevents-batch+avro", ""), 415, "unsupported_format", None),
    ("HTTP 3.1.1: datacontenttype is the content type alone", Binary(&[("ce-datacontenttype", b"a/b")], b""), 400, "invalid_attribute_name", Some("datacontenttype")),
    ("HTTP 3.1.3.2: percent codes are UTF-8", Binary(&[("ce-x", b"%ff%fe")], b""), 400, "invalid_attribute_value", Some("x")),
    ("HTTP 3.1.3.2: overlong UTF-8 is none", Binary(&[("ce-x", b"%c0%80")], b""), 400, "invalid_attribute_value", Some("x")),
    ("HTTP 3.1.3.2: bytes are UTF-8, and Latin-1 is not", Binary(&[("ce-x", b"Z\xfcrich")], b""), 400, "invalid_attribute_value", Some("x")),
    ("JSON 3: UTF-8", Structured("application/cloudevents+json; charset=utf-16", ""), 415, "unsupported_charset", None),
    ("JSON 3: an object", Structured(J, ","), 400, "malformed_json", None),
    ("JSON 2.2: an extension is no float", Structured(J, r#","x":1.0"#), 400, "invalid_attribute_type", Some("x")),
    ("JSON 2.2: an integer has 32 bits", Structured(J, r#","x":2147483648"#), 400, "invalid_attribute_type", Some("x")),
    ("JSON 2.2: an extension is no object", Structured(J, r#","x":{}"#), 400, "invalid_attribute_type", Some("x")),
    ("JSON 2.2: what the core defines is a string", Structured(J, r#","subject":1"#), 400, "invalid_attribute_type", Some("subject")),
    ("JSON 3.1: data and data_base64 exclude each other", Structured(J, r#","data":"","data_base64":"""#), 400, "invalid_data", Some("data")),
    ("JSON 3.1: data_base64 is Base64", Structured(J, r#","data_base64":"a""#), 400, "invalid_data", Some("data_base64")),
    ("JSON 3.1: data that is not JSON is a string", Structured(J, r#","datacontenttype":"text/plain","data":{}"#), 400, "invalid_data", Some("data")),
    ]
};

#[test]
fn what_is_no_event_is_refused_and_the_rule_is_named() {
    let consumer = Consumer::start();
    let router = LocalRouter::start(&trigger("t", "{service: {name: web}}", ""), &[("web", &consumer)]);
    for (rule, message, status, reason, attribute) in REFUSED {
        let response = message.post(&router, "refused");
        let problem = response.json();
        let shown = format!("{rule}: {} {problem}", response.status);
        assert_eq!(response.status, *status, "{shown}");
        assert!(
            response.head.contains("content-type: application/problem+json"),
            "{shown}"
        );
        assert_eq!(problem["status"], *status, "{shown}");
        assert_eq!(problem["reason"], *reason, "{shown}");
        assert_eq!(
            problem.get("attribute").and_then(Value::as_str),
            *attribute,
            "{shown}"
        );
    }
    let one = Message::Binary(&[], b"");
    assert_eq!(one.post(&router, "good").status, 202);
    assert_eq!(consumer.wait_for(1)[0].header("ce-id"), Some("good"));
    assert_eq!(
        router.accounting("t")["matched"],
        1,
        "nothing that was rejected is stored"
    );
}

/// What arrives: the rule; the message; in binary mode every header but the required ones, and the body; in structured
/// mode every member but the required ones, with its text. In the mode that it came in it arrives as it was sent.
type Arrives<'a> = (
    &'a str,
    Message<'a>,
    (&'a [(&'a str, &'a [u8])], &'a [u8]),
    &'a [(&'a str, &'a str)],
);

const EVERY_BYTE: &[u8] = &{
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

const EVERY_BYTE_IN_BASE64: &str = "\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn+AgYKDhIWGh4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2en6ChoqOkpaanqKmqq6ytrq+wsbKztLW2t7i5uru8vb6/wMHCw8TFxsfIycrLzM3Oz9DR0tPU1dbX2Nna29zd3t/g4eLj5OXm5+jp6uvs7e7v8PHy8/T19vf4+fr7/P3+/w==\"";

const LONG_NAME: &str = "ce-anamethatislongerthantwentycharactersandlowercase0123456789";

#[rustfmt::skip]
const ARRIVES: &[Arrives<'_>] = {
    use Message::{Binary, Structured};
    const J: &str = STRUCTURED;
    &[
    ("core, naming conventions: length is no reason", Binary(&[(LONG_NAME, b"x")], b""), (&[(LONG_NAME, b"x")], b""), &[("anamethatislongerthantwentycharactersandlowercase0123456789", r#""x""#)]),
    ("core, naming conventions: a digit may come first", Structured(J, r#","1a":"x""#), (&[("ce-1a", b"x")], b""), &[("1a", r#""x""#)]),
    ("core, source: any URI-reference", Binary(&[("ce-source", b"#x")], b""), (&[("ce-source", b"#x")], b""), &[("source", r##""#x""##)]),
    ("core, dataschema: `#` as producers send it", Structured(J, r##","dataschema":"#""##), (&[("ce-dataschema", b"#")], b""), &[("dataschema", r##""#""##)]),
    ("core, time: as it was written", Binary(&[("ce-time", b"2018-04-05t17:31:00.1230+02:00")], b""), (&[("ce-time", b"2018-04-05t17:31:00.1230+02:00")], b""), &[("time", r#""2018-04-05t17:31:00.1230+02:00""#)]),
    ("core, time: as it was written, in JSON too", Structured(J, r#","time":"2016-12-31T23:59:60.000000000001Z""#), (&[("ce-time", b"2016-12-31T23:59:60.000000000001Z")], b""), &[("time", r#""2016-12-31T23:59:60.000000000001Z""#)]),
    ("core, type system: an extension may be empty", Structured(J, r#","x":"""#), (&[("ce-x", b"")], b""), &[("x", r#""""#)]),
    ("core, type system: canonical strings", Structured(J, r#","i":-2147483648,"z":-0,"b":true,"c":false"#), (&[("ce-i", b"-2147483648"), ("ce-z", b"0"), ("ce-b", b"true"), ("ce-c", b"false")], b""), &[("i", "-2147483648"), ("z", "-0"), ("b", "true"), ("c", "false")]),
    ("core, type system: a header has no types", Binary(&[("ce-i", b"7"), ("ce-b", b"true")], b""), (&[("ce-i", b"7"), ("ce-b", b"true")], b""), &[("i", r#""7""#), ("b", r#""true""#)]),
    ("core, datacontenttype: case and parameters stay", Binary(&[("content-type", b"Application/JSON ; CharSet=\"UTF-8\"")], b"[1.0]"), (&[("content-type", b"Application/JSON ; CharSet=\"UTF-8\"")], b"[1.0]"), &[("datacontenttype", r#""Application/JSON ; CharSet=\"UTF-8\"""#), ("data", "[1.0]")]),
    ("HTTP 3: the mode is told without case", Structured("Application/CloudEvents+JSON;Charset=UTF-8", r#","data":1"#), (&[("content-type", b"application/json")], b"1"), &[("data", "1")]),
    ("HTTP 3.1.1: datacontenttype is the content type", Structured(J, r#","datacontenttype":"text/x-y; z=\"a b\"","data":"hi""#), (&[("content-type", b"text/x-y; z=\"a b\"")], b"hi"), &[("datacontenttype", r#""text/x-y; z=\"a b\"""#), ("data", r#""hi""#)]),
    ("HTTP 3.1.2: the body is the data, every byte of it", Binary(&[("content-type", b"application/octet-stream")], EVERY_BYTE), (&[("content-type", b"application/octet-stream")], EVERY_BYTE), &[("datacontenttype", r#""application/octet-stream""#), ("data_base64", EVERY_BYTE_IN_BASE64)]),
    ("HTTP 3.1.2: without a content type as well", Binary(&[], b" {\n} "), (&[], b" {\n} "), &[("data_base64", r#""IHsKfSA=""#)]),
    ("HTTP 3.1.3.1: the case of a header's name is nothing", Binary(&[("CE-Subject", b"x"), ("cE-AbC", b"y")], b""), (&[("ce-subject", b"x"), ("ce-abc", b"y")], b""), &[("subject", r#""x""#), ("abc", r#""y""#)]),
    ("HTTP 3.1.3.1: other headers are no attributes", Binary(&[("x-other", b"1"), ("traceparent", b"2"), ("cookie", b"3"), ("authorization", b"4")], b""), (&[], b""), &[]),
    ("HTTP 3.1.3.2: space, quote, percent and non-ASCII are encoded, and nothing else", Structured(J, r#","x":"a b\"c%d\u20acé😀~!\\'(),/:;<=>?@[]{}","subject":"%20""#), (&[("ce-x", b"a%20b%22c%25d%E2%82%AC%C3%A9%F0%9F%98%80~!\\'(),/:;<=>?@[]{}"), ("ce-subject", b"%2520")], b""), &[("x", r#""a b\"c%d\u20acé😀~!\\'(),/:;<=>?@[]{}""#), ("subject", r#""%20""#)]),
    ("HTTP 3.1.3.2: decoded once", Binary(&[("ce-x", b"Euro%20%e2%82%ac"), ("ce-subject", b"%2525")], b""), (&[("ce-x", b"Euro%20%e2%82%ac"), ("ce-subject", b"%2525")], b""), &[("x", r#""Euro €""#), ("subject", r#""%25""#)]),
    ("HTTP 3.1.3.2: quotes are taken off, then it is decoded", Binary(&[("ce-x", b"\"a%20\\\"b\\\\\"")], b""), (&[("ce-x", b"\"a%20\\\"b\\\\\"")], b""), &[("x", r#""a \"b\\""#)]),
    ("HTTP 3.1.3.2: what was not encoded is understood, and goes on as it came", Binary(&[("ce-x", "Zürich 100% sure".as_bytes())], b""), (&[("ce-x", "Zürich 100% sure".as_bytes())], b""), &[("x", r#""Zürich 100% sure""#)]),
    ("HTTP 3.1.3.2: a URI's own percent codes are not decoded where that leaves no URI", Binary(&[("ce-source", b"/a%20b")], b""), (&[("ce-source", b"/a%20b")], b""), &[("source", r#""/a%20b""#)]),
    ("JSON 2.2: null unsets", Structured(J, r#","x":null,"subject":null,"data_base64":null"#), (&[], b""), &[]),
    ("JSON 3.1: null is data", Structured(J, r#","data":null"#), (&[("content-type", b"application/json")], b"null"), &[("data", "null")]),
    ("JSON 3.1: numbers keep their text", Structured(J, r#","data": [1.10, 12345678901234567890, 1E400, -0.0]"#), (&[("content-type", b"application/json")], b"[1.10, 12345678901234567890, 1E400, -0.0]"), &[("data", "[1.10, 12345678901234567890, 1E400, -0.0]")]),
    ("JSON 3.1: members keep their order, and may occur twice", Structured(J, r#","data":{"b":1,"a":2,"b":3}"#), (&[("content-type", b"application/json")], br#"{"b":1,"a":2,"b":3}"#), &[("data", r#"{"b":1,"a":2,"b":3}"#)]),
    ("JSON 3.1: binary data keeps its text as well", Binary(&[("content-type", b"text/json")], br#"{"b":1.10, "a":"\u00e9"}"#), (&[("content-type", b"text/json")], br#"{"b":1.10, "a":"\u00e9"}"#), &[("datacontenttype", r#""text/json""#), ("data", r#"{"b":1.10, "a":"\u00e9"}"#)]),
    ("JSON 3.1: a suffix says JSON, parameters aside", Binary(&[("content-type", b"application/vnd.x+JSON; v=1")], b"\"a\""), (&[("content-type", b"application/vnd.x+JSON; v=1")], b"\"a\""), &[("datacontenttype", r#""application/vnd.x+JSON; v=1""#), ("data", r#""a""#)]),
    ("JSON 3.1: what says JSON and is none is kept as bytes", Binary(&[("content-type", b"application/json")], b"{"), (&[("content-type", b"application/json")], b"{"), &[("datacontenttype", r#""application/json""#), ("data_base64", r#""ew==""#)]),
    ("JSON 3.1: a JSON string stays one", Structured(J, r#","datacontenttype":"application/json","data":"a\u00e9\"""#), (&[("content-type", b"application/json")], br#""a\u00e9\"""#), &[("datacontenttype", r#""application/json""#), ("data", r#""a\u00e9\"""#)]),
    ("JSON 3.1: text is a string", Binary(&[("content-type", b"text/plain")], "é\"\n".as_bytes()), (&[("content-type", b"text/plain")], "é\"\n".as_bytes()), &[("datacontenttype", r#""text/plain""#), ("data", r#""é\"\n""#)]),
    ("JSON 3.1: text in another encoding is kept as bytes", Binary(&[("content-type", b"text/plain; charset=latin1")], b"\xe9"), (&[("content-type", b"text/plain; charset=latin1")], b"\xe9"), &[("datacontenttype", r#""text/plain; charset=latin1""#), ("data_base64", r#""6Q==""#)]),
    ("JSON 3.1: a string of text is the text", Structured(J, r#","datacontenttype":"text/plain","data":"\u00e9\"\n""#), (&[("content-type", b"text/plain")], "é\"\n".as_bytes()), &[("datacontenttype", r#""text/plain""#), ("data", r#""\u00e9\"\n""#)]),
    ("JSON 3.1: bytes with a content type", Structured(J, r#","datacontenttype":"application/json","data_base64":"eyJhIjoxfQ==""#), (&[("content-type", b"application/json")], br#"{"a":1}"#), &[("datacontenttype", r#""application/json""#), ("data_base64", r#""eyJhIjoxfQ==""#)]),
    ("JSON 3.1: bytes without one imply none", Structured(J, r#","data_base64":"AP8=""#), (&[], b"\0\xff"), &[("data_base64", r#""AP8=""#)]),
    ("distributed tracing: the extension stays the starting trace", Binary(&[("ce-traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("ce-tracestate", b"a=b,c=d")], b""), (&[("ce-traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("ce-tracestate", b"a=b,c=d")], b""), &[("traceparent", r#""00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01""#), ("tracestate", r#""a=b,c=d""#)]),
    ("other extensions: untouched, whatever they say", Binary(&[("ce-sequence", b"00007"), ("ce-partitionkey", b"k"), ("ce-sampledrate", b"none"), ("ce-expirytime", b"never")], b""), (&[("ce-sequence", b"00007"), ("ce-partitionkey", b"k"), ("ce-sampledrate", b"none"), ("ce-expirytime", b"never")], b""), &[("sequence", r#""00007""#), ("partitionkey", r#""k""#), ("sampledrate", r#""none""#), ("expirytime", r#""never""#)]),
    ]
};

const REQUIRED: [(&str, &str); 3] = [("specversion", "1.0"), ("source", "/s"), ("type", "t")];

#[test]
fn what_arrives_is_what_was_sent_in_both_modes() {
    let consumers = ["AsReceived", "Binary", "Structured"].map(|mode| (mode, Consumer::start()));
    let manifests = consumers.iter().map(|(mode, _)| {
        let name = mode.to_lowercase();
        let spec = format!("{{service: {{name: {name}}}, contentMode: {mode}}}");
        let sink = format!(
            "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        );
        sink + &trigger(&name, &format!("{{ref: {{name: {name}}}}}"), "")
    });
    let manifests: String = manifests.collect();
    let [as_received, binary, structured] = &consumers;
    let services = [
        ("asreceived", &as_received.1),
        ("binary", &binary.1),
        ("structured", &structured.1),
    ];
    let router = LocalRouter::start(&manifests, &services);
    for (number, (rule, message, ..)) in ARRIVES.iter().enumerate() {
        let response = message.post(&router, &number.to_string());
        assert_eq!(
            response.status,
            202,
            "{rule}: {}",
            String::from_utf8_lossy(&response.body)
        );
    }
    let [as_received, binary, structured] =
        [as_received, binary, structured].map(|(_, consumer)| by_id(consumer));
    for (number, (rule, sent, expected_binary, expected_structured)) in ARRIVES.iter().enumerate() {
        let id = number.to_string();
        let (headers, body) = expected_binary;
        let wanted = Message::Binary(headers, body);
        assert_message(rule, &binary[&id], &attribute_headers(&wanted.headers(&id)), body);
        assert_structured(rule, &structured[&id], &id, expected_structured);
        let (content_type, text) = (sent.headers(&id), sent.body(&id));
        assert_message(rule, &as_received[&id], &attribute_headers(&content_type), &text);
        if let Message::Structured(..) = sent {
            assert_message(rule, &structured[&id], &attribute_headers(&content_type), &text);
        }
    }
}

/// One delivery of each row, by the event's id.
fn by_id(consumer: &Consumer) -> BTreeMap<String, Received> {
    let id = |message: &Received| match message.header("ce-id") {
        Some(id) => id.to_owned(),
        None => serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&message.body).unwrap()["id"]
            .get()
            .trim_matches('"')
            .to_owned(),
    };
    let received = consumer.wait_for(ARRIVES.len());
    received
        .into_iter()
        .map(|message| (id(&message), message))
        .collect()
}

/// The headers that make up the event, in order.
fn attribute_headers(headers: &[(String, Vec<u8>)]) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_ascii_lowercase(),
                String::from_utf8(value.clone()).unwrap(),
            )
        })
        .filter(|(name, _)| name.starts_with("ce-") || name == "content-type")
        .collect();
    headers.sort();
    headers
}

/// Besides what makes up the event, a delivery has these headers and no more; the last two where it is in a trace.
const OF_THE_HOP: [&str; 8] = [
    "accept-encoding",
    "content-length",
    "host",
    "user-agent",
    "prefer",
    "weir-hops",
    "traceparent",
    "tracestate",
];

#[track_caller]
fn assert_message(rule: &str, came: &Received, headers: &[(String, String)], body: &[u8]) {
    let all: Vec<_> = came
        .headers
        .iter()
        .filter(|(name, _)| !OF_THE_HOP.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    assert_eq!(attribute_headers(&all), headers, "{rule}");
    assert_eq!(all.len(), headers.len(), "{rule}: {all:?}");
    assert_eq!(came.body, body, "{rule}");
}

#[track_caller]
fn assert_structured(rule: &str, came: &Received, id: &str, members: &[(&str, &str)]) {
    let content_type = came.header("content-type").unwrap().to_ascii_lowercase();
    assert!(content_type.starts_with(STRUCTURED), "{rule}: {content_type}");
    let text: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&came.body).unwrap();
    // A text that came in keeps its nulls.
    let text = text
        .iter()
        .filter(|(name, value)| *name == "data" || value.get() != "null");
    let text: BTreeMap<_, _> = text
        .map(|(name, value)| (name.clone(), value.get().to_owned()))
        .collect();
    let required = REQUIRED.into_iter().chain([("id", id)]);
    let mut wanted: BTreeMap<_, _> = required
        .map(|(name, value)| (name.to_owned(), format!("\"{value}\"")))
        .collect();
    wanted.extend(
        members
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    assert_eq!(text, wanted, "{rule}");
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let consumer = Consumer::start();
    let router = LocalRouter::start(&trigger("t", "{service: {name: web}}", ""), &[("web", &consumer)]);
    let post = |body: &str| post_raw(&router, &[("content-type", BATCH.as_bytes())], body.as_bytes());
    let event =
        |id: &str| format!(r#"{{"id":"{id}", "specversion":"1.0","source":"/s","type":"t","data":1.10}}"#);
    let good = event("a");
    for (rule, last, index, attribute) in [
        (
            "core, required attributes",
            r#"{"specversion":"1.0"}"#,
            Some(2),
            Some("id"),
        ),
        (
            "core, specversion: a batch has one",
            r#"{"specversion":"0.3"}"#,
            Some(2),
            Some("specversion"),
        ),
        ("JSON 4: its elements are events", "1", Some(2), None),
        ("JSON 4: it is no batch in a batch", "[]", Some(2), None),
        ("JSON 4: it is JSON", "{", None, None),
    ] {
        let response = post(&format!("[{good},{good},{last}]"));
        let problem = response.json();
        assert_eq!(response.status, 400, "{rule}: {problem}");
        assert_eq!(
            problem.get("index"),
            index.map(Value::from).as_ref(),
            "{rule}: {problem}"
        );
        assert_eq!(
            problem.get("attribute").and_then(Value::as_str),
            attribute,
            "{rule}: {problem}"
        );
    }
    assert_eq!(post(&good).status, 400, "JSON 4: a batch is an array");
    for empty in ["[]", " [\n] "] {
        assert_eq!(post(empty).status, 202, "JSON 4.3: an empty batch");
    }
    let texts = ["x", "y", "z"].map(event);
    assert_eq!(
        post(&format!("[ {} ,\n{}\t,{}]", texts[0], texts[1], texts[2])).status,
        202
    );
    let mut bodies: Vec<_> = consumer
        .wait_for(3)
        .iter()
        .map(|message| message.body.clone())
        .collect();
    bodies.sort();
    assert_eq!(
        bodies, texts,
        "each leaves by itself, as its text stood in the batch"
    );
    for message in consumer.received() {
        assert_eq!(
            message.header("content-type"),
            Some(STRUCTURED),
            "HTTP 3.3: batches are not sent unasked"
        );
    }
    assert_eq!(
        router.accounting("t")["matched"],
        3,
        "of a batch with a bad event nothing is stored"
    );
}

#[test]
fn the_limit_is_exact_and_nothing_is_cut_off() {
    const LIMIT: usize = 100 * 1024;
    let consumer = Consumer::start();
    let manifests = trigger("t", "{service: {name: web}}", "");
    let router = LocalRouter::start_with(&manifests, &[("web", &consumer)], &["--max-event-size=100KiB"]);
    let (whole, more) = (vec![0; LIMIT], vec![0; LIMIT + 1]);
    assert_eq!(Message::Binary(&[], &whole).post(&router, "whole").status, 202);
    let refused = Message::Binary(&[], &more).post(&router, "more");
    let problem = refused.json();
    assert_eq!((refused.status, &problem["reason"]), (413, &json!("too_large")));
    // Core, size limits: 64 KiB on the wire have to pass, also as one header.
    let long = vec![b'x'; 64 * 1024];
    assert_eq!(
        Message::Binary(&[("ce-long", &long)], b"")
            .post(&router, "long")
            .status,
        202
    );
    let members = format!(r#","data":"{}""#, "x".repeat(64 * 1024));
    let structured = Message::Structured(STRUCTURED, &members);
    assert_eq!(structured.post(&router, "structured").status, 202);
    consumer.wait_until(PATIENCE, |received| {
        let is_there = |header: &str, length: usize, body: &[u8]| {
            received.iter().any(|message| {
                message.header("ce-long").map_or(0, str::len) == length
                    && (message.header("ce-id") == Some(header) || header.is_empty())
                    && message.body == body
            })
        };
        is_there("whole", 0, &whole)
            && is_there("long", long.len(), b"")
            && is_there("", 0, &structured.body("structured"))
    });
    assert_eq!(router.accounting("t")["matched"], 3);
}

/// What a Sink's first answer to an event does: the rule, the answer, and whether the event is sent again.
fn answers(elsewhere: &Consumer) -> Vec<(&'static str, Answer, bool)> {
    let status = |rule, codes: &[u16], again| -> Vec<(&'static str, Answer, bool)> {
        codes
            .iter()
            .map(|&code| (rule, Answer::status(code), again))
            .collect()
    };
    let redirect = |code| Answer::status(code).header("location", &elsewhere.url());
    let rest = vec![
        ("webhook 2.2: a redirect is not followed", redirect(301), false),
        ("webhook 2.2: a redirect is not followed", redirect(307), false),
        ("no answer is tried again", Answer::Reset, true),
        ("no answer in time is tried again", Answer::Hang, true),
    ];
    [
        status("webhook 2.2: 2xx is success", &[200, 201, 202, 204, 299], false),
        status("webhook 2.2: 410 ends it", &[410], false),
        status("webhook 2.2: 415 ends it", &[415], false),
        status("webhook 2.2: 429 is tried again", &[429], true),
        status(
            "what may mend itself is tried again",
            &[404, 408, 409, 500, 502, 503, 504],
            true,
        ),
        status("what cannot is not", &[400, 401, 403, 405, 413, 422], false),
        rest,
    ]
    .concat()
}

#[test]
fn a_sink_s_answer_means_what_the_webhook_specification_says() {
    let [consumer, elsewhere] = [(); 2].map(|()| Consumer::start());
    let delivery = "backoffDelay: 10ms, backoffMax: 20ms, timeout: 2s";
    let manifests = trigger("t", "{service: {name: web}}", delivery);
    let router = LocalRouter::start(&manifests, &[("web", &consumer)]);
    let rows = answers(&elsewhere);
    let first: Vec<_> = rows.iter().map(|(_, answer, _)| answer.clone()).collect();
    let mut seen = vec![0; rows.len()];
    consumer.answer_by(move |request| {
        let row: usize = request.header("ce-id").unwrap().parse().unwrap();
        seen[row] += 1;
        if seen[row] == 1 {
            first[row].clone()
        } else {
            Answer::status(204)
        }
    });
    for row in 0..rows.len() {
        assert_eq!(router.post("t", &row.to_string(), &[]).status, 202);
    }
    let is_success =
        |answer: &Answer| matches!(answer, Answer::Response { status, .. } if status.is_success());
    let delivered = rows
        .iter()
        .filter(|(_, answer, again)| *again || is_success(answer))
        .count() as u64;
    let expected = [
        ("pending", 0),
        ("delivered", delivered),
        ("dead_lettered", rows.len() as u64 - delivered),
    ];
    eventually(PATIENCE, || {
        let figures = router.accounting("t");
        let settled = expected.iter().all(|(name, figure)| figures[name] == *figure);
        if settled {
            Ok(())
        } else {
            Err(format!("{figures:?}, not {expected:?}"))
        }
    });
    for (row, (rule, answer, again)) in rows.iter().enumerate() {
        let id = row.to_string();
        let received = consumer.received();
        let times = received
            .iter()
            .filter(|message| message.header("ce-id") == Some(&id))
            .count();
        assert_eq!(times, if *again { 2 } else { 1 }, "{rule}: {answer:?}");
    }
    assert!(elsewhere.received().is_empty());
}

#[test]
fn retry_after_is_obeyed_up_to_a_limit() {
    let [obeyed, limited] = [(); 2].map(|()| Consumer::start());
    for (consumer, seconds) in [(&obeyed, "1"), (&limited, "3600")] {
        let mut answers = vec![
            Answer::status(204),
            Answer::status(429).header("retry-after", seconds),
        ];
        consumer.answer_by(move |_| answers.pop().unwrap_or_else(|| Answer::status(204)));
    }
    let delivery = "backoffDelay: 1ms, backoffMax: 1ms";
    let manifests = trigger("obeyed", "{service: {name: obeyed}}", delivery)
        + &trigger(
            "limited",
            "{service: {name: limited}}",
            &format!("{delivery}, retryAfterMax: 50ms"),
        );
    let router = LocalRouter::start(&manifests, &[("obeyed", &obeyed), ("limited", &limited)]);
    assert_eq!(router.post("t", "1", &[]).status, 202);
    let received = obeyed.wait_for(2);
    let pause = received[1].at.duration_since(received[0].at);
    assert!(
        pause >= Duration::from_millis(990),
        "webhook 2.2: Retry-After is obeyed, not after {pause:?}"
    );
    limited.wait_for(2);
}

#[test]
fn the_ingress_answers_the_validation_handshake() {
    let router = LocalRouter::start(&trigger("t", "{uri: 'http://example.com/'}", ""), &[]);
    let ask = |origin: &str| {
        let request =
            format!("OPTIONS /shop/default HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n{origin}\r\n");
        exchange(router.process.address("ingress"), request.as_bytes())
    };
    let asked = ask("webhook-request-origin: eventemitter.example.com\r\nwebhook-request-rate: 120\r\n");
    assert_eq!(asked.status, 200, "webhook 4.2");
    for line in [
        "allow: POST",
        "webhook-allowed-origin: eventemitter.example.com",
        "webhook-allowed-rate: *",
    ] {
        assert!(
            asked.head.contains(line),
            "webhook 4.2: {line} is not in {}",
            asked.head
        );
    }
    let unasked = ask("");
    assert_eq!(unasked.status, 200);
    assert!(
        !unasked.head.contains("webhook-"),
        "webhook 4.2: who does not ask is told nothing: {}",
        unasked.head
    );
}

#[test]
fn an_event_past_its_time_is_not_delivered() {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(503));
    let delivery = "backoffDelay: 10ms, backoffMax: 20ms";
    let router = LocalRouter::start(
        &trigger("t", "{service: {name: web}}", delivery),
        &[("web", &consumer)],
    );
    let post = |id: &str, time: Timestamp| {
        assert_eq!(
            router
                .post("t", id, &[("ce-expirytime", &time.to_string())])
                .status,
            202
        );
    };
    let now = Timestamp::now();
    post("late", now - SignedDuration::from_secs(1));
    post("soon", now + SignedDuration::from_secs(2));
    let expired = |count| {
        eventually(PATIENCE, || match router.accounting("t")["expired"] {
            expired if expired == count => Ok(()),
            expired => Err(format!("{expired} have expired, not {count}")),
        });
    };
    expired(2);
    let received = consumer.received();
    let of = |id: &str| {
        received
            .iter()
            .filter(|message| message.header("ce-id") == Some(id))
            .count()
    };
    assert_eq!(of("late"), 0, "expirytime: not delivered after it");
    assert!(
        of("soon") > 0,
        "expirytime: delivered before it, and looked at before each attempt"
    );
}
