//! How a session looks in the lists of an inbox.

use std::borrow::Cow;
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::ids::SessionId;
use shared::message::Sender;
use shared::timestamp::Timestamp;

use crate::db::history::History;
use crate::db::rows::{LAST_CHARS, ListedSession, ReadUpTo};
use crate::presence::active::Presence;

/// Characters of a session's id by which people tell visitors apart.
const USER_CHARS: usize = 8;
const SECONDS_OF_400_YEARS: i64 = 146_097 * 24 * 60 * 60;

/// The time zone of the agents.
#[derive(Debug, Clone)]
pub struct Zone(TimeZone);

impl FromStr for Zone {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let zone = TimeZone::get(name);
        zone.map(Self).map_err(|_| "must be a time zone such as UTC or Europe/Berlin")
    }
}

impl Zone {
    /// As `toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"})` writes it in English.
    fn clock(&self, utc: Timestamp) -> String {
        let seconds = utc.written_millis().div_euclid(1_000);
        // Calendars, and the rules of zones in the future, repeat themselves: the table ends with the year 9999.
        let last = jiff::Timestamp::MAX.as_second() - SECONDS_OF_400_YEARS;
        let seconds = if seconds > last {
            last + (seconds - last).rem_euclid(SECONDS_OF_400_YEARS)
        } else {
            seconds
        };
        let time = jiff::Timestamp::from_second(seconds);
        let clock = |time: jiff::Timestamp| time.to_zoned(self.0.clone()).strftime("%I:%M %p");
        time.map(|time| clock(time).to_string()).unwrap_or_default()
    }
}

/// A session in a list: exactly these keys, in this order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    session_id: &'a str,
    user: String,
    last_message: Cow<'a, str>,
    timestamp: String,
    is_active: bool,
    created_at: Timestamp,
    last_message_at: Option<Timestamp>,
    status: &'a str,
    assignee: Option<&'a str>,
    ai_enabled: bool,
    unread: i64,
    /// Where one session is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<&'a ReadUpTo>,
}

/// Makes entries as agents see them now.
pub struct Entries {
    history: History,
    presence: Arc<Presence>,
    zone: Zone,
}

impl Entries {
    /// For agents in this time zone.
    pub fn new(history: History, presence: Arc<Presence>, zone: Zone) -> Self {
        Self { history, presence, zone }
    }

    /// An array of these sessions; `None` if it cannot be written as JSON.
    pub fn list(&self, sessions: &[ListedSession]) -> Option<Box<RawValue>> {
        to_raw_value(&sessions.iter().map(|session| self.entry(session)).collect::<Vec<_>>()).ok()
    }

    /// Those of these sessions that are stored, one by one.
    pub async fn of(&self, sessions: &[SessionId]) -> sqlx::Result<Vec<Box<RawValue>>> {
        let listed = self.history.listed(sessions).await?;
        Ok(listed.iter().filter_map(|session| to_raw_value(&self.entry(session)).ok()).collect())
    }

    /// The same by their ids.
    pub async fn by_id(
        &self,
        sessions: &[SessionId],
    ) -> sqlx::Result<HashMap<SessionId, Box<RawValue>>> {
        let listed = self.history.listed(sessions).await?;
        let entry = |session: &ListedSession| {
            let id = SessionId::parse(&session.session_id).ok()?;
            Some((id, to_raw_value(&self.entry(session)).ok()?))
        };
        Ok(listed.iter().filter_map(entry).collect())
    }

    /// One session, if it is stored.
    pub async fn one(&self, session: SessionId) -> sqlx::Result<Option<Box<RawValue>>> {
        Ok(self.of(&[session]).await?.pop())
    }

    /// One session and what was read of it, if it is stored.
    pub async fn with_read(&self, session: SessionId) -> sqlx::Result<Option<Box<RawValue>>> {
        let read = self.history.read_up_to(session).await?;
        let listed = self.history.listed(&[session]).await?;
        let whole = |it| to_raw_value(&Entry { read: Some(&read), ..self.entry(it) }).ok();
        Ok(listed.first().and_then(whole))
    }

    fn entry<'a>(&self, session: &'a ListedSession) -> Entry<'a> {
        let id = SessionId::parse(&session.session_id);
        let is_active = id.is_ok_and(|id| self.presence.is_active(id));
        Entry::new(session, is_active, &self.zone)
    }
}

impl<'a> Entry<'a> {
    /// The session as agents in this time zone see it.
    pub fn new(session: &'a ListedSession, is_active: bool, zone: &Zone) -> Self {
        let user: String = session.session_id.chars().take(USER_CHARS).collect();
        Self {
            session_id: &session.session_id,
            user: format!("User-{user}"),
            last_message: last_message(session),
            timestamp: zone.clock(session.last_at.unwrap_or(session.created_at)),
            is_active,
            created_at: session.created_at,
            last_message_at: session.last_at,
            status: &session.status,
            assignee: session.assignee.as_deref(),
            ai_enabled: session.ai_enabled,
            unread: session.unread,
            read: None,
        }
    }
}

fn last_message(session: &ListedSession) -> Cow<'_, str> {
    let Some(content) = &session.last_content else { return "No messages yet".into() };
    let end = content.char_indices().nth(LAST_CHARS).map(|(end, _)| end);
    let cut = end.map_or(Cow::from(content), |end| format!("{}...", &content[..end]).into());
    match session.last_sender.as_deref() {
        Some(sender) if sender == Sender::Admin.as_str() => format!("Admin: {cut}").into(),
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn session(last: Option<(&str, &str)>) -> ListedSession {
        ListedSession {
            id: "cm4abc123".into(),
            session_id: "550e8400-e29b-41d4-a716-446655440000".into(),
            created_at: Timestamp::truncate(datetime!(2024-12-13 09:41:05.999 UTC)),
            last_sender: last.map(|(sender, _)| sender.into()),
            last_content: last.map(|(_, content)| content.into()),
            last_at: last.map(|_| Timestamp::truncate(datetime!(2024-12-13 22:05:00 UTC))),
            status: "open".into(),
            assignee: None,
            ai_enabled: true,
            unread: 0,
        }
    }

    fn json(session: &ListedSession, zone: &str) -> String {
        serde_json::to_string(&Entry::new(session, true, &zone.parse().unwrap())).unwrap()
    }

    #[test]
    fn a_session_has_the_keys_of_the_contract_in_its_order() {
        let json = json(&session(None), "UTC");
        let wanted = r#"{"sessionId":"550e8400-e29b-41d4-a716-446655440000","user":"User-550e8400","lastMessage":"No messages yet","timestamp":"09:41 AM","isActive":true,"createdAt":"2024-12-13T09:41:05.999Z","lastMessageAt":null,"status":"open","assignee":null,"aiEnabled":true,"unread":0}"#;
        assert_eq!(json, wanted);
    }

    #[test]
    fn the_clock_is_that_of_the_zone() {
        let session = session(Some(("user", "hi")));
        assert!(json(&session, "UTC").contains(r#""timestamp":"10:05 PM""#));
        assert!(json(&session, "Asia/Kolkata").contains(r#""timestamp":"03:35 AM""#));
        assert!(json(&session, "UTC").contains(r#""lastMessageAt":"2024-12-13T22:05:00.000Z""#));
        let far = |millis| Timestamp::from_unix_millis(millis).unwrap();
        // Summer time of 2024, and 400 years later, and many times 400.
        let zone: Zone = "Europe/Berlin".parse().unwrap();
        let july = 1_719_835_200_000;
        for eras in [0, 1, 2, 19, 20, 600] {
            assert_eq!(zone.clock(far(july + eras * SECONDS_OF_400_YEARS * 1_000)), "02:00 PM");
        }
        let utc: Zone = "UTC".parse().unwrap();
        assert_eq!(utc.clock(Timestamp::INFINITY), "12:00 AM");
        assert_eq!(utc.clock(Timestamp::MINUS_INFINITY), "12:00 AM");
        assert!("Mars/Olympus".parse::<Zone>().is_err());
    }

    #[test]
    fn long_messages_are_cut_after_fifty_characters() {
        let fifty = "ü".repeat(LAST_CHARS);
        let last =
            |sender, content: &str| last_message(&session(Some((sender, content)))).into_owned();
        assert_eq!(last("user", &fifty), fifty);
        assert_eq!(last("user", &format!("{fifty}!")), format!("{fifty}..."));
        assert_eq!(last("admin", &format!("{fifty}!")), format!("Admin: {fifty}..."));
        assert_eq!(last("admin", "hi"), "Admin: hi");
    }
}
