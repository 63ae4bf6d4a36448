//! Parses the frames of an HTTP/2 connection as they are read, to track how much of a head has arrived. Pure.
//!
//! A single byte of a head may stand for a whole header field (RFC 7541, section 6.1), so heads must be bounded
//! before they are decoded.

/// Length of a frame header (RFC 9113, section 4.1).
const FRAME_HEAD: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Position of a connection in its stream of frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; FRAME_HEAD],
    head_read: usize,
    /// Remaining bytes of the current frame.
    left: usize,
    /// Whether the frame belongs to the head of a request.
    in_block: bool,
    /// Whether the header block ends with this frame.
    ends_block: bool,
    /// Bytes of the incomplete head.
    block: usize,
}

impl Frames {
    /// Processes the bytes read. Returns how many of them belong to heads.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> usize {
        let mut of_heads = 0;
        while !bytes.is_empty() {
            if self.left == 0 {
                bytes = self.read_head(bytes);
                continue;
            }
            let taken = self.left.min(bytes.len());
            bytes = &bytes[taken..];
            self.left -= taken;
            if self.in_block {
                of_heads += taken;
                self.block += taken;
                if self.left == 0 && self.ends_block {
                    self.block = 0;
                }
            }
        }
        of_heads
    }

    /// Returns the bytes of the incomplete head.
    pub(super) fn incomplete(&self) -> usize {
        self.block
    }

    fn read_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let taken = (FRAME_HEAD - self.head_read).min(bytes.len());
        let (now, rest) = bytes.split_at(taken);
        self.head[self.head_read..self.head_read + taken].copy_from_slice(now);
        self.head_read += taken;
        if self.head_read == FRAME_HEAD {
            self.head_read = 0;
            let [a, b, c, kind, flags, ..] = self.head;
            self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            self.in_block = kind == HEADERS || kind == CONTINUATION;
            self.ends_block = flags & END_HEADERS != 0;
            if self.left == 0 && self.in_block && self.ends_block {
                self.block = 0;
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [.., a, b, c] = length.to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD + length, b'x');
        frame
    }

    #[test]
    fn finds_heads_however_the_input_is_split() {
        let data = 0;
        let bytes = [
            frame(4, 0, 30),
            frame(HEADERS, END_HEADERS, 100),
            frame(data, 0, 5000),
            frame(HEADERS, 0, 70),
            frame(CONTINUATION, 0, 20),
        ]
        .concat();
        for size in [1, 7, 10, 1000, bytes.len()] {
            let mut frames = Frames::default();
            let of_heads: usize = bytes.chunks(size).map(|chunk| frames.read(chunk)).sum();
            assert_eq!((of_heads, frames.incomplete()), (190, 90), "by {size}");
            frames.read(&frame(CONTINUATION, END_HEADERS, 0));
            assert_eq!(frames.incomplete(), 0);
            frames.read(&frame(data, END_HEADERS, 10));
            assert_eq!(frames.incomplete(), 0);
        }
    }
}
