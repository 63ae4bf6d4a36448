//! Builds the events of scheduled times. Pure.

use jiff::Timestamp;

use crate::{
    cloudevents::{Event, EventBuilder, Invalid},
    routing,
};

/// Builds the event of a scheduled time. Its `id` is `{uid}-{scheduled time in Unix seconds}`, so that duplicates
/// have the same `source` and `id`. Its `time` is the scheduled time.
///
/// # Errors
/// [`Invalid`] if the Source's attributes do not make a valid event.
pub(super) fn event(uid: &str, cron: &routing::Cron, scheduled: Timestamp) -> Result<Event, Invalid> {
    let mut builder = EventBuilder::new()
        .attribute("id", format!("{uid}-{}", scheduled.as_second()))
        .attribute("time", scheduled.to_string());
    for (name, value) in &cron.attributes {
        builder = builder.attribute(name.as_str(), value.as_str());
    }
    if let Some(data) = &cron.data {
        builder = builder.untyped_data(data.clone());
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::Data;

    fn cron() -> routing::Cron {
        routing::Cron {
            schedule: "0 8 * * *".to_owned(),
            time_zone: "UTC".to_owned(),
            attributes: vec![
                ("source".to_owned(), "/clock".to_owned()),
                ("type".to_owned(), "com.example.tick".to_owned()),
            ],
            data: None,
            catch_up: routing::CatchUp::None,
        }
    }

    #[test]
    fn event_has_its_scheduled_time() {
        let scheduled: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();
        let mut cron = cron();
        cron.attributes
            .push(("datacontenttype".to_owned(), "application/json".to_owned()));
        cron.attributes.push(("team".to_owned(), "blue".to_owned()));
        cron.data = Some("{\"n\": 1.10}".to_owned());
        let event = event("5f0a", &cron, scheduled).unwrap();
        assert_eq!(event.id(), format!("5f0a-{}", scheduled.as_second()));
        assert_eq!((event.source(), event.r#type()), ("/clock", "com.example.tick"));
        assert_eq!(event.attribute("time"), Some(&"2026-11-24T08:00:00Z".into()));
        assert_eq!(event.attribute("team"), Some(&"blue".into()));
        assert_eq!(
            event.attribute("datacontenttype"),
            Some(&"application/json".into())
        );
        assert_eq!(event.data(), Some(Data::Binary("{\"n\": 1.10}".into())));
    }

    #[test]
    fn rejects_invalid_attributes() {
        let mut cron = cron();
        cron.attributes.push(("Team".to_owned(), "blue".to_owned()));
        assert_eq!(
            event("5f0a", &cron, Timestamp::UNIX_EPOCH)
                .unwrap_err()
                .attribute(),
            Some("Team")
        );
    }
}
