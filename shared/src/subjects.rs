//! Every NATS subject of the product, built and parsed here and nowhere else.
//!
//! Only parsed ids go into subjects: NATS takes `*` literally in a published subject and refuses
//! spaces.

use crate::ids::SessionId;
use crate::partition::Partition;

/// All requests, for the stream.
pub const ALL_REQUESTS: &str = "chat.requests.*.*";
/// Reads records of the stream [`crate::log::STREAM`] without a consumer.
pub const DIRECT_GET: &str = "$JS.API.DIRECT.GET.CHAT";
/// Saved messages and positions of all partitions, in the order in which they were published.
pub const ALL_SAVED: &str = "chat.saved.>";
/// Sessions that can be read over REST from now on.
pub const ALL_OPENED: &str = "chat.opened.*.*";
/// A persister gave up partitions: a persister that wants them need not wait for the next look.
pub const RELEASED: &str = "chat.released";
/// What gateways tell each other about their visitors.
pub const PRESENCE: &str = "chat.presence";
/// An agent switched a session's AI on or off.
pub const AI_MODE: &str = "chat.ai-mode";

/// Where a session's requests go.
pub fn request(partition: Partition, session: SessionId) -> String {
    format!("chat.requests.{partition}.{session}")
}

/// All requests of one partition.
pub fn requests_of(partition: Partition) -> String {
    format!("chat.requests.{partition}.*")
}

/// Where a session's saved messages are announced, and its end: that has no payload, and no place in the
/// partition either if it is only asked for yet.
pub fn saved(partition: Partition, session: SessionId) -> String {
    format!("chat.saved.{partition}.{session}")
}

/// Where the owner of a partition repeats its last position.
pub fn position(partition: Partition) -> String {
    format!("chat.saved.{partition}")
}

/// Where a stored session is announced.
pub fn opened(partition: Partition, session: SessionId) -> String {
    format!("chat.opened.{partition}.{session}")
}

/// Reads [`request`] and [`opened`]: the partition and the session.
pub fn parse(subject: &str) -> Option<(Partition, SessionId)> {
    match parse_saved(subject)? {
        (partition, Some(session)) => Some((partition, session)),
        (_, None) => None,
    }
}

/// The partition of a request's subject, whether or not what follows names a session.
pub fn partition_of(subject: &str) -> Option<Partition> {
    partition(subject.split('.').nth(2)?)
}

/// Only the spelling that [`request`] uses: on another one nobody would look for a partition's records.
fn partition(token: &str) -> Option<Partition> {
    let partition = Partition::new(token.parse().ok()?);
    (partition.to_string() == token).then_some(partition)
}

/// Reads [`saved`] and [`position`]: the latter names no session.
pub fn parse_saved(subject: &str) -> Option<(Partition, Option<SessionId>)> {
    let mut tokens = subject.split('.').skip(2);
    let partition = partition(tokens.next()?)?;
    let session = tokens.next().map(SessionId::parse).transpose().ok()?;
    tokens.next().is_none().then_some((partition, session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_parsed() {
        let (partition, session) = (Partition::new(7), SessionId::random());
        assert_eq!(parse(&request(partition, session)), Some((partition, session)));
        assert_eq!(parse(&opened(partition, session)), Some((partition, session)));
        let saved = saved(partition, session);
        assert_eq!(parse_saved(&saved), Some((partition, Some(session))));
        assert_eq!(parse_saved(&position(partition)), Some((partition, None)));
    }

    #[test]
    fn foreign_subjects_are_refused() {
        let foreign = ["chat", "chat.requests", "chat.requests.x.y", "chat.requests.1.*"];
        for subject in foreign {
            assert_eq!(parse(subject), None, "{subject}");
        }
        let session = SessionId::random();
        for token in ["x", "", "-1", "+1", "01", "65536", "1e1", "¹", &"1".repeat(4_000)] {
            let subject = format!("chat.requests.{token}.{session}");
            assert_eq!((parse(&subject), partition_of(&subject)), (None, None), "{token}");
        }
        assert_eq!(partition_of("chat.requests.7.nobody"), Some(Partition::new(7)));
        assert_eq!(parse(&format!("chat.requests.1.{session}.more")), None);
    }
}
