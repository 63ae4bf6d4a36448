//! Tokens of one client of an authorization server. Targets with the same credentials share a [`TokenSource`], which
//! lives as long as one of them: it requests a token for all their events at once, and renews it before it expires.
//!
//! Waiters drive a request together, so it goes on when the attempt that began it ends. Each waits within its own
//! timeout.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use http::{HeaderValue, Request, header, response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::connect::capture_connection;

use super::{
    connector::HttpClient,
    hidden::HiddenValues,
    oauth2::{IssuedToken, TokenRequest},
    stage::{self, AttemptStage},
    status, tls_error,
};
use crate::{
    causes::with_causes,
    destination::verdict::{Blame, Verdict},
};

/// Timeout of a request for a token, from connecting to the end of the answer. Attempts may wait less.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum bytes of an answer.
const MAX_TOKEN_ANSWER: usize = 64 * 1024;

/// Time before a token expires from which it is renewed, as a part of its lifetime, and at most.
const RENEWAL_PART: u32 = 10;
const MAX_RENEWAL: Duration = Duration::from_secs(5 * 60);

/// Time for which a failed request is the answer to others. Limits requests to a failing endpoint.
const FAILURE_LASTS: Duration = Duration::from_secs(1);

/// Time after a token was dropped before another one is: a Sink that rejects every token costs the endpoint one request
/// in this time.
const DROP_PAUSE: Duration = Duration::from_secs(60);

/// Where the tokens of a target come from.
pub(super) struct TokenSource {
    request: Arc<TokenRequest>,
    client: Arc<HttpClient>,
    cache: Mutex<TokenCache>,
}

/// A token to send.
pub(super) struct AccessToken {
    /// Value of `authorization`.
    pub(super) header: HeaderValue,
    /// The token, to be hidden in answers.
    pub(super) hidden: HiddenValues,
    renew: Instant,
    expires: Instant,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenFailure {
    /// The status and what the server says about it, for people.
    pub(super) detail: String,
    pub(super) verdict: Verdict,
    /// Pause requested by the server.
    pub(super) retry_after: Option<Duration>,
}

type FetchResult = Result<Arc<AccessToken>, TokenFailure>;

/// A request under way.
#[derive(Clone)]
struct TokenFetch {
    result: Shared<BoxFuture<'static, FetchResult>>,
    stage: Arc<AttemptStage>,
}

/// Decides whether a token is requested.
#[derive(Default)]
struct TokenCache {
    token: Option<Arc<AccessToken>>,
    fetch: Option<TokenFetch>,
    failure: Option<(Instant, TokenFailure)>,
    /// When a token was last dropped because the Sink rejected it.
    dropped: Option<Instant>,
}

/// How an attempt gets its token.
enum TokenStep {
    Use(Arc<AccessToken>),
    Fail(TokenFailure),
    /// Waits for the request; if that fails, uses the token that is still valid, if any.
    Wait(TokenFetch, Option<Arc<AccessToken>>),
}

impl TokenSource {
    pub(super) fn new(request: TokenRequest, client: Arc<HttpClient>) -> Self {
        Self {
            request: Arc::new(request),
            client,
            cache: Mutex::default(),
        }
    }

    /// Returns a valid token, from the cache or from the token endpoint, before `deadline`. `timeout` is the attempt's.
    ///
    /// # Errors
    /// Why there is no token.
    pub(super) async fn token(&self, deadline: tokio::time::Instant, timeout: Duration) -> FetchResult {
        let step = self.cache().step(Instant::now(), || self.fetch());
        let (fetch, valid) = match step {
            TokenStep::Use(token) => return Ok(token),
            TokenStep::Fail(failure) => return Err(failure),
            TokenStep::Wait(fetch, valid) => (fetch, valid),
        };
        let Ok(fetched) = tokio::time::timeout_at(deadline, fetch.result.clone()).await else {
            return Err(self.no_answer(&fetch.stage, timeout));
        };
        let now = Instant::now();
        self.cache().ended(&fetch, &fetched, now);
        let valid = valid.filter(|token| now < token.expires);
        fetched.or_else(|failure| valid.ok_or(failure))
    }

    /// Drops a token that the Sink rejected.
    pub(super) fn rejected(&self, token: &Arc<AccessToken>) {
        self.cache().rejected(token, Instant::now());
    }

    fn cache(&self) -> MutexGuard<'_, TokenCache> {
        // No panic under the lock leaves it half changed.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self) -> TokenFetch {
        let mut request = self.request.to_http();
        let stage = Arc::new(AttemptStage::new(capture_connection(&mut request)));
        let exchange = exchange(self.client.clone(), request, self.request.clone());
        let exchange = stage.clone().of(exchange);
        let (of_fetch, for_failure) = (stage.clone(), self.request.clone());
        let result = async move {
            match tokio::time::timeout(FETCH_TIMEOUT, exchange).await {
                Ok(fetched) => fetched,
                Err(_) => Err(no_answer(&for_failure, &of_fetch, FETCH_TIMEOUT)),
            }
        };
        TokenFetch {
            result: result.boxed().shared(),
            stage,
        }
    }

    fn no_answer(&self, stage: &AttemptStage, timeout: Duration) -> TokenFailure {
        no_answer(&self.request, stage, timeout)
    }
}

impl TokenCache {
    fn step(&mut self, now: Instant, begin: impl FnOnce() -> TokenFetch) -> TokenStep {
        let valid = self.token.as_ref().filter(|token| now < token.expires).cloned();
        let failure = self.failure.as_ref();
        let failure = failure.filter(|(at, _)| now.saturating_duration_since(*at) < FAILURE_LASTS);
        match (&valid, failure) {
            (Some(token), _) if now < token.renew || self.is_fetching() => {
                return TokenStep::Use(token.clone());
            }
            (Some(token), Some(_)) => return TokenStep::Use(token.clone()),
            (None, Some((_, failure))) => return TokenStep::Fail(failure.clone()),
            (_, None) => {}
        }
        TokenStep::Wait(self.fetch.get_or_insert_with(begin).clone(), valid)
    }

    /// Whether an attempt waits for a request. One whose attempts have all ended goes on with the next attempt.
    fn is_fetching(&self) -> bool {
        let fetch = self.fetch.as_ref();
        fetch.is_some_and(|fetch| fetch.result.strong_count().is_some_and(|count| count > 1))
    }

    /// Takes over the result of a request, once.
    fn ended(&mut self, fetch: &TokenFetch, fetched: &FetchResult, now: Instant) {
        let is_current = |current: &TokenFetch| Arc::ptr_eq(&current.stage, &fetch.stage);
        if !self.fetch.as_ref().is_some_and(is_current) {
            return;
        }
        self.fetch = None;
        match fetched {
            Ok(token) => {
                self.token = Some(token.clone());
                self.failure = None;
            }
            Err(failure) => self.failure = Some((now, failure.clone())),
        }
    }

    fn rejected(&mut self, token: &Arc<AccessToken>, now: Instant) {
        let is_current = |current: &Arc<AccessToken>| Arc::ptr_eq(current, token);
        let is_pause = |at: Instant| now.saturating_duration_since(at) < DROP_PAUSE;
        if self.token.as_ref().is_some_and(is_current) && !self.dropped.is_some_and(is_pause) {
            self.token = None;
            self.dropped = Some(now);
        }
    }
}

impl AccessToken {
    fn new(issued: &IssuedToken, requested: Instant) -> Option<Self> {
        let IssuedToken { value, lifetime } = issued;
        let mut header = HeaderValue::from_str(&format!("Bearer {value}")).ok()?;
        header.set_sensitive(true);
        let early = (*lifetime / RENEWAL_PART).min(MAX_RENEWAL);
        Some(Self {
            header,
            hidden: HiddenValues::new([value.as_str()]),
            renew: requested + (*lifetime - early),
            expires: requested + *lifetime,
        })
    }
}

impl TokenFailure {
    fn new(request: &TokenRequest, verdict: Verdict, problem: &str) -> Self {
        Self {
            detail: format!("no token from {}: {problem}", request.endpoint()),
            verdict,
            retry_after: None,
        }
    }
}

fn no_answer(request: &TokenRequest, stage: &AttemptStage, timeout: Duration) -> TokenFailure {
    match stage.lacks() {
        Some(lacking) => {
            let problem = format!("the router is busy: {lacking} within {timeout:?}");
            TokenFailure::new(request, Verdict::RouterBusy, &problem)
        }
        None => {
            let problem = format!("no complete answer within {timeout:?}");
            TokenFailure::new(request, Verdict::Failed(Blame::Silent), &problem)
        }
    }
}

async fn exchange(
    client: Arc<HttpClient>,
    request: Request<Full<Bytes>>,
    asked: Arc<TokenRequest>,
) -> FetchResult {
    let requested = Instant::now();
    let silent = |problem: &str| TokenFailure::new(&asked, Verdict::Failed(Blame::Silent), problem);
    let answer = client
        .request(request)
        .await
        .map_err(|error| match stage::busy(&error) {
            Some(problem) => TokenFailure::new(&asked, Verdict::RouterBusy, &problem),
            None => silent(&tls_error::explain(&error).unwrap_or_else(|| with_causes(&error))),
        })?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MAX_TOKEN_ANSWER).collect().await;
    let body = body.map_err(|error| {
        silent(&match error.downcast_ref::<LengthLimitError>() {
            Some(_) => format!("the answer is larger than {MAX_TOKEN_ANSWER} bytes"),
            None => format!("{}: the answer is truncated", head.status),
        })
    })?;
    let refused = |problem: String| TokenFailure {
        retry_after: retry_after(&head),
        ..TokenFailure::new(&asked, Verdict::Failed(Blame::Unavailable), &problem)
    };
    let issued = asked.read(head.status, &body.to_bytes()).map_err(refused)?;
    let token = AccessToken::new(&issued, requested);
    token
        .map(Arc::new)
        .ok_or_else(|| silent("the token cannot be sent in a header"))
}

fn retry_after(head: &response::Parts) -> Option<Duration> {
    let value = head.headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    status::retry_after(value, SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(lifetime: u64, requested: Instant) -> Arc<AccessToken> {
        let issued = IssuedToken {
            value: "t0ken".to_owned(),
            lifetime: Duration::from_secs(lifetime),
        };
        Arc::new(AccessToken::new(&issued, requested).unwrap())
    }

    fn failure() -> TokenFailure {
        TokenFailure {
            detail: "down".to_owned(),
            verdict: Verdict::Failed(Blame::Silent),
            retry_after: None,
        }
    }

    /// A request that never ends by itself.
    fn pending() -> TokenFetch {
        TokenFetch {
            result: std::future::pending().boxed().shared(),
            stage: Arc::default(),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wait(cache: &mut TokenCache, now: Instant) -> (TokenFetch, bool) {
        match cache.step(now, pending) {
            TokenStep::Wait(fetch, valid) => (fetch, valid.is_some()),
            TokenStep::Use(_) => panic!("a token was used"),
            TokenStep::Fail(failure) => panic!("{failure:?}"),
        }
    }

    fn uses(cache: &mut TokenCache, now: Instant) -> bool {
        let step = cache.step(now, || panic!("a token was requested"));
        matches!(step, TokenStep::Use(_))
    }

    #[test]
    fn attempts_share_one_request_and_its_token() {
        let (mut cache, now) = (TokenCache::default(), Instant::now());
        let (first, _) = wait(&mut cache, now);
        let (second, _) = wait(&mut cache, now);
        assert!(Arc::ptr_eq(&first.stage, &second.stage));
        cache.ended(&first, &Ok(token(100, now)), now);
        assert!(uses(&mut cache, now));
        // The other waiter's result is the same, and changes nothing.
        cache.ended(&second, &Err(failure()), now);
        assert!(cache.failure.is_none());
        assert!(uses(&mut cache, now + seconds(89)));
    }

    #[test]
    fn token_is_renewed_by_one_attempt_while_others_use_it() {
        let (mut cache, start) = (TokenCache::default(), Instant::now());
        let (fetch, _) = wait(&mut cache, start);
        cache.ended(&fetch, &Ok(token(100, start)), start);
        let late = start + seconds(91);
        let (renewal, is_valid) = wait(&mut cache, late);
        assert!(is_valid);
        assert!(uses(&mut cache, late), "another attempt waits");
        cache.ended(&renewal, &Err(failure()), late);
        assert!(uses(&mut cache, late), "a failed renewal was repeated at once");
        // The request of an attempt that ended is continued.
        let later = late + FAILURE_LASTS;
        let (abandoned, _) = wait(&mut cache, later);
        let stage = abandoned.stage.clone();
        drop(abandoned);
        let (continued, _) = wait(&mut cache, later);
        assert!(Arc::ptr_eq(&continued.stage, &stage));
        // An expired token is not used.
        let (_, is_valid) = wait(&mut cache, start + seconds(100));
        assert!(!is_valid);
    }

    #[test]
    fn long_lived_tokens_are_renewed_five_minutes_early() {
        let now = Instant::now();
        let table = [(1, 900), (100, 90_000), (3600, 3_300_000), (86_400, 86_100_000)];
        for (lifetime, renewed) in table {
            assert_eq!(
                token(lifetime, now).renew - now,
                Duration::from_millis(renewed),
                "{lifetime}"
            );
        }
    }

    #[test]
    fn failure_is_the_answer_for_a_second() {
        let (mut cache, now) = (TokenCache::default(), Instant::now());
        let (fetch, _) = wait(&mut cache, now);
        cache.ended(&fetch, &Err(failure()), now);
        let soon = now + FAILURE_LASTS - Duration::from_millis(1);
        let step = cache.step(soon, || panic!("a token was requested"));
        assert!(matches!(step, TokenStep::Fail(found) if found == failure()));
        wait(&mut cache, now + FAILURE_LASTS);
    }

    #[test]
    fn rejected_token_is_dropped_once_a_minute() {
        let (mut cache, start) = (TokenCache::default(), Instant::now());
        let obtain = |cache: &mut TokenCache, now| {
            let (fetch, _) = wait(cache, now);
            let token = token(1000, now);
            cache.ended(&fetch, &Ok(token.clone()), now);
            token
        };
        let first = obtain(&mut cache, start);
        cache.rejected(&first, start);
        let second = obtain(&mut cache, start);
        // A late answer to the first one says nothing about the second.
        cache.rejected(&first, start + DROP_PAUSE);
        assert!(uses(&mut cache, start));
        cache.rejected(&second, start + seconds(59));
        assert!(uses(&mut cache, start + seconds(59)));
        cache.rejected(&second, start + DROP_PAUSE);
        wait(&mut cache, start + DROP_PAUSE);
    }
}
