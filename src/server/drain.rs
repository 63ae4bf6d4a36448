//! Handling of the body of a rejected request.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt as _;

/// Whether a client waits for `100 Continue`. It has not sent any of its body, and reading would request it.
pub fn waits_to_continue(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

/// Reads and discards the body before responding, up to a size and a time. If the connection were closed while the
/// client is still sending, the client would see a broken connection instead of the response.
pub async fn drain(mut body: impl Body<Data = Bytes> + Unpin, most: usize, longest: Duration) {
    let reading = async {
        let mut read = 0;
        while read < most
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // The response is the same whether or not all of it arrived.
    let _ = tokio::time::timeout(longest, reading).await;
}
