//! Ends a client's connection from underneath, so that it comes back by itself and resumes.
//!
//! A socket whose buffer is full takes no farewell any more, and a farewell of the library
//! ("io server disconnect") would keep the client from coming back. A connection that breaks does not.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use axum::extract::Request;
use hyper::rt::{Read, ReadBufCursor, Write};
use socket2::SockRef;
use socketioxide::TransportType;
use socketioxide::extract::SocketRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::timeouts::Activity;

/// The TCP connection of a request, among its extensions.
#[derive(Clone)]
pub struct Wire(Weak<TcpStream>);

/// Fewer connections than these are not worth sweeping.
const SWEPT_MIN: usize = 1_024;

/// What is known of sockets beside the request that the library keeps of each.
#[derive(Clone, Default)]
pub struct Wires(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// Connections of sockets that were upgraded from polling: their first request came over another.
    upgraded: HashMap<String, Wire>,
    /// Sockets whose polling is over.
    ended: HashSet<String>,
    /// At how many connections those that are gone are swept next.
    swept_at: usize,
}

/// Cuts a socket's connection.
pub fn cut(socket: &SocketRef) {
    let extensions = &socket.req_parts().extensions;
    let (Some(wire), Some(wires)) = (extensions.get::<Wire>(), extensions.get::<Wires>()) else {
        return;
    };
    let sid = socket.id.to_string();
    if socket.transport_type() == TransportType::Polling {
        // Its connections come and go: the next one finds that the socket has ended.
        wires.lock().ended.insert(sid);
        return;
    }
    let upgraded = wires.lock().upgraded.get(&sid).cloned();
    upgraded.as_ref().unwrap_or(wire).cut();
}

/// A socket is gone.
pub fn forget(socket: &SocketRef) {
    if let Some(wires) = socket.req_parts().extensions.get::<Wires>() {
        let sid = socket.id.to_string();
        let mut known = wires.lock();
        known.upgraded.remove(&sid);
        known.ended.remove(&sid);
    }
}

impl Known {
    fn add(&mut self, sid: &str, wire: &Wire) {
        // Anybody can name any socket; what is left of connections that are gone is swept as often
        // as their number doubles.
        if self.upgraded.len() >= self.swept_at.max(SWEPT_MIN) {
            self.upgraded.retain(|_, wire| wire.0.strong_count() > 0);
            self.swept_at = 2 * self.upgraded.len();
        }
        self.upgraded.insert(sid.to_owned(), wire.clone());
    }
}

impl Wire {
    fn cut(&self) {
        if let Some(stream) = self.0.upgrade() {
            // It fails only where the connection is gone already.
            SockRef::from(&*stream).shutdown(Shutdown::Both).ok();
        }
    }
}

impl Wires {
    /// Takes note of a request; `false` if it belongs to a socket that was cut.
    pub fn observe<B>(&self, request: &mut Request<B>, wire: &Wire) -> bool {
        request.extensions_mut().insert(wire.clone());
        request.extensions_mut().insert(self.clone());
        let query = request.uri().query().unwrap_or_default();
        let value =
            |name| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let Some(sid) = value("sid") else { return true };
        let mut known = self.lock();
        if value("transport") == Some("websocket") {
            known.add(sid, wire);
        }
        !known.ended.contains(sid)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP connection that can be cut while it is served.
pub struct SharedStream {
    stream: Arc<TcpStream>,
    activity: Activity,
}

impl SharedStream {
    /// Shares the connection between the server and [`Wire`]s.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Arc::new(stream), activity: Activity::default() }
    }

    /// Tells of what is read.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// For the extensions of its requests.
    pub fn wire(&self) -> Wire {
        Wire(Arc::downgrade(&self.stream))
    }

    /// Reads what is there; `WouldBlock` if that is nothing. Fewer bytes than there is room for are all there
    /// are: the runtime need not ask again to learn it, as it need not for streams of its own (tokio,
    /// `PollEvented::poll_read`).
    fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        let tried = self.stream.try_io(Interest::READABLE, || {
            read = (&*SockRef::from(&*self.stream)).read(bytes)?;
            let is_all = 0 < read && read < bytes.len();
            if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if read > 0 { Ok(read) } else { tried.map(|()| read) }
    }
}

impl Read for SharedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // One read per wake-up into a buffer on the stack: the cursor's own memory may not be initialised,
        // which only unsafe code may hand to a read.
        let mut bytes = [0; 4096];
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let room = buffer.remaining().min(bytes.len());
            match self.try_read(&mut bytes[..room]) {
                Ok(read) => {
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
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.stream).shutdown(Shutdown::Write) {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            shut => Poll::Ready(shut),
        }
    }
}
