//! Counts what a client sends before anybody looks at it.
//!
//! Events are counted where they are handled. What the socket library takes by itself is seen by no handler: pongs,
//! acks that nobody waits for, frames of control, packets of namespaces that are not served. To join such a one it
//! answers with its whole name. So every packet counts here: of a websocket by the headers of its frames (RFC 6455,
//! section 5.2), of polling by what stands between packets (Engine.IO protocol, version 4).
//!
//! Nothing here takes attachments. The library keeps the event that announces some until they are there, without an
//! end; it is let do so as far as the event can be refused in its own form.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use bytes::Bytes;
use governor::Quota;
use hyper::body::{Frame, SizeHint};

use crate::access::limits::{Limiter, limiter};
use crate::metrics::{METRICS, PacketExcess};

/// Longest name of a namespace.
const NAMESPACE_BYTES_MAX: u16 = 256;
/// Namespaces other than the default one that a client may ask to join. Each is answered with its name, which nothing
/// else counts; a client that has a wrong name asks once.
const OTHERS_MAX: u32 = 8;
/// How often a client may join any namespace over one connection: the library answers each time, which nothing else
/// counts, and a client that is let in, or told that it is not, has no need to ask again.
const JOINS_MAX: u32 = 100;
/// Longest event that announces attachments; these may have as much together. Who sends more ends.
pub const ATTACHED_BYTES_MAX: usize = 64 * 1024;
/// The same of an attachment in a text: its type, and four digits for three bytes.
const ENCODED_BYTES_MAX: u64 = 1 + 4 * ATTACHED_BYTES_MAX.div_ceil(3) as u64;
/// Stands between packets in the body of a request.
const SEPARATOR: u8 = 0x1e;
/// Longest header of a frame: two bytes, eight of length, four of the mask.
const FRAME_HEADER_MAX: usize = 14;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many packets one socket may send.
pub struct PacketCount {
    limiter: Option<Limiter>,
    /// How often it asked to join a namespace.
    joins: AtomicU32,
    /// Namespaces that are not served and that it asked to join.
    others: AtomicU32,
    /// Attachments that it announced and that are to come.
    attachments: AtomicU32,
}

impl PacketCount {
    /// As many as this; without a quota any number.
    pub fn new(quota: Option<Quota>) -> Self {
        Self {
            limiter: quota.map(limiter),
            joins: AtomicU32::new(0),
            others: AtomicU32::new(0),
            attachments: AtomicU32::new(0),
        }
    }

    /// Whether attachments are to come that were announced.
    pub fn awaits_attachments(&self) -> bool {
        self.attachments.load(Ordering::Relaxed) > 0
    }

    /// The library ends who announces others before these are there, and who sends one that was not announced.
    fn announce(&self, attachments: u32) {
        self.attachments.store(attachments, Ordering::Relaxed);
    }

    fn attach(&self) {
        let less = |attachments: u32| Some(attachments.saturating_sub(1));
        self.attachments.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok();
    }

    fn take(&self) -> Result<(), PacketExcess> {
        let taken = self.limiter.as_ref().is_none_or(|limiter| limiter.check().is_ok());
        if taken { Ok(()) } else { Err(PacketExcess::Packets) }
    }

    /// It asks to join a namespace.
    fn join(&self) -> Result<(), PacketExcess> {
        let joins = self.joins.fetch_add(1, Ordering::Relaxed);
        if joins < JOINS_MAX { Ok(()) } else { Err(PacketExcess::Namespaces) }
    }

    /// It asks to join a namespace that is not the default one.
    fn join_other(&self) -> Result<(), PacketExcess> {
        let others = self.others.fetch_add(1, Ordering::Relaxed);
        if others < OTHERS_MAX { Ok(()) } else { Err(PacketExcess::Namespaces) }
    }
}

/// The beginning of a packet, as far as its namespace.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    at: At,
    kind: Kind,
}

/// What may be how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Other,
    /// It announces attachments.
    Announcing,
    /// An attachment in a text.
    Encoded,
}

/// What comes next of it.
#[derive(Debug, Clone, Copy, Default)]
enum At {
    #[default]
    Packet,
    /// Behind the type of a packet that carries one of Socket.IO.
    Message,
    /// Behind the type of one that announces attachments, so many as far as it came.
    Number {
        attachments: u32,
    },
    /// Behind the type of another one.
    Type {
        joins: bool,
    },
    Namespace {
        bytes: u16,
        joins: bool,
    },
    /// The rest is not looked at.
    Known,
}

impl Head {
    fn is_known(self) -> bool {
        matches!(self.at, At::Known)
    }

    fn next(&mut self, byte: u8, count: &PacketCount) -> Result<(), PacketExcess> {
        self.at = match (self.at, byte) {
            (At::Packet, b'4') => At::Message,
            (At::Packet, b'b') => {
                self.kind = Kind::Encoded;
                count.attach();
                At::Known
            }
            (At::Message, b'5' | b'6') => {
                self.kind = Kind::Announcing;
                At::Number { attachments: 0 }
            }
            (At::Message, b'0') => {
                count.join()?;
                At::Type { joins: true }
            }
            (At::Message, b'1'..=b'4') => At::Type { joins: false },
            (At::Number { attachments }, b'0'..=b'9') => {
                let attachments = attachments.saturating_mul(10);
                At::Number { attachments: attachments.saturating_add(u32::from(byte - b'0')) }
            }
            (At::Number { attachments }, b'-') => {
                count.announce(attachments);
                At::Type { joins: false }
            }
            // Of a number the library makes none there; it may one day.
            (At::Type { joins }, b'0'..=b'9' | b'-') => At::Type { joins },
            (At::Type { joins }, b'/') => At::Namespace { bytes: 1, joins },
            (At::Namespace { bytes, .. }, _) if bytes >= NAMESPACE_BYTES_MAX && byte != b',' => {
                return Err(PacketExcess::Namespace);
            }
            (At::Namespace { bytes, joins }, byte) if byte != b',' => {
                if joins && bytes == 1 {
                    count.join_other()?;
                }
                At::Namespace { bytes: bytes + 1, joins }
            }
            _ => At::Known,
        };
        Ok(())
    }

    /// So much of the packet came.
    fn check(self, bytes: u64) -> Result<(), PacketExcess> {
        let most = match self.kind {
            Kind::Other => return Ok(()),
            Kind::Announcing => ATTACHED_BYTES_MAX as u64,
            Kind::Encoded => ENCODED_BYTES_MAX,
        };
        if bytes <= most { Ok(()) } else { Err(PacketExcess::Attachments) }
    }
}

/// Reads the frames of a websocket as their bytes come.
pub struct Frames {
    count: PacketCount,
    header: [u8; FRAME_HEADER_MAX],
    header_bytes: usize,
    /// What is to come of the frame whose header is complete.
    payload: u64,
    /// How much of it came.
    at: usize,
    /// Of the message that a text frame began.
    head: Head,
    /// Whose the present frame is.
    of: Of,
    /// The message that has begun and not ended.
    message: Option<Message>,
    /// Bytes of the event that announced attachments which are to come, and of those that came.
    announced: u64,
    /// Bytes of the longest frame of a message: the library keeps a buffer of this size.
    longest: u64,
}

/// A message in one frame or more.
#[derive(Clone, Copy)]
struct Message {
    is_text: bool,
    /// Bytes of its frames before the present one.
    before: u64,
}

/// What a frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Message { is_last: bool },
    Control,
}

impl Frames {
    /// Before the first frame.
    pub fn new(count: PacketCount) -> Self {
        Self {
            count,
            header: [0; FRAME_HEADER_MAX],
            header_bytes: 0,
            payload: 0,
            at: 0,
            head: Head::default(),
            of: Of::Control,
            message: None,
            announced: 0,
            longest: 0,
        }
    }

    /// Takes what came next.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), PacketExcess> {
        while !bytes.is_empty() {
            if self.payload == 0 {
                bytes = self.read_header(bytes)?;
            } else {
                bytes = self.read_payload(bytes)?;
            }
        }
        Ok(())
    }

    /// Whether something has begun of which more must come: a frame, a message, attachments.
    pub fn is_unfinished(&self) -> bool {
        self.header_bytes > 0 || self.message.is_some() || self.count.awaits_attachments()
    }

    /// Bytes that are kept of what came.
    pub fn kept(&self) -> u64 {
        let before = self.message.map_or(0, |message| message.before);
        self.longest + before + self.announced
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], PacketExcess> {
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(bytes) };
        self.header[self.header_bytes] = byte;
        self.header_bytes += 1;
        if self.header_bytes == header_length(&self.header[..self.header_bytes]) {
            self.count.take()?;
            self.begin();
        }
        Ok(rest)
    }

    /// A header is complete.
    fn begin(&mut self) {
        let length = usize::from(self.header[1] & 0x7f);
        self.payload = match length {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => self.header[2..10].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
            _ => length as u64,
        };
        let message = Of::Message { is_last: self.header[0] & 0x80 != 0 };
        self.of = match self.header[0] & 0x0f {
            opcode @ (0x1 | 0x2) => {
                self.head = Head::default();
                self.message = Some(Message { is_text: opcode == 0x1, before: 0 });
                message
            }
            // It goes on, also where a frame of control came between.
            0x0 => message,
            _ => Of::Control,
        };
        self.at = 0;
        if self.payload == 0 {
            self.end();
        }
    }

    fn read_payload<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], PacketExcess> {
        let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
        let (payload, rest) = bytes.split_at(here);
        if self.of != Of::Control {
            self.read_message(payload)?;
        }
        self.at += here;
        self.payload -= here as u64;
        if self.payload == 0 {
            self.end();
        }
        Ok(rest)
    }

    fn read_message(&mut self, payload: &[u8]) -> Result<(), PacketExcess> {
        let Some(message) = self.message else { return Ok(()) };
        // The mask is the last part of the header.
        let mask = &self.header[self.header_bytes.saturating_sub(4)..self.header_bytes];
        if message.is_text {
            for (at, byte) in (self.at..).zip(payload) {
                if self.head.is_known() {
                    break;
                }
                self.head.next(byte ^ mask[at % 4], &self.count)?;
            }
        }
        let of_frame = (self.at + payload.len()) as u64;
        self.longest = self.longest.max(of_frame);
        if message.is_text {
            self.head.check(message.before + of_frame)
        } else if message.before + of_frame > ATTACHED_BYTES_MAX as u64 {
            Err(PacketExcess::Attachments)
        } else {
            Ok(())
        }
    }

    /// A frame is complete.
    fn end(&mut self) {
        self.header_bytes = 0;
        let of_frame = std::mem::take(&mut self.at) as u64;
        let Of::Message { is_last } = self.of else { return };
        let Some(message) = &mut self.message else { return };
        message.before += of_frame;
        if is_last {
            let message = *message;
            self.end_message(message);
        }
    }

    fn end_message(&mut self, message: Message) {
        self.message = None;
        if !message.is_text {
            self.count.attach();
        }
        let awaits = self.count.awaits_attachments();
        self.announced = if awaits { self.announced + message.before } else { 0 };
    }
}

/// How long a frame's header is, as far as what came of it tells. Frames of clients are masked; the library ends
/// who sends others.
fn header_length(header: &[u8]) -> usize {
    let length = header.get(1).map_or(0, |byte| byte & 0x7f);
    2 + 4
        + match length {
            126 => 2,
            127 => 8,
            _ => 0,
        }
}

/// Whether what was read last of a connection was the end of a request's headers: a client that asks for a
/// websocket waits for the answer. Where frames began would not be known of one that does not.
#[derive(Default)]
pub struct HeadersEnd {
    last: Last,
    found: bool,
}

#[derive(Clone, Copy, Default)]
enum Last {
    #[default]
    Other,
    NewLine,
    NewLineReturn,
}

impl HeadersEnd {
    /// Something was answered: the next request comes.
    pub fn answered(&mut self) {
        self.found = false;
    }

    /// Takes what came next; `true` if the first empty line of a request is the end of it.
    pub fn read(&mut self, bytes: &[u8]) -> bool {
        let mut is_last = false;
        for (at, byte) in bytes.iter().enumerate() {
            // Also behind the first one: the next request may begin before the answer to this one.
            self.last = match (self.last, byte) {
                // The parser of requests takes a line feed alone for the end of a line too.
                (Last::NewLine | Last::NewLineReturn, b'\n') => {
                    is_last = !self.found && at + 1 == bytes.len();
                    self.found = true;
                    Last::NewLine
                }
                (_, b'\n') => Last::NewLine,
                (Last::NewLine, b'\r') => Last::NewLineReturn,
                _ => Last::Other,
            };
        }
        is_last
    }
}

/// The body of a request, whose packets are counted if it is of a socket.
pub struct CountedBody<B> {
    body: B,
    count: Option<Arc<PacketCount>>,
    head: Head,
    /// Whether the next byte begins a packet.
    begins: bool,
    /// What came of the present one.
    packet: u64,
}

impl<B> CountedBody<B> {
    pub fn new(body: B, count: Option<Arc<PacketCount>>) -> Self {
        Self { body, count, head: Head::default(), begins: true, packet: 0 }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), PacketExcess> {
        let Some(count) = &self.count else { return Ok(()) };
        for &byte in bytes {
            if byte == SEPARATOR {
                self.begins = true;
                continue;
            }
            if std::mem::take(&mut self.begins) {
                count.take()?;
                (self.head, self.packet) = (Head::default(), 0);
            }
            if !self.head.is_known() {
                self.head.next(byte, count)?;
            }
            self.packet += 1;
            self.head.check(self.packet)?;
        }
        Ok(())
    }
}

impl<B> HttpBody for CountedBody<B>
where
    B: HttpBody<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(excess) = this.read(data)
        {
            METRICS.excess(excess);
            return Poll::Ready(Some(Err(excess.into())));
        }
        Poll::Ready(frame)
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
    use std::num::NonZeroU32;

    use super::*;

    fn count(packets: u32) -> PacketCount {
        let burst = NonZeroU32::new(packets).unwrap();
        let quota = Quota::per_hour(NonZeroU32::MIN).allow_burst(burst);
        PacketCount::new(Some(quota))
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0x2f, 0x63, 0x34];
        let mut frame = vec![first];
        match payload.len() {
            length @ ..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..65_536 => {
                frame.push(0x80 | 0x7e);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(0x80 | 0x7f);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Reads them byte by byte, in threes and as a whole.
    fn read(packets: u32, frames: &[Vec<u8>]) -> Result<(), PacketExcess> {
        let bytes = frames.concat();
        let ways = [1, 3, bytes.len()].map(|length| {
            let mut frames = Frames::new(count(packets));
            bytes.chunks(length).try_for_each(|part| frames.read(part))
        });
        assert!(ways.iter().all(|way| *way == ways[0]), "{ways:?}");
        ways[0]
    }

    #[test]
    fn every_frame_counts_whatever_it_is() {
        let long = vec![b'x'; 70_000];
        let frames = [
            frame(0x81, b"3"),
            frame(0x89, b""),
            frame(0x8a, b"pong"),
            frame(0x82, &long[..200]),
            frame(0x01, b"42"),
            frame(0x89, b"between"),
            frame(0x80, &long),
            frame(0x81, b""),
        ];
        assert_eq!(read(8, &frames), Ok(()));
        assert_eq!(read(7, &frames), Err(PacketExcess::Packets));
        let mut unlimited = Frames::new(PacketCount::new(None));
        assert_eq!(unlimited.read(&frames.concat().repeat(100)), Ok(()));
    }

    #[test]
    fn the_name_of_a_namespace_may_be_so_long_wherever_frames_are_cut() {
        let name = |length: usize| "/".repeat(length);
        for head in ["40", "42", "451-", "412"] {
            for (length, is_short) in [(1, true), (256, true), (257, false), (100_000, false)] {
                let packet = format!("{head}{},[\"a\"]", name(length));
                let whole = frame(0x81, packet.as_bytes());
                let (first, second) = packet.as_bytes().split_at(3);
                let parts = [frame(0x01, first), frame(0x89, b"x"), frame(0x80, second)];
                assert_eq!(read(9, &[whole]).is_ok(), is_short, "{head} {length}");
                assert_eq!(read(9, &parts).is_ok(), is_short, "{head} {length} in parts");
            }
        }
        let content = format!(r#"42["user_message",{{"content":"{}"}}]"#, name(9_000));
        assert_eq!(read(1, &[frame(0x81, content.as_bytes())]), Ok(()));
        assert_eq!(read(1, &[frame(0x82, format!("40{}", name(9_000)).as_bytes())]), Ok(()));
    }

    #[test]
    fn a_few_other_namespaces_may_be_asked_for_and_the_default_one_by_any_of_its_names() {
        let joins = |packet: &str, times: usize| {
            let websocket = read(9_999, &vec![frame(0x81, packet.as_bytes()); times]);
            let mut body = CountedBody::new((), Some(Arc::new(count(9_999))));
            assert_eq!(
                websocket,
                body.read(vec![packet; times].join("\u{1e}").as_bytes()),
                "{packet}"
            );
            websocket
        };
        for packet in ["40", "40{}", "40/", "40/,", "40/,{}"] {
            assert_eq!(joins(packet, 100), Ok(()), "{packet}");
            assert_eq!(joins(packet, 101), Err(PacketExcess::Namespaces), "{packet}");
        }
        for packet in ["42/a,[]", "41/a,", "3"] {
            assert_eq!(joins(packet, 1_000), Ok(()), "{packet}");
        }
        for packet in ["40/a,", "40/a", "40//,", "40/?a=b,", "40/a,{\"token\":\"/\"}"] {
            assert_eq!(joins(packet, 8), Ok(()), "{packet}");
            assert_eq!(joins(packet, 9), Err(PacketExcess::Namespaces), "{packet}");
        }
    }

    /// What is kept behind these frames, and whether more must come.
    fn kept(frames: &[Vec<u8>]) -> (u64, bool) {
        let bytes = frames.concat();
        let ways = [1, 3, bytes.len()].map(|length| {
            let mut frames = Frames::new(count(999));
            assert_eq!(bytes.chunks(length).try_for_each(|part| frames.read(part)), Ok(()));
            (frames.kept(), frames.is_unfinished())
        });
        assert!(ways.iter().all(|way| *way == ways[0]), "{ways:?}");
        ways[0]
    }

    #[test]
    fn what_is_to_come_is_known_and_what_is_kept_meanwhile() {
        let long = vec![b'x'; 1_000];
        let half = |first: u8| frame(first, &long)[..500].to_vec();
        assert_eq!(kept(&[frame(0x81, b"3")]), (1, false));
        assert_eq!(
            kept(&[frame(0x81, &long), frame(0x89, b""), frame(0x81, b"3")]),
            (1_000, false)
        );
        assert_eq!(kept(&[half(0x81)]), (492, true));
        assert_eq!(kept(&[half(0x89)[..3].to_vec()]), (0, true), "half a header");
        assert_eq!(kept(&[frame(0x01, &long), frame(0x89, b"between")]), (2_000, true));
        assert_eq!(kept(&[frame(0x01, &long), half(0x00)]), (2_000, true));
        assert_eq!(kept(&[frame(0x01, &long), frame(0x00, b""), frame(0x80, b"")]), (1_000, false));
        let event = frame(0x81, b"452-[]");
        assert_eq!(kept(std::slice::from_ref(&event)), (6 + 6, true));
        assert_eq!(kept(&[event.clone(), frame(0x82, b"abcdefgh")]), (8 + 6 + 8, true));
        assert_eq!(
            kept(&[event.clone(), frame(0x02, b"a"), frame(0x80, b"b"), frame(0x82, b"c")]),
            (6, false)
        );
        assert_eq!(kept(&[frame(0x81, b"450-[]"), frame(0x81, b"46[]")]), (6, false));
    }

    #[test]
    fn attachments_and_what_announces_them_are_short_wherever_they_are_cut() {
        let long = |head: &str, bytes: usize| format!("{head}{}", "x".repeat(bytes - head.len()));
        let most = ATTACHED_BYTES_MAX;
        for head in ["451-[", "4612-/a,1[", "45", "46garbage"] {
            for (bytes, is_short) in [(most, true), (most + 1, false), (10 * most, false)] {
                let packet = long(head, bytes);
                let parts = packet.as_bytes().split_at(3);
                let parts = [frame(0x01, parts.0), frame(0x8a, b""), frame(0x80, parts.1)];
                for frames in [&[frame(0x81, packet.as_bytes())][..], &parts] {
                    assert_eq!(read(9, frames).is_ok(), is_short, "{head} {bytes}");
                }
                let mut body = CountedBody::new((), Some(Arc::new(count(9))));
                assert_eq!(body.read(packet.as_bytes()).is_ok(), is_short, "{head} {bytes}");
            }
        }
        assert_eq!(read(1, &[frame(0x81, long("42[", 10 * most).as_bytes())]), Ok(()));
        let binary = |first: usize, second: usize| {
            read(2, &[frame(0x02, &vec![0; first]), frame(0x80, &vec![0; second])])
        };
        assert_eq!(binary(most - 1, 1), Ok(()));
        assert_eq!(binary(most - 1, 2), Err(PacketExcess::Attachments));
        // Over polling they are text, four digits for three bytes.
        let encoded = |bytes: usize| {
            let mut body = CountedBody::new((), Some(Arc::new(count(9))));
            body.read(format!("451-[]\u{1e}b{}\u{1e}3", "A".repeat(bytes)).as_bytes())
        };
        assert_eq!(encoded(87_384), Ok(()));
        assert_eq!(encoded(87_385), Err(PacketExcess::Attachments));
    }

    #[test]
    fn attachments_over_polling_are_awaited_as_long_as_they_do_not_come() {
        let count = Arc::new(count(99));
        let awaits = |body: &str| {
            assert_eq!(
                CountedBody::new((), Some(Arc::clone(&count))).read(body.as_bytes()),
                Ok(())
            );
            count.awaits_attachments()
        };
        assert!(!awaits("42[]") && awaits("452-[]") && awaits("3") && awaits("bAA=="));
        assert!(!awaits("bAA==") && !awaits("451-[]\u{1e}bAA==") && !awaits("450-[]"));
    }

    #[test]
    fn packets_of_a_body_count_between_its_separators() {
        let read = |packets: u32, body: &str| {
            let ways = [1, 2, body.len()].map(|length| {
                let mut counted = CountedBody::new((), Some(Arc::new(count(packets))));
                body.as_bytes().chunks(length).try_for_each(|part| counted.read(part))
            });
            assert!(ways.iter().all(|way| *way == ways[0]), "{ways:?}");
            ways[0]
        };
        assert_eq!(read(3, "3\u{1e}40\u{1e}42[\"a,/\"]"), Ok(()));
        assert_eq!(read(2, "3\u{1e}40\u{1e}42[\"a,/\"]"), Err(PacketExcess::Packets));
        let long = format!("3\u{1e}40/{},", "n".repeat(256));
        assert_eq!(read(9, &long), Err(PacketExcess::Namespace));
        assert_eq!(read(9, &long[..long.len() - 2]), Ok(()));
        assert_eq!(read(1, &"3".repeat(1_000)), Ok(()), "one packet");
    }

    #[test]
    fn headers_end_with_the_first_empty_line_and_nothing_may_stand_behind_it() {
        let ends = |parts: &[&str]| {
            let mut end = HeadersEnd::default();
            parts.iter().fold(None, |_, part| Some(end.read(part.as_bytes())))
        };
        for parts in [
            &["GET / HTTP/1.1\r\nA: b\r\n\r\n"][..],
            &["GET / HTTP/1.1\nA: b\n\n"],
            &["GET / HTTP/1.1\r\nA: b\r\n", "\r\n"],
            &["GET / HTTP/1.1\r\nA: b\r\n\r", "\n"],
        ] {
            assert_eq!(ends(parts), Some(true), "{parts:?}");
        }
        for parts in [
            &["GET / HTTP/1.1\r\nA: b\r\n"][..],
            &["GET / HTTP/1.1\r\n\r\nframe"],
            &["GET / HTTP/1.1\r\n\r\nframe\r\n\r\n"],
            &["GET / HTTP/1.1\r\n\r\n", "frame\r\n\r\n"],
            &["GET / HTTP/1.1\n\nframe\r\n\r\n"],
            &["\r\n\r\nGET / HTTP/1.1\r\n\r\n"],
        ] {
            assert_eq!(ends(parts), Some(false), "{parts:?}");
        }
        let mut end = HeadersEnd::default();
        assert!(end.read(b"GET / HTTP/1.1\r\n\r\n"));
        end.answered();
        assert!(!end.read(b"GET /again HTTP/1.1\r\n"));
        assert!(end.read(b"\r\n"));
        // The next one comes before the answer.
        assert!(!end.read(b"GET /socket.io/ HTTP/1.1\r\n\r"));
        end.answered();
        assert!(!end.read(b"\nframe\r\n\r\n"));
    }
}
