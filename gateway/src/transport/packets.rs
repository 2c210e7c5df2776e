//! Counts what a client sends before anybody looks at it.
//!
//! Events are counted where they are handled. What the socket library takes by itself is seen by no handler: pongs,
//! acks that nobody waits for, frames of control, packets of namespaces that are not served. To join such a one it
//! answers with its whole name. So every packet counts here: of a websocket by the headers of its frames (RFC 6455,
//! section 5.2), of polling by what stands between packets (Engine.IO protocol, version 4).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use bytes::Bytes;
use governor::Quota;
use hyper::body::{Frame, SizeHint};

use crate::access::limits::{Limiter, limiter};
use crate::metrics::{METRICS, PacketExcess};

/// Longest name of a namespace.
const NAMESPACE_BYTES_MAX: u16 = 256;
/// Stands between packets in the body of a request.
const SEPARATOR: u8 = 0x1e;
/// Longest header of a frame: two bytes, eight of length, four of the mask.
const FRAME_HEADER_MAX: usize = 14;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many packets one socket may send.
pub struct PacketCount(Option<Limiter>);

impl PacketCount {
    /// As many as this; without a quota any number.
    pub fn new(quota: Option<Quota>) -> Self {
        Self(quota.map(limiter))
    }

    fn take(&self) -> Result<(), PacketExcess> {
        let taken = self.0.as_ref().is_none_or(|limiter| limiter.check().is_ok());
        if taken { Ok(()) } else { Err(PacketExcess::Packets) }
    }
}

/// Reads the beginning of a packet, as far as its namespace.
#[derive(Debug, Clone, Copy, Default)]
enum Head {
    #[default]
    Packet,
    /// Behind the type of a packet that carries one of Socket.IO.
    Message,
    /// Behind the type of that one; of a binary packet a number of attachments comes first.
    Type,
    Namespace {
        bytes: u16,
    },
    /// The rest is not looked at.
    Known,
}

impl Head {
    fn is_known(self) -> bool {
        matches!(self, Self::Known)
    }

    fn next(&mut self, byte: u8) -> Result<(), PacketExcess> {
        *self = match (*self, byte) {
            (Self::Packet, b'4') => Self::Message,
            (Self::Message, b'0'..=b'6') | (Self::Type, b'0'..=b'9' | b'-') => Self::Type,
            (Self::Type, b'/') => Self::Namespace { bytes: 1 },
            (Self::Namespace { bytes }, _) if bytes >= NAMESPACE_BYTES_MAX && byte != b',' => {
                return Err(PacketExcess::Namespace);
            }
            (Self::Namespace { bytes }, byte) if byte != b',' => {
                Self::Namespace { bytes: bytes + 1 }
            }
            _ => Self::Known,
        };
        Ok(())
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
    /// Whether the present frame belongs to it.
    is_text: bool,
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
            head: Head::Known,
            is_text: false,
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
        match self.header[0] & 0x0f {
            0x1 => (self.head, self.is_text) = (Head::default(), true),
            // It goes on, also where a frame of control came between.
            0x0 => self.is_text = true,
            _ => self.is_text = false,
        }
        self.at = 0;
        if self.payload == 0 {
            self.header_bytes = 0;
        }
    }

    fn read_payload<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], PacketExcess> {
        let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
        let (payload, rest) = bytes.split_at(here);
        // The mask is the last part of the header.
        let mask = &self.header[self.header_bytes.saturating_sub(4)..self.header_bytes];
        for byte in payload {
            if !self.is_text || self.head.is_known() {
                break;
            }
            self.head.next(byte ^ mask[self.at % 4])?;
            self.at += 1;
        }
        self.payload -= here as u64;
        if self.payload == 0 {
            self.header_bytes = 0;
        }
        Ok(rest)
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
}

impl<B> CountedBody<B> {
    pub fn new(body: B, count: Option<Arc<PacketCount>>) -> Self {
        Self { body, count, head: Head::default(), begins: true }
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
                self.head = Head::default();
            }
            if !self.head.is_known() {
                self.head.next(byte)?;
            }
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
