//! What a client's event carries, before anybody believes it.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use socketioxide::adapter::LocalAdapter;
use socketioxide::handler::FromMessageParts;
use socketioxide::socket::Socket;
use socketioxide_core::Value;

use crate::error::{ClientError, ErrorCode};
use crate::fields::{self, Fields, Object};

/// An event as it came: the JSON array of its name and its arguments.
///
/// Extractors of the library drop what they cannot read, without an ack; here every event is
/// answered.
pub struct RawEvent {
    frame: Value,
    /// Whether the client waits for an answer.
    pub wants_ack: bool,
}

impl FromMessageParts<LocalAdapter> for RawEvent {
    type Error = std::convert::Infallible;

    fn from_message_parts(
        _: &Arc<Socket<LocalAdapter>>,
        frame: &mut Value,
        ack: &Option<i64>,
    ) -> Result<Self, Self::Error> {
        // The text is a shared buffer, not a copy.
        Ok(Self::new(frame.clone(), ack.is_some()))
    }
}

impl RawEvent {
    /// An event by its frame.
    pub fn new(frame: Value, wants_ack: bool) -> Self {
        Self { frame, wants_ack }
    }

    fn text(&self) -> &str {
        self.frame.as_str().map_or("[]", |text| text)
    }

    /// Bytes of the frame.
    pub fn bytes(&self) -> usize {
        self.text().len()
    }

    /// Whether binary attachments came with it.
    pub fn has_attachments(&self) -> bool {
        matches!(&self.frame, Value::Str(_, Some(attachments)) if !attachments.is_empty())
    }

    pub fn name(&self) -> Cow<'_, str> {
        // Nearly every name is written without an escape, and the rest need not be looked at for it.
        let plain = self.text().strip_prefix("[\"").and_then(|text| text.split_once('"'));
        match plain {
            Some((name, _)) if !name.contains('\\') => name.into(),
            _ => {
                serde_json::from_str(self.text()).map(|First(name)| name).unwrap_or_default().into()
            }
        }
    }

    /// The first argument, which must be an object; `None` if it is missing or null.
    pub fn object<T: DeserializeOwned + Fields>(&self) -> Result<Option<T>, ClientError> {
        match serde_json::from_str::<Second<Option<Object<T>>>>(self.text()) {
            Ok(Second(object)) => Ok(object.flatten().map(|Object(object)| object)),
            Err(_) => Err(ClientError::new(ErrorCode::InvalidPayload, self.mistake(T::FIELDS))),
        }
    }

    fn mistake(&self, fields: &[fields::Field]) -> String {
        match self.argument() {
            Some(json) => fields::mistake("the payload", json, fields),
            None => "the event is not JSON".to_owned(),
        }
    }

    /// The session that it names, as far as that can be read.
    pub fn session_id(&self) -> Option<String> {
        let [session_id] = fields::echoes(self.argument()?, ["sessionId"]);
        session_id
    }

    /// The first argument as it is written: what of it can be read is read by [`fields`].
    pub fn argument(&self) -> Option<&str> {
        let Second(argument) = serde_json::from_str::<Second<&RawValue>>(self.text()).ok()?;
        argument.map(RawValue::get)
    }
}

/// Bytes of a text of a client that are kept: more than any id has that Postgres could find.
const TEXT_BYTES_MAX: usize = 16_384;

/// A text, or nothing where something else stands: what a client sends may be anything, and a megabyte of small
/// values would take a hundred times its size in memory. A text is cut at 16 KiB.
#[derive(Debug, Default, PartialEq)]
pub struct Text(Option<String>);

impl Text {
    pub fn into_string(self) -> Option<String> {
        self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = Text;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                let end = text.floor_char_boundary(TEXT_BYTES_MAX);
                Ok(Text(Some(text[..end].to_owned())))
            }

            fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Text, A::Error> {
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Text, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(Anything)
    }
}

/// The first element of an array.
struct First(String);

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = First;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an event")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<First, A::Error> {
                let name = elements.next_element()?.unwrap_or_default();
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(name))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// The second element of an array.
struct Second<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Second<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
            type Value = Second<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an event")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Second<T>, A::Error> {
                elements.next_element::<IgnoredAny>()?;
                let second = elements.next_element()?;
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Second(second))
            }
        }
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::{Field, Kind};

    #[derive(Debug, Deserialize, PartialEq)]
    struct Payload {
        content: String,
    }

    impl Fields for Payload {
        const FIELDS: &'static [Field] = &[Field::required("content", Kind::Text)];
    }

    fn event(text: &str) -> RawEvent {
        RawEvent { frame: Value::Str(text.to_owned().into(), None), wants_ack: false }
    }

    #[test]
    fn a_text_is_read_as_far_as_it_may_go_and_anything_else_is_none() {
        let text = |json: &str| serde_json::from_str::<Text>(json).unwrap().into_string();
        assert_eq!(text(r#""Hello \u00e4!""#).as_deref(), Some("Hello ä!"));
        let long = format!("x{}", "я".repeat(100_000));
        let read = text(&serde_json::json!(long).to_string()).unwrap();
        assert!(read.len() == TEXT_BYTES_MAX - 1 && long.starts_with(&read));
        for other in ["null", "true", "-1", "1", "1.5", "[1,[2]]", r#"{"a":{"b":"c"}}"#] {
            assert_eq!(text(other), None, "{other}");
        }
        for broken in ["[1,", r#"{"a" 1}"#, r#""\ud800""#, "nul"] {
            assert!(serde_json::from_str::<Text>(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn an_object_is_read_and_its_absence_is_no_error() {
        let payload = event(r#"["x",{"content":"hi","more":[1]},2]"#).object();
        assert_eq!(payload.unwrap(), Some(Payload { content: "hi".into() }));
        for text in [r#"["x"]"#, r#"["x",null]"#] {
            assert_eq!(event(text).object::<Payload>().unwrap(), None);
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for argument in [
            r#"["hi"]"#,
            "1",
            r#""hi""#,
            "true",
            "{}",
            r#"{"content":1}"#,
            r#"{"content":"\ud800"}"#,
        ] {
            let text = format!(r#"["x",{argument}]"#);
            assert!(event(&text).object::<Payload>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_name_comes_first() {
        assert_eq!(event(r#"["user_message",{}]"#).name(), "user_message");
        assert_eq!(event(r#"["a\n"]"#).name(), "a\n");
        assert_eq!(event(r#" [ "spaced" ]"#).name(), "spaced");
        assert_eq!(event("[]").name(), "");
    }
}
