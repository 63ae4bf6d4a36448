//! Signatures of requests by the Standard Webhooks specification 1.0: HMAC-SHA256 over the message id, the time and the
//! body, once with each key. Pure.
//!
//! The message id is derived from the event's `source` and `id`, which identify it: it is the same for each attempt, each
//! Trigger, and the event as a dead letter. It has no `.`, so that the signed text cannot be divided in another way.

use std::time::{Duration, SystemTime};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::{digest, hmac};

use crate::{
    cloudevents::Event,
    routing::{InvalidSigningKey, SigningKey},
};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Signs requests; without keys, it leaves them as they are.
#[derive(Default)]
pub(super) struct Signer {
    keys: Vec<(SigningKey, hmac::Key)>,
}

impl Signer {
    pub(super) fn new(keys: &[SigningKey]) -> Result<Self, InvalidSigningKey> {
        let prepared = keys.iter().map(|key| {
            let bytes = key.bytes()?;
            Ok((key.clone(), hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
        });
        Ok(Self {
            keys: prepared.collect::<Result<_, _>>()?,
        })
    }

    /// Whether there are no keys.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Signs an attempt that begins now, with this body.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap, event: &Event, body: &[u8], now: SystemTime) {
        if self.is_empty() {
            return;
        }
        let id = message_id(event.source(), event.id());
        let seconds = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let values = [
            (ID, id.clone()),
            (TIMESTAMP, seconds.to_string()),
            (SIGNATURE, self.signatures(&id, seconds, body)),
        ];
        for (name, value) in values {
            // Digits and base64 are always valid in a header.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }

    fn signatures(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let sign = |(_, key): &(SigningKey, hmac::Key)| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{seconds}.").as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        };
        self.keys.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        let (own, others) = (self.keys.iter(), other.keys.iter());
        own.map(|(key, _)| &key.value)
            .eq(others.map(|(key, _)| &key.value))
    }
}

/// Hashes the source and the id of an event, with the length of the source before them.
fn message_id(source: &str, id: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(source.len() as u64).to_be_bytes());
    context.update(source.as_bytes());
    context.update(id.as_bytes());
    format!("msg_{}", URL_SAFE_NO_PAD.encode(context.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    /// The key of the specification's reference libraries.
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

    fn signer(keys: &[&str]) -> Signer {
        let keys = keys.iter().map(|&key| SigningKey {
            value: key.to_owned().into(),
            version: String::new(),
        });
        Signer::new(&keys.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn signs_like_the_reference_libraries() {
        let sign = |keys: &[&str]| {
            signer(keys).signatures(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#,
            )
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&[KEY]), expected);
        let both = sign(&[OTHER, KEY]);
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(second, expected);
        assert_eq!(first, sign(&[OTHER]));
    }

    #[test]
    fn message_id_depends_on_source_and_id_only() {
        let expected = "msg_0R8TiddtoWoNy7fj2Y09UDxGgSOeMFstPsBVmnSRo8M";
        assert_eq!(message_id("/orders", "1"), expected);
        assert_ne!(message_id("/orders1", ""), expected);
        assert!(!message_id("/a.b", "c.d").contains('.'));
    }

    #[test]
    fn sets_the_headers_of_an_attempt() {
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/orders")
            .attribute("type", "t")
            .build()
            .unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_900);
        let mut headers = HeaderMap::new();
        signer(&[]).set_headers(&mut headers, &event, b"", now);
        assert!(headers.is_empty());
        let signer = signer(&[KEY]);
        signer.set_headers(&mut headers, &event, b"{}", now);
        let id = message_id("/orders", "1");
        assert_eq!(headers["webhook-id"], *id);
        assert_eq!(headers["webhook-timestamp"], "1614265330");
        assert_eq!(
            headers["webhook-signature"],
            signer.signatures(&id, 1_614_265_330, b"{}")
        );
        assert_eq!(headers.len(), 3);
    }
}
