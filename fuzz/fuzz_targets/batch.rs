//! An arbitrary body as a batch: each event keeps its part of the text, and is the event that it would be alone.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::cloudevents::{Event, ReceivedEvents};
use weir_fuzz::{BATCH, STRUCTURED, check_event, read_as};

fuzz_target!(|body: &[u8]| {
    let events = match read_as(BATCH, body) {
        Ok(ReceivedEvents::Batch(events)) => events,
        Ok(single) => panic!("{single:?}"),
        Err(_) => return,
    };
    let texts: Vec<_> = events.iter().map(Event::to_json).collect();
    for (event, text) in events.iter().zip(&texts) {
        assert_eq!(
            read_as(STRUCTURED, text),
            Ok(ReceivedEvents::Single(event.clone())),
            "alone it is the same"
        );
        check_event(event);
    }
    let rebuilt = [b"[", &texts.join(&b","[..])[..], b"]"].concat();
    assert_eq!(read_as(BATCH, &rebuilt), Ok(ReceivedEvents::Batch(events)));
});
