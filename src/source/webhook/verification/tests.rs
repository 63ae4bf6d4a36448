//! Published test vectors, and forged requests.

use http::HeaderValue;

use super::*;

const SLACK_BODY: &[u8] = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
    &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=\
    &response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN\
    &trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
const SLACK_SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
const SLACK_SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
const SLACK_TIME: &str = "1531420618";

const GITHUB_SECRET: &str = "It's a Secret to Everybody";
const GITHUB_SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

const STANDARD_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const STANDARD_BODY: &[u8] = br#"{"test": 2432232314}"#;
const STANDARD_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

fn secrets(texts: &[&str]) -> Vec<Secret> {
    texts.iter().map(|text| (*text).to_owned().into()).collect()
}

/// The label of the forgery; empty if the request is accepted.
fn verified(
    verification: &Verification,
    headers: &[(&'static str, &str)],
    body: &[u8],
    now: i64,
) -> &'static str {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    let now = Timestamp::from_second(now).unwrap();
    let verifier = RequestVerifier::new(verification).unwrap();
    verifier
        .verify(&Uri::from_static("/shop/hook"), &map, body, now)
        .err()
        .map_or("", |forgery| forgery.label())
}

#[test]
fn published_vector_of_github_passes_and_forged_ones_do_not() {
    const NAME: &str = "x-hub-signature-256";
    let github = |texts: &[&str]| Verification::GitHub {
        secrets: secrets(texts),
    };
    let known = github(&["new", GITHUB_SECRET]);
    let upper = format!("sha256={}", GITHUB_SIGNATURE[7..].to_uppercase());
    let body = b"Hello, World!";
    for (verification, headers, body, expected) in [
        (&known, &[(NAME, GITHUB_SIGNATURE)][..], &body[..], ""),
        (&known, &[(NAME, &*upper)], body, ""),
        (
            &known,
            &[(NAME, GITHUB_SIGNATURE)],
            b"Hello, World?",
            "invalid_signature",
        ),
        (
            &github(&["other"]),
            &[(NAME, GITHUB_SIGNATURE)],
            body,
            "invalid_signature",
        ),
        (
            &github(&[]),
            &[(NAME, GITHUB_SIGNATURE)],
            body,
            "invalid_signature",
        ),
        (&known, &[], body, "no_signature"),
        (
            &known,
            &[("x-hub-signature", GITHUB_SIGNATURE)],
            body,
            "no_signature",
        ),
        (
            &known,
            &[(NAME, GITHUB_SIGNATURE), (NAME, GITHUB_SIGNATURE)],
            body,
            "no_signature",
        ),
        (
            &known,
            &[(NAME, &GITHUB_SIGNATURE[7..])],
            body,
            "invalid_signature",
        ),
        (
            &known,
            &[(NAME, &GITHUB_SIGNATURE[..70])],
            body,
            "invalid_signature",
        ),
        (
            &known,
            &[(NAME, &GITHUB_SIGNATURE[..69])],
            body,
            "invalid_signature",
        ),
        (&known, &[(NAME, "sha256=")], body, "invalid_signature"),
        (&known, &[(NAME, "sha256=+7")], body, "invalid_signature"),
    ] {
        assert_eq!(verified(verification, headers, body, 0), expected, "{headers:?}");
    }
}

#[test]
fn published_vector_of_slack_passes_within_five_minutes() {
    let slack = Verification::Slack {
        secrets: secrets(&[SLACK_SECRET]),
    };
    let signed = [
        ("x-slack-signature", SLACK_SIGNATURE),
        ("x-slack-request-timestamp", SLACK_TIME),
    ];
    let time: i64 = SLACK_TIME.parse().unwrap();
    let later = [
        ("x-slack-signature", SLACK_SIGNATURE),
        ("x-slack-request-timestamp", "1531420619"),
    ];
    for (headers, now, expected) in [
        (&signed[..], time, ""),
        (&signed, time + 300, ""),
        (&signed, time - 300, ""),
        (&signed, time + 301, "stale_signature"),
        (&signed, time - 301, "stale_signature"),
        // A time that is not the signed one is no excuse.
        (&later, time, "invalid_signature"),
        (&signed[..1], time, "no_signature"),
        (&signed[1..], time, "no_signature"),
    ] {
        assert_eq!(
            verified(&slack, headers, SLACK_BODY, now),
            expected,
            "{headers:?} {now}"
        );
    }
}

#[test]
fn published_vector_of_standard_webhooks_passes() {
    let key = SigningKey {
        value: STANDARD_KEY.to_owned().into(),
        version: String::new(),
    };
    let standard = Verification::StandardWebhooks { keys: vec![key] };
    let two = format!("v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4= {STANDARD_SIGNATURE}");
    let asymmetric = STANDARD_SIGNATURE.replace("v1,", "v1a,");
    for (id, signature, now, expected) in [
        (
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            STANDARD_SIGNATURE,
            1_614_265_330,
            "",
        ),
        ("msg_p5jXN8AQM9LWM0D4loKWxJek", &two, 1_614_265_330, ""),
        (
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            STANDARD_SIGNATURE,
            1_614_265_631,
            "stale_signature",
        ),
        ("msg_2", STANDARD_SIGNATURE, 1_614_265_330, "invalid_signature"),
        (
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            &asymmetric,
            1_614_265_330,
            "invalid_signature",
        ),
        (
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "",
            1_614_265_330,
            "invalid_signature",
        ),
    ] {
        let headers = [
            ("webhook-id", id),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", signature),
        ];
        assert_eq!(
            verified(&standard, &headers, STANDARD_BODY, now),
            expected,
            "{headers:?}"
        );
    }
}

#[test]
fn signatures_of_stripe_are_over_the_time_and_the_body() {
    let stripe = Verification::Stripe {
        secrets: secrets(&["whsec_test", "whsec_new"]),
    };
    let body = br#"{"id": "evt_1"}"#;
    let sign = |secret: &str, text: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let tag = hmac::sign(&key, text.as_bytes());
        let digits = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    };
    let good = sign("whsec_test", r#"1000.{"id": "evt_1"}"#);
    let new = sign("whsec_new", r#"1000.{"id": "evt_1"}"#);
    let bare = sign("whsec_test", r#"{"id": "evt_1"}"#);
    for (header, now, expected) in [
        (format!("t=1000,v1={good}"), 1000, ""),
        (format!("t=1000,v1={}, v1={new}", "0".repeat(64)), 1000, ""),
        (format!("t=1000,v1={good},v0={bare}"), 1300, ""),
        (format!("t=1000,v1={good}"), 1301, "stale_signature"),
        (format!("t=1001,v1={good}"), 1001, "invalid_signature"),
        (format!("t=1000,v0={good}"), 1000, "invalid_signature"),
        (format!("v1={good}"), 1000, "invalid_signature"),
        (format!("t=1000,t=1001,v1={good}"), 1000, "invalid_signature"),
        ("t=1000".to_owned(), 1000, "invalid_signature"),
        (format!("t=1000,v1={bare}"), 1000, "invalid_signature"),
        (String::new(), 1000, "invalid_signature"),
    ] {
        let found = verified(&stripe, &[("stripe-signature", &header)], body, now);
        assert_eq!(found, expected, "{header} {now}");
    }
}

#[test]
fn tokens_and_passwords_are_compared_as_a_whole() {
    let gitlab = Verification::GitLab {
        secrets: secrets(&["abc", "def"]),
    };
    let token = Verification::Token {
        header: "Authorization".to_owned(),
        secrets: secrets(&["abc"]),
    };
    let basic = Verification::Basic {
        username: "weir".to_owned(),
        secrets: secrets(&["pass:word"]),
    };
    let encoded = |text: &str| format!("Basic {}", BASE64.encode(text));
    for (verification, header, value, expected) in [
        (&gitlab, "x-gitlab-token", "abc", ""),
        (&gitlab, "x-gitlab-token", "def", ""),
        (&gitlab, "x-gitlab-token", "ab", "invalid_signature"),
        (&gitlab, "x-gitlab-token", "", "invalid_signature"),
        (&gitlab, "authorization", "abc", "no_signature"),
        (&token, "authorization", "Bearer abc", ""),
        (&token, "authorization", "bearer abc", ""),
        (&token, "authorization", "abc", "invalid_signature"),
        (&token, "authorization", "Basic abc", "invalid_signature"),
        (&basic, "authorization", &encoded("weir:pass:word"), ""),
        (
            &basic,
            "authorization",
            &encoded("weir:pass"),
            "invalid_signature",
        ),
        (
            &basic,
            "authorization",
            &encoded("other:pass:word"),
            "invalid_signature",
        ),
        (&basic, "authorization", "Basic !", "invalid_signature"),
        // Without padding, and with a space at the end: as strict as for producers.
        (
            &basic,
            "authorization",
            "Basic d2VpcjpwYXNzOndvcmQ",
            "invalid_signature",
        ),
        (
            &basic,
            "authorization",
            "Basic d2VpcjpwYXNzOndvcmQ= ",
            "invalid_signature",
        ),
        (&basic, "authorization", "Bearer abc", "invalid_signature"),
        (&Verification::Nothing {}, "x", "y", ""),
    ] {
        let found = verified(verification, &[(header, value)], b"", 0);
        assert_eq!(found, expected, "{header}: {value}");
    }
}

#[test]
fn any_hmac_in_a_header_is_verified() {
    // RFC 4231, test case 2, and RFC 2202, test case 2.
    let (key, body) = ("Jefe", b"what do ya want for nothing?");
    let sha256 = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    let sha512 = "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737";
    let sha1 = "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79";
    let base64 = "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM";
    for (algorithm, encoding, value, expected) in [
        (HmacAlgorithm::Sha256, HmacEncoding::Hex, sha256, ""),
        (HmacAlgorithm::Sha512, HmacEncoding::Hex, sha512, ""),
        (HmacAlgorithm::Sha1, HmacEncoding::Hex, sha1, ""),
        (HmacAlgorithm::Sha256, HmacEncoding::Base64, base64, ""),
        (
            HmacAlgorithm::Sha256,
            HmacEncoding::Base64,
            &format!("{base64}="),
            "",
        ),
        (
            HmacAlgorithm::Sha256,
            HmacEncoding::Base64,
            sha256,
            "invalid_signature",
        ),
        (
            HmacAlgorithm::Sha512,
            HmacEncoding::Hex,
            sha256,
            "invalid_signature",
        ),
    ] {
        let verification = Verification::Hmac(HmacVerification {
            header: "X-Signature".to_owned(),
            prefix: "mac ".to_owned(),
            algorithm,
            encoding,
            secrets: secrets(&[key]),
        });
        let value = format!("mac {value}");
        assert_eq!(
            verified(&verification, &[("x-signature", &value)], body, 0),
            expected,
            "{value}"
        );
    }
}
