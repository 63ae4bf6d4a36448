//! Results of expressions, rejected expressions, and robustness against any input.

use std::collections::HashMap;

use ::cel::common::{
    types::{CelBool, CelInt, CelMap, CelMapKey, CelString},
    value::Val,
};
use bytes::Bytes;
use proptest::{collection, prelude::*, sample::select};
use serde_json::json;

use super::*;
use crate::{
    cloudevents::{Event, EventBuilder, Mode, Value, read_http},
    filter::{CompiledFilter, Subject},
};

fn event_with(data: &str, content_type: &str) -> Event {
    EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/shop/orders")
        .attribute("type", "com.example.order.created")
        .attribute("priority", 7)
        .attribute("urgent", true)
        .attribute("digits", "7")
        .data(content_type, Bytes::from(data.to_owned()))
        .build()
        .unwrap()
}

fn event() -> Event {
    event_with(
        r#"{"amount": 150.5, "count": 3, "huge": 18446744073709551615, "ip": "10.1.2.3", "note": "Grüß Gott",
            "none": null, "paid": true, "tags": ["new", "gift"], "order": {"id": "o-1", "lines": [{"sku": "a"}]}}"#,
        "application/json",
    )
}

fn evaluate(text: &str, event: &Event) -> Result<bool, String> {
    let expression = CelExpression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    expression
        .evaluate(&Subject::new(event))
        .map_err(|failure| failure.to_string())
}

#[test]
fn evaluates_attributes_and_data() {
    let table = [
        ("true", true),
        ("event.type == 'com.example.order.created'", true),
        ("event.type == \"COM.example.order.created\"", false),
        ("event['type'] == event.type", true),
        ("event.specversion == '1.0'", true),
        ("event.priority > 5 && event.priority <= 7", true),
        ("event.urgent", true),
        ("!event.urgent", false),
        // Attributes have their own types. Those from headers are strings.
        ("event.digits == 7", false),
        ("int(event.digits) == 7", true),
        ("event.priority == '7'", false),
        ("string(event.priority) == '7'", true),
        ("has(event.subject)", false),
        (
            "has(event.type) && has(event.data) && has(event.data.order.id)",
            true,
        ),
        ("has(event.data.order.missing)", false),
        ("has(event.subject) && event.subject == 'x'", false),
        ("event.data.amount > 100", true),
        ("event.data.amount > 150.5", false),
        ("event.data.count == 3 && event.data.count == 3.0", true),
        (
            "event.data.count + 1 == 4 && event.data.amount + 0.5 == 151.0",
            true,
        ),
        (
            "event.data.count * 2 - 1 == 5 && event.data.count % 2 == 1 && -event.data.count == -3",
            true,
        ),
        ("event.data.huge == 18446744073709551615u", true),
        ("event.data.none == null", true),
        ("event.data.paid ? event.data.count == 3 : false", true),
        ("event.data.order.lines[0].sku == 'a'", true),
        ("event.data['order']['id'] == 'o-1'", true),
        ("'gift' in event.data.tags", true),
        ("'sku' in event.data.tags || 'order' in event.data", true),
        ("event.data.count in [1, 2, -3]", false),
        ("size(event.data.tags) == 2 && event.data.note.size() == 9", true),
        (
            "event.source.startsWith('/shop') && event.type.endsWith('created')",
            true,
        ),
        ("event.data.note.contains('ß G')", true),
        ("event.type.upperAscii() == 'COM.EXAMPLE.ORDER.CREATED'", true),
        ("' X '.trim().lowerAscii() == 'x'", true),
        ("event.type.matches('^com[.][a-z]+[.]order[.]')", true),
        ("event.type.matches('^order')", false),
        ("'a' + 'b' == 'ab' && event.data.note + '!' == 'Grüß Gott!'", true),
        ("cidr('10.0.0.0/8').containsIP(event.data.ip)", true),
        ("cidr('10.2.0.0/16').containsIP(event.data.ip)", false),
        ("cidr('2001:db8::/32').containsIP('2001:db8::1')", true),
        ("cidr('10.1.2.3').containsIP(event.data.ip)", true),
        // Per the CEL specification, an error is ignored if the other side decides.
        ("event.missing == 1 || event.urgent", true),
        ("event.urgent || event.missing == 1", true),
        ("event.missing == 1 && false", false),
        ("event.data.order == event.data.order", true),
        ("event.data.order == event.data.tags", false),
        ("data.amount == event.data.amount && has(data.order.id)", true),
    ];
    for (text, expected) in table {
        assert_eq!(evaluate(text, &event()), Ok(expected), "{text}");
    }
}

#[test]
fn fields_of_forms_and_queries_are_limited() {
    let fields = |count: usize| {
        let others: Vec<_> = (1..count).map(|field| field.to_string()).collect();
        format!("f=1&f=2&{}", others.join("&"))
    };
    let (most, many) = (fields(MAX_VALUES - 1), fields(MAX_VALUES));
    let expected = Err("the data has more than 32768 values, the maximum for expressions");
    let form = "application/x-www-form-urlencoded";
    for (query, body, text, expected) in [
        ("", &most, "body.f", Ok("1")),
        ("", &many, "body.f", expected),
        (&most, &most, "request.query.f", Ok("1")),
        (&many, &most, "request.query.f", expected),
    ] {
        let event = event_with(body, form);
        let request = IncomingRequest::new("/", query, [], jiff::Timestamp::UNIX_EPOCH);
        let evaluation = CelEvaluation::of_request(&event, &request);
        let expression = CelExpression::parse_request_value(text).unwrap();
        let mut out = String::new();
        let result = evaluation
            .text(&expression, &mut out)
            .map_err(|error| error.to_string());
        assert_eq!(result.map(|()| &*out), expected.map_err(str::to_owned), "{text}");
    }
}

#[test]
fn evaluation_errors_do_not_reveal_data() {
    let json = event();
    let text = event_with("plain", "text/plain");
    let broken = event_with("{", "application/json");
    let large = event_with(&format!("\"{}\"", "x".repeat(MAX_DATA)), "application/json");
    let many = event_with(&format!("[{}1]", "1,".repeat(MAX_VALUES)), "application/json");
    let none = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/")
        .attribute("type", "t")
        .build()
        .unwrap();
    let table = [
        ("event.subject == 'x'", &json, "there is no subject in the event"),
        ("event.data.order.x == 1", &json, "there is no x"),
        ("event.data.note > 5", &json, "> does not take string and int"),
        (
            "event.data.note + 5 == 5",
            &json,
            "+ does not take string and int",
        ),
        (
            "event.data.amount + 1 > 5",
            &json,
            "+ does not take double and int",
        ),
        (
            "event.data.tags + event.data.tags == []",
            &json,
            "+ does not take list and list",
        ),
        ("event.data.note.sku == 'a'", &json, "."),
        ("event.data.tags[7] == 'x'", &json, "index out of bounds"),
        ("event.data.count / 0 == 1", &json, "division by zero"),
        (
            "event.data.count * 9223372036854775807 > 1",
            &json,
            "the result does not fit into 64 bits",
        ),
        ("int(event.data.note) == 1", &json, "int cannot take this value"),
        (
            "event.data.count.startsWith('a')",
            &json,
            "startsWith does not take int and string",
        ),
        (
            "cidr('10.0.0.0/8').containsIP(event.type)",
            &json,
            "the text is not an IP address",
        ),
        ("event.type", &json, "expected bool, got string"),
        ("event.data.count", &json, "expected bool, got int"),
        ("event.type && true", &json, ""),
        (
            "event.data.x == 1",
            &text,
            "the content type of the data is not JSON",
        ),
        (
            "has(event.data)",
            &text,
            "the content type of the data is not JSON",
        ),
        ("event.data.x == 1", &broken, "the data is not valid JSON"),
        (
            "event.data == 'x'",
            &large,
            "the data has more than 262144 bytes, the maximum for expressions",
        ),
        (
            "event.data == 1",
            &many,
            "the data has more than 32768 values, the maximum for expressions",
        ),
        ("event.data.x == 1", &none, "there is no data in the event"),
    ];
    for (text, event, expected) in table {
        let message = evaluate(text, event).unwrap_err();
        assert!(message.contains(expected), "{text}: {message}");
        assert!(
            !message.contains("Grüß") && !message.contains("o-1"),
            "{text}: {message}"
        );
    }
    assert_eq!(evaluate("has(event.data)", &none), Ok(false));
}

#[test]
fn bounds_the_length_of_strings() {
    let event = event_with(&format!("\"{}\"", "x".repeat(MAX_TEXT)), "application/json");
    assert_eq!(evaluate("event.data + '' != ''", &event), Ok(true));
    let message = evaluate("event.data + 'x' != ''", &event).unwrap_err();
    assert!(
        message.contains("cannot create strings of more than 65536 bytes"),
        "{message}"
    );
}

#[test]
fn reads_json_data_in_every_mode() {
    let structured = |members: &str| {
        let text = format!(r#"{{"specversion":"1.0","id":"1","source":"/","type":"t",{members}}}"#);
        let headers = [("content-type", "application/cloudevents+json")];
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let received = read_http(&headers, Bytes::from(text)).unwrap();
        let events: Vec<Event> = received.into_events();
        let [event] = events.as_slice() else {
            panic!("one event")
        };
        assert_eq!(event.mode(), Mode::Structured);
        event.clone()
    };
    for event in [
        structured(r#""data": {"amount": 5}"#),
        structured(r#""datacontenttype": "application/vnd.x+json", "data": {"amount": 5}"#),
        structured(r#""datacontenttype": "application/json", "data_base64": "eyJhbW91bnQiOiA1fQ==""#),
        event_with(
            r#" {"amount": 1, "amount": 5} "#,
            "application/json; charset=utf-8",
        ),
    ] {
        assert_eq!(evaluate("event.data.amount == 5", &event), Ok(true), "{event:?}");
    }
    for event in [
        structured(r#""datacontenttype": "text/plain", "data": "{}""#),
        structured(r#""datacontenttype": "application/xml", "data_base64": "e30=""#),
        event_with("{}", "application/json; charset=utf-16"),
    ] {
        assert!(evaluate("has(event.data)", &event).is_err(), "{event:?}");
    }
}

#[test]
fn parses_data_lazily_and_once() {
    let event = event();
    let filter =
        |text: &str| CompiledFilter::compile(&[crate::filter::Expression::Cel(text.to_owned())]).unwrap();
    let subject = Subject::new(&event);
    assert!(matches!(
        filter("event.priority == 7").decide(&subject),
        crate::filter::Decision::Pass
    ));
    assert!(matches!(
        filter("event.type == 'other' && event.data.amount > 1").decide(&subject),
        crate::filter::Decision::Skip
    ));
    assert!(!subject.has_parsed());
    assert!(matches!(
        filter("event.data.amount > 1").decide(&subject),
        crate::filter::Decision::Pass
    ));
    assert!(subject.has_parsed());
    // Later calls return the same value.
    let first: *const Json = subject.data().unwrap();
    assert!(matches!(
        filter("event.data.count > 1").decide(&subject),
        crate::filter::Decision::Pass
    ));
    assert!(std::ptr::eq(first, subject.data().unwrap()));
}

#[test]
fn suggests_cel_syntax_for_other_languages() {
    for (text, told) in [
        ("event.type = 'a'", "; to compare two values, use =="),
        ("event.type <> 'a'", "; to test for inequality, use !="),
        ("event.type == '=' AND event.id == 'and'", "; use && for and, "),
        ("event.type == 'a = b' &&", ""),
    ] {
        let error = CelExpression::parse(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
        assert_eq!(error.contains("; "), !told.is_empty(), "{text}: {error}");
    }
}

#[test]
fn compile_errors_name_the_cause() {
    let table = [
        ("", "column 1: mismatched input '<EOF>'"),
        (
            "event.type = 'a'",
            "column 12: mismatched input '=' expecting <EOF>; to compare two values, use ==",
        ),
        ("event.type == 'a' &&", "column 21: "),
        ("event.type == 'a", "column 15: unterminated string literal"),
        ("true &&\n @", "line 2, column 2: "),
        ("type == 'a'", "there is no type: the variables are event"),
        ("event == 1", "event is not a value by itself"),
        ("has(x.y)", "there is no x"),
        ("event.Type == 'a'", "\"Type\" is not a valid attribute name"),
        ("data.tags.exists(t, u == 'a')", "there is no u: "),
        ("data.tags.exists(t, t == 'a') && t == 'a'", "there is no t: "),
        (
            "data.tags.exists(data, data == 'a')",
            "data cannot be the variable of a loop",
        ),
        (
            "data.tags.exists(t.a, true)",
            "column 19: argument must be a simple name",
        ),
        (
            "data.tags.exists(t)",
            "there is no .exists(...): the functions are",
        ),
        ("data.tags.map(t, t)", "does not evaluate to true or false"),
        ("{'a': 1}", "does not evaluate to true or false"),
        ("{1: 1} == data", "the keys of a map in braces"),
        ("{'a': 1, 'a': 2} == data", "the keys of a map in braces"),
        ("A{b: 1} == data", "messages, which have a name"),
        (
            "timestamp('yesterday') < timestamp(event.time)",
            "\"yesterday\" is not a time",
        ),
        ("timestamp(event.time)", "does not evaluate to true or false"),
        (
            "now() > 1",
            "there is no now(): the functions are has(event.field)",
        ),
        (
            "event.type.split('.') == []",
            "there is no .split(...): the functions are",
        ),
        ("size(event.type, 1) == 1", "there is no size(...)"),
        (
            "event.type.matches(event.source)",
            "matches takes one string in quotes",
        ),
        (
            "event.type.matches('(')",
            "invalid regular expression: error: unclosed group",
        ),
        (
            "event.type.matches('(a{1000}){1000}')",
            "the regular expression takes more than 65536 bytes when compiled: use smaller repetition counts",
        ),
        (
            "cidr(event.type).containsIP('1.1.1.1')",
            "cidr takes one string in quotes",
        ),
        (
            "cidr('10.0.0.0/33').containsIP('1.1.1.1')",
            "\"10.0.0.0/33\" is not a network",
        ),
        ("1 + 1", "does not evaluate to true or false"),
        ("'a'", "does not evaluate to true or false"),
        ("event.type.size()", "does not evaluate to true or false"),
        ("event.?type == 'a'", "column "),
    ];
    for (text, expected) in table {
        let message = CelExpression::parse(text).map(|_| ()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{text}: {message}");
    }
}

#[test]
fn bounds_size() {
    let refused = |text: &str| match CelExpression::parse(text) {
        Err(CelParseError::Refused(problem)) => Some(problem),
        Err(CelParseError::Syntax { .. }) | Ok(_) => None,
    };
    let long = format!("event.type == '{}'", "x".repeat(MAX_LENGTH));
    assert_eq!(refused(&long), Some(Disallowed::TooLong));
    let nested = format!("{}true{}", "!(".repeat(MAX_DEPTH + 1), ")".repeat(MAX_DEPTH + 1));
    assert_eq!(refused(&nested), Some(Disallowed::TooDeep));
    let chain = vec!["event.urgent"; MAX_PARTS / 2 + 1].join(" && ");
    assert_eq!(refused(&chain), Some(Disallowed::TooLarge));
    let list = vec!["'some.type'"; 300].join(",");
    assert_eq!(evaluate(&format!("event.type in [{list}]"), &event()), Ok(false));
}

/// The longest texts of each construct, each on half the stack of a router's thread.
#[test]
fn no_nesting_exhausts_the_stack() {
    for piece in [
        "(",
        "[",
        "{",
        "{1:",
        "!",
        "-",
        "- ",
        "a.",
        "a+",
        "a<",
        "a&&",
        "a||",
        "a?a:",
        "a?",
        "f(",
        "a{b:",
        "has(a.",
        "\"",
        "a.all(x,",
        "[0]",
        ".f()",
        "a[",
        "event.",
        "a in ",
        "'''",
        "r'",
        "\\",
        "//",
        "event.type.matches('",
    ] {
        for end in ["", "a", ")"] {
            let text = format!("{}{end}", piece.repeat((MAX_LENGTH - 1) / piece.len()));
            let thread = std::thread::Builder::new().stack_size(1024 * 1024);
            let parsed = thread.spawn(move || CelExpression::parse(&text).is_ok()).unwrap();
            assert!(!parsed.join().unwrap(), "{piece} {end}");
        }
    }
}

#[test]
fn explanation_shows_the_fields_read() {
    let subject_of = event();
    let table = [
        (
            "event.data.amount > 100 &&\n has(event.subject)",
            "cel event.data.amount > 100 &&  has(event.subject): the event has data.amount \"150.5\", no subject",
            false,
        ),
        (
            "event.type.startsWith('com.')",
            "cel event.type.startsWith('com.'): the event has \"com.example.order.created\"",
            true,
        ),
        (
            "'new' in event.data.tags",
            "cel 'new' in event.data.tags: the event has \"a list\"",
            true,
        ),
        (
            "event.data.note > 1",
            "cel event.data.note > 1: > does not take string and int",
            false,
        ),
    ];
    for (text, line, holds) in table {
        let explanation = CelExpression::parse(text)
            .unwrap()
            .explain(&Subject::new(&subject_of));
        assert_eq!(
            (explanation.to_string().as_str(), explanation.holds()),
            (line, holds)
        );
    }
}

#[test]
fn string_comparisons_yield_index_terms() {
    let table = [
        ("event.type == 'a' && event.data.x > 1", Some("type")),
        ("'a' == event.source", Some("source")),
        (
            "event.type in ['a', 'b'] || event.source.startsWith('/')",
            Some("type type source"),
        ),
        ("event.type == 'a' || event.data.x > 1", None),
        ("!(event.type == 'a')", None),
        ("event.type in ['a', 1]", None),
        ("event.n == 7", None),
        ("event.data == 'a'", None),
        ("event.data.type == 'a'", None),
        ("has(event.type)", None),
    ];
    for (text, expected) in table {
        let expression = CelExpression::parse(text).unwrap();
        let requirement = expression.requirement();
        let cover = requirement.cheapest_cover(&|_| 1);
        let attributes = cover.map(|cover| {
            cover
                .terms
                .iter()
                .map(|term| term.attribute)
                .collect::<Vec<_>>()
                .join(" ")
        });
        assert_eq!(attributes.as_deref(), expected, "{text}");
    }
}

#[test]
fn goes_through_lists_and_maps() {
    let event = event_with(
        r#"{"items": [{"sku": "X", "n": 2, "tags": ["a", "b"]}, {"sku": "Y", "n": 5, "tags": ["b"]}, {"n": "many"}],
            "prices": {"b": 2, "a": 1}, "words": ["x", "y", "x"], "none": []}"#,
        "application/json",
    );
    let table = [
        // An element that fails is ignored if another one decides.
        ("data.items.exists(i, i.sku == 'X')", Ok(true)),
        ("data.items.exists(i, i.sku == 'Z')", Err("there is no sku")),
        ("data.items.exists(i, has(i.sku) && i.sku == 'Z')", Ok(false)),
        ("data.items.all(i, i.n > 3)", Ok(false)),
        ("data.items.all(i, has(i.n))", Ok(true)),
        ("data.items.exists_one(i, has(i.sku) && i.sku == 'Y')", Ok(true)),
        ("data.items.exists_one(i, i.sku == 'Y')", Err("there is no sku")),
        ("data.words.exists_one(w, w == 'x')", Ok(false)),
        ("data.none.exists(i, i) || data.none.all(i, i)", Ok(true)),
        ("data.words.map(w, w + '!') == ['x!', 'y!', 'x!']", Ok(true)),
        (
            "data.words.map(w, w == 'x', w.upperAscii()) == ['X', 'X']",
            Ok(true),
        ),
        ("size(data.words.filter(w, w != 'x')) == 1", Ok(true)),
        ("data.items.filter(i, has(i.sku))[1].sku == 'Y'", Ok(true)),
        ("data.items.filter(i, has(i.sku)).map(i, i.n) == [2, 5]", Ok(true)),
        (
            "data.items.exists(i, has(i.tags) && i.tags.all(t, t == 'b' && i.sku == 'Y'))",
            Ok(true),
        ),
        ("data.items.exists(i, data.words.exists(i, i == 'y'))", Ok(true)),
        // The keys of an object, in order.
        ("data.prices.map(name, data.prices[name]) == [1, 2]", Ok(true)),
        ("data.prices.all(name, name in ['a', 'b'])", Ok(true)),
        ("[event.type, 'x'].exists(t, t.startsWith('com.'))", Ok(true)),
        ("{'a': [data.prices.a]} == {'a': [1]}", Ok(true)),
        ("[data.prices, data.prices][1].b == 2", Ok(true)),
        (
            "event.type.exists(c, c == 'a')",
            Err("a loop does not take string"),
        ),
        ("data.words.all(w, 1)", Err("bool")),
        (
            "data.words.filter(w, w)[0] == 'x'",
            Err("expected bool, got string"),
        ),
    ];
    for (text, expected) in table {
        match (evaluate(text, &event), expected) {
            (Ok(given), Ok(expected)) => assert_eq!(given, expected, "{text}"),
            (Err(message), Err(part)) => assert!(message.contains(part), "{text}: {message}"),
            (given, _) => panic!("{text}: {given:?}"),
        }
    }
}

#[test]
fn times_compare_as_such() {
    let event = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/")
        .attribute("type", "t")
        .attribute("time", "2026-11-24T09:00:00+01:00")
        .data(
            "application/json",
            r#"{"due": "2026-11-24T08:30:00Z", "seconds": 0, "late": "soon"}"#,
        )
        .build()
        .unwrap();
    let table = [
        (
            "timestamp(event.time) == timestamp('2026-11-24T08:00:00Z')",
            Ok(true),
        ),
        ("timestamp(event.time) < timestamp(data.due)", Ok(true)),
        ("timestamp(event.time) >= timestamp(data.due)", Ok(false)),
        ("event.time < data.due", Ok(false)),
        (
            "timestamp(data.seconds) == timestamp('1970-01-01T00:00:00Z')",
            Ok(true),
        ),
        (
            "string(timestamp(event.time)) == '2026-11-24T08:00:00Z'",
            Ok(true),
        ),
        ("int(timestamp(data.due)) == 1795509000", Ok(true)),
        (
            "timestamp(timestamp(data.due)) != timestamp(event.time)",
            Ok(true),
        ),
        (
            "timestamp(data.late) < timestamp(event.time)",
            Err("the value is not a time"),
        ),
        (
            "timestamp(event.time) < data.due",
            Err("< does not take timestamp and string"),
        ),
        (
            "timestamp(data) == timestamp(event.time)",
            Err("timestamp does not take map"),
        ),
        (
            "timestamp(event.time) + 1 == 1",
            Err("+ does not take timestamp and int"),
        ),
    ];
    for (text, expected) in table {
        match (evaluate(text, &event), expected) {
            (Ok(given), Ok(expected)) => assert_eq!(given, expected, "{text}"),
            (Err(message), Err(part)) => assert!(message.contains(part), "{text}: {message}"),
            (given, _) => panic!("{text}: {given:?}"),
        }
    }
}

#[test]
fn values_become_json_text_and_attributes() {
    let event = event();
    let evaluation = CelEvaluation::new(&event);
    let json = |text: &str| {
        let mut out = Vec::new();
        let written = evaluation.json(&CelExpression::parse_value(text).unwrap(), &mut out);
        written
            .map(|()| String::from_utf8(out).unwrap())
            .map_err(|failure| failure.to_string())
    };
    let plain = |text: &str| {
        let mut out = String::new();
        let written = evaluation.text(&CelExpression::parse_value(text).unwrap(), &mut out);
        written.map(|()| out).map_err(|failure| failure.to_string())
    };
    let both = |text: &str| Ok(text.to_owned());
    let table = [
        ("data.note + '\\n'", both("\"Grüß Gott\\n\""), both("Grüß Gott\n")),
        ("data.amount", both("150.5"), both("150.5")),
        ("data.count", both("3"), both("3")),
        (
            "data.huge",
            both("18446744073709551615"),
            both("18446744073709551615"),
        ),
        ("double(data.count)", both("3.0"), both("3")),
        ("event.urgent", both("true"), both("true")),
        (
            "timestamp(0)",
            both("\"1970-01-01T00:00:00Z\""),
            both("1970-01-01T00:00:00Z"),
        ),
    ];
    for (text, as_json, as_text) in table {
        assert_eq!((json(text), plain(text)), (as_json, as_text), "{text}");
    }
    for (text, expected) in [
        ("data.none", "null"),
        ("data.tags", "[\"new\",\"gift\"]"),
        ("data.order", "{\"id\":\"o-1\",\"lines\":[{\"sku\":\"a\"}]}"),
        (
            "{'z': data.count, 'a': [event.type]}",
            "{\"a\":[\"com.example.order.created\"],\"z\":3}",
        ),
        ("b'ab'", "\"YWI=\""),
    ] {
        assert_eq!(json(text).as_deref(), Ok(expected), "{text}");
    }
    for (text, part) in [
        ("data.none", "got null"),
        ("data.tags", "got list"),
        ("data.order", "got map"),
        ("data.missing", "there is no missing"),
    ] {
        let message = plain(text).unwrap_err();
        assert!(message.contains(part), "{text}: {message}");
    }
    assert_eq!(json("1.0 / 0.0"), Err("the number is not finite".to_owned()));
    let message = json("cidr('10.0.0.0/8')").unwrap_err();
    assert!(message.contains("type network cannot be"), "{message}");
    let attribute = |text: &str| evaluation.attribute(&CelExpression::parse_value(text).unwrap());
    assert_eq!(attribute("event.urgent"), Ok(true.into()));
    assert_eq!(attribute("event.priority"), Ok(7.into()));
    assert_eq!(attribute("5000000000"), Ok("5000000000".into()));
    assert_eq!(attribute("data.note"), Ok("Grüß Gott".into()));
}

fn token() -> impl Strategy<Value = &'static str> {
    select(vec![
        "event",
        "event.type",
        "event.data",
        ".amount",
        ".tags",
        "event.priority",
        "event.missing",
        "'a'",
        "\"b\"",
        "7",
        "1.5",
        "2u",
        "b'x'",
        "true",
        "null",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        ":",
        "?",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "in",
        "has(",
        "size(",
        ".startsWith(",
        ".matches('a+')",
        ".matches(",
        "cidr('10.0.0.0/8')",
        ".containsIP(",
        ".exists(x, x)",
        ".map(x, ",
        ".filter(x, ",
        "x",
        "timestamp(",
        "int(",
        "string(",
        "0",
        "9223372036854775807",
        "'''",
        "r'\\'",
        "\\",
        "`",
        "@",
        "\n",
    ])
}

/// Few values, so that terms often match the event.
fn term() -> impl Strategy<Value = String> {
    let operand = || {
        select(vec![
            "event.type",
            "event.n",
            "event.x",
            "'a'",
            "'ab'",
            "'7'",
            "7",
            "event.data.n",
            "true",
        ])
    };
    let list = select(vec!["['a', 'b']", "['7', 'ab']", "[7, 'a']", "[]"]);
    let not = || select(vec!["", "", "!"]);
    prop_oneof![
        (operand(), select(vec!["==", "==", "!=", "<"]), operand())
            .prop_map(|(left, op, right)| format!("{left} {op} {right}")),
        (not(), operand(), list).prop_map(|(not, value, list)| format!("{not}({value} in {list})")),
        (not(), operand(), operand())
            .prop_map(|(not, value, prefix)| format!("{not}{value}.startsWith({prefix})")),
        (not(), select(vec!["event.x", "event.data.n"]))
            .prop_map(|(not, field)| format!("{not}has({field})")),
    ]
}

/// Operands and operators of every kind, nested, including ones that fail.
fn nested() -> impl Strategy<Value = String> {
    let leaf = select(vec![
        "event.type",
        "event.priority",
        "event.urgent",
        "event.digits",
        "event.missing",
        "event.data",
        "event.data.amount",
        "event.data.count",
        "event.data.huge",
        "event.data.tags",
        "event.data.order",
        "event.data.order.lines",
        "event.data.note",
        "event.data.none",
        "event['type']",
        "has(event.type)",
        "has(event.missing)",
        "has(event.data.order.id)",
        "has(event.data.tags.x)",
        "'a'",
        "'7'",
        "'new'",
        "7",
        "-3",
        "0",
        "3.0",
        "3u",
        "true",
        "false",
        "null",
        "b'x'",
        "[1, 'new', -3]",
        "[]",
        "9223372036854775807",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 24, 3, |inner| {
        let operators = select(vec![
            "==", "!=", "<", "<=", ">", ">=", "&&", "||", "in", "+", "-", "*", "/", "%",
        ]);
        prop_oneof![
            4 => (inner.clone(), operators, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})[{b}]")),
            1 => (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            1 => (select(vec!["!", "-"]), inner.clone()).prop_map(|(op, a)| format!("{op}({a})")),
            1 => (select(vec!["size", "string", "int", "uint", "double", "bool"]), inner.clone())
                .prop_map(|(name, a)| format!("{name}({a})")),
            1 => (inner.clone(), select(vec!["lowerAscii", "upperAscii", "trim", "size"]))
                .prop_map(|(a, name)| format!("({a}).{name}()")),
            1 => (inner.clone(), select(vec!["startsWith", "endsWith", "contains"]), inner.clone())
                .prop_map(|(a, name, b)| format!("({a}).{name}({b})")),
            2 => (inner.clone(), select(vec!["exists", "all", "exists_one", "map", "filter"]), inner.clone())
                .prop_map(|(a, name, b)| format!("({a}).{name}(x, {})", b.replace("event.data.count", "x"))),
            1 => (inner.clone(), inner).prop_map(|(a, b)| format!("{{'a': {a}, 'id': [{b}]}}")),
        ]
    })
}

/// Evaluates the same text and event with the `cel` crate. `None` for an error or a value that is not a Boolean.
fn by_the_crate(text: &str, event: &Event) -> Option<bool> {
    let data = Json::of(event).unwrap();
    let mut env = ::cel::Env::default().with_optional_support(false).with_stdlib();
    env.add_extension(::cel::extensions::strings).unwrap();
    let mut fields: HashMap<CelMapKey, Box<dyn Val>> = HashMap::new();
    let name = |name: &str| CelMapKey::String(CelString::from(name.to_owned()));
    for (attribute, value) in event.attributes() {
        let value: Box<dyn Val> = match value {
            Value::Boolean(boolean) => Box::new(CelBool::from(*boolean)),
            Value::Integer(integer) => Box::new(CelInt::from(i64::from(*integer))),
            Value::String(text) => Box::new(CelString::from(text.to_string())),
        };
        fields.insert(name(attribute), value);
    }
    fields.insert(name("data"), data.value().clone_as_boxed());
    let mut context = ::cel::Context::with_env(std::sync::Arc::new(env));
    context.add_variable_as_val("event", Box::new(CelMap::from(fields)));
    let root = ::cel::parser::PrattParser::new().parse(text).unwrap();
    let value = ::cel::Value::resolve_val(&root, &context).ok()?;
    value.downcast_ref::<CelBool>().map(|boolean| *boolean.inner())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_the_cel_crate(text in nested()) {
        let event = event();
        let Ok(expression) = CelExpression::parse(&text) else { return Ok(()) };
        let given = expression.evaluate(&Subject::new(&event));
        // Identical except that strings are limited to `MAX_TEXT`, and lists are not concatenated.
        let expected = by_the_crate(&text, &event);
        if text.contains('+') && given.is_err() {
            return Ok(());
        }
        prop_assert_eq!(given.clone().ok(), expected, "{}: {:?}", text, given);
    }
}

/// Without charges, each would take more than linear time in the data, or more memory than it.
#[test]
fn expensive_expressions_are_stopped() {
    let text = event_with(
        &format!("{{\"text\": \"{}\"}}", "ab".repeat(120_000)),
        "application/json",
    );
    let list = event_with(
        &format!("{{\"list\": [{}]}}", vec!["1"; 20_000].join(",")),
        "application/json",
    );
    let any = |term: &str, count| vec![term; count].join(" || ");
    for (text, event) in [
        ("event.data.text.matches('[ab]*a[ab]{500}c0')".to_owned(), &text),
        ("event.data.text.matches(r'\\w+@\\w+')".to_owned(), &text),
        (any("event.data.text.matches('c$')", 20), &text),
        (any("event.data.text.contains('bb')", 20), &text),
        (any("event.data.text.lowerAscii().upperAscii() == 'x'", 20), &text),
        (any("event.data.text != event.data.text", 40), &text),
        (any("event.data.list == event.data.list && false", 20), &list),
        (any("event.data == event.data && false", 20), &list),
        (any("2 in event.data.list", 20), &list),
        (any("data.list.exists(i, i == 2)", 3), &list),
        (
            "data.list.exists(i, data.list.exists(j, i + j == 0))".to_owned(),
            &list,
        ),
        ("data.list.map(i, data.list) == []".to_owned(), &list),
        (
            "data.list.map(i, data.list.map(j, data.list.map(k, 'x'))) == []".to_owned(),
            &list,
        ),
        (
            "[data.text, data.text, data.text, data.text].map(t, [t, t, t, t]) == []".to_owned(),
            &text,
        ),
    ] {
        let filter = CompiledFilter::compile(&[crate::filter::Expression::Cel(text.clone())]);
        let filter = filter.unwrap_or_else(|error| panic!("{text}: {error}"));
        let subject = Subject::new(event);
        assert!(
            matches!(
                filter.decide(&subject),
                crate::filter::Decision::Failed(crate::filter::Error::TooExpensive)
            ),
            "{text}: {}",
            subject.steps()
        );
        assert!(subject.steps() <= crate::filter::BUDGET, "{text}");
        assert_eq!(
            filter.explain(event)[0].outcome,
            crate::filter::ClauseOutcome::Fails
        );
    }
    for (text, event) in [
        ("event.data.text.matches('ab$')", &text),
        (
            "event.data.text.contains('abab') && event.data.text.size() == 240000",
            &text,
        ),
        ("1 in event.data.list && size(event.data.list) == 20000", &list),
        ("data.list.exists(i, i == 1) && data.list[19999] == 1", &list),
    ] {
        assert_eq!(evaluate(text, event), Ok(true), "{text}");
    }
}

#[test]
fn too_expensive_expression_never_matches() {
    let event = event_with(&format!("\"{}\"", "ab".repeat(120_000)), "application/json");
    let expensive = json!({"cel": "event.data.matches('[ab]*a[ab]{500}c0')"});
    for filters in [
        json!([{"not": expensive}]),
        json!([{"any": [expensive, {"exact": {"id": "1"}}]}]),
        json!([{"cel": "event.data.matches('[ab]*a[ab]{500}c0') || true"}]),
        json!([{"not": {"cel": "event.data.matches('[ab]*a[ab]{500}c0') && false"}}]),
    ] {
        let filter =
            CompiledFilter::compile(&serde_json::from_value::<Vec<_>>(filters.clone()).unwrap()).unwrap();
        assert!(!filter.matches(&event), "{filters}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        if let Ok(expression) = CelExpression::parse(&text) {
            drop(expression.evaluate(&Subject::new(&event())));
        }
    }

    #[test]
    fn no_sequence_of_tokens_panics(tokens in collection::vec(token(), 0..24), space in select(vec!["", " "])) {
        let text = tokens.join(space);
        match CelExpression::parse(&text) {
            Ok(expression) => {
                let event = event();
                let subject = Subject::new(&event);
                let explained = expression.explain(&subject).holds();
                prop_assert_eq!(explained, expression.evaluate(&subject) == Ok(true), "{}", text);
            }
            Err(CelParseError::Syntax { column, .. }) => prop_assert!(column <= text.chars().count() + 1, "{}", text),
            Err(CelParseError::Refused(_)) => {}
        }
    }

    #[test]
    fn every_match_satisfies_the_requirement(
        terms in collection::vec(term(), 1..4),
        operator in select(vec![" && ", " || "]),
        r#type in select(vec!["a", "ab", "7"]),
        n in select(vec![None, Some(Value::from(7)), Some("7".into()), Some(true.into())]),
        data in select(vec![r#"{"n": 7}"#, r#"{"n": "a"}"#, "{}"]),
    ) {
        let text = terms.join(operator);
        let Ok(expression) = CelExpression::parse(&text) else { return Ok(()) };
        let mut builder = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/")
            .attribute("type", r#type)
            .data("application/json", Bytes::from(data));
        if let Some(n) = n {
            builder = builder.attribute("n", n);
        }
        let event = builder.build().unwrap();
        if expression.evaluate(&Subject::new(&event)) == Ok(true) {
            prop_assert!(expression.requirement().allows(&event), "{}", text);
        }
    }
}

#[test]
fn distinguishes_errors_from_non_matches() {
    let decide = |filters: serde_json::Value| {
        let filter = CompiledFilter::compile(&serde_json::from_value::<Vec<_>>(filters).unwrap()).unwrap();
        let event = event();
        match filter.decide(&Subject::new(&event)) {
            crate::filter::Decision::Pass => "pass".to_owned(),
            crate::filter::Decision::Skip => "skip".to_owned(),
            crate::filter::Decision::Failed(error) => error.to_string(),
        }
    };
    for (filters, expected) in [
        (json!([{"cel": "event.urgent"}]), "pass"),
        (json!([{"cel": "event.type == 'x'"}]), "skip"),
        (
            json!([{"cel": "event.subject == 'x'"}]),
            "cel: there is no subject in the event",
        ),
        (
            json!([{"sql": "subject = 'x'"}]),
            "sql: the event has no attribute subject",
        ),
        (json!([{"not": {"cel": "event.subject == 'x'"}}]), "pass"),
        (
            json!([{"any": [{"cel": "event.subject == 'x'"}, {"exact": {"id": "1"}}]}]),
            "pass",
        ),
        (
            json!([{"any": [{"cel": "event.subject == 'x'"}, {"exact": {"id": "2"}}]}]),
            "cel: there is no subject in the event",
        ),
        // An earlier part decides.
        (
            json!([{"exact": {"id": "2"}}, {"cel": "event.subject == 'x'"}]),
            "skip",
        ),
    ] {
        assert_eq!(decide(filters.clone()), expected, "{filters}");
    }
}
