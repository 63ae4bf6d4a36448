//! A transform as JSON, and after it the data of an event: what compiles yields a valid event or names the field that
//! fails, the same every time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use weir::{
    cloudevents::EventBuilder,
    transform::{CompiledTransform, Transform},
};
use weir_fuzz::check_event;

fuzz_target!(|input: &[u8]| {
    let mut texts = serde_json::Deserializer::from_slice(input).into_iter::<&RawValue>();
    let (Some(Ok(transform)), Some(Ok(data))) = (texts.next(), texts.next()) else {
        return;
    };
    let Ok(transform) = serde_json::from_str::<Transform>(transform.get()) else {
        return;
    };
    let Ok(compiled) = CompiledTransform::compile(&transform) else {
        return;
    };
    let event = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/shop")
        .attribute("type", "order")
        .attribute("n", 7)
        .data("application/json", data.get().to_owned())
        .build()
        .expect("it is a valid event");
    let applied = compiled.apply(&event);
    assert_eq!(applied, compiled.apply(&event));
    assert_eq!(applied.is_err(), compiled.explain(&event).error.is_some());
    match applied {
        Ok(event) => check_event(&event),
        Err(failure) => assert!(failure.to_string().starts_with("spec.transform.")),
    }
});
