//! A body in memory, in the pieces in which it arrived.
//!
//! **Invariant**: bytes are never copied but by [`Pieces::into_bytes`], and there only when there are several pieces.
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// See the module's documentation. A clone shares the bytes.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    first: Bytes,
    rest: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    /// Adds a piece at the end.
    pub fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else if !piece.is_empty() {
            self.rest.push_back(piece);
        }
    }

    /// Length of all pieces, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All bytes in one piece.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        let mut whole = BytesMut::with_capacity(self.length);
        whole.extend_from_slice(&self.first);
        self.rest.iter().for_each(|piece| whole.extend_from_slice(piece));
        whole.freeze()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.rest.pop_front().unwrap_or_default();
        let piece = std::mem::replace(&mut self.first, next);
        self.length -= piece.len();
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn pieces_come_out_as_they_went_in() {
        for texts in [&[][..], &["one"], &["one", "", "two"], &["", "a", "b", "c"]] {
            let mut pieces = Pieces::default();
            for text in texts {
                pieces.push(Bytes::from_static(text.as_bytes()));
            }
            let whole = texts.concat();
            assert_eq!((pieces.len(), pieces.is_empty()), (whole.len(), whole.is_empty()));
            assert_eq!(pieces.clone().into_bytes(), whole);
            assert_eq!(pieces.size_hint().exact(), Some(whole.len() as u64));
            assert_eq!(pieces.collect().await.unwrap().to_bytes(), whole);
        }
    }
}
