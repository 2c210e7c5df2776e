//! How long the body of a request may take: a time, and a second more for every so many bytes of it that came.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::metrics::METRICS;
use crate::transport::http_limits::LeastRate;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that ends with an error when it takes too long.
pub struct TimedBody<B> {
    body: B,
    least: LeastRate,
    came: u64,
    /// Since when it is waited for, and until when; nothing before its first wait.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// The client sends too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request came too slowly")]
struct TooSlow;

impl<B> TimedBody<B> {
    /// The same body, which must come at this rate.
    pub fn new(body: B, least: LeastRate) -> Self {
        Self { body, least, came: 0, wait: None }
    }

    /// Waits for more, until the time for what came so far is over.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (start, end) = self.wait.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + self.least.grace())))
        });
        let deadline = *start + self.least.time_for(self.came);
        if end.deadline() != deadline {
            end.as_mut().reset(deadline);
        }
        end.as_mut().poll(cx)
    }
}

impl<B> HttpBody for TimedBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    this.came += frame.data_ref().map_or(0, |data| data.remaining() as u64);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending if this.poll_late(cx).is_ready() => {
                METRICS.slow_bodies.inc();
                Poll::Ready(Some(Err(TooSlow.into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl LeastRate {
    /// Longest time for so many bytes.
    fn time_for(self, bytes: u64) -> Duration {
        self.grace() + Duration::from_secs(bytes) / self.bytes_per_second
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::stream;

    use super::*;

    const LEAST: LeastRate = LeastRate { bytes_per_second: 1_000, grace_seconds: 20 };

    /// How long it takes until a body ends of which so many bytes come every second.
    async fn took(bytes: usize, seconds: u32) -> (Duration, bool) {
        let parts = stream::unfold(0, move |second| async move {
            if second == seconds {
                return None;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; bytes])), second + 1))
        });
        let body = Body::new(TimedBody::new(Body::from_stream(parts), LEAST));
        let start = Instant::now();
        let whole = axum::body::to_bytes(body, usize::MAX).await.is_ok();
        (start.elapsed(), whole)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_a_time_and_more_of_it_the_more_comes() {
        assert_eq!(took(0, 60).await, (Duration::from_secs(20), false));
        // 20 s and the time that 500 bytes a second earn.
        let (time, whole) = took(500, 60).await;
        assert!(!whole && (38..=40).contains(&time.as_secs()), "{time:?}");
        assert_eq!(took(1_000, 60).await, (Duration::from_mins(1), true));
        assert_eq!(took(1, 19).await, (Duration::from_secs(19), true));
    }
}
