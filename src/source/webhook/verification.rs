//! Verifies that a request is from the expected sender, on the bytes of its body as received. Signatures and tokens are
//! compared in constant time; the time in a signature has to be recent.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, Uri, header};
use jiff::{SignedDuration, Timestamp};
use ring::hmac;

use super::handshake::{ACCESS_TOKEN, AllowedOrigins, ORIGIN, access_tokens};
use crate::routing::{
    BasicAuthorization, CredentialDigest, HmacAlgorithm, HmacEncoding, HmacVerification, InvalidSigningKey,
    Secret, SigningKey, Verification, bearer_token,
};

/// Maximum difference between the time of a signature and now, in both directions.
const WINDOW: SignedDuration = SignedDuration::from_secs(5 * 60);

/// Headers with signatures.
const STRIPE_SIGNATURE: &str = "stripe-signature";
const SLACK_SIGNATURE: &str = "x-slack-signature";
const STANDARD_SIGNATURE: &str = "webhook-signature";

/// Maximum number of signatures in one header that are compared.
const MAX_SIGNATURES: usize = 16;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a request may be forged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forgery {
    /// A header is missing, or occurs more than once.
    #[error("the request has no header {0}, or more than one")]
    Missing(String),
    /// A header cannot be read.
    #[error("the header {0} is not as the sender of the Source writes it")]
    Malformed(String),
    /// The signature, token or password is not valid.
    #[error("{0} is not valid: does the sender have the secret of the Source?")]
    Wrong(String),
    /// The signature is too old, or from the future.
    #[error(
        "the request was signed at {0}, which is more than five minutes away: is it repeated, or a clock wrong?"
    )]
    Stale(Timestamp),
    /// A delivery of CloudEvents has no token, or several.
    #[error(
        "the request has neither a bearer token in the header authorization nor an access_token in its query, or has several"
    )]
    NoToken,
    /// The sender names an origin that the author does not allow.
    #[error("the origin in the header webhook-request-origin is not one of allowedOrigins")]
    Origin,
}

impl Forgery {
    /// Reason in metrics and responses.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::NoToken => "no_signature",
            Self::Malformed(_) | Self::Wrong(_) => "invalid_signature",
            Self::Stale(_) => "stale_signature",
            Self::Origin => "origin_not_allowed",
        }
    }
}

/// A prepared [`Verification`].
#[derive(Debug)]
pub(super) enum RequestVerifier {
    /// An HMAC of the body.
    Body {
        header: String,
        prefix: String,
        encoding: HmacEncoding,
        keys: Vec<hmac::Key>,
    },
    Stripe(Vec<hmac::Key>),
    Slack(Vec<hmac::Key>),
    StandardWebhooks(Vec<hmac::Key>),
    /// Digests of permitted values of a header.
    Value {
        header: String,
        /// Whether the token follows `Bearer`.
        is_bearer: bool,
        digests: Vec<CredentialDigest>,
    },
    /// Digests of user name and password.
    Basic(Vec<CredentialDigest>),
    /// A token in a header or in the query, and an origin.
    CloudEvents {
        origins: AllowedOrigins,
        digests: Vec<CredentialDigest>,
    },
    Nothing,
}

impl RequestVerifier {
    pub(super) fn new(verification: &Verification) -> Result<Self, InvalidSigningKey> {
        let sha256 = |secrets: &[Secret]| keys(hmac::HMAC_SHA256, secrets);
        let value = |header: &str, secrets: &[Secret]| Self::Value {
            header: header.to_owned(),
            is_bearer: header.eq_ignore_ascii_case("authorization"),
            digests: digests(secrets),
        };
        Ok(match verification {
            Verification::GitHub { secrets } => Self::Body {
                header: "x-hub-signature-256".to_owned(),
                prefix: "sha256=".to_owned(),
                encoding: HmacEncoding::Hex,
                keys: sha256(secrets),
            },
            Verification::GitLab { secrets } => value("x-gitlab-token", secrets),
            Verification::Stripe { secrets } => Self::Stripe(sha256(secrets)),
            Verification::Slack { secrets } => Self::Slack(sha256(secrets)),
            Verification::StandardWebhooks { keys } => {
                let keys = keys.iter().map(SigningKey::bytes);
                let keys = keys.map(|key| Ok(hmac::Key::new(hmac::HMAC_SHA256, &key?)));
                Self::StandardWebhooks(keys.collect::<Result<_, _>>()?)
            }
            Verification::Hmac(HmacVerification {
                header,
                prefix,
                algorithm,
                encoding,
                secrets,
            }) => Self::Body {
                header: header.clone(),
                prefix: prefix.clone(),
                encoding: *encoding,
                keys: keys(hash_of(*algorithm), secrets),
            },
            Verification::Token { header, secrets } => value(header, secrets),
            Verification::Basic { username, secrets } => {
                let pairs = secrets
                    .iter()
                    .map(|secret| format!("{username}:{}", secret.reveal()));
                Self::Basic(pairs.map(|pair| CredentialDigest::of(pair.as_bytes())).collect())
            }
            Verification::CloudEvents {
                allowed_origins,
                secrets,
            } => Self::CloudEvents {
                origins: AllowedOrigins::new(allowed_origins),
                digests: digests(secrets),
            },
            Verification::Nothing {} => Self::Nothing,
        })
    }

    /// The origins that may send CloudEvents, if the Source receives these.
    pub(super) fn allowed_origins(&self) -> Option<&AllowedOrigins> {
        match self {
            Self::CloudEvents { origins, .. } => Some(origins),
            _ => None,
        }
    }

    /// The header that has a token as a whole, if there is one.
    pub(super) fn token_header(&self) -> Option<&str> {
        match self {
            Self::Value { header, .. } => Some(header),
            _ => None,
        }
    }

    /// Checks what needs no body: that there is a signature, or a token as a whole.
    pub(super) fn check_head(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Forgery> {
        match self {
            Self::Body { header, .. } => one(headers, header).map(drop),
            Self::Stripe(_) => one(headers, STRIPE_SIGNATURE).map(drop),
            Self::Slack(_) => one(headers, SLACK_SIGNATURE).map(drop),
            Self::StandardWebhooks(_) => one(headers, STANDARD_SIGNATURE).map(drop),
            Self::Value {
                header,
                is_bearer,
                digests,
            } => {
                let value = one(headers, header)?;
                let token = match is_bearer {
                    true => bearer_token(value).ok_or_else(|| malformed(header))?,
                    false => value,
                };
                check_digest(
                    &in_header(header),
                    digests,
                    &CredentialDigest::of(token.as_bytes()),
                )
            }
            Self::Basic(digests) => {
                let name = header::AUTHORIZATION.as_str();
                match BasicAuthorization::parse(one(headers, name)?) {
                    BasicAuthorization::Pair(digest) => check_digest(&in_header(name), digests, &digest),
                    BasicAuthorization::Malformed | BasicAuthorization::OtherScheme => Err(malformed(name)),
                }
            }
            Self::CloudEvents { origins, digests } => {
                check_delivery_token(digests, uri, headers)?;
                // It is required only of validation requests: not all senders repeat it.
                let origin = headers.get(ORIGIN);
                let is_allowed = origin.is_none_or(|origin| origins.allow(origin));
                is_allowed.then_some(()).ok_or(Forgery::Origin)
            }
            Self::Nothing => Ok(()),
        }
    }

    pub(super) fn verify(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), Forgery> {
        match self {
            Self::Body {
                header,
                prefix,
                encoding,
                keys,
            } => {
                let text = one(headers, header)?;
                let text = text.strip_prefix(&**prefix).ok_or_else(|| malformed(header))?;
                let signature = decode(*encoding, text).ok_or_else(|| malformed(header))?;
                let is_valid = is_signed(keys, &[body], &[signature]);
                is_valid.then_some(()).ok_or_else(|| wrong(header))
            }
            Self::Stripe(keys) => verify_stripe(keys, headers, body, now),
            Self::Slack(keys) => verify_slack(keys, headers, body, now),
            Self::StandardWebhooks(keys) => verify_standard(keys, headers, body, now),
            Self::Value { .. } | Self::Basic(_) | Self::CloudEvents { .. } | Self::Nothing => {
                self.check_head(uri, headers)
            }
        }
    }
}

/// `Stripe-Signature: t=SECONDS,v1=HEX[,v1=HEX...]`, over `SECONDS.BODY`.
fn verify_stripe(
    keys: &[hmac::Key],
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Forgery> {
    let fields = one(headers, STRIPE_SIGNATURE)?.split(',');
    let fields = fields.filter_map(|field| field.trim().split_once('='));
    let mut times = fields.clone().filter(|(name, _)| *name == "t");
    let (Some((_, seconds)), None) = (times.next(), times.next()) else {
        return Err(malformed(STRIPE_SIGNATURE));
    };
    let signatures = fields.filter(|(name, _)| *name == "v1").take(MAX_SIGNATURES);
    let signatures: Vec<_> = signatures
        .filter_map(|(_, text)| decode(HmacEncoding::Hex, text))
        .collect();
    let is_valid = is_signed(keys, &[seconds.as_bytes(), b".", body], &signatures);
    is_valid.then_some(()).ok_or_else(|| wrong(STRIPE_SIGNATURE))?;
    check_time(STRIPE_SIGNATURE, seconds, now)
}

/// `X-Slack-Signature: v0=HEX`, over `v0:SECONDS:BODY`.
fn verify_slack(keys: &[hmac::Key], headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<(), Forgery> {
    const TIME: &str = "x-slack-request-timestamp";
    let seconds = one(headers, TIME)?;
    let text = one(headers, SLACK_SIGNATURE)?.strip_prefix("v0=");
    let signature = text.and_then(|text| decode(HmacEncoding::Hex, text));
    let signature = signature.ok_or_else(|| malformed(SLACK_SIGNATURE))?;
    let is_valid = is_signed(keys, &[b"v0:", seconds.as_bytes(), b":", body], &[signature]);
    is_valid.then_some(()).ok_or_else(|| wrong(SLACK_SIGNATURE))?;
    check_time(TIME, seconds, now)
}

/// `webhook-signature: v1,BASE64[ v1,BASE64...]`, over `ID.SECONDS.BODY`.
fn verify_standard(
    keys: &[hmac::Key],
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Forgery> {
    const TIME: &str = "webhook-timestamp";
    let (id, seconds) = (one(headers, "webhook-id")?, one(headers, TIME)?);
    let signatures = one(headers, STANDARD_SIGNATURE)?.split(' ').take(MAX_SIGNATURES);
    let signatures: Vec<_> = signatures
        .filter_map(|text| decode(HmacEncoding::Base64, text.strip_prefix("v1,")?))
        .collect();
    let signed = [id.as_bytes(), b".", seconds.as_bytes(), b".", body];
    let is_valid = is_signed(keys, &signed, &signatures);
    is_valid.then_some(()).ok_or_else(|| wrong(STANDARD_SIGNATURE))?;
    check_time(TIME, seconds, now)
}

/// Whether one of the signatures is that of one of the keys.
fn is_signed(keys: &[hmac::Key], parts: &[&[u8]], signatures: &[Vec<u8>]) -> bool {
    keys.iter().any(|key| {
        let mut context = hmac::Context::with_key(key);
        parts.iter().for_each(|part| context.update(part));
        let expected = CredentialDigest::of(context.sign().as_ref());
        signatures
            .iter()
            .any(|signature| expected.matches(&CredentialDigest::of(signature)))
    })
}

/// Checks the token of a delivery of CloudEvents, in the header or in the query (webhook specification, section 3).
fn check_delivery_token(digests: &[CredentialDigest], uri: &Uri, headers: &HeaderMap) -> Result<(), Forgery> {
    let mut in_query = access_tokens(uri);
    match (headers.contains_key(header::AUTHORIZATION), in_query.next()) {
        (true, None) => {
            let name = header::AUTHORIZATION.as_str();
            let token = bearer_token(one(headers, name)?).ok_or_else(|| malformed(name))?;
            check_digest(&in_header(name), digests, &CredentialDigest::of(token.as_bytes()))
        }
        (false, Some(token)) if in_query.next().is_none() => {
            let place = format!("{ACCESS_TOKEN} in the query");
            check_digest(&place, digests, &CredentialDigest::of(&token))
        }
        _ => Err(Forgery::NoToken),
    }
}

/// Checks that a credential is one of those permitted.
fn check_digest(
    place: &str,
    digests: &[CredentialDigest],
    presented: &CredentialDigest,
) -> Result<(), Forgery> {
    let is_known = digests.iter().any(|digest| digest.matches(presented));
    is_known
        .then_some(())
        .ok_or_else(|| Forgery::Wrong(place.to_owned()))
}

fn digests(secrets: &[Secret]) -> Vec<CredentialDigest> {
    let digest = |secret: &Secret| CredentialDigest::of(secret.reveal().as_bytes());
    secrets.iter().map(digest).collect()
}

/// Checked after the signature: before, the time is anybody's.
fn check_time(header: &str, seconds: &str, now: Timestamp) -> Result<(), Forgery> {
    let signed = seconds
        .parse()
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    let signed = signed.ok_or_else(|| malformed(header))?;
    match now.duration_since(signed).abs() <= WINDOW {
        true => Ok(()),
        false => Err(Forgery::Stale(signed)),
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Forgery> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none());
    let value = value.ok_or_else(|| Forgery::Missing(name.to_owned()))?;
    value.to_str().map_err(|_| malformed(name))
}

fn malformed(header: &str) -> Forgery {
    Forgery::Malformed(header.to_owned())
}

fn wrong(header: &str) -> Forgery {
    Forgery::Wrong(in_header(header))
}

fn in_header(header: &str) -> String {
    format!("the header {header}")
}

fn decode(encoding: HmacEncoding, text: &str) -> Option<Vec<u8>> {
    match encoding {
        HmacEncoding::Hex => hex(text),
        HmacEncoding::Base64 => BASE64.decode(text).ok(),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let pair = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    pairs.iter().map(pair).collect()
}

fn keys(algorithm: hmac::Algorithm, secrets: &[Secret]) -> Vec<hmac::Key> {
    let key = |secret: &Secret| hmac::Key::new(algorithm, secret.reveal().as_bytes());
    secrets.iter().map(key).collect()
}

fn hash_of(algorithm: HmacAlgorithm) -> hmac::Algorithm {
    match algorithm {
        HmacAlgorithm::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        HmacAlgorithm::Sha256 => hmac::HMAC_SHA256,
        HmacAlgorithm::Sha512 => hmac::HMAC_SHA512,
    }
}

#[cfg(test)]
mod tests;
