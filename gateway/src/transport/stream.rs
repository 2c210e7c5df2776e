//! A client's TCP connection as the server reads and writes it. One whose client takes too little of what waits
//! for it ends, and so does a websocket that does not go on with what it began.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use governor::Quota;
use hyper::rt::{Read, ReadBufCursor, Write};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::metrics::{METRICS, PacketExcess};
use crate::transport::connection_slots::ConnectionSlot;
use crate::transport::disconnect::{Line, Wire};
use crate::transport::http_limits::{LeastRate, Pace};
use crate::transport::packets::{Frames, HeadersEnd, PacketCount};
use crate::transport::timeouts::Activity;

/// A TCP connection that can be ended while it is served.
pub struct SharedStream {
    line: Arc<Line>,
    activity: Activity,
    least: LeastRate,
    /// While the client takes nothing more: how much it took in the present time.
    unread: Option<Box<Unread>>,
    headers_end: HeadersEnd,
    websocket: Option<Box<Websocket>>,
    packets: Option<Quota>,
}

/// What comes over a websocket.
struct Websocket {
    frames: Frames,
    /// Of what has begun and not ended.
    pace: Pace,
}

/// Something waits for a client that does not read as fast as it comes.
struct Unread {
    taken: u64,
    until: Pin<Box<Sleep>>,
}

impl SharedStream {
    /// Shares the connection between the server and [`Wire`]s.
    pub fn new(
        stream: TcpStream,
        slot: ConnectionSlot,
        least: LeastRate,
        packets: Option<Quota>,
    ) -> Self {
        Self {
            line: Line::new(stream, slot),
            activity: Activity::default(),
            least,
            unread: None,
            headers_end: HeadersEnd::default(),
            websocket: None,
            packets,
        }
    }

    /// Tells of what is read.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// For the extensions of its requests.
    pub fn wire(&self) -> Wire {
        Wire::of(&self.line)
    }

    /// Reads what is there; `WouldBlock` if that is nothing. Fewer bytes than there is room for are all there
    /// are: the runtime need not ask again to learn it, as it need not for streams of its own (tokio,
    /// `PollEvented::poll_read`).
    fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        let tried = self.line.stream.try_io(Interest::READABLE, || {
            read = (&*SockRef::from(&self.line.stream)).read(bytes)?;
            let is_all = 0 < read && read < bytes.len();
            if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if read > 0 { Ok(read) } else { tried.map(|()| read) }
    }
}

impl SharedStream {
    /// Counts the packets of a websocket; of HTTP it is known where a request's headers end.
    fn count(&mut self, bytes: &[u8]) -> Result<(), PacketExcess> {
        if !self.line.is_websocket() {
            self.websocket = None;
            self.line.set_headers_end(self.headers_end.read(bytes));
            return Ok(());
        }
        let (packets, least) = (self.packets, self.least);
        let websocket = self.websocket.get_or_insert_with(|| {
            let frames = Frames::new(PacketCount::new(packets));
            Box::new(Websocket { frames, pace: Pace::new(least) })
        });
        websocket.pace.came(bytes.len() as u64);
        let read = websocket.frames.read(bytes);
        let kept = read.and_then(|()| self.line.keep(websocket.frames.kept()));
        kept.inspect_err(|excess| {
            METRICS.excess(*excess);
            tracing::debug!(%excess, "a websocket is cut off");
        })
    }

    /// Nothing is there to read: an error once it is too late for the rest of what a websocket began.
    fn poll_unfinished(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(websocket) = &mut self.websocket else { return Poll::Pending };
        if !websocket.frames.is_unfinished() {
            websocket.pace.stop();
            return Poll::Pending;
        }
        ready!(websocket.pace.poll_late(cx));
        METRICS.slow_bodies.inc();
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    /// Waits for the client to take something; an error once it took less than it must. The timer is there only
    /// while something waits: an idle connection has none.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let least = self.least;
        let unread = self.unread.get_or_insert_with(|| {
            Box::new(Unread { taken: 0, until: Box::pin(tokio::time::sleep(least.grace())) })
        });
        while unread.until.as_mut().poll(cx).is_ready() {
            if unread.taken < least.bytes_in_grace() {
                METRICS.slow_readers.inc();
                let socket = SockRef::from(&self.line.stream);
                // What waits in the kernel is dropped with it; who reads from it learns that it ended.
                socket.set_linger(Some(Duration::ZERO)).ok();
                socket.shutdown(Shutdown::Both).ok();
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            unread.taken = 0;
            unread.until.as_mut().reset(Instant::now() + least.grace());
        }
        Poll::Pending
    }
}

impl Read for SharedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // One read per wake-up into a buffer on the stack: the cursor's own memory may not be initialised,
        // which only unsafe code may hand to a read.
        let mut bytes = [0; 4096];
        loop {
            if self.line.stream.poll_read_ready(cx)?.is_pending() {
                return self.poll_unfinished(cx).map(Err);
            }
            let room = buffer.remaining().min(bytes.len());
            match self.try_read(&mut bytes[..room]) {
                Ok(read) => {
                    self.count(&bytes[..read]).map_err(io::Error::other)?;
                    buffer.put_slice(&bytes[..read]);
                    self.activity.note();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for SharedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.line.stream.poll_write_ready(cx)?.is_pending() {
                return self.poll_unread(cx).map(Err);
            }
            match self.line.stream.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    let taken = *written.as_ref().unwrap_or(&0);
                    self.line.wrote(taken);
                    self.headers_end.answered();
                    if let Some(unread) = &mut self.unread {
                        unread.taken += taken as u64;
                    }
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing waits any more.
        self.unread = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&self.line.stream).shutdown(Shutdown::Write) {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            shut => Poll::Ready(shut),
        }
    }
}
