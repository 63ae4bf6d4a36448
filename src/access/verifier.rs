//! Remembers tokens, so that one that is used again costs a hash instead of a signature, and limits what forged ones cost.
//!
//! Only a signature that does not match counts against the limit, and only against the ServiceAccount that the token
//! names. Whoever wants to use up the limit of another account has to know its UID, whatever address it sends from; and
//! the tokens of that account that were accepted before still are. All accounts that no rule lets post share one limit.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::token::{Account, TokenError, UncheckedToken, VerifiedToken};
use crate::routing::{CredentialDigest, TokenIssuer};

/// Number of remembered tokens after which the older half of them is forgotten.
const MAX_REMEMBERED: usize = 8192;

/// The same, of tokens with a wrong signature.
const MAX_FORGED: usize = 1024;

/// Tokens with a wrong signature that an account may cost in a period, and its length in seconds.
const MAX_FAILURES: u32 = 10;
const PERIOD: i64 = 10;

/// Verifies tokens of one issuer.
#[derive(Debug)]
pub(super) struct Verifier {
    issuer: TokenIssuer,
    state: Mutex<VerifierState>,
}

/// Valid and forged tokens are remembered apart, so that forged ones, of which anyone can make any number, displace none.
#[derive(Debug, Default)]
struct VerifierState {
    valid: RememberedTokens,
    forged: ForgedTokens,
    failures: FailedChecks,
}

/// Two generations of tokens, by digest, so that tokens do not stay in memory. A full younger one replaces the older one,
/// so forgetting takes no search.
#[derive(Debug, Default)]
struct RememberedTokens {
    younger: HashMap<CredentialDigest, Arc<VerifiedToken>>,
    older: HashMap<CredentialDigest, Arc<VerifiedToken>>,
}

/// Digests of tokens with a wrong signature, in two generations.
#[derive(Debug, Default)]
struct ForgedTokens {
    younger: HashSet<CredentialDigest>,
    older: HashSet<CredentialDigest>,
}

/// Wrong signatures of the present period, by account; `None` for all accounts that no rule lets post.
#[derive(Debug, Default)]
struct FailedChecks {
    period: i64,
    counts: HashMap<Option<Account>, u32>,
}

/// Why a token was not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// It is not valid.
    Invalid(TokenError),
    /// Its signature was not checked, since too many tokens of its account were forged lately.
    Unchecked {
        /// Seconds until it may be.
        retry_after: u32,
    },
}

impl From<TokenError> for Unverified {
    fn from(error: TokenError) -> Self {
        Self::Invalid(error)
    }
}

impl Verifier {
    pub(super) fn new(issuer: TokenIssuer) -> Self {
        Self {
            issuer,
            state: Mutex::default(),
        }
    }

    pub(super) fn issuer(&self) -> &TokenIssuer {
        &self.issuer
    }

    /// Verifies a token with this digest. `may_post` tells whether any rule lets an account post.
    pub(super) fn verify(
        &self,
        token: &str,
        digest: CredentialDigest,
        now: Timestamp,
        may_post: impl FnOnce(&Account) -> bool,
    ) -> Result<Arc<VerifiedToken>, Unverified> {
        let mut state = self.state();
        if let Some(found) = state.valid.find(&digest) {
            return if now.as_second() < found.expires {
                Ok(found)
            } else {
                Err(TokenError::Expired.into())
            };
        }
        if state.forged.has(&digest) {
            return Err(TokenError::Signature.into());
        }
        drop(state);
        let unchecked = UncheckedToken::parse(token, &self.issuer, now)?;
        let account = unchecked.claimed_account();
        let account = may_post(account).then(|| account.clone());
        self.state().failures.check(&account, now)?;
        match unchecked.verify() {
            Ok(verified) => {
                let verified = Arc::new(verified);
                self.state().valid.insert(digest, verified.clone());
                Ok(verified)
            }
            Err(error) => {
                let mut state = self.state();
                state.failures.count(account, now);
                state.forged.insert(digest);
                Err(error.into())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, VerifierState> {
        // No holder of the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RememberedTokens {
    fn find(&mut self, digest: &CredentialDigest) -> Option<Arc<VerifiedToken>> {
        if let Some(found) = self.younger.get(digest) {
            return Some(found.clone());
        }
        let (digest, found) = self.older.remove_entry(digest)?;
        self.insert(digest, found.clone());
        Some(found)
    }

    fn insert(&mut self, digest: CredentialDigest, token: Arc<VerifiedToken>) {
        if self.younger.len() == MAX_REMEMBERED / 2 {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(digest, token);
    }
}

impl ForgedTokens {
    fn has(&self, digest: &CredentialDigest) -> bool {
        self.younger.contains(digest) || self.older.contains(digest)
    }

    fn insert(&mut self, digest: CredentialDigest) {
        if self.younger.len() == MAX_FORGED / 2 {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(digest);
    }
}

impl FailedChecks {
    /// Checks whether another signature may be checked for an account.
    fn check(&mut self, account: &Option<Account>, now: Timestamp) -> Result<(), Unverified> {
        self.begin_period(now);
        let count = self.counts.get(account).copied().unwrap_or_default();
        if count < MAX_FAILURES {
            return Ok(());
        }
        let left = PERIOD - now.as_second().rem_euclid(PERIOD);
        Err(Unverified::Unchecked {
            retry_after: u32::try_from(left).unwrap_or(1),
        })
    }

    fn count(&mut self, account: Option<Account>, now: Timestamp) {
        self.begin_period(now);
        *self.counts.entry(account).or_default() += 1;
    }

    fn begin_period(&mut self, now: Timestamp) {
        let period = now.as_second().div_euclid(PERIOD);
        if self.period != period {
            self.period = period;
            self.counts.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::tokens_for_test::{claims, issuer, token};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn verify(verifier: &Verifier, token: &str, now: Timestamp) -> Result<Arc<VerifiedToken>, Unverified> {
        let digest = CredentialDigest::of(token.as_bytes());
        let may_post = |account: &Account| account.namespace == "shop";
        verifier.verify(token, digest, now, may_post)
    }

    fn invalid<T>(error: TokenError) -> Result<T, Unverified> {
        Err(Unverified::Invalid(error))
    }

    /// A token with a wrong signature, another for each number.
    fn forged(namespace: &str, number: i64) -> String {
        let [token, other] = [0, number].map(|number| {
            let mut claims = claims(namespace, "checkout");
            claims["jti"] = number.into();
            token(&claims)
        });
        let (_, signature) = token.rsplit_once('.').unwrap();
        let (signed, _) = other.rsplit_once('.').unwrap();
        format!("{signed}.{signature}")
    }

    #[test]
    fn remembered_tokens_expire() {
        let verifier = Verifier::new(issuer());
        let token = token(&claims("shop", "checkout"));
        assert!(verify(&verifier, &token, at(1500)).is_ok());
        assert!(verify(&verifier, &token, at(2009)).is_ok());
        assert_eq!(verify(&verifier, &token, at(2010)), invalid(TokenError::Expired));
    }

    #[test]
    fn invalid_tokens_displace_no_valid_one() {
        let verifier = Verifier::new(issuer());
        let good = token(&claims("shop", "checkout"));
        let first = verify(&verifier, &good, at(1500)).unwrap();
        for number in 0..2 * MAX_REMEMBERED {
            let bad = format!("{good}{number}");
            assert!(verify(&verifier, &bad, at(1500)).is_err());
        }
        assert!(Arc::ptr_eq(&verify(&verifier, &good, at(1500)).unwrap(), &first));
        assert_eq!(verifier.state().valid.younger.len(), 1);
    }

    #[test]
    fn few_forged_tokens_of_an_account_are_checked_in_a_period() {
        let verifier = Verifier::new(issuer());
        let seen = token(&claims("shop", "checkout"));
        assert!(verify(&verifier, &seen, at(1500)).is_ok());
        for number in 1..=i64::from(MAX_FAILURES) {
            let forged = forged("shop", number);
            for _ in 0..2 {
                assert_eq!(
                    verify(&verifier, &forged, at(1500)),
                    invalid(TokenError::Signature),
                    "one that is known counts once"
                );
            }
        }
        let (new, unchecked) = (forged("shop", 99), |retry_after| {
            Err(Unverified::Unchecked { retry_after })
        });
        assert_eq!(verify(&verifier, &new, at(1500)), unchecked(10));
        assert_eq!(verify(&verifier, &new, at(1509)), unchecked(1));
        assert_eq!(
            verify(&verifier, &new, at(1510)),
            invalid(TokenError::Signature),
            "a new period"
        );
        assert!(verify(&verifier, &seen, at(1509)).is_ok());
    }

    #[test]
    fn forged_tokens_count_against_the_account_that_they_name() {
        let verifier = Verifier::new(issuer());
        let fail = |namespace, count: i64| {
            for number in 1..=count {
                let outcome = verify(&verifier, &forged(namespace, number), at(1500));
                assert_eq!(outcome, invalid(TokenError::Signature), "{namespace} {number}");
            }
        };
        let is_unchecked = |token: &str| {
            let outcome = verify(&verifier, token, at(1500));
            matches!(outcome, Err(Unverified::Unchecked { .. }))
        };
        fail("shop", MAX_FAILURES.into());
        assert!(is_unchecked(&token(&claims("shop", "checkout"))));
        assert!(!is_unchecked(&token(&claims("shop", "cart"))));
        // Namespace `web` has no account that may post.
        fail("web", MAX_FAILURES.into());
        assert!(is_unchecked(&token(&claims("bank", "teller"))));
        assert_eq!(verifier.state().failures.counts.len(), 2);
    }

    #[test]
    fn valid_tokens_are_not_limited() {
        let verifier = Verifier::new(issuer());
        for number in 0..3 * i64::from(MAX_FAILURES) {
            let mut claims = claims("shop", "checkout");
            claims["jti"] = number.into();
            assert!(verify(&verifier, &token(&claims), at(1500)).is_ok());
        }
    }

    #[test]
    fn the_number_of_remembered_tokens_is_bounded_and_used_ones_stay() {
        let mut remembered = RememberedTokens::default();
        let verified = verify(
            &Verifier::new(issuer()),
            &token(&claims("shop", "checkout")),
            at(1500),
        );
        let verified = verified.unwrap();
        let digest = |number: usize| CredentialDigest::of(&number.to_be_bytes());
        for number in 0..3 * MAX_REMEMBERED {
            remembered.insert(digest(number), verified.clone());
            assert!(remembered.find(&digest(0)).is_some(), "{number}");
            assert!(remembered.younger.len() + remembered.older.len() <= MAX_REMEMBERED);
        }
        assert!(remembered.find(&digest(1)).is_none());
        let mut forged = ForgedTokens::default();
        for number in 0..3 * MAX_FORGED {
            forged.insert(digest(number));
            assert!(forged.has(&digest(number)));
            assert!(forged.younger.len() + forged.older.len() <= MAX_FORGED);
        }
        assert!(!forged.has(&digest(0)));
    }
}
