//! A message of arbitrary headers and body: what it is read as is sent again with the same bytes.

#![no_main]

use http::{HeaderMap, header::CONTENT_TYPE};
use libfuzzer_sys::fuzz_target;
use weir::cloudevents::{HttpMessage, Mode, ReceivedEvents, TraceContext, is_event, read_http};
use weir_fuzz::{check_event, checked, message};

fuzz_target!(|input: &[u8]| {
    let sent = message(input);
    let Ok(received) = checked(read_http(&sent.headers, sent.body.clone())) else {
        return;
    };
    assert!(is_event(&sent.headers));
    if let ReceivedEvents::Single(event) = &received {
        let sent_on = event.to_http(None);
        assert_eq!(sent_on.body, sent.body);
        assert_eq!(sent_on.headers, kept(&sent, event.mode()));
    }
    let context = TraceContext::from_headers(&sent.headers);
    received.into_events_in(context).iter().for_each(check_event);
});

/// The headers that belong to the event. An empty content type is none.
fn kept(sent: &HttpMessage, mode: Mode) -> HeaderMap {
    let of_event = |name: &str| name.starts_with("ce-") && mode == Mode::Binary;
    let headers = sent.headers.iter();
    headers
        .filter(|(name, value)| of_event(name.as_str()) || (**name == CONTENT_TYPE && !value.is_empty()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
