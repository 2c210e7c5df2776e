//! Every NATS subject of the product, built and parsed here and nowhere else.
//!
//! Only parsed ids go into subjects: NATS takes `*` literally in a published subject and refuses
//! spaces.

use crate::ids::SessionId;
use crate::partition::Partition;

/// All requests, for the stream.
pub const ALL_REQUESTS: &str = "chat.requests.*.*";
/// Reads records of a stream without a consumer, before its name.
pub const DIRECT_GET: &str = "$JS.API.DIRECT.GET";
/// What all commits did.
pub const ALL_COMMITS: &str = "chat.commits.*";
/// What commits did in any of the partitions. The last token names a group of them: all are one today.
pub const COMMITS: &str = "chat.commits.all";
/// Sessions whose end is in the log.
pub const ALL_ENDED: &str = "chat.ended.*.*";
/// A persister gave up partitions: a persister that wants them need not wait for the next look.
pub const RELEASED: &str = "chat.released";
/// What gateways tell each other about their visitors.
pub const PRESENCE: &str = "chat.presence";
/// Who types, from gateway to gateway.
pub const TYPING: &str = "chat.typing";
/// What was read of sessions, from gateways to any persister.
pub const READ_MARKS: &str = "chat.read-marks";
/// What persisters kept of that, to all gateways.
pub const READ_UP_TO: &str = "chat.read-up-to";

/// Where a session's requests go.
pub fn request(partition: Partition, session: SessionId) -> String {
    format!("chat.requests.{partition}.{session}")
}

/// All requests of one partition.
pub fn requests_of(partition: Partition) -> String {
    format!("chat.requests.{partition}.*")
}

/// Where the end of a session is told of.
pub fn ended(partition: Partition, session: SessionId) -> String {
    format!("chat.ended.{partition}.{session}")
}

/// Where gateways of before commits were announced listen for a partition's position.
pub fn older_position(partition: Partition) -> String {
    format!("chat.saved.{partition}")
}

/// Reads [`request`] and [`ended`]: the partition and the session.
pub fn parse(subject: &str) -> Option<(Partition, SessionId)> {
    let mut tokens = subject.split('.').skip(2);
    let partition = partition(tokens.next()?)?;
    let session = SessionId::parse(tokens.next()?).ok()?;
    tokens.next().is_none().then_some((partition, session))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_parsed() {
        let (partition, session) = (Partition::new(7), SessionId::random());
        assert_eq!(parse(&request(partition, session)), Some((partition, session)));
        assert_eq!(parse(&ended(partition, session)), Some((partition, session)));
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
