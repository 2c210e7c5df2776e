//! What a client's event carries, before anybody believes it.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor, value};
use socketioxide::adapter::LocalAdapter;
use socketioxide::handler::FromMessageParts;
use socketioxide::socket::Socket;
use socketioxide_core::Value;

/// Most characters of a client's own words that come back in an error.
const ECHO_CHARS_MAX: usize = 256;

/// What of a client's own words comes back in an error: enough to know them by. They may be a megabyte that nobody
/// could use, and would wait for the client once more.
pub fn echo(words: &str) -> &str {
    words.char_indices().nth(ECHO_CHARS_MAX).map_or(words, |(end, _)| &words[..end])
}

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
    pub fn object<T: DeserializeOwned>(&self) -> Result<Option<T>, serde_json::Error> {
        let Second(object) = serde_json::from_str::<Second<Option<Object<T>>>>(self.text())?;
        Ok(object.flatten().map(|Object(object)| object))
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

/// A JSON object; serde alone would read a struct from an array too.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(value::MapAccessDeserializer::new(fields)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Payload {
        content: String,
    }

    fn event(text: &str) -> RawEvent {
        RawEvent { frame: Value::Str(text.to_owned().into(), None), wants_ack: false }
    }

    #[test]
    fn an_echo_is_cut_between_characters_and_short_words_come_back_whole() {
        assert_eq!([echo(""), echo("ключ")], ["", "ключ"]);
        for word in ["x", "я", "😀"] {
            assert_eq!(echo(&word.repeat(256)), word.repeat(256));
            assert_eq!(echo(&word.repeat(1_000_000)), word.repeat(256));
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
