//! Ends a client's connection from underneath, so that it comes back by itself and resumes.
//!
//! A socket whose buffer is full takes no farewell any more, and a farewell of the library
//! ("io server disconnect") would keep the client from coming back. A connection that breaks does not.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use axum::response::Response;
use governor::Quota;
use hyper::body::Body as _;
use serde::Deserialize;
use socket2::SockRef;
use socketioxide::extract::SocketRef;
use socketioxide::socket::Sid;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::metrics::{METRICS, Overfull, PacketExcess};
use crate::transport::backlog::{Backlog, Leaving};
use crate::transport::connection_slots::ConnectionSlot;
use crate::transport::incoming::Kept;
use crate::transport::leaving_body::{Leaves, LeavingBody, PIECE_BYTES};
use crate::transport::packets::PacketCount;

/// Longest answer that opens a socket.
const OPEN_BYTES_MAX: usize = 4_096;

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
    /// What is kept of what comes over it, where that is a websocket's.
    kept: OnceLock<Kept>,
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
            kept: OnceLock::new(),
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

    /// So much is kept of what came over it as a websocket; an error if that is too much.
    pub fn keep(&self, bytes: u64) -> Result<(), PacketExcess> {
        self.kept.get().map_or(Ok(()), |kept| kept.set(bytes))
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
    /// What answers requests.
    router: Router,
}

#[derive(Default)]
struct Known {
    /// Connections that were upgraded to a websocket for a socket that had begun as polling: a client may open
    /// several, and the library alone knows which one became the socket's. They are forgotten as they end.
    upgraded: HashMap<Sid, Vec<Wire>>,
    /// Sockets that began as polling.
    polling: HashMap<Sid, Weak<Opening>>,
}

/// What is kept of a socket as long as the library keeps the request that opened it, among the extensions of that
/// one: a client may leave the default namespace and join it again, and what it sent and what waits for it stay.
pub struct Opening {
    wire: Wire,
    wires: Wires,
    /// Its name, where it began as polling.
    sid: OnceLock<Sid>,
    /// What it may send by polling.
    packets: Arc<PacketCount>,
    /// What waits for it, from when it joins.
    backlog: OnceLock<Arc<Backlog>>,
    /// The last long answer to its polling.
    answer: Mutex<Option<LastAnswer>>,
    /// Whether attachments that it announced are looked for after a time.
    is_awaited: AtomicBool,
    /// Whether it is disconnected.
    is_ended: AtomicBool,
}

/// An answer to a socket's polling.
struct LastAnswer {
    wire: Wire,
    has_left: CancellationToken,
}

impl LastAnswer {
    /// Nobody waits for what has not left yet.
    fn break_off(&self) {
        if !self.has_left.is_cancelled() {
            self.wire.disconnect();
        }
    }
}

impl Opening {
    /// It began as polling, and its client knows its name.
    fn name(self: &Arc<Self>, sid: Sid) {
        if self.sid.set(sid).is_ok() {
            self.wires.lock().polling.insert(sid, Arc::downgrade(self));
        }
    }

    /// An answer of so many bytes begins to leave on this connection; none if the last one has not left.
    fn begin_answer(self: &Arc<Self>, bytes: usize, wire: &Wire) -> Option<OnItsWay> {
        let mut last = self.last_answer();
        if last.as_ref().is_some_and(|last| !last.has_left.is_cancelled()) {
            return None;
        }
        let has_left = CancellationToken::new();
        *last = Some(LastAnswer { wire: wire.clone(), has_left: has_left.clone() });
        let leaving = self.backlog.get().map(|backlog| backlog.leaves(bytes));
        Some(OnItsWay { opening: Arc::downgrade(self), leaving, has_left })
    }

    /// Ends a socket that began as polling.
    fn end(&self) {
        let Some(sid) = self.sid.get() else { return };
        // Its connections come and go: the next one finds that the socket has ended.
        if !self.is_ended.swap(true, Ordering::Relaxed) {
            self.wires.close(*sid);
        }
        if let Some(last) = &*self.last_answer() {
            last.break_off();
        }
        for wire in self.wires.upgraded_for(*sid) {
            wire.disconnect();
        }
    }

    fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Relaxed)
    }

    fn last_answer(&self) -> MutexGuard<'_, Option<LastAnswer>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(sid) = self.sid.get() {
            self.wires.lock().polling.remove(sid);
        }
        if let Some(last) = self.last_answer().take() {
            last.break_off();
        }
    }
}

/// What waits for an answer to a socket's polling to leave.
struct OnItsWay {
    opening: Weak<Opening>,
    leaving: Option<Leaving>,
    has_left: CancellationToken,
}

impl Leaves for OnItsWay {
    fn took(&mut self, bytes: usize) {
        if let Some(leaving) = &self.leaving {
            leaving.took(bytes);
        }
    }

    fn left(&mut self) {
        self.leaving = None;
        self.has_left.cancel();
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if self.has_left.is_cancelled() {
            return;
        }
        // What was in it is lost: its client must come back and ask what it missed.
        if let Some(opening) = self.opening.upgrade() {
            opening.end();
        }
        // Who waits finds that it has ended.
        self.has_left.cancel();
    }
}

/// A request of a socket that was disconnected.
pub struct Ended;

/// Ends a socket's connection.
pub fn disconnect(socket: &SocketRef) {
    let Some(opening) = opening_of(socket) else { return };
    if began_as_websocket(&socket.req_parts().uri) {
        // It has no other connection, whatever others say that theirs is.
        return opening.wire.disconnect();
    }
    opening.end();
}

/// What waits for a socket that joins: what is there from when it joined before, or what `begin` makes. What its
/// connections write is taken off it.
pub fn backlog_of(socket: &SocketRef, begin: impl FnOnce() -> Arc<Backlog>) -> Arc<Backlog> {
    let Some(opening) = opening_of(socket) else { return begin() };
    let backlog = opening.backlog.get_or_init(begin);
    if began_as_websocket(&socket.req_parts().uri) {
        opening.wire.follow(backlog);
    } else {
        for wire in opening.wires.upgraded_for(socket.id) {
            wire.follow(backlog);
        }
    }
    Arc::clone(backlog)
}

fn opening_of(socket: &SocketRef) -> Option<&Arc<Opening>> {
    socket.req_parts().extensions.get()
}

/// Gives the socket that a request opened by polling the name that the library answers with.
pub async fn name(opening: &Arc<Opening>, answer: Response) -> Response {
    /// The beginning of a socket, as the library tells it.
    #[derive(Deserialize)]
    struct Open<'a> {
        sid: &'a str,
    }
    if answer.body().size_hint().exact().is_none_or(|bytes| bytes > OPEN_BYTES_MAX as u64) {
        return answer;
    }
    let (head, body) = answer.into_parts();
    // It is there already.
    let body = axum::body::to_bytes(body, OPEN_BYTES_MAX).await.unwrap_or_default();
    let open =
        body.strip_prefix(b"0").and_then(|open| serde_json::from_slice::<Open<'_>>(open).ok());
    if let Some(sid) = open.and_then(|open| open.sid.parse().ok()) {
        opening.name(sid);
    }
    Response::from_parts(head, body.into())
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

    /// It is granted; what comes is kept on this account.
    pub fn keeps_of(&self, kept: Kept) {
        if let Some(line) = self.0.upgrade() {
            line.kept.get_or_init(|| kept);
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
    pub fn new(packets: Option<Quota>, router: Router) -> Self {
        Self { known: Arc::default(), packets, router }
    }

    /// Ends a polling socket as its client would. The library would keep what waits for it until it misses the
    /// answer to a ping, and has no other way to close a connection.
    fn close(&self, sid: Sid) {
        let uri = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        let Ok(close) = Request::post(uri).body(Body::from("1")) else { return };
        let answer = self.router.clone().oneshot(close);
        // There is none when the process ends, which drops what was answered last.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { answer.await.is_ok() });
        }
    }

    /// The socket that a request names; none if it names none that there can be. An error if it was disconnected.
    pub fn named<B>(&self, request: &Request<B>) -> Result<Option<Sid>, Ended> {
        let query = request.uri().query().unwrap_or_default();
        let named = query.split('&').find_map(|pair| pair.strip_prefix("sid="));
        // What cannot be the name of a socket, the library refuses by itself.
        let Some(sid) = named.and_then(|sid| sid.parse().ok()) else { return Ok(None) };
        let is_ended = self.opening_of(sid).is_some_and(|opening| opening.is_ended());
        if is_ended { Err(Ended) } else { Ok(Some(sid)) }
    }

    /// Whether there is a socket of this name that began as polling; of others only the library knows.
    pub fn is_known(&self, sid: Sid) -> bool {
        self.opening_of(sid).is_some()
    }

    /// For the extensions of a request that may open a socket.
    pub fn opening(&self, wire: &Wire) -> Arc<Opening> {
        Arc::new(Opening {
            wire: wire.clone(),
            wires: self.clone(),
            sid: OnceLock::new(),
            packets: Arc::new(PacketCount::new(self.packets)),
            backlog: OnceLock::new(),
            answer: Mutex::default(),
            is_awaited: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
        })
    }

    /// Waits until the last answer to a socket's polling has left. A socket whose client does not take it in this
    /// time, and polls again all the same, ends.
    pub async fn last_answer_left(&self, sid: Sid, within: Duration) -> Result<(), Ended> {
        let has_left =
            |opening: Arc<Opening>| Some(opening.last_answer().as_ref()?.has_left.clone());
        // Who waits does not keep it.
        let Some(has_left) = self.opening_of(sid).and_then(has_left) else { return Ok(()) };
        let is_late = tokio::time::timeout(within, has_left.cancelled()).await.is_err();
        let Some(opening) = self.opening_of(sid) else { return Err(Ended) };
        if is_late {
            METRICS.overfull(Overfull::Untaken);
            opening.end();
        }
        if opening.is_ended() { Err(Ended) } else { Ok(()) }
    }

    /// Ends a polling socket unless the attachments come within this time that it announced.
    pub fn expect_attachments(&self, sid: Sid, within: Duration) {
        let Some(opening) = self.opening_of(sid) else { return };
        if opening.is_awaited.swap(true, Ordering::Relaxed) {
            return;
        }
        let opening = Arc::downgrade(&opening);
        tokio::spawn(async move {
            tokio::time::sleep(within).await;
            let Some(opening) = opening.upgrade() else { return };
            opening.is_awaited.store(false, Ordering::Relaxed);
            if opening.packets.awaits_attachments() {
                METRICS.slow_bodies.inc();
                opening.end();
            }
        });
    }

    /// What is answered to a socket's polling leaves on this connection.
    pub fn polled(&self, sid: Sid, wire: &Wire, answer: Response) -> Result<Response, Ended> {
        let Some(opening) = self.opening_of(sid) else { return Ok(answer) };
        let bytes = usize::try_from(answer.body().size_hint().lower()).unwrap_or(usize::MAX);
        if bytes <= PIECE_BYTES {
            if let Some(backlog) = opening.backlog.get() {
                backlog.wrote(bytes);
            }
            return Ok(answer);
        }
        let Some(on_its_way) = opening.begin_answer(bytes, wire) else {
            opening.end();
            return Err(Ended);
        };
        Ok(answer.map(|body| Body::new(LeavingBody::new(body, on_its_way))))
    }

    fn opening_of(&self, sid: Sid) -> Option<Arc<Opening>> {
        self.lock().polling.get(&sid).and_then(Weak::upgrade)
    }

    fn backlog_of(&self, sid: Sid) -> Option<Arc<Backlog>> {
        self.opening_of(sid)?.backlog.get().cloned()
    }

    /// What a polling socket may send; none of a socket that is not there, which the library refuses.
    pub fn packets_of(&self, sid: Sid) -> Option<Arc<PacketCount>> {
        self.opening_of(sid).map(|opening| Arc::clone(&opening.packets))
    }

    /// Not held locked: who holds the last reference to a connection tells these when it is dropped.
    fn upgraded_for(&self, sid: Sid) -> Vec<Wire> {
        self.lock().upgraded.get(&sid).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
