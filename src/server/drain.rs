//! What is done with the body of a request that is refused.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt as _;

/// Whether a client waits for `100 Continue`. It has sent none of its body, and reading would ask for it.
pub fn waits_to_continue(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

/// Reads on before the answer, so many bytes and so long at most, and throws it away: a client that is still sending when
/// the connection is closed sees a broken connection instead.
pub async fn drain(mut body: impl Body<Data = Bytes> + Unpin, most: usize, longest: Duration) {
    let reading = async {
        let mut read = 0;
        while read < most
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whether all of it came makes no difference to the answer.
    let _ = tokio::time::timeout(longest, reading).await;
}
