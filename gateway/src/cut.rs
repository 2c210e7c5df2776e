//! Ends a client's connection from underneath, so that it comes back by itself and resumes.
//!
//! A socket whose buffer is full takes no farewell any more, and a farewell of the library
//! ("io server disconnect") would keep the client from coming back. A connection that breaks does not.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::Request;
use axum::http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use socket2::SockRef;
use socketioxide::TransportType;
use socketioxide::extract::SocketRef;
use socketioxide::socket::Sid;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::config::LeastRate;
use crate::connection_slots::ConnectionSlot;
use crate::metrics::METRICS;
use crate::timeouts::Activity;

/// The TCP connection of a request, among its extensions.
#[derive(Clone)]
pub struct Wire(Weak<Line>);

/// A client's TCP connection.
struct Line {
    stream: TcpStream,
    /// Held as long as it is open.
    _slot: ConnectionSlot,
    /// The socket that it was upgraded for; of one connection there is never a second.
    upgraded_for: OnceLock<(Sid, Wires)>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((sid, wires)) = self.upgraded_for.get() {
            wires.lock().sweep(*sid);
        }
    }
}

/// What is known of sockets beside the request that the library keeps of each.
#[derive(Clone, Default)]
pub struct Wires(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// Connections that were upgraded to a websocket for a socket that had begun as polling: a client may open
    /// several, and the library alone knows which one became the socket's. They are forgotten as they end.
    upgraded: HashMap<Sid, Vec<Wire>>,
    /// Sockets whose polling is over.
    ended: HashSet<Sid>,
}

/// A request of a socket that was cut.
pub struct Ended;

/// Cuts a socket's connection.
pub fn cut(socket: &SocketRef) {
    let request = socket.req_parts();
    let (Some(wire), Some(wires)) =
        (request.extensions.get::<Wire>(), request.extensions.get::<Wires>())
    else {
        return;
    };
    if began_as_websocket(&request.uri) {
        // It has no other connection, whatever others say that theirs is.
        return wire.cut();
    }
    if socket.transport_type() == TransportType::Polling {
        // Its connections come and go: the next one finds that the socket has ended.
        wires.lock().ended.insert(socket.id);
        if !socket.connected() {
            forget(socket);
        }
    }
    for wire in wires.upgraded_for(socket.id) {
        wire.cut();
    }
}

/// A socket is gone.
pub fn forget(socket: &SocketRef) {
    if let Some(wires) = socket.req_parts().extensions.get::<Wires>() {
        wires.lock().ended.remove(&socket.id);
    }
}

/// Whether the request that opened a socket asked for a websocket, read as the library reads it.
fn began_as_websocket(opening: &Uri) -> bool {
    let mut pairs = opening.query().unwrap_or_default().split('&');
    let transport = pairs.find_map(|pair| pair.strip_prefix("transport="));
    transport.and_then(|value| value.split('=').next()) == Some("websocket")
}

impl Known {
    /// Forgets the connections of a socket that are gone.
    fn sweep(&mut self, sid: Sid) {
        if let Entry::Occupied(mut wires) = self.upgraded.entry(sid) {
            wires.get_mut().retain(|wire| wire.0.strong_count() > 0);
            if wires.get().is_empty() {
                wires.remove();
            }
        }
    }
}

impl Wire {
    fn cut(&self) {
        if let Some(line) = self.0.upgrade() {
            // It fails only where the connection is gone already.
            SockRef::from(&line.stream).shutdown(Shutdown::Both).ok();
        }
    }

    /// The connection speaks websocket from now on, for this socket.
    pub fn upgraded(&self, sid: Sid, wires: &Wires) {
        let Some(line) = self.0.upgrade() else { return };
        if line.upgraded_for.set((sid, wires.clone())).is_ok() {
            wires.lock().upgraded.entry(sid).or_default().push(self.clone());
        }
    }
}

impl Wires {
    /// Takes note of a request; gives the socket that it names, unless that one was cut.
    pub fn observe<B>(&self, request: &mut Request<B>, wire: &Wire) -> Result<Option<Sid>, Ended> {
        request.extensions_mut().insert(wire.clone());
        request.extensions_mut().insert(self.clone());
        let query = request.uri().query().unwrap_or_default();
        let named = query.split('&').find_map(|pair| pair.strip_prefix("sid="));
        // What cannot be the name of a socket, the library refuses by itself.
        let Some(sid) = named.and_then(|sid| sid.parse().ok()) else { return Ok(None) };
        if self.lock().ended.contains(&sid) { Err(Ended) } else { Ok(Some(sid)) }
    }

    /// Not held locked: who holds the last reference to a connection tells these when it is dropped.
    fn upgraded_for(&self, sid: Sid) -> Vec<Wire> {
        self.lock().upgraded.get(&sid).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP connection that can be cut while it is served.
pub struct SharedStream {
    line: Arc<Line>,
    activity: Activity,
    least: LeastRate,
    /// While the client takes nothing more: how much it took in the present time.
    unread: Option<Box<Unread>>,
}

/// Something waits for a client that does not read as fast as it comes.
struct Unread {
    taken: u64,
    until: Pin<Box<Sleep>>,
}

impl SharedStream {
    /// Shares the connection between the server and [`Wire`]s.
    pub fn new(stream: TcpStream, slot: ConnectionSlot, least: LeastRate) -> Self {
        let line = Line { stream, _slot: slot, upgraded_for: OnceLock::new() };
        let line = Arc::new(line);
        Self { line, activity: Activity::default(), least, unread: None }
    }

    /// Tells of what is read.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// For the extensions of its requests.
    pub fn wire(&self) -> Wire {
        Wire(Arc::downgrade(&self.line))
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
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // One read per wake-up into a buffer on the stack: the cursor's own memory may not be initialised,
        // which only unsafe code may hand to a read.
        let mut bytes = [0; 4096];
        loop {
            ready!(self.line.stream.poll_read_ready(cx))?;
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
                    if let (Some(unread), Ok(taken)) = (&mut self.unread, &written) {
                        unread.taken += *taken as u64;
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
