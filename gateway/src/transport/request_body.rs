//! How long the body of a request may take ([`Pace`]), and how much of it is kept until it has ended.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

use crate::metrics::{METRICS, PacketExcess};
use crate::transport::http_limits::{LeastRate, Pace};
use crate::transport::incoming::{Incoming, Kept};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that ends with an error when it takes too long, or too much of others is kept.
pub struct TimedBody<B> {
    body: B,
    pace: Pace,
    incoming: Of,
    kept: Option<Kept>,
    bytes: u64,
}

/// Whose it is.
pub struct Of {
    pub incoming: Incoming,
    pub network: Option<IpAddr>,
}

/// The client sends too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request came too slowly")]
struct TooSlow;

impl<B: HttpBody> TimedBody<B> {
    /// The same body, which must come at this rate.
    pub fn new(body: B, least: LeastRate, incoming: Of) -> Self {
        Self { body, pace: Pace::new(least), incoming, kept: None, bytes: 0 }
    }

    /// So many bytes came.
    fn came(&mut self, bytes: u64) -> Result<(), PacketExcess> {
        self.pace.came(bytes);
        self.bytes += bytes;
        if self.body.is_end_stream() && self.kept.is_none() {
            return Ok(());
        }
        let Of { incoming, network } = &self.incoming;
        let kept = self.kept.get_or_insert_with(|| incoming.of(*network));
        kept.set(self.bytes).inspect_err(|excess| METRICS.excess(*excess))
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
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                    && let Err(excess) = this.came(data.remaining() as u64)
                {
                    return Poll::Ready(Some(Err(excess.into())));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending if this.pace.poll_late(cx).is_ready() => {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use futures_util::{StreamExt, stream};
    use tokio::time::Instant;

    use super::*;
    use crate::transport::sums::Most;

    const LEAST: LeastRate = LeastRate { bytes_per_second: 1_000, grace_seconds: 20 };

    fn timed<B: HttpBody>(body: B, incoming: &Incoming) -> TimedBody<B> {
        TimedBody::new(body, LEAST, Of { incoming: incoming.clone(), network: None })
    }

    fn unbounded() -> Incoming {
        Incoming::new(Most { address: u64::MAX, all: u64::MAX })
    }

    /// How long it takes until a body ends of which so many bytes come every second.
    async fn took(bytes: usize, seconds: u32) -> (Duration, bool) {
        let parts = stream::unfold(0, move |second| async move {
            if second == seconds {
                return None;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; bytes])), second + 1))
        });
        let body = Body::new(timed(Body::from_stream(parts), &unbounded()));
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

    #[tokio::test(start_paused = true)]
    async fn much_at_once_earns_no_time_to_stop() {
        let parts =
            stream::once(async { Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1_000_000])) });
        let body = Body::from_stream(parts.chain(stream::pending()));
        let start = Instant::now();
        let read = axum::body::to_bytes(Body::new(timed(body, &unbounded())), usize::MAX).await;
        assert!(read.is_err());
        assert_eq!(start.elapsed(), LEAST.grace());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_have_not_ended_have_a_bound_together() {
        let incoming = Incoming::new(Most { address: u64::MAX, all: 1_000_000 });
        let half = || {
            let part = stream::once(async { Ok::<_, std::io::Error>(vec![b'x'; 400_000]) });
            timed(Body::from_stream(part.chain(stream::pending())), &incoming)
        };
        let next = async |body: &mut TimedBody<Body>| {
            std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.unwrap().is_ok()
        };
        let (mut one, mut two, mut three) = (half(), half(), half());
        assert!(next(&mut one).await && next(&mut two).await && !next(&mut three).await);
        drop((one, three));
        assert!(next(&mut half()).await, "there is room again");
    }
}
