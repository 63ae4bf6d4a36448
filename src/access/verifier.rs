//! Remembers tokens, so that one that is used again costs a hash instead of a signature, and limits what forged ones cost.
//!
//! Only a signature that does not match counts against the limit, and only against tokens that name the same
//! ServiceAccount and come from the same address. So whoever forges tokens of an account locks out those who send from
//! its address. All accounts that no rule lets post share one limit.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::token::{Account, TokenError, UncheckedToken, VerifiedToken};
use crate::routing::{CredentialDigest, TokenIssuer};

/// Number of remembered tokens after which the older half of them is forgotten.
const MAX_REMEMBERED: usize = 8192;

/// The same, of tokens with a wrong signature.
const MAX_FORGED: usize = 1024;

/// Tokens with a wrong signature that an account may cost from an address in a period, and its length in seconds.
const MAX_FAILURES: u32 = 10;
const PERIOD: i64 = 10;

/// Maximum accounts and addresses that are counted apart in a period. Further addresses share a limit of their account.
const MAX_COUNTED: usize = 1024;

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
#[derive(Clone, Debug, Default)]
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

/// Wrong signatures of the present period.
#[derive(Debug, Default)]
struct FailedChecks {
    period: i64,
    counts: HashMap<ClaimedSender, u32>,
}

/// The account that a token names, and the address that sends it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ClaimedSender {
    /// `None` for all accounts that no rule lets post.
    account: Option<Account>,
    /// `None` if it is not known, or there are too many.
    address: Option<IpAddr>,
}

impl ClaimedSender {
    fn new(account: Option<Account>, address: Option<IpAddr>) -> Self {
        // A host with an IPv6 address usually has all those with the same first 64 bits.
        let address = address.map(|address| match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        });
        Self { account, address }
    }
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

    /// Creates the verifier of another issuer that remembers the tokens that this one verified, if their keys are the same.
    pub(super) fn renewed(&self, issuer: TokenIssuer) -> Self {
        let is_kept = |token: &VerifiedToken| {
            let key = self.issuer.keys.get(&token.key);
            self.issuer.issuer == issuer.issuer && key.is_some() && key == issuer.keys.get(&token.key)
        };
        let mut valid = self.state().valid.clone();
        valid.younger.retain(|_, token| is_kept(token));
        valid.older.retain(|_, token| is_kept(token));
        Self {
            issuer,
            state: Mutex::new(VerifierState {
                valid,
                ..VerifierState::default()
            }),
        }
    }

    /// Verifies a token with this digest, which comes from `address`. `may_post` tells whether any rule lets an account
    /// post.
    pub(super) fn verify(
        &self,
        token: &str,
        digest: CredentialDigest,
        address: Option<IpAddr>,
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
        let sender = ClaimedSender::new(account, address);
        self.state().failures.check(&sender, now)?;
        match unchecked.verify() {
            Ok(verified) => {
                let verified = Arc::new(verified);
                self.state().valid.insert(digest, verified.clone());
                Ok(verified)
            }
            Err(error) => {
                let mut state = self.state();
                state.failures.count(sender, now);
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
    /// Checks whether another signature may be checked for a sender.
    fn check(&mut self, sender: &ClaimedSender, now: Timestamp) -> Result<(), Unverified> {
        self.begin_period(now);
        let counted = self.counted(sender.clone());
        let count = self.counts.get(&counted).copied().unwrap_or_default();
        if count < MAX_FAILURES {
            return Ok(());
        }
        let left = PERIOD - now.as_second().rem_euclid(PERIOD);
        Err(Unverified::Unchecked {
            retry_after: u32::try_from(left).unwrap_or(1),
        })
    }

    fn count(&mut self, sender: ClaimedSender, now: Timestamp) {
        self.begin_period(now);
        let counted = self.counted(sender);
        *self.counts.entry(counted).or_default() += 1;
    }

    /// Returns the sender that it counts as. The accounts that may post are bounded by the rules.
    fn counted(&self, sender: ClaimedSender) -> ClaimedSender {
        match self.counts.len() < MAX_COUNTED || self.counts.contains_key(&sender) {
            true => sender,
            false => ClaimedSender {
                address: None,
                ..sender
            },
        }
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
    use std::net::Ipv4Addr;

    use super::*;
    use crate::access::tokens_for_test::{claims, issuer, token};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn verify(verifier: &Verifier, token: &str, now: Timestamp) -> Result<Arc<VerifiedToken>, Unverified> {
        let digest = CredentialDigest::of(token.as_bytes());
        let may_post = |account: &Account| account.namespace == "shop";
        verifier.verify(token, digest, Some(HERE), now, may_post)
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
    fn forged_tokens_lock_out_no_other_address() {
        let verifier = Verifier::new(issuer());
        let verify_from = |token: &str, address: &str| {
            let digest = CredentialDigest::of(token.as_bytes());
            let address = Some(address.parse().unwrap());
            verifier.verify(token, digest, address, at(1500), |_| true)
        };
        for number in 1..=i64::from(MAX_FAILURES) {
            assert!(verify_from(&forged("shop", number), "2001:db8::1").is_err());
        }
        let good = token(&claims("shop", "checkout"));
        let unchecked = Err(Unverified::Unchecked { retry_after: 10 });
        assert_eq!(verify_from(&good, "2001:db8::2"), unchecked, "the same host");
        assert!(verify_from(&good, "2001:db8:0:1::1").is_ok());

        let mut failures = FailedChecks::default();
        for number in 0..2 * MAX_COUNTED {
            let address = IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap()));
            failures.count(ClaimedSender::new(None, Some(address)), at(1500));
        }
        assert_eq!(failures.counts.len(), MAX_COUNTED + 1);
        let further = ClaimedSender::new(None, Some(HERE));
        assert!(failures.check(&further, at(1500)).is_err(), "they share a limit");
    }

    #[test]
    fn verified_tokens_outlast_a_new_key() {
        let verifier = Verifier::new(issuer());
        let good = token(&claims("shop", "checkout"));
        let first = verify(&verifier, &good, at(1500)).unwrap();
        let mut with_another = issuer();
        let (key, other) = (
            first.key.clone(),
            with_another.keys.values().next().cloned().unwrap(),
        );
        with_another.keys.insert("another".to_owned(), other);
        let renewed = verifier.renewed(with_another.clone());
        assert!(Arc::ptr_eq(&verify(&renewed, &good, at(1500)).unwrap(), &first));
        with_another.keys.remove(&key);
        let without = renewed.renewed(with_another);
        assert_eq!(verify(&without, &good, at(1500)), invalid(TokenError::UnknownKey));
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
