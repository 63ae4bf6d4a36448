//! Signs tokens for tests, with the example keys of RFC 7515, appendices A.2 and A.3.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use ring::{
    rand::SystemRandom,
    rsa::{KeyPairComponents, PublicKeyComponents},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

use crate::routing::{TokenIssuer, TokenKey};

pub(super) const ISSUER: &str = "https://kubernetes.default.svc";
pub(super) const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
pub(super) const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const D: &str = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";

pub(super) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL.encode(bytes)
}

fn decode(text: &str) -> Vec<u8> {
    BASE64URL.decode(text).unwrap()
}

/// A component of the RSA key.
pub(super) fn rsa(component: &str) -> String {
    let key: BTreeMap<String, String> =
        serde_json::from_str(include_str!("../../tests/fixtures/rfc7515-a2.json")).unwrap();
    key[component].clone()
}

/// The issuer of both keys, `rsa` and `p256`.
pub(super) fn issuer() -> TokenIssuer {
    let rsa = TokenKey::Rsa {
        n: rsa("n"),
        e: rsa("e"),
    };
    let p256 = TokenKey::P256 {
        x: X.to_owned(),
        y: Y.to_owned(),
    };
    TokenIssuer {
        issuer: ISSUER.to_owned(),
        keys: [("rsa".to_owned(), rsa), ("p256".to_owned(), p256)].into(),
    }
}

/// The claims of a valid token of a ServiceAccount, from 1,000 to 2,000 seconds after the epoch.
pub(super) fn claims(namespace: &str, name: &str) -> Value {
    json!({
        "aud": ["weir-broker"], "iss": ISSUER, "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "iat": 1000, "nbf": 1000, "exp": 2000, "jti": "1",
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": format!("uid-of-{name}")}},
    })
}

/// Signs a token with the key that `kid` names.
pub(super) fn sign(header: &Value, claims: &Value) -> String {
    let signed = format!(
        "{}.{}",
        base64url(header.to_string()),
        base64url(claims.to_string())
    );
    let signature = match header["kid"].as_str() {
        Some("p256") => with_p256(signed.as_bytes()),
        _ => with_rsa(signed.as_bytes()),
    };
    format!("{signed}.{}", base64url(signature))
}

/// A token with the RSA key.
pub(super) fn token(claims: &Value) -> String {
    sign(&json!({"alg": "RS256", "kid": "rsa"}), claims)
}

fn with_rsa(signed: &[u8]) -> Vec<u8> {
    let [n, e, d, p, q, dp, dq, qi] =
        ["n", "e", "d", "p", "q", "dp", "dq", "qi"].map(|name| decode(&rsa(name)));
    let key = RsaKeyPair::from_components(&KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: dp,
        dQ: dq,
        qInv: qi,
    });
    let key = key.unwrap();
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed, &mut signature)
        .unwrap();
    signature
}

fn with_p256(signed: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let public = [vec![4], decode(X), decode(Y)].concat();
    let key = EcdsaKeyPair::from_private_key_and_public_key(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &decode(D),
        &public,
        &random,
    );
    key.unwrap().sign(&random, signed).unwrap().as_ref().to_vec()
}
