//! Sinks that verify by a signature who sent a request, as the Standard Webhooks specification says.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;

use crate::{
    cluster::{post_binary, trigger},
    support::{Answer, Consumer, LocalRouter, PATIENCE, Received, eventually},
};

/// Tolerance of the specification's reference libraries.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

fn key(byte: u8) -> String {
    format!("whsec_{}", STANDARD.encode([byte; 32]))
}

/// The keys, by their byte, that a request is signed with.
fn signed_by(received: &Received) -> Vec<u8> {
    let header = |name| received.header(name).unwrap();
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp.parse().unwrap());
    let age = SystemTime::now().duration_since(time).unwrap();
    assert!(age < TOLERANCE, "{age:?}");
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &received.body].concat();
    let signatures = header("webhook-signature").split(' ').map(|signature| {
        let signature = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
        let signers = (1..=9).filter(|&byte| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32]);
            hmac::verify(&key, &signed, &signature).is_ok()
        });
        let signers: Vec<u8> = signers.collect();
        assert_eq!(signers.len(), 1, "{received:?}");
        signers[0]
    });
    signatures.collect()
}

fn sink(name: &str, url: &str, keys: &[&str], more: &str) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| format!("{{secretKeyRef: {{name: signing, key: {key}}}}}"))
        .collect();
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}}}\nspec:\n  uri: '{url}'\n  \
         signature: {{standardWebhooks: {{keys: [{}]}}}}\n  {more}\n",
        keys.join(", ")
    )
}

fn secret(old: u8, new: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: signing}}\nstringData: {{old: {}, new: \"{}\\n\"}}\n",
        key(old),
        key(new)
    )
}

#[test]
fn requests_and_dead_letters_are_signed_with_each_key() {
    let (consumer, graves) = (Consumer::start(), Consumer::start());
    let mut failures = 0;
    consumer.answer_by(move |received| match received.header("ce-type") {
        Some("flaky") if failures < 2 => {
            failures += 1;
            Answer::status(503)
        }
        Some("bad") => Answer::status(400),
        _ => Answer::status(204),
    });
    let to_graves = "delivery: {backoffDelay: 1100ms, deadLetterSink: {ref: {name: graves}}}";
    let manifests = [
        sink("orders", &consumer.url(), &["old", "new"], to_graves),
        sink("graves", &graves.url(), &["new"], "contentMode: Structured"),
        trigger("orders", "[]", "{ref: {name: orders}}", ""),
    ]
    .concat();
    let in_shop = |manifests: &str| manifests.replace("metadata: {name", "metadata: {namespace: shop, name");
    let router = LocalRouter::start(&in_shop(&format!("{manifests}{}", secret(1, 2))), &[]);

    // Each attempt has the same id, and a time and signatures of its own.
    post_binary(&router.url(), "1", "flaky", r#"{"amount": 1}"#);
    let attempts = consumer.wait_for(3);
    for attempt in &attempts {
        assert_eq!(signed_by(attempt), [1, 2]);
        assert_eq!(attempt.header("webhook-id"), attempts[0].header("webhook-id"));
        assert_eq!(&*attempt.body, br#"{"amount": 1}"#);
    }

    post_binary(&router.url(), "2", "bad", "");
    let rejected = consumer.wait_for(4).remove(3);
    assert_eq!(signed_by(&rejected), [1, 2]);
    assert_ne!(rejected.header("webhook-id"), attempts[0].header("webhook-id"));
    let letter = graves.wait_for(1).remove(0);
    assert_eq!(signed_by(&letter), [2]);
    assert_eq!(letter.header("webhook-id"), rejected.header("webhook-id"));

    // A key is replaced.
    router.apply(&in_shop(&format!("{manifests}{}", secret(2, 3))));
    eventually(PATIENCE, || {
        post_binary(&router.url(), "3", "good", "");
        let signers = consumer.look(|received| received.last().map(signed_by));
        match signers.as_deref() {
            Some([2, 3]) => Ok(()),
            other => Err(format!("signed by {other:?}")),
        }
    });

    // A Secret without a key holds the events.
    router.apply(&in_shop(&manifests));
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("Sink shop/orders")
            && line.contains("there is no Secret \"signing\" in namespace \"shop\"")
    });
    let log = router.process.lines().join("\n");
    assert!(!log.contains("whsec_"), "{log}");
}
