//! Ends a client's connection from underneath, so that it comes back by itself and resumes.
//!
//! A socket whose buffer is full takes no farewell any more, and a farewell of the library
//! ("io server disconnect") would keep the client from coming back. A connection that breaks does not.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use axum::extract::Request;
use axum::http::Uri;
use governor::Quota;
use socket2::SockRef;
use socketioxide::TransportType;
use socketioxide::extract::SocketRef;
use socketioxide::socket::Sid;
use tokio::net::TcpStream;

use crate::transport::backlog::Backlog;
use crate::transport::connection_slots::ConnectionSlot;
use crate::transport::packets::PacketCount;

/// The TCP connection of a request, among its extensions.
#[derive(Clone)]
pub struct Wire(Weak<Line>);

/// A client's TCP connection.
pub struct Line {
    pub stream: TcpStream,
    /// Held as long as it is open.
    _slot: ConnectionSlot,
    /// The socket that it was upgraded for; of one connection there is never a second.
    upgraded_for: OnceLock<(Sid, Wires)>,
    /// What waits for the socket that it belongs to.
    backlog: OnceLock<Arc<Backlog>>,
    /// Whether nothing was read behind the headers of the present request.
    is_at_headers_end: AtomicBool,
    /// Whether what comes is a websocket's.
    is_websocket: AtomicBool,
}

impl Line {
    /// A connection that was accepted.
    pub fn new(stream: TcpStream, slot: ConnectionSlot) -> Arc<Self> {
        Arc::new(Self {
            stream,
            _slot: slot,
            upgraded_for: OnceLock::new(),
            backlog: OnceLock::new(),
            is_at_headers_end: AtomicBool::new(false),
            is_websocket: AtomicBool::new(false),
        })
    }

    /// Whether what was read last was the end of a request's headers.
    pub fn set_headers_end(&self, is_last: bool) {
        self.is_at_headers_end.store(is_last, Ordering::Relaxed);
    }

    /// Whether what comes is a websocket's.
    pub fn is_websocket(&self) -> bool {
        self.is_websocket.load(Ordering::Relaxed)
    }

    /// So many bytes went out.
    pub fn wrote(&self, bytes: usize) {
        if let Some(backlog) = self.backlog.get() {
            backlog.wrote(bytes);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((sid, wires)) = self.upgraded_for.get() {
            wires.lock().sweep(*sid);
        }
    }
}

/// What is known of sockets beside the request that the library keeps of each.
#[derive(Clone)]
pub struct Wires {
    known: Arc<Mutex<Known>>,
    packets: Option<Quota>,
}

#[derive(Default)]
struct Known {
    /// Connections that were upgraded to a websocket for a socket that had begun as polling: a client may open
    /// several, and the library alone knows which one became the socket's. They are forgotten as they end.
    upgraded: HashMap<Sid, Vec<Wire>>,
    /// Sockets that began as polling.
    polling: HashMap<Sid, Polling>,
    /// Sockets whose polling is over.
    ended: HashSet<Sid>,
}

/// A socket that began as polling.
struct Polling {
    /// What waits for it.
    backlog: Arc<Backlog>,
    /// What it may send.
    packets: Arc<PacketCount>,
}

/// A request of a socket that was disconnected.
pub struct Ended;

/// Ends a socket's connection.
pub fn disconnect(socket: &SocketRef) {
    let Some((wire, wires)) = known_of(socket) else { return };
    if began_as_websocket(&socket.req_parts().uri) {
        // It has no other connection, whatever others say that theirs is.
        return wire.disconnect();
    }
    if socket.transport_type() == TransportType::Polling {
        // Its connections come and go: the next one finds that the socket has ended.
        wires.lock().ended.insert(socket.id);
        if !socket.connected() {
            forget(socket);
        }
    }
    for wire in wires.upgraded_for(socket.id) {
        wire.disconnect();
    }
}

/// A socket is connected: what its connections write is taken off what waits for it.
pub fn follow(socket: &SocketRef, backlog: &Arc<Backlog>) {
    let Some((wire, wires)) = known_of(socket) else { return };
    if began_as_websocket(&socket.req_parts().uri) {
        return wire.follow(backlog);
    }
    let packets = Arc::new(PacketCount::new(wires.packets));
    let polling = Polling { backlog: Arc::clone(backlog), packets };
    wires.lock().polling.insert(socket.id, polling);
    for wire in wires.upgraded_for(socket.id) {
        wire.follow(backlog);
    }
}

/// A socket is gone.
pub fn forget(socket: &SocketRef) {
    if let Some(wires) = socket.req_parts().extensions.get::<Wires>() {
        let mut known = wires.lock();
        known.ended.remove(&socket.id);
        known.polling.remove(&socket.id);
    }
}

/// The connection that a socket's first request came over, and what is known of sockets.
fn known_of(socket: &SocketRef) -> Option<(&Wire, &Wires)> {
    let extensions = &socket.req_parts().extensions;
    Some((extensions.get()?, extensions.get()?))
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
    /// For the extensions of a connection's requests.
    pub fn of(line: &Arc<Line>) -> Self {
        Self(Arc::downgrade(line))
    }

    fn disconnect(&self) {
        if let Some(line) = self.0.upgrade() {
            // It fails only where the connection is gone already.
            SockRef::from(&line.stream).shutdown(Shutdown::Both).ok();
        }
    }

    /// What comes from now on is a websocket's, should the request be granted; `false` if something came already.
    pub fn begin_websocket(&self) -> bool {
        let Some(line) = self.0.upgrade() else { return false };
        let begins = line.is_at_headers_end.load(Ordering::Relaxed);
        line.is_websocket.store(begins, Ordering::Relaxed);
        begins
    }

    /// It was not granted.
    pub fn stay_http(&self) {
        if let Some(line) = self.0.upgrade() {
            line.is_websocket.store(false, Ordering::Relaxed);
        }
    }

    /// The connection speaks websocket from now on, for this socket.
    pub fn upgraded(&self, sid: Sid, wires: &Wires) {
        let Some(line) = self.0.upgrade() else { return };
        if line.upgraded_for.set((sid, wires.clone())).is_ok() {
            wires.lock().upgraded.entry(sid).or_default().push(self.clone());
            if let Some(backlog) = wires.backlog_of(sid) {
                self.follow(&backlog);
            }
        }
    }

    fn follow(&self, backlog: &Arc<Backlog>) {
        if let Some(line) = self.0.upgrade() {
            line.backlog.get_or_init(|| Arc::clone(backlog));
        }
    }
}

impl Wires {
    /// No socket is there; each may send so many packets.
    pub fn new(packets: Option<Quota>) -> Self {
        Self { known: Arc::default(), packets }
    }

    /// Takes note of a request; gives the socket that it names, unless that one was disconnected.
    pub fn observe<B>(&self, request: &mut Request<B>, wire: &Wire) -> Result<Option<Sid>, Ended> {
        request.extensions_mut().insert(wire.clone());
        request.extensions_mut().insert(self.clone());
        let query = request.uri().query().unwrap_or_default();
        let named = query.split('&').find_map(|pair| pair.strip_prefix("sid="));
        // What cannot be the name of a socket, the library refuses by itself.
        let Some(sid) = named.and_then(|sid| sid.parse().ok()) else { return Ok(None) };
        if self.lock().ended.contains(&sid) { Err(Ended) } else { Ok(Some(sid)) }
    }

    /// An answer to a socket's polling has so many bytes.
    pub fn polled(&self, sid: Sid, bytes: usize) {
        if let Some(backlog) = self.backlog_of(sid) {
            backlog.wrote(bytes);
        }
    }

    fn backlog_of(&self, sid: Sid) -> Option<Arc<Backlog>> {
        self.lock().polling.get(&sid).map(|polling| Arc::clone(&polling.backlog))
    }

    /// What a polling socket may send. One that is not connected yet is not known by its name: each of its
    /// requests counts alone.
    pub fn packets_of(&self, sid: Sid) -> Arc<PacketCount> {
        let known = self.lock().polling.get(&sid).map(|polling| Arc::clone(&polling.packets));
        known.unwrap_or_else(|| Arc::new(PacketCount::new(self.packets)))
    }

    /// Not held locked: who holds the last reference to a connection tells these when it is dropped.
    fn upgraded_for(&self, sid: Sid) -> Vec<Wire> {
        self.lock().upgraded.get(&sid).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
