//! Identifiers: [`SessionId`] names a conversation towards clients, [`MessageId`] and
//! [`ChatSessionId`] are the primary keys of the two tables.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::content::ClientOffset;
use crate::message::Sender;

/// The id of a conversation: a UUID version 4, in canonical lower case.
///
/// Anything else is refused, so that the id can stand in a NATS subject and so that one session
/// never has two spellings.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

/// See [`SessionId::digest`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionDigest([u8; 32]);

/// The text is not a UUID version 4 in canonical lower case.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a UUID version 4 in lower case")]
pub struct InvalidSessionId;

impl SessionId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses the canonical text form.
    pub fn parse(text: &str) -> Result<Self, InvalidSessionId> {
        let uuid = Uuid::try_parse(text).map_err(|_| InvalidSessionId)?;
        let canonical = uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text;
        let rfc_4122 = uuid.get_variant() == uuid::Variant::RFC4122;
        if canonical && rfc_4122 && uuid.get_version_num() == 4 {
            Ok(Self(uuid))
        } else {
            Err(InvalidSessionId)
        }
    }

    /// The id itself where the text is one, else an id that always stands for this text.
    pub fn standing_for(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|_| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&Sha256::digest(text)[..16]);
            Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
        })
    }

    /// What is remembered of an erased session: SHA-256 of its id as text. It tells an id again, and
    /// no id can be told from it.
    pub fn digest(&self) -> SessionDigest {
        SessionDigest::of(&self.to_string())
    }

    /// The sixteen bytes of the UUID.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// What logs may show above debug level: the first eight characters. Anybody who knows a whole
    /// session id is let into the session.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}…)", self.short())
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl SessionDigest {
    /// See [`SessionId::digest`]; an adopter's session may have any text as its id.
    pub fn of(session_id: &str) -> Self {
        Self(Sha256::digest(session_id).into())
    }

    /// Its bytes, as Postgres stores them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads what Postgres stores; `None` if it has another length.
    pub fn from_column(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for SessionDigest {
    /// In hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionDigest(…)")
    }
}

/// The primary key of a message: a CUID in the shape of Prisma's `cuid()`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MessageId(String);

/// The primary key of a session's row: a CUID in the shape of Prisma's `cuid()`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChatSessionId(String);

/// The text is not `c` followed by 24 of `[a-z0-9]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a CUID")]
pub struct InvalidCuid;

/// Length of a CUID in characters.
const CUID_LEN: usize = 25;
/// Characters that carry the time; eight base-36 digits last until the year 2059.
const CUID_TIME_LEN: usize = 8;
const BASE_36: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

impl MessageId {
    /// A new id that sorts by its time of birth, so that the primary key's index grows at one end.
    pub fn random() -> Self {
        Self(random_cuid())
    }

    /// The id of every send that carries this offset: the same session, sender, token subject and
    /// offset always give the same id, which is what makes a resend harmless.
    pub fn derived(
        session: SessionId,
        sender: Sender,
        token_subject: Option<&str>,
        offset: &ClientOffset,
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update(session.as_bytes());
        hash.update([sender as u8, u8::from(token_subject.is_some())]);
        let subject = token_subject.unwrap_or_default();
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hash.update((subject.len() as u64).to_be_bytes());
        hash.update(subject);
        hash.update(offset.as_str());
        Self(hashed_cuid(hash))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ChatSessionId {
    /// A new id that sorts by its time of birth.
    pub fn random() -> Self {
        Self(random_cuid())
    }

    /// The id of a session that is opened by one of its messages, since the record that should have opened it
    /// is lost: always the same, so that a log that is read again gives the same row.
    pub fn derived(session: SessionId) -> Self {
        // Not the digest of an erased session, which must not tell whose row it was.
        Self(hashed_cuid(
            Sha256::new().chain_update("chat session ").chain_update(session.as_bytes()),
        ))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn random_cuid() -> String {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = elapsed.map_or(0, |elapsed| elapsed.as_millis());
    let random = Uuid::new_v4().as_u128();
    let time = base_36(millis, CUID_TIME_LEN);
    cuid(&(time + &base_36(random, CUID_LEN - 1 - CUID_TIME_LEN)))
}

fn hashed_cuid(hash: Sha256) -> String {
    let mut number = [0; 16];
    number.copy_from_slice(&hash.finalize()[..16]);
    cuid(&base_36(u128::from_be_bytes(number), CUID_LEN - 1))
}

fn cuid(digits: &str) -> String {
    format!("c{digits}")
}

/// The lowest `len` base-36 digits of a number.
fn base_36(mut number: u128, len: usize) -> String {
    /// Digits that are computed at a time: machines divide numbers of 64 bits much faster.
    const CHUNK: usize = 12;
    const CHUNK_NUMBERS: u128 = 36_u128.pow(12);
    let mut digits = vec![0; len];
    for chunk in digits.rchunks_mut(CHUNK) {
        let mut low = u64::try_from(number % CHUNK_NUMBERS).unwrap_or_default();
        number /= CHUNK_NUMBERS;
        for digit in chunk.iter_mut().rev() {
            *digit = BASE_36[(low % 36) as usize];
            low /= 36;
        }
    }
    digits.into_iter().map(char::from).collect()
}

fn check_cuid(text: String) -> Result<String, InvalidCuid> {
    let digits = text.strip_prefix('c').ok_or(InvalidCuid)?;
    let valid = text.len() == CUID_LEN
        && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'z'));
    if valid { Ok(text) } else { Err(InvalidCuid) }
}

impl TryFrom<String> for MessageId {
    type Error = InvalidCuid;

    fn try_from(text: String) -> Result<Self, InvalidCuid> {
        check_cuid(text).map(Self)
    }
}

impl TryFrom<String> for ChatSessionId {
    type Error = InvalidCuid;

    fn try_from(text: String) -> Result<Self, InvalidCuid> {
        check_cuid(text).map(Self)
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> Self {
        id.0
    }
}

impl From<ChatSessionId> for String {
    fn from(id: ChatSessionId) -> Self {
        id.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANONICAL: &str = "550e8400-e29b-41d4-a716-446655440000";

    #[test]
    fn a_session_id_has_one_spelling() {
        assert_eq!(SessionId::parse(CANONICAL).unwrap().to_string(), CANONICAL);
        for text in [
            "",
            "garbage",
            "550E8400-E29B-41D4-A716-446655440000",
            "{550e8400-e29b-41d4-a716-446655440000}",
            "550e8400e29b41d4a716446655440000",
            "550e8400-e29b-11d4-a716-446655440000",
            "550e8400-e29b-41d4-c716-446655440000",
            " 550e8400-e29b-41d4-a716-446655440000",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert_eq!(SessionId::parse(text), Err(InvalidSessionId), "{text}");
        }
    }

    #[test]
    fn an_id_stands_for_itself_and_any_other_text_has_one_that_stands_for_it() {
        let session = SessionId::standing_for(CANONICAL);
        assert_eq!(session.to_string(), CANONICAL);
        let legacy = SessionId::standing_for("visitor 7");
        // The log outlives releases.
        assert_eq!(legacy.to_string(), "ee8cc493-46b8-42e1-8616-cc061aa9c39d");
        assert_eq!(SessionId::parse(&legacy.to_string()), Ok(legacy));
        assert_ne!(legacy.digest(), session.digest());
    }

    #[test]
    fn ids_are_cuids_and_differ() {
        let ids: Vec<_> = (0..1_000).map(|_| MessageId::random()).collect();
        for id in &ids {
            assert!(check_cuid(id.as_str().to_owned()).is_ok(), "{id}");
        }
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn digits_are_those_of_the_number() {
        assert_eq!(base_36(0, 5), "00000");
        assert_eq!(base_36(36_u128.pow(12) - 1, 13), "0zzzzzzzzzzzz");
        assert_eq!(base_36(36_u128.pow(12), 13), "1000000000000");
        assert_eq!(
            base_36(u128::MAX, 25),
            "f5lxx1zz5pnorynqglhzmsp33",
            "as other programs write it"
        );
        assert_eq!(base_36(u128::MAX, 3), "p33", "the lowest ones");
    }

    #[test]
    fn a_derived_id_depends_on_every_part() {
        let (a, b) = (SessionId::random(), SessionId::random());
        let [one, two] = ["1", "2"].map(|text| ClientOffset::parse(text).unwrap());
        let id = MessageId::derived(a, Sender::User, None, &one);
        assert_eq!(id, MessageId::derived(a, Sender::User, None, &one));
        assert!(check_cuid(id.as_str().to_owned()).is_ok());
        for other in [
            MessageId::derived(b, Sender::User, None, &one),
            MessageId::derived(a, Sender::Admin, None, &one),
            MessageId::derived(a, Sender::User, Some(""), &one),
            MessageId::derived(a, Sender::User, Some("alice"), &one),
            MessageId::derived(a, Sender::User, None, &two),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn a_derived_id_never_changes_between_releases() {
        let session = SessionId::parse(CANONICAL).unwrap();
        let offset = ClientOffset::parse("offset-1").unwrap();
        let id = MessageId::derived(session, Sender::User, None, &offset);
        assert_eq!(id.as_str(), "cj45mk6wvgrz3bx5kafebohob");
        let stand_in = ChatSessionId::derived(session);
        assert_eq!(stand_in.as_str(), "c8porwzwa1xcsbuh76u9l1y1a");
        assert!(check_cuid(stand_in.as_str().to_owned()).is_ok());
        assert_ne!(stand_in, ChatSessionId::derived(SessionId::random()));
    }

    #[test]
    fn what_is_no_cuid_is_refused() {
        for text in ["", "c", "cm4xyz", "d23456789012345678901234", "cABCDEFGHIJKLMNOPQRSTUVWX"] {
            assert_eq!(MessageId::try_from(text.to_owned()), Err(InvalidCuid));
        }
    }
}
