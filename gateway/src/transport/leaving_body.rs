//! The body of an answer of which it is known when it has left.
//!
//! The server would take it in parts as large as they come, and be done with it long before the client has it. It is
//! given by the piece instead, as there is room for more.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// What is given at a time; an answer that is no longer is not worth it.
pub const PIECE_BYTES: usize = 16 * 1024;

/// Whoever waits for an answer to leave.
pub trait Leaves {
    /// So many bytes more were taken. What holds the answer may keep it as a whole.
    fn took(&mut self, bytes: usize);

    /// All of it was taken; this may be said twice.
    fn left(&mut self);
}

/// An answer on its way. It is dropped when its connection ends, be it whole or not.
pub struct LeavingBody<B, L> {
    body: B,
    /// Of the part of it that came last.
    rest: Bytes,
    leaves: L,
}

impl<B, L: Leaves> LeavingBody<B, L> {
    /// The whole of it is still to leave.
    pub fn new(answer: B, leaves: L) -> Self {
        Self { body: answer, rest: Bytes::new(), leaves }
    }

    fn piece(&mut self) -> Bytes {
        let piece = self.rest.split_to(PIECE_BYTES.min(self.rest.len()));
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        // A copy: a part of it would keep all of it in memory.
        Bytes::copy_from_slice(&piece)
    }
}

impl<B, L> HttpBody for LeavingBody<B, L>
where
    B: HttpBody<Data = Bytes> + Unpin,
    L: Leaves + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
            let Some(frame) = frame.transpose()? else {
                this.leaves.left();
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = this.piece();
        this.leaves.took(piece.len());
        if this.is_end_stream() {
            this.leaves.left();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[derive(Default)]
    struct Noted {
        taken: Vec<usize>,
        has_left: bool,
    }

    impl Leaves for &mut Noted {
        fn took(&mut self, bytes: usize) {
            assert!(!self.has_left, "more came");
            self.taken.push(bytes);
        }

        fn left(&mut self) {
            self.has_left = true;
        }
    }

    fn next(body: &mut LeavingBody<Body, &mut Noted>) -> Option<Bytes> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(frame) = Pin::new(body).poll_frame(&mut cx) else { panic!("it waits") };
        frame.map(|frame| frame.unwrap().into_data().unwrap())
    }

    #[test]
    fn an_answer_leaves_by_the_piece_and_has_left_with_the_last_one() {
        let answer: Bytes = (0..=255).cycle().take(2 * PIECE_BYTES + 5).collect::<Vec<u8>>().into();
        let whole = answer.as_ptr_range();
        let mut noted = Noted::default();
        let mut body = LeavingBody::new(Body::from(answer.clone()), &mut noted);
        let mut heard = Vec::new();
        assert_eq!(body.size_hint().exact(), Some(answer.len() as u64));
        while let Some(piece) = next(&mut body) {
            assert!(!whole.contains(&piece.as_ptr()), "a piece keeps the whole");
            heard.extend_from_slice(&piece);
            assert_eq!(body.is_end_stream(), heard.len() == answer.len());
        }
        assert_eq!(heard, answer);
        assert_eq!((noted.taken, noted.has_left), (vec![PIECE_BYTES, PIECE_BYTES, 5], true));
    }

    #[test]
    fn an_answer_that_breaks_off_has_not_left() {
        let mut noted = Noted::default();
        let mut body = LeavingBody::new(Body::from(vec![b'x'; 3 * PIECE_BYTES]), &mut noted);
        assert!(next(&mut body).is_some());
        drop(body);
        assert_eq!((noted.taken, noted.has_left), (vec![PIECE_BYTES], false));
    }

    #[test]
    fn a_stream_leaves_with_its_last_part() {
        let mut noted = Noted::default();
        let parts = [PIECE_BYTES + 1, 3].map(|length| Ok::<_, std::io::Error>(vec![b'x'; length]));
        let stream = Body::from_stream(futures_util::stream::iter(parts));
        let mut body = LeavingBody::new(stream, &mut noted);
        let lengths: Vec<_> =
            std::iter::from_fn(|| next(&mut body)).map(|piece| piece.len()).collect();
        assert_eq!(lengths, [PIECE_BYTES, 1, 3]);
        assert!(noted.has_left);
    }
}
