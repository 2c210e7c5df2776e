//! What one client, and one client address, may do in a time.
//!
//! A connection takes its [`SocketSlot`] at the handshake. It stands among the extensions of the handshake's
//! request, which the library keeps as long as the connection: whichever way that ends, the place
//! is given back.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use shared::settings::{Settings, Switch};

use crate::error::ClientError;

/// Events of one socket that are answered with `rate_limited` before it is cut off; they come back with
/// time as messages do. A client that emits a queue of its own at once is told, one that does
/// not listen costs no more than these.
const REFUSED_MAX: NonZeroU32 = NonZeroU32::new(2_000).unwrap();
/// Longest wait that is asked for where nobody knows when a place becomes free.
const PLACE_RETRY: Duration = Duration::from_secs(10);
/// Feeds of one address at a time: each is for a program that hears of all sessions.
const FEEDS_MAX: u32 = 16;
/// The same where reads are under way, which end sooner.
const READ_RETRY: Duration = Duration::from_secs(1);
/// Fewer addresses than these are not worth sweeping.
const SWEPT_MIN: usize = 1_024;
/// Addresses without a connection that are remembered. More come only from an attack by many, against
/// which a limit per address is no help.
const REMEMBERED_MAX: usize = 100_000;
/// Larger numbers limit nothing.
const NUMBER_MAX: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

/// Counts against one quota.
pub type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<Instant>>;

#[derive(Debug, Clone)]
pub struct LimitSettings {
    /// Whether rates are limited at all; sizes always are.
    pub rates: bool,
    /// Events of one socket.
    pub messages: Quota,
    /// New sessions of one client address.
    pub new_sessions: Quota,
    /// New connections of one client address.
    pub handshakes: Quota,
    /// Messages of one client address over HTTP.
    pub http_messages: Quota,
    /// Reads of histories and lists of one client address over HTTP.
    pub http_reads: Quota,
    /// The same reads that are under way at a time.
    pub http_reads_at_once: u32,
    /// Requests of one client address, whatever they ask for.
    pub http_requests: Quota,
    /// Sockets of one client address at a time.
    pub sockets_per_address: u32,
    /// TCP connections of one peer at a time; never less than its sockets.
    pub connections_per_address: u32,
    /// Sessions that one socket may be in at a time.
    pub rooms_per_socket: usize,
}

impl LimitSettings {
    pub fn read(settings: &mut Settings) -> Self {
        let numbers = NonZeroU32::MIN..=NUMBER_MAX;
        let rates: Switch = settings.get("LIMITS");
        let per_second = settings.number("MESSAGES_PER_SECOND", numbers.clone());
        let burst = settings.number("MESSAGES_BURST", numbers.clone());
        let per_minute = settings.number("NEW_SESSIONS_PER_MINUTE", numbers.clone());
        let handshakes = settings.number("HANDSHAKES_PER_MINUTE", numbers.clone());
        let http_per_second = settings.number("HTTP_MESSAGES_PER_SECOND", numbers.clone());
        let http_burst = settings.number("HTTP_MESSAGES_BURST", numbers.clone());
        let reads_per_second = settings.number("HTTP_READS_PER_SECOND", numbers.clone());
        let reads_burst = settings.number("HTTP_READS_BURST", numbers.clone());
        let requests_per_second = settings.number("HTTP_REQUESTS_PER_SECOND", numbers.clone());
        let requests_burst = settings.number("HTTP_REQUESTS_BURST", numbers);
        let reads_at_once: u32 = settings.number("HTTP_READS_AT_ONCE", 1..=NUMBER_MAX.get());
        let sockets: u32 = settings.number("SOCKETS_PER_ADDRESS", 1..=NUMBER_MAX.get());
        let connections: u32 = settings.number("CONNECTIONS_PER_ADDRESS", 1..=NUMBER_MAX.get());
        Self {
            rates: rates.0,
            messages: Quota::per_second(per_second).allow_burst(burst),
            new_sessions: Quota::per_minute(per_minute),
            handshakes: Quota::per_minute(handshakes),
            http_messages: Quota::per_second(http_per_second).allow_burst(http_burst),
            http_reads: Quota::per_second(reads_per_second).allow_burst(reads_burst),
            http_reads_at_once: reads_at_once,
            http_requests: Quota::per_second(requests_per_second).allow_burst(requests_burst),
            sockets_per_address: sockets,
            connections_per_address: connections.max(sockets),
            rooms_per_socket: settings.number("ROOMS_PER_SOCKET", 1..=NUMBER_MAX.get() as usize),
        }
    }

    /// Packets of one socket, of whatever kind; none if there are no limits. It is what makes its events cut it off,
    /// and as much again for what is no event.
    pub fn packets(&self) -> Option<Quota> {
        let events = self.messages.burst_size().saturating_add(REFUSED_MAX.get());
        // Those that are taken and those that are refused come back at this rate each.
        let packet = self.messages.replenish_interval() / 4;
        let quota = Quota::with_period(packet)?.allow_burst(events.saturating_add(events.get()));
        self.rates.then_some(quota)
    }

    /// Warns where nobody is limited.
    pub fn warn(&self) {
        if !self.rates {
            tracing::warn!(
                "LIMITS=off: any client may send as much and connect as often as it can"
            );
        }
    }
}

/// Who is connected, and what each address did in the last minutes.
pub struct Limits {
    settings: LimitSettings,
    addresses: Mutex<Addresses>,
}

#[derive(Default)]
struct Addresses {
    known: HashMap<IpAddr, Address>,
    /// At how many addresses those that may be forgotten are swept next.
    swept_at: usize,
}

struct Address {
    open: usize,
    /// Reads over HTTP that are under way.
    reads: u32,
    /// Feeds that are read.
    feeds: u32,
    /// Places of connections that are closed and had sent much: a new connection must be no way around
    /// the limit of a socket.
    held_until: Vec<Instant>,
    new_sessions: Limiter,
    handshakes: Limiter,
    http_messages: Limiter,
    http_reads: Limiter,
    http_requests: Limiter,
}

/// The place of one connection among those of its address.
pub struct SocketSlot {
    limits: Arc<Limits>,
    address: IpAddr,
    messages: Limiter,
    refused: Limiter,
}

/// The place of one read over HTTP, or of one feed, among those of its address.
pub struct ReadSlot {
    limits: Arc<Limits>,
    address: IpAddr,
    of: fn(&mut Address) -> &mut u32,
}

impl Drop for ReadSlot {
    fn drop(&mut self) {
        if let Some(known) = self.limits.lock().known.get_mut(&self.address) {
            let count = (self.of)(known);
            *count = count.saturating_sub(1);
        }
    }
}

/// An event that is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Excess {
    /// Its client is told so.
    Refused(ClientError),
    /// Its client was told too often.
    CutOff,
}

impl Limits {
    /// Nobody is connected yet.
    pub fn new(settings: LimitSettings) -> Arc<Self> {
        Arc::new(Self { settings, addresses: Mutex::default() })
    }

    /// A place for a connection of this address; none if there are no limits.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Option<SocketSlot>, ClientError> {
        if !self.settings.rates {
            return Ok(None);
        }
        let address = network(address);
        self.lock().get(address, &self.settings).open_socket(self.settings.sockets_per_address)?;
        let messages = limiter(self.settings.messages);
        // At the rate of messages: a socket that is refused all the time is cut off in the end.
        let refused = limiter(self.settings.messages.allow_burst(REFUSED_MAX));
        Ok(Some(SocketSlot { limits: Arc::clone(self), address, messages, refused }))
    }

    /// Takes a message over HTTP from this address.
    pub fn http_message(&self, address: IpAddr) -> Result<(), ClientError> {
        self.take(address, |it| &it.http_messages, "too many messages from this address")
    }

    /// Takes a read over HTTP from this address.
    pub fn http_read(&self, address: IpAddr) -> Result<(), ClientError> {
        self.take(address, |it| &it.http_reads, "too many reads from this address")
    }

    /// A place for a read over HTTP of this address until its answer is taken; none if there are no limits.
    pub fn read_under_way(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> Result<Option<ReadSlot>, ClientError> {
        let too_many = "too many reads of this address are under way";
        self.under_way(address, |it| &mut it.reads, self.settings.http_reads_at_once, too_many)
    }

    /// A place for a feed of this address until it ends; none if there are no limits.
    pub fn feed_under_way(
        self: &Arc<Self>,
        address: IpAddr,
    ) -> Result<Option<ReadSlot>, ClientError> {
        self.under_way(address, |it| &mut it.feeds, FEEDS_MAX, "too many feeds of this address")
    }

    fn under_way(
        self: &Arc<Self>,
        address: IpAddr,
        of: fn(&mut Address) -> &mut u32,
        most: u32,
        refusal: &'static str,
    ) -> Result<Option<ReadSlot>, ClientError> {
        if !self.settings.rates {
            return Ok(None);
        }
        let address = network(address);
        let mut addresses = self.lock();
        let count = of(addresses.get(address, &self.settings));
        if *count >= most {
            return Err(ClientError::rate_limited(refusal, READ_RETRY));
        }
        *count += 1;
        Ok(Some(ReadSlot { limits: Arc::clone(self), address, of }))
    }

    /// Takes a request, of whatever kind, from this address.
    pub fn http_request(&self, address: IpAddr) -> Result<(), ClientError> {
        self.take(address, |it| &it.http_requests, "too many requests from this address")
    }

    fn take(
        &self,
        address: IpAddr,
        limiter: fn(&Address) -> &Limiter,
        refusal: &'static str,
    ) -> Result<(), ClientError> {
        if !self.settings.rates {
            return Ok(());
        }
        let mut addresses = self.lock();
        check(limiter(addresses.get(network(address), &self.settings)), refusal)
    }

    /// Whether a socket that is in so many rooms may join one more.
    pub fn room(&self, rooms: usize) -> Result<(), ClientError> {
        let most = self.settings.rooms_per_socket;
        if rooms < most { Ok(()) } else { Err(ClientError::too_many_rooms(most)) }
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Addresses {
    fn get(&mut self, address: IpAddr, settings: &LimitSettings) -> &mut Address {
        self.sweep(settings);
        self.known.entry(address).or_insert_with(|| Address {
            open: 0,
            reads: 0,
            feeds: 0,
            held_until: Vec::new(),
            new_sessions: limiter(settings.new_sessions),
            handshakes: limiter(settings.handshakes),
            http_messages: limiter(settings.http_messages),
            http_reads: limiter(settings.http_reads),
            http_requests: limiter(settings.http_requests),
        })
    }

    fn sweep(&mut self, settings: &LimitSettings) {
        if self.known.len() < self.swept_at.max(SWEPT_MIN) {
            return;
        }
        self.known.retain(|_, address| !address.is_forgettable(settings));
        if self.known.len() > REMEMBERED_MAX {
            self.known.retain(|_, address| address.open > 0 || address.reads + address.feeds > 0);
        }
        self.swept_at = 2 * self.known.len();
    }
}

impl Address {
    /// Takes a connection. One that finds no place is not counted as made: who waits for one spoils nothing.
    fn open_socket(&mut self, most: u32) -> Result<(), ClientError> {
        let now = Instant::now();
        self.held_until.retain(|end| *end > now);
        if self.open + self.held_until.len() < most as usize {
            check(&self.handshakes, "too many new connections from this address")?;
            self.open += 1;
            return Ok(());
        }
        let free = self.held_until.iter().min();
        let wait = free.map_or(PLACE_RETRY, |free| free.duration_since(now).min(PLACE_RETRY));
        Err(ClientError::rate_limited("too many connections from this address", wait))
    }

    fn is_forgettable(&mut self, settings: &LimitSettings) -> bool {
        let now = Instant::now();
        self.open == 0
            && self.reads + self.feeds == 0
            && self.held_until.iter().all(|end| *end <= now)
            && did_nothing(&mut self.new_sessions, settings.new_sessions)
            && did_nothing(&mut self.handshakes, settings.handshakes)
            && did_nothing(&mut self.http_messages, settings.http_messages)
            && did_nothing(&mut self.http_reads, settings.http_reads)
            && did_nothing(&mut self.http_requests, settings.http_requests)
    }
}

impl SocketSlot {
    pub fn event(&self) -> Result<(), Excess> {
        let Err(not_until) = self.messages.check() else { return Ok(()) };
        if self.refused.check().is_err() {
            return Err(Excess::CutOff);
        }
        let wait = not_until.wait_time_from(MonotonicClock.now());
        Err(Excess::Refused(ClientError::rate_limited("too many messages", wait)))
    }

    /// Takes a new session.
    pub fn new_session(&self) -> Result<(), ClientError> {
        let addresses = self.limits.lock();
        let Some(known) = addresses.known.get(&self.address) else { return Ok(()) };
        check(&known.new_sessions, "too many new sessions from this address")
    }
}

impl Drop for SocketSlot {
    fn drop(&mut self) {
        let messages = until_full(&self.messages, self.limits.settings.messages.burst_size());
        let held = messages.max(until_full(&self.refused, REFUSED_MAX));
        let mut addresses = self.limits.lock();
        if let Some(known) = addresses.known.get_mut(&self.address) {
            known.open = known.open.saturating_sub(1);
            if !held.is_zero() {
                known.held_until.push(Instant::now() + held);
            }
        }
    }
}

/// A limiter against which nothing was counted yet.
pub fn limiter(quota: Quota) -> Limiter {
    // The monotonic clock of the standard library costs a connection no memory.
    RateLimiter::direct_with_clock(quota, MonotonicClock)
}

fn check(limiter: &Limiter, too_many: &'static str) -> Result<(), ClientError> {
    limiter.check().map_err(|not_until| {
        let wait = not_until.wait_time_from(MonotonicClock.now());
        ClientError::rate_limited(too_many, wait)
    })
}

/// How long it takes until everything is allowed again that is allowed at once. If that is now, it is
/// taken: the limiter is not used any more.
fn until_full(limiter: &Limiter, burst: NonZeroU32) -> Duration {
    match limiter.check_n(burst) {
        Ok(Err(not_until)) => not_until.wait_time_from(MonotonicClock.now()),
        Ok(Ok(())) | Err(_) => Duration::ZERO,
    }
}

/// Whether everything is allowed that is allowed at once; then it still is.
fn did_nothing(used: &mut Limiter, quota: Quota) -> bool {
    let nothing = until_full(used, quota.burst_size()).is_zero();
    if nothing {
        *used = limiter(quota);
    }
    nothing
}

/// Whose limits an address shares: an IPv6 client has a whole /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    fn limits(set: &'static [(&str, &str)]) -> Arc<Limits> {
        let find = move |name: &str| set.iter().find(|(key, _)| *key == name);
        let mut settings = Settings::new(&[crate::config::OWN], move |name| {
            find(name).map(|(_, value)| (*value).into())
        });
        Limits::new(LimitSettings::read(&mut settings))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends_and_each_address_has_its_own() {
        let limits = limits(&[("SOCKETS_PER_ADDRESS", "2")]);
        let one = address("192.0.2.1");
        let places = [limits.admit(one).ok().unwrap(), limits.admit(one).ok().unwrap()];
        assert_eq!(limits.admit(one).err().unwrap().code, ErrorCode::RateLimited);
        assert!(limits.admit(address("192.0.2.2")).is_ok());
        drop(places);
        assert!(limits.admit(one).is_ok());
    }

    #[test]
    fn a_new_connection_is_no_way_around_the_limit_of_a_socket() {
        let limits = limits(&[("SOCKETS_PER_ADDRESS", "1"), ("MESSAGES_PER_SECOND", "1")]);
        let one = address("192.0.2.1");
        let place = limits.admit(one).ok().flatten().unwrap();
        assert!((0..5).all(|_| place.event().is_ok()));
        drop(place);
        let refusal = limits.admit(one).err().unwrap();
        let wait = refusal.retry_after_ms.unwrap();
        assert!((4_000..=5_001).contains(&wait), "{wait}");
    }

    #[test]
    fn a_socket_is_told_to_wait_and_in_the_end_cut_off() {
        let limits = limits(&[("MESSAGES_PER_SECOND", "1"), ("MESSAGES_BURST", "3")]);
        let place = limits.admit(address("192.0.2.1")).ok().flatten().unwrap();
        assert!((0..3).all(|_| place.event().is_ok()));
        for _ in 0..REFUSED_MAX.get() {
            let Err(Excess::Refused(error)) = place.event() else { panic!("not refused") };
            assert!((1..=1_001).contains(&error.retry_after_ms.unwrap()));
        }
        assert_eq!(place.event(), Err(Excess::CutOff));
    }

    #[test]
    fn connections_that_come_and_go_are_limited_and_those_that_found_no_place_are_not_counted() {
        let limits = limits(&[("HANDSHAKES_PER_MINUTE", "3"), ("SOCKETS_PER_ADDRESS", "1")]);
        let one = address("192.0.2.1");
        let place = limits.admit(one).ok().unwrap();
        assert!((0..10).all(|_| limits.admit(one).is_err()));
        drop(place);
        assert!((0..2).all(|_| limits.admit(one).is_ok()));
        let wait = limits.admit(one).err().unwrap().retry_after_ms.unwrap();
        assert!((19_000..=20_001).contains(&wait), "{wait}");
        assert!(limits.admit(address("192.0.2.2")).is_ok());
    }

    #[test]
    fn messages_over_http_are_limited_by_address() {
        let limits = limits(&[("HTTP_MESSAGES_PER_SECOND", "2"), ("HTTP_MESSAGES_BURST", "3")]);
        let one = address("192.0.2.1");
        assert!((0..3).all(|_| limits.http_message(one).is_ok()));
        let refusal = limits.http_message(one).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::RateLimited);
        assert!((1..=501).contains(&refusal.retry_after_ms.unwrap()));
        assert_eq!(limits.http_message(address("192.0.2.2")), Ok(()));
    }

    #[test]
    fn reads_over_http_are_limited_by_address_and_not_with_messages() {
        let limits = limits(&[("HTTP_READS_PER_SECOND", "2"), ("HTTP_READS_BURST", "3")]);
        let one = address("192.0.2.1");
        assert!((0..3).all(|_| limits.http_read(one).is_ok()));
        assert_eq!(limits.http_read(one).unwrap_err().code, ErrorCode::RateLimited);
        assert_eq!(limits.http_message(one), Ok(()));
        assert_eq!(limits.http_read(address("192.0.2.2")), Ok(()));
    }

    #[test]
    fn reads_that_are_under_way_are_limited_by_address_until_they_end() {
        let limits = limits(&[("HTTP_READS_AT_ONCE", "2")]);
        let one = address("192.0.2.1");
        let reads =
            [limits.read_under_way(one).ok().unwrap(), limits.read_under_way(one).ok().unwrap()];
        let refusal = limits.read_under_way(one).err().unwrap();
        assert_eq!(refusal.code, ErrorCode::RateLimited);
        assert!((1..=1_001).contains(&refusal.retry_after_ms.unwrap()));
        assert!(limits.read_under_way(address("192.0.2.2")).is_ok());
        drop(reads);
        assert!(limits.read_under_way(one).is_ok());
        assert_eq!(limits.lock().known[&one].reads, 0);
    }

    #[test]
    fn who_may_have_sockets_may_have_their_connections() {
        let read = |set| limits(set).settings.connections_per_address;
        assert_eq!(read(&[("SOCKETS_PER_ADDRESS", "9"), ("CONNECTIONS_PER_ADDRESS", "5")]), 9);
        assert_eq!(read(&[("SOCKETS_PER_ADDRESS", "2"), ("CONNECTIONS_PER_ADDRESS", "5")]), 5);
    }

    #[test]
    fn an_ipv6_client_is_its_network_and_an_ipv4_client_its_address() {
        assert_eq!(network(address("2001:db8:1:2:3::4")), address("2001:db8:1:2::"));
        assert_ne!(network(address("2001:db8:1:2::")), network(address("2001:db8:1:3::")));
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
        assert_ne!(network(address("192.0.2.1")), network(address("192.0.2.2")));
    }

    #[test]
    fn addresses_that_did_nothing_of_late_are_forgotten() {
        let limits = limits(&[("HANDSHAKES_PER_MINUTE", "1000000")]);
        let stays = limits.admit(address("192.0.2.1")).ok().flatten();
        for n in 0..u32::try_from(4 * SWEPT_MIN).unwrap() {
            drop(limits.admit(IpAddr::V4((n + (11 << 24)).into())));
        }
        let known = limits.lock().known.len();
        assert!(known <= 2 * SWEPT_MIN, "{known}");
        assert!(limits.lock().known.contains_key(&address("192.0.2.1")));
        drop(stays);
    }

    #[test]
    fn without_rates_there_are_sizes() {
        let limits = limits(&[("LIMITS", "off"), ("ROOMS_PER_SOCKET", "1")]);
        assert!(limits.admit(address("192.0.2.1")).ok().unwrap().is_none());
        let one = address("192.0.2.1");
        assert!((0..10_000).all(|_| limits.http_message(one).is_ok()));
        assert_eq!(limits.room(0), Ok(()));
        assert_eq!(limits.room(1).unwrap_err().code, ErrorCode::TooLarge);
    }
}
