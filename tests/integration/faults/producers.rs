//! Who posts, and knows what was acknowledged.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{PATIENCE, Response, eventually, try_post};

/// Posts without pause from several threads until told to stop, and keeps the ids that were acknowledged. Each
/// thread has its own `partitionkey`, and posts one event after another.
pub(crate) struct Producers {
    stop: Arc<AtomicBool>,
    /// Held for reading by whoever posts.
    posting: Arc<RwLock<()>>,
    log: Arc<Mutex<Log>>,
    threads: Vec<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Log {
    acknowledged: BTreeSet<String>,
    /// How often each other answer came.
    refused: HashMap<u16, usize>,
    last_refusal: Option<Response>,
}

impl Producers {
    /// With half a kilobyte of data an event.
    pub(crate) fn start(url: &str) -> Self {
        Self::with_data(url, 512)
    }

    /// With so many bytes of data an event.
    pub(crate) fn with_data(url: &str, bytes: usize) -> Self {
        let (url, data) = (url.to_owned(), bytes::Bytes::from(vec![b'x'; bytes]));
        Self::by(4, move |key, id| post_event(&url, id, key, data.clone()))
    }

    /// By so many threads, each of which posts the event of a key and an id.
    pub(crate) fn by(
        threads: usize,
        post: impl Fn(&str, &str) -> Result<Response, String> + Send + Sync + 'static,
    ) -> Self {
        let (stop, log) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Log>>::default());
        let (post, posting) = (Arc::new(post), Arc::<RwLock<()>>::default());
        let threads = (0..threads)
            .map(|thread| {
                let (stop, log, post) = (stop.clone(), log.clone(), post.clone());
                let posting = posting.clone();
                thread::spawn(move || {
                    for number in 0.. {
                        let _posting = posting.read().unwrap_or_else(PoisonError::into_inner);
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let (key, id) = (format!("k{thread}"), format!("{thread}-{number}"));
                        let answer = post(&key, &id);
                        if answer.as_ref().is_ok_and(|response| response.status == 202) {
                            log.lock().unwrap().acknowledged.insert(id);
                            continue;
                        }
                        if let Ok(response) = answer {
                            let mut log = log.lock().unwrap();
                            *log.refused.entry(response.status.as_u16()).or_default() += 1;
                            log.last_refusal = Some(response);
                        }
                        // The router is down, or full; it is back in a moment.
                        thread::sleep(Duration::from_millis(5));
                    }
                })
            })
            .collect();
        Self {
            stop,
            posting,
            log,
            threads,
        }
    }

    /// How many events were acknowledged.
    pub(crate) fn count(&self) -> usize {
        self.log.lock().unwrap().acknowledged.len()
    }

    /// What was acknowledged so far.
    pub(crate) fn acknowledged(&self) -> BTreeSet<String> {
        self.log.lock().unwrap().acknowledged.clone()
    }

    /// How often an answer came with this status.
    pub(crate) fn refused_with(&self, status: u16) -> usize {
        self.log
            .lock()
            .unwrap()
            .refused
            .get(&status)
            .copied()
            .unwrap_or(0)
    }

    /// The last answer that was no 202.
    pub(crate) fn last_refusal(&self) -> Option<Response> {
        self.log.lock().unwrap().last_refusal.clone()
    }

    /// Waits until so many more were acknowledged.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, events: usize) {
        let (before, began) = (self.count(), Instant::now());
        eventually(PATIENCE * 2, || {
            let count = self.count() - before;
            if count >= events {
                Ok(())
            } else {
                Err(format!(
                    "{count} of {events} were acknowledged in {:?}",
                    began.elapsed()
                ))
            }
        });
    }

    /// Waits until nobody posts. Nobody does until what this returns is dropped.
    pub(crate) fn rest(&self) -> RwLockWriteGuard<'_, ()> {
        self.posting.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, and gives what was acknowledged.
    pub(crate) fn finish(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.log.lock().unwrap().acknowledged)
    }
}

/// A test that fails ends its producers as well.
impl Drop for Producers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Posts one event.
pub(crate) fn post_event(
    url: &str,
    id: &str,
    key: &str,
    data: impl Into<bytes::Bytes>,
) -> Result<Response, String> {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-source", "/p"),
        ("ce-type", "t"),
        ("ce-id", id),
        ("ce-partitionkey", key),
    ];
    try_post(url, &headers, data)
}
