//! How long an HTTP connection may take: a time for the headers of a request, from its first byte
//! on (of the first request, from the connection's beginning), and a longer one without any request.
//!
//! The server has one time for both, which begins with the wait for a request. Its timer is a place
//! to tell them apart: it is asked whenever that wait begins, and looked at whenever bytes came that
//! are not yet all of the headers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// Whether bytes were read from a connection since the wait for a request began.
#[derive(Clone, Default)]
pub struct Activity(Arc<AtomicBool>);

impl Activity {
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The timer of one connection.
pub struct HeadTimer {
    header_time: Duration,
    activity: Activity,
    /// Whether a request was waited for.
    has_begun: AtomicBool,
}

impl HeadTimer {
    /// Allows so long for headers.
    pub fn new(header_time: Duration, activity: Activity) -> Self {
        Self { header_time, activity, has_begun: AtomicBool::new(false) }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.activity.forget();
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            // Who connects has something to ask; who stays may have nothing for a while.
            return Box::pin(HeadSleep {
                sleep: Box::pin(tokio::time::sleep(self.header_time)),
                header_time: None,
                activity: self.activity.clone(),
            });
        }
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
            header_time: Some(self.header_time),
            activity: self.activity.clone(),
        })
    }
}

struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// Until the first byte of a request.
    header_time: Option<Duration>,
    activity: Activity,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.activity.is_noted()
            && let Some(header_time) = self.header_time.take()
        {
            let deadline = tokio::time::Instant::now() + header_time;
            // A connection that was idle for long has all of this time too.
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_mins(1);
    const HEADER: Duration = Duration::from_secs(10);

    async fn took(sleep: Pin<Box<dyn Sleep>>) -> Duration {
        let start = tokio::time::Instant::now();
        sleep.await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_of_a_request_makes_the_wait_short() {
        let activity = Activity::default();
        let timer = HeadTimer::new(HEADER, activity.clone());
        assert_eq!(took(timer.sleep(IDLE)).await.as_secs(), HEADER.as_secs(), "the first request");
        assert_eq!(took(timer.sleep(IDLE)).await.as_secs(), IDLE.as_secs());
        let sleep = timer.sleep(IDLE);
        activity.note();
        assert_eq!(took(sleep).await.as_secs(), HEADER.as_secs());
        assert_eq!(took(timer.sleep(IDLE)).await.as_secs(), IDLE.as_secs(), "the next request");
    }
}
