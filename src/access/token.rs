//! Verifies a ServiceAccount token: a JSON Web Token (RFC 7519) signed with RS256 or ES256 (RFC 7518).
//!
//! The header never chooses how to verify: its `kid` selects a key, and the key's kind the algorithm, which `alg` must
//! name. [`UncheckedToken::parse`] makes all checks but that of the signature, which costs several times as much as all
//! others together. What a token claims allows nothing before its signature is checked.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jiff::Timestamp;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use crate::routing::{PRODUCER_AUDIENCE, TokenIssuer, TokenKey};

/// Maximum length of a token, in bytes. The API server's own have about 1,300.
const MAX_TOKEN: usize = 16 * 1024;

/// Tolerated difference between the clocks of routers and API servers, in seconds.
const LEEWAY: i64 = 10;

/// Length of a coordinate on P-256, in bytes.
const COORDINATE: usize = 32;

/// Why a token is not accepted. The texts contain no part of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not a signed JSON Web Token.
    #[error("it is not a JSON Web Token")]
    Malformed,
    /// It is signed with an unsupported algorithm, or with another than its key's.
    #[error("its algorithm is not that of its key; ServiceAccount tokens have RS256 or ES256")]
    Algorithm,
    /// No key has its `kid`.
    #[error("it is signed with a key that the cluster does not publish")]
    UnknownKey,
    /// The signature does not match.
    #[error("its signature does not match")]
    Signature,
    /// It has another issuer.
    #[error("its issuer is not this cluster")]
    Issuer,
    /// It is for another audience.
    #[error("it is for another audience than {PRODUCER_AUDIENCE}")]
    Audience,
    /// It has expired.
    #[error("it has expired")]
    Expired,
    /// It is not valid yet.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It does not belong to a ServiceAccount.
    #[error("it is not a token of a ServiceAccount")]
    NoServiceAccount,
    /// Its ServiceAccount does not exist any more, or was created again since.
    #[error("its ServiceAccount has been deleted")]
    Deleted,
}

/// The ServiceAccount that a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Account {
    /// Returns `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Owner.
    pub account: Account,
    /// Time in seconds since the epoch from which on it is not valid.
    pub expires: i64,
    /// `kid` of the key that signed it.
    pub key: String,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: &'a str,
    kid: String,
    /// Extensions that must be understood. There are none here.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    exp: i64,
    #[serde(default)]
    nbf: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: AccountClaims,
}

#[derive(Deserialize)]
struct AccountClaims {
    name: String,
    uid: String,
}

/// A token whose signature is not checked yet.
#[derive(Debug)]
pub(super) struct UncheckedToken<'a> {
    key: &'a TokenKey,
    signed: &'a str,
    signature: Vec<u8>,
    claimed: VerifiedToken,
}

impl<'a> UncheckedToken<'a> {
    /// Parses a token of this issuer, and checks everything but the signature.
    pub(super) fn parse(token: &'a str, issuer: &'a TokenIssuer, now: Timestamp) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header = decode(header)?;
        let Header { alg, kid, crit } = parse(&header)?;
        if crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let claims: Claims = parse(&decode(claims)?)?;
        let (account, expires) = check(claims, &issuer.issuer, now)?;
        let key = issuer.keys.get(&kid).ok_or(TokenError::UnknownKey)?;
        if alg != algorithm_of(key) {
            return Err(TokenError::Algorithm);
        }
        Ok(Self {
            key,
            signed,
            signature: decode(signature)?,
            claimed: VerifiedToken {
                account,
                expires,
                key: kid,
            },
        })
    }

    /// The ServiceAccount that it claims to belong to.
    pub(super) fn claimed_account(&self) -> &Account {
        &self.claimed.account
    }

    /// Checks the signature.
    pub(super) fn verify(self) -> Result<VerifiedToken, TokenError> {
        check_signature(self.key, self.signed.as_bytes(), &self.signature)?;
        Ok(self.claimed)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    BASE64URL.decode(part).map_err(|_| TokenError::Malformed)
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, TokenError> {
    serde_json::from_slice(json).map_err(|_| TokenError::Malformed)
}

/// Checks the claims. Returns the account, and the time from which on the token is not valid.
fn check(claims: Claims, issuer: &str, now: Timestamp) -> Result<(Account, i64), TokenError> {
    let Claims {
        iss,
        sub,
        aud,
        exp,
        nbf,
        kubernetes,
    } = claims;
    let is_ours = match &aud {
        Audiences::One(audience) => audience == PRODUCER_AUDIENCE,
        Audiences::Several(audiences) => audiences.iter().any(|audience| audience == PRODUCER_AUDIENCE),
    };
    let now = now.as_second();
    let expires = exp.saturating_add(LEEWAY);
    if iss != issuer {
        return Err(TokenError::Issuer);
    }
    if !is_ours {
        return Err(TokenError::Audience);
    }
    if now >= expires {
        return Err(TokenError::Expired);
    }
    if now < nbf.saturating_sub(LEEWAY) {
        return Err(TokenError::NotYetValid);
    }
    let KubernetesClaims {
        namespace,
        serviceaccount: AccountClaims { name, uid },
    } = kubernetes.ok_or(TokenError::NoServiceAccount)?;
    if sub != format!("system:serviceaccount:{namespace}:{name}") {
        return Err(TokenError::NoServiceAccount);
    }
    Ok((Account { namespace, name, uid }, expires))
}

fn algorithm_of(key: &TokenKey) -> &'static str {
    match key {
        TokenKey::Rsa { .. } => "RS256",
        TokenKey::P256 { .. } => "ES256",
    }
}

fn check_signature(key: &TokenKey, signed: &[u8], signature: &[u8]) -> Result<(), TokenError> {
    let verified = match key {
        TokenKey::Rsa { n, e } => {
            let (n, e) = (decode(n)?, decode(e)?);
            let key = RsaPublicKeyComponents { n: &n, e: &e };
            key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, signature)
        }
        TokenKey::P256 { x, y } => {
            let point = uncompressed(&decode(x)?, &decode(y)?).ok_or(TokenError::UnknownKey)?;
            let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
            key.verify(signed, signature)
        }
    };
    verified.map_err(|_| TokenError::Signature)
}

/// The point in the encoding of SEC 1, section 2.3.3, without compression.
fn uncompressed(x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
    let is_coordinate = |bytes: &[u8]| bytes.len() == COORDINATE;
    (is_coordinate(x) && is_coordinate(y)).then(|| [&[4], x, y].concat())
}

#[cfg(test)]
mod tests {
    use ring::hmac;
    use serde_json::{Value, json};

    use super::*;
    use crate::access::tokens_for_test::{base64url, claims, issuer, rsa, sign, token};

    const NOW: i64 = 1500;

    fn verify_at(token: &str, seconds: i64) -> Result<VerifiedToken, TokenError> {
        let now = Timestamp::from_second(seconds).unwrap();
        UncheckedToken::parse(token, &issuer(), now)?.verify()
    }

    /// The examples of RFC 7515, appendices A.2 and A.3: signatures that this code did not make.
    #[test]
    fn verifies_published_signatures() {
        const CLAIMS: &str =
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        const RSA: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5ju\
                           jGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07\
                           Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipU\
                           TI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        const P256: &str =
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let keys = issuer().keys;
        for (kid, alg, header, signature) in [
            ("rsa", "RS256", "eyJhbGciOiJSUzI1NiJ9", RSA),
            ("p256", "ES256", "eyJhbGciOiJFUzI1NiJ9", P256),
        ] {
            let check = |claims: &str| {
                let signed = format!("{header}.{claims}");
                assert_eq!(algorithm_of(&keys[kid]), alg);
                check_signature(&keys[kid], signed.as_bytes(), &decode(signature).unwrap())
            };
            assert_eq!(check(CLAIMS), Ok(()), "{alg}");
            assert_eq!(
                check(&CLAIMS.replace('b', "c")),
                Err(TokenError::Signature),
                "{alg}"
            );
        }
    }

    #[test]
    fn accepts_tokens_of_both_algorithms_within_their_time() {
        let account = Account {
            namespace: "shop".to_owned(),
            name: "checkout".to_owned(),
            uid: "uid-of-checkout".to_owned(),
        };
        let mut one_audience = claims("shop", "checkout");
        one_audience["aud"] = json!("weir-broker");
        for token in [
            token(&claims("shop", "checkout")),
            sign(
                &json!({"alg": "ES256", "kid": "p256", "typ": "JWT"}),
                &claims("shop", "checkout"),
            ),
            token(&one_audience),
        ] {
            let verified = verify_at(&token, NOW).unwrap();
            assert_eq!(verified.account, account);
            for (seconds, expected) in [
                (989, Err(TokenError::NotYetValid)),
                (990, Ok(())),
                (2009, Ok(())),
                (2010, Err(TokenError::Expired)),
            ] {
                assert_eq!(verify_at(&token, seconds).map(drop), expected, "{seconds}");
            }
        }
    }

    #[test]
    fn rejects_forged_and_foreign_tokens() {
        let rs256 = json!({"alg": "RS256", "kid": "rsa"});
        let good = token(&claims("shop", "checkout"));
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let with = |pointer: &str, value: Value| {
            let mut claims = claims("shop", "checkout");
            *claims.pointer_mut(pointer).unwrap() = value;
            token(&claims)
        };
        let without = |claim: &str| {
            let mut claims = claims("shop", "checkout");
            claims.as_object_mut().unwrap().remove(claim);
            token(&claims)
        };
        let unsigned = |header: Value| {
            format!(
                "{}.{}.",
                base64url(header.to_string()),
                base64url(claims("shop", "checkout").to_string())
            )
        };
        // The public key as the secret of a symmetric algorithm.
        let confused = |alg: &str, kid: &str| {
            let header = base64url(json!({"alg": alg, "kid": kid}).to_string());
            let signed = format!("{header}.{}", base64url(claims("shop", "checkout").to_string()));
            let key = hmac::Key::new(hmac::HMAC_SHA256, &decode(&rsa("n")).unwrap());
            format!("{signed}.{}", base64url(hmac::sign(&key, signed.as_bytes())))
        };
        let other_claims = base64url(claims("shop", "admin").to_string());
        let (header, _) = signed.split_once('.').unwrap();
        for (case, token, expected) in [
            ("nothing", String::new(), TokenError::Malformed),
            ("no token", "a.b.c".to_owned(), TokenError::Malformed),
            ("two parts", signed.to_owned(), TokenError::Malformed),
            ("four parts", format!("{good}.x"), TokenError::Malformed),
            ("padding", format!("{good}="), TokenError::Malformed),
            (
                "too long",
                format!("{good}{}", "A".repeat(MAX_TOKEN)),
                TokenError::Malformed,
            ),
            (
                "alg none",
                unsigned(json!({"alg": "none"})),
                TokenError::Malformed,
            ),
            (
                "alg none with a key",
                unsigned(json!({"alg": "none", "kid": "rsa"})),
                TokenError::Algorithm,
            ),
            ("no signature", format!("{signed}."), TokenError::Signature),
            ("key confusion", confused("HS256", "rsa"), TokenError::Algorithm),
            (
                "key confusion, named RS256",
                confused("RS256", "rsa"),
                TokenError::Signature,
            ),
            (
                "alg of the other key",
                sign(
                    &json!({"alg": "ES256", "kid": "rsa"}),
                    &claims("shop", "checkout"),
                ),
                TokenError::Algorithm,
            ),
            (
                "stronger alg",
                sign(
                    &json!({"alg": "RS512", "kid": "rsa"}),
                    &claims("shop", "checkout"),
                ),
                TokenError::Algorithm,
            ),
            (
                "signed with the other key",
                sign(
                    &json!({"alg": "ES256", "kid": "p256", "x": 1}),
                    &claims("shop", "checkout"),
                )
                .replace(
                    &base64url(json!({"alg": "ES256", "kid": "p256", "x": 1}).to_string()),
                    &base64url(json!({"alg": "RS256", "kid": "rsa"}).to_string()),
                ),
                TokenError::Signature,
            ),
            (
                "unknown key",
                sign(
                    &json!({"alg": "RS256", "kid": "other"}),
                    &claims("shop", "checkout"),
                ),
                TokenError::UnknownKey,
            ),
            (
                "key in the header",
                sign(
                    &json!({"alg": "RS256", "kid": "own", "jwk": {"kty": "RSA"}}),
                    &claims("shop", "checkout"),
                ),
                TokenError::UnknownKey,
            ),
            (
                "critical extension",
                sign(
                    &json!({"alg": "RS256", "kid": "rsa", "crit": ["x"]}),
                    &claims("shop", "checkout"),
                ),
                TokenError::Malformed,
            ),
            (
                "other claims",
                format!("{header}.{other_claims}.{signature}"),
                TokenError::Signature,
            ),
            (
                "cut signature",
                format!("{signed}.{}", base64url(&decode(signature).unwrap()[..200])),
                TokenError::Signature,
            ),
            (
                "other issuer",
                with("/iss", json!("https://other")),
                TokenError::Issuer,
            ),
            (
                "other audience",
                with("/aud", json!(["weir-controller", "api"])),
                TokenError::Audience,
            ),
            ("no audience", with("/aud", json!([])), TokenError::Audience),
            (
                "audience as a number",
                with("/aud", json!(1)),
                TokenError::Malformed,
            ),
            ("expired", with("/exp", json!(1400)), TokenError::Expired),
            ("no expiry", without("exp"), TokenError::Malformed),
            (
                "expiry as text",
                with("/exp", json!("2000")),
                TokenError::Malformed,
            ),
            (
                "not yet valid",
                with("/nbf", json!(1600)),
                TokenError::NotYetValid,
            ),
            ("a user", without("kubernetes.io"), TokenError::NoServiceAccount),
            (
                "another subject",
                with("/sub", json!("system:serviceaccount:shop:admin")),
                TokenError::NoServiceAccount,
            ),
            (
                "a header of two",
                sign(&json!([rs256]), &claims("shop", "checkout")),
                TokenError::Malformed,
            ),
        ] {
            assert_eq!(verify_at(&token, NOW), Err(expected), "{case}");
        }
    }
}
