//! Remembers verified tokens, so that a token that is used again costs a hash instead of a signature.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use ring::digest::{SHA256, digest};

use super::token::{self, TokenError, VerifiedToken};
use crate::routing::TokenIssuer;

/// Number of remembered tokens after which the older half of them is forgotten.
const MAX_REMEMBERED: usize = 8192;

/// SHA-256 of a token, so that tokens do not stay in memory.
type TokenDigest = [u8; 32];

/// Verifies tokens of one issuer. Only valid ones are remembered, so that invalid ones, of which anyone can make any
/// number, displace none.
#[derive(Debug)]
pub(super) struct Verifier {
    issuer: TokenIssuer,
    remembered: Mutex<RememberedTokens>,
}

/// Two generations of tokens. A full younger one replaces the older one, so forgetting takes no search.
#[derive(Debug, Default)]
struct RememberedTokens {
    younger: HashMap<TokenDigest, Arc<VerifiedToken>>,
    older: HashMap<TokenDigest, Arc<VerifiedToken>>,
}

impl Verifier {
    pub(super) fn new(issuer: TokenIssuer) -> Self {
        Self {
            issuer,
            remembered: Mutex::default(),
        }
    }

    pub(super) fn issuer(&self) -> &TokenIssuer {
        &self.issuer
    }

    pub(super) fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<VerifiedToken>, TokenError> {
        let mut key = TokenDigest::default();
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(found) = self.remembered().find(&key) {
            return if now.as_second() < found.expires {
                Ok(found)
            } else {
                Err(TokenError::Expired)
            };
        }
        let verified = Arc::new(token::verify(token, &self.issuer, now)?);
        self.remembered().insert(key, verified.clone());
        Ok(verified)
    }

    fn remembered(&self) -> MutexGuard<'_, RememberedTokens> {
        // No holder of the lock can panic halfway through a change.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RememberedTokens {
    fn find(&mut self, key: &TokenDigest) -> Option<Arc<VerifiedToken>> {
        if let Some(found) = self.younger.get(key) {
            return Some(found.clone());
        }
        let (key, found) = self.older.remove_entry(key)?;
        self.insert(key, found.clone());
        Some(found)
    }

    fn insert(&mut self, key: TokenDigest, token: Arc<VerifiedToken>) {
        if self.younger.len() == MAX_REMEMBERED / 2 {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(key, token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::tokens_for_test::{claims, issuer, token};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn remembered_tokens_expire() {
        let verifier = Verifier::new(issuer());
        let token = token(&claims("shop", "checkout"));
        assert!(verifier.verify(&token, at(1500)).is_ok());
        assert!(verifier.verify(&token, at(2009)).is_ok());
        assert_eq!(verifier.verify(&token, at(2010)), Err(TokenError::Expired));
    }

    #[test]
    fn invalid_tokens_displace_no_valid_one() {
        let verifier = Verifier::new(issuer());
        let good = token(&claims("shop", "checkout"));
        let first = verifier.verify(&good, at(1500)).unwrap();
        for number in 0..2 * MAX_REMEMBERED {
            let bad = format!("{good}{number}");
            assert!(verifier.verify(&bad, at(1500)).is_err());
        }
        assert!(Arc::ptr_eq(&verifier.verify(&good, at(1500)).unwrap(), &first));
        assert_eq!(verifier.remembered().younger.len(), 1);
    }

    #[test]
    fn the_number_of_remembered_tokens_is_bounded_and_used_ones_stay() {
        let mut remembered = RememberedTokens::default();
        let verified = token::verify(&token(&claims("shop", "checkout")), &issuer(), at(1500));
        let verified = Arc::new(verified.unwrap());
        let key = |number: usize| {
            let mut key = TokenDigest::default();
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        for number in 0..3 * MAX_REMEMBERED {
            remembered.insert(key(number), verified.clone());
            assert!(remembered.find(&key(0)).is_some(), "{number}");
            assert!(remembered.younger.len() + remembered.older.len() <= MAX_REMEMBERED);
        }
        assert!(remembered.find(&key(1)).is_none());
    }
}
