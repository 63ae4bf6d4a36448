//! An arbitrary body as one event in the JSON format: its text goes on as it came.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::cloudevents::ReceivedEvents;
use weir_fuzz::{STRUCTURED, check_event, read_as};

fuzz_target!(|body: &[u8]| {
    let event = match read_as(STRUCTURED, body) {
        Ok(ReceivedEvents::Single(event)) => event,
        Ok(batch) => panic!("{batch:?}"),
        Err(invalid) => return assert_eq!(invalid.index(), None),
    };
    assert_eq!(event.to_http(None).body, body);
    assert_eq!(event.to_json(), body);
    check_event(&event);
});
