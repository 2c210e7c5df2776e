//! Every metric of the gateway. Names begin with `chat_gateway_`; those of counters end in `_total`.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use shared::metrics::{Catalogue, Connections, Labelled};

use crate::error::ErrorCode;

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// What the gateway counts and measures.
pub struct Metrics {
    catalogue: Catalogue,
    /// Stage 1, accepted: its count is the rate.
    pub accept_seconds: Histogram,
    /// Stage 3, delivered; stage 2 is the persister's.
    pub delivery_seconds: Histogram,
    /// Requests that the log has not acknowledged yet.
    pub publishes_in_flight: Gauge,
    /// Sends whose fate is not known yet.
    pub pending_sends: Gauge,
    pub sends_waiting_max: Gauge,
    /// Sends whose fate was announced, not heard, and found in Postgres.
    pub fates_sought: Counter,
    /// Requests that the log lost.
    pub published_again: Counter,
    /// Sends that were accepted and took too much memory.
    pub sends_forgotten: Counter,
    pub sends_overtaken: Counter,
    refused: Labelled<Counter>,
    /// Messages given to sockets.
    pub emits: Counter,
    /// Announcements that did not fit in memory.
    pub announcements_dropped: Counter,
    /// Sockets that took no message.
    pub emit_failures: Counter,
    /// Sockets that took no answer.
    pub ack_failures: Counter,
    /// Sockets that are connected.
    pub sockets: Gauge,
    /// Feeds that are read.
    pub feeds: Gauge,
    /// What they were told.
    pub feed_events: Counter,
    /// Stretches that a feed missed, and read from Postgres.
    pub feed_gaps: Counter,
    /// TCP connections of clients.
    pub client_connections: Gauge,
    refused_connections: Labelled<Counter>,
    /// Bodies and messages that came too slowly.
    pub slow_bodies: Counter,
    /// Connections whose client read too slowly.
    pub slow_readers: Counter,
    /// What waits for sockets.
    pub waiting_bytes: Gauge,
    overfull_sockets: Labelled<Counter>,
    excessive_packets: Labelled<Counter>,
    /// Sessions with a socket here.
    pub rooms: Gauge,
    pub sessions_opened: Counter,
    /// Sessions that a client came back to.
    pub sessions_resumed: Counter,
    /// Stretches that were read because announcements were missed.
    pub gaps_recovered: Counter,
    /// What was read in them.
    pub recovered_messages: Counter,
    pub connections: Connections,
}

/// Why a connection is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Its peer has as many as it may have.
    Peer,
    /// The process may not open many more files.
    Files,
}

impl Full {
    pub const ALL: [Self; 2] = [Self::Peer, Self::Files];

    /// The reason as the metric's label has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Files => "files",
        }
    }
}

/// What a client may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketExcess {
    /// Packets faster than any client that is answered.
    #[error("too many packets")]
    Packets,
    /// A packet of a namespace with so long a name.
    #[error("the name of a namespace is too long")]
    Namespace,
    /// More namespaces that are not served than a mistake asks for, or the same again and again.
    #[error("namespaces are joined too often")]
    Namespaces,
    /// Attachments, or an event that announces some, of which there is no use.
    #[error("attachments are too long")]
    Attachments,
    /// Something that has not ended, where others of its address, or all, have begun too much.
    #[error("too much is unfinished")]
    Unfinished,
}

impl PacketExcess {
    pub const ALL: [Self; 5] =
        [Self::Packets, Self::Namespace, Self::Namespaces, Self::Attachments, Self::Unfinished];

    /// The reason as the metric's label has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Namespace => "namespace",
            Self::Namespaces => "namespaces",
            Self::Attachments => "attachments",
            Self::Unfinished => "unfinished",
        }
    }
}

/// Why a socket is ended for which too much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overfull {
    /// More than one socket may have.
    Socket,
    /// It is the largest of an address that has more than it may.
    Address,
    /// It is the largest of all, which are more than all may be.
    All,
    Untaken,
}

impl Overfull {
    pub const ALL: [Self; 4] = [Self::Socket, Self::Address, Self::All, Self::Untaken];

    /// The reason as the metric's label has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Address => "address",
            Self::All => "all",
            Self::Untaken => "untaken",
        }
    }
}

impl Metrics {
    fn new() -> Self {
        let mut all = Catalogue::new("chat_gateway", env!("CARGO_PKG_VERSION"));
        let metrics = Self {
            accept_seconds: all.latencies(
                "accept_seconds",
                "From the arrival of a request (a message or a new session) to the log's acknowledgement",
            ),
            delivery_seconds: all.latencies(
                "delivery_seconds",
                "From the log's timestamp of a message to its emission to those in the session",
            ),
            publishes_in_flight: all
                .add("publishes_in_flight", "Requests that the log has not acknowledged yet"),
            pending_sends: all.add("pending_sends", "Sends of which it is not known yet what became of them"),
            sends_waiting_max: all.add(
                "sends_waiting_max",
                "Sends that may wait for their first answer: fewer where they wait long to be stored",
            ),
            fates_sought: all.add(
                "fates_sought",
                "Sends of which it was not heard what became of them, and that were found in Postgres",
            ),
            published_again: all.add(
                "published_again",
                "Requests that the log had taken and lost, and that were published again",
            ),
            sends_forgotten: all.add(
                "sends_forgotten",
                "Sends that were acked as accepted and that did not fit in GUARD_BYTES",
            ),
            sends_overtaken: all.add(
                "sends_overtaken",
                "Sends that stand behind a later one of their session, or will where they are sent again",
            ),
            refused: all.add("refused", "Requests of clients that were answered with an error, by its code"),
            emits: all.add("emits", "Messages given to sockets, once per socket"),
            announcements_dropped: all.add(
                "announcements_dropped",
                "Announcements that came faster than rooms were told; what they said is read from Postgres",
            ),
            emit_failures: all
                .add("emit_failures", "Messages that a socket did not take; it is cut off and comes back"),
            ack_failures: all
                .add("ack_failures", "Answers that a socket did not take; it is cut off and comes back"),
            sockets: all.add("sockets", "Connected sockets"),
            feeds: all.add("feeds", "Feeds of all sessions that are read"),
            feed_events: all.add("feed_events", "Events that feeds were told"),
            feed_gaps: all.add(
                "feed_gaps",
                "Stretches that a feed was not told of in time, and read from Postgres",
            ),
            client_connections: all.add("client_connections", "TCP connections of clients"),
            refused_connections: all.add(
                "refused_connections",
                "TCP connections that were closed at once, by reason: too many of their peer, or of open files",
            ),
            slow_bodies: all
                .add("slow_bodies", "Requests and messages that ended because they came below the least rate"),
            slow_readers: all.add(
                "slow_readers",
                "Connections that ended because their client read below the least rate",
            ),
            waiting_bytes: all.add("waiting_bytes", "Bytes that wait for sockets in this process"),
            overfull_sockets: all.add(
                "overfull_sockets",
                "Sockets that ended because too much waited for them, by the bound: theirs, that of their address or \
                 of all, or they took nothing",
            ),
            excessive_packets: all.add(
                "excessive_packets",
                "Connections and requests that ended for what they sent before anybody looked at it, by reason: too many \
                 packets, too long a namespace or too many, attachments, or too much that has not ended",
            ),
            rooms: all.add("rooms", "Sessions that a connected socket is in"),
            sessions_opened: all.add("sessions_opened", "Sessions that were opened"),
            sessions_resumed: all.add("sessions_resumed", "Times that a client came back to a session"),
            gaps_recovered: all.add(
                "gaps_recovered",
                "Stretches of the log read from Postgres because their announcements were missed",
            ),
            recovered_messages: all
                .add("recovered_messages", "Messages read from Postgres because they were missed"),
            connections: Connections::new(&mut all),
            catalogue: all,
        };
        // A rate is known of what has happened once only if it was nought before.
        for reason in Full::ALL {
            drop(metrics.refused_connections.get_or_create(&[("reason", reason.as_str().into())]));
        }
        for reason in Overfull::ALL {
            drop(metrics.overfull_sockets.get_or_create(&[("bound", reason.as_str().into())]));
        }
        for reason in PacketExcess::ALL {
            drop(metrics.excessive_packets.get_or_create(&[("reason", reason.as_str().into())]));
        }
        metrics
    }

    /// A client was told an error.
    pub fn refuse(&self, code: ErrorCode) {
        self.refused.get_or_create(&[("code", code.as_str().into())]).inc();
    }

    /// A connection was closed at once.
    pub fn refuse_connection(&self, reason: Full) {
        self.refused_connections.get_or_create(&[("reason", reason.as_str().into())]).inc();
    }

    /// A socket is ended.
    pub fn overfull(&self, why: Overfull) {
        self.overfull_sockets.get_or_create(&[("bound", why.as_str().into())]).inc();
    }

    /// A connection or a request ends for what came over it.
    pub fn excess(&self, why: PacketExcess) {
        self.excessive_packets.get_or_create(&[("reason", why.as_str().into())]).inc();
    }

    /// All of them in Prometheus' text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        self.catalogue.text()
    }
}
