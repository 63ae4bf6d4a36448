//! The metrics page: built once for concurrent requests, in shared chunks.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::sync::Mutex;

/// Size of a chunk, in bytes.
const PIECE: usize = 64 * 1024;

/// Maximum total size of pages being sent, in bytes. Beyond it no new page is built, and requests get the last one.
const MAX_BEING_SENT: usize = 32 * 1024 * 1024;

/// Builds pages.
pub(super) struct Pages {
    registry: Arc<Registry>,
    /// Pages being sent, oldest first.
    sent: Mutex<Vec<Weak<MetricsPage>>>,
}

/// A snapshot of the registry.
pub(super) struct MetricsPage {
    begun: Instant,
    size: usize,
    pieces: Vec<Bytes>,
}

/// Why a page could not be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    #[error("cannot write metrics: {0}")]
    Written(#[from] fmt::Error),
    #[error("cannot write metrics: a collector panicked")]
    Panicked,
}

impl Pages {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry: Arc::new(registry),
            sent: Mutex::default(),
        }
    }

    /// Returns a page whose construction started after this call, unless earlier pages take too much memory.
    pub(super) async fn page(&self) -> Result<Arc<MetricsPage>, PageError> {
        let asked = Instant::now();
        let mut sent = self.sent.lock().await;
        sent.retain(|page| page.strong_count() > 0);
        if let Some(last) = sent.last().and_then(Weak::upgrade) {
            let sizes = sent.iter().filter_map(|page| Some(page.upgrade()?.size));
            if last.begun >= asked || sizes.sum::<usize>() > MAX_BEING_SENT {
                return Ok(last);
            }
        }
        let registry = self.registry.clone();
        let building = tokio::task::spawn_blocking(move || MetricsPage::build(&registry));
        let page = Arc::new(building.await.map_err(|_| PageError::Panicked)??);
        sent.push(Arc::downgrade(&page));
        Ok(page)
    }
}

impl MetricsPage {
    fn build(registry: &Registry) -> Result<Self, fmt::Error> {
        let begun = Instant::now();
        let mut pieces = Pieces::default();
        text::encode(&mut pieces, registry)?;
        pieces.cut();
        Ok(Self {
            begun,
            size: pieces.done.iter().map(Bytes::len).sum(),
            pieces: pieces.done,
        })
    }
}

/// A text in chunks. Growing a single buffer would copy it and temporarily double its memory.
#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    now: BytesMut,
}

impl Pieces {
    fn cut(&mut self) {
        if !self.now.is_empty() {
            self.done.push(std::mem::take(&mut self.now).freeze());
        }
    }
}

impl fmt::Write for Pieces {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while !text.is_empty() {
            if self.now.capacity() == 0 {
                self.now.reserve(PIECE);
            }
            let (now, rest) = text.split_at(text.floor_char_boundary(PIECE - self.now.len()));
            self.now.extend_from_slice(now.as_bytes());
            text = rest;
            if self.now.len() + 4 > PIECE {
                self.cut();
            }
        }
        Ok(())
    }
}

/// A page as the body of a response.
pub(super) struct PageBody {
    page: Arc<MetricsPage>,
    next: usize,
    left: usize,
}

impl PageBody {
    pub(super) fn new(page: Arc<MetricsPage>) -> Self {
        Self {
            next: 0,
            left: page.size,
            page,
        }
    }
}

impl http_body::Body for PageBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(piece) = self.page.pieces.get(self.next).cloned() else {
            return Poll::Ready(None);
        };
        self.next += 1;
        self.left -= piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt::Write as _,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use http_body_util::BodyExt as _;
    use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::counter::Counter};

    use super::*;

    #[derive(Debug, Default)]
    struct Slow(Arc<AtomicUsize>);

    impl Collector for Slow {
        fn encode(&self, _: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        }
    }

    #[tokio::test]
    async fn concurrent_requests_share_a_page() {
        let built = Arc::<AtomicUsize>::default();
        let mut registry = Registry::default();
        registry.register("a", "A", Counter::<u64>::default());
        registry.register_collector(Box::new(Slow(built.clone())));
        let pages = Pages::new(registry);
        let all = futures::future::join_all((0..20).map(|_| pages.page())).await;
        // The first is being built when the others request one.
        assert!(built.load(Ordering::Relaxed) <= 2);
        let page = all.into_iter().next().unwrap().unwrap();
        let body = PageBody::new(page).collect().await.unwrap().to_bytes();
        assert!(body.starts_with(b"# HELP a A."), "{body:?}");
        pages.page().await.unwrap();
        assert!(
            built.load(Ordering::Relaxed) >= 2,
            "who asks later gets a later one"
        );
    }

    #[test]
    fn chunks_form_the_text() {
        let text = "ä€x".repeat(50_000);
        let mut pieces = Pieces::default();
        for part in [&text, "y", &text] {
            pieces.write_str(part).unwrap();
        }
        pieces.cut();
        assert!(pieces.done.iter().all(|piece| piece.len() <= PIECE));
        assert_eq!(pieces.done.concat(), format!("{text}y{text}").as_bytes());
    }
}
