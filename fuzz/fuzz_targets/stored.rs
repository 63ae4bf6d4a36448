//! Arbitrary bytes as what a log keeps: an event or a dead letter. What can be read can be used, and written again.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weir::{
    cloudevents::{Event, Mode},
    delivery::DeadLetter,
};

fuzz_target!(|input: &[u8]| {
    let input = Bytes::copy_from_slice(input);
    check(&input);
    if let Ok((letter, event)) = DeadLetter::decode(input) {
        let again = DeadLetter::decode(letter.encode(&event)).expect("what was written can be read");
        assert_eq!(again, (letter.clone(), event.clone()));
        if let Ok(marked) = letter.mark(&event) {
            check(&marked.to_record());
        }
    }
});

/// Even an event whose record was damaged goes through everything that a router does with one.
fn check(record: &Bytes) {
    let Ok(event) = Event::from_record(record.clone()) else {
        return;
    };
    assert_eq!(event.to_record(), record);
    assert_eq!(event.size(), record.len());
    for mode in [None, Some(Mode::Binary), Some(Mode::Structured)] {
        let _ = event.to_http(mode);
    }
    for (name, value) in event.attributes() {
        assert_eq!(event.attribute(name), Some(value));
    }
    let _ = (
        event.to_json(),
        event.data(),
        event.expires(),
        event.trace_context(),
    );
    if let Ok(marked) = event.with_extensions([("weirhops", "7")]) {
        let stored = Event::from_record(marked.to_record()).expect("what was written can be read");
        assert_eq!(stored, marked);
    }
}
