//! What is wrong with an object that a client sends, in words for people, and what of it can be read all the same.
//!
//! Looked at only where reading it as what it should be has failed: a library's words for that speak of its types.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor, value};
use serde_json::value::RawValue;

/// Most characters of a client's own words that come back in an error.
const ECHO_CHARS_MAX: usize = 256;

/// What of a client's own words comes back in an error: enough to know them by. They may be a megabyte that nobody
/// could use, and would wait for the client once more.
pub fn echo(words: &str) -> &str {
    words.char_indices().nth(ECHO_CHARS_MAX).map_or(words, |(end, _)| &words[..end])
}

/// What a field must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Flag,
    /// A whole number from 1 to this one.
    Number(u16),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("a string"),
            Self::Flag => f.write_str("true or false"),
            Self::Number(most) => write!(f, "a whole number from 1 to {most}"),
        }
    }
}

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    name: &'static str,
    kind: Kind,
    is_required: bool,
}

impl Field {
    /// One that must be there.
    pub const fn required(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, is_required: true }
    }

    /// One that may be missing, or null.
    pub const fn optional(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, is_required: false }
    }
}

/// What is read from an object of a client.
pub trait Fields {
    /// All that it may hold.
    const FIELDS: &'static [Field];
}

/// A JSON object; serde alone would read a struct from an array too.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(value::MapAccessDeserializer::new(fields)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// What is wrong with an object; `what` names it.
pub fn mistake(what: &str, json: &str, fields: &[Field]) -> String {
    let names: Vec<_> = fields.iter().map(|field| field.name).collect();
    let Some(values) = values(json, &names) else {
        return match serde_json::from_str::<IgnoredAny>(json) {
            Ok(_) => format!("{what} must be an object"),
            Err(_) => format!("{what} is not JSON"),
        };
    };
    let mut mistakes = fields.iter().zip(values).filter_map(|(field, value)| field.mistake(value));
    mistakes.next().unwrap_or_else(|| format!("{what} has a name that is not Unicode"))
}

/// The texts of these fields, cut as far as they are repeated; nothing of what is no text.
pub fn echoes<const N: usize>(json: &str, names: [&str; N]) -> [Option<String>; N] {
    let values = values(json, &names).unwrap_or_default();
    let mut texts = values
        .into_iter()
        .map(|value| value.last.and_then(text_of).map(|text| echo(&text).to_owned()));
    names.map(|_| texts.next().flatten())
}

/// The value of a field, if it is there and not null: its text, or none of what is no text.
pub fn lenient(json: &str, name: &str) -> Option<Option<String>> {
    let value = values(json, &[name])?.pop()?.last?;
    (value.get() != "null").then(|| text_of(value))
}

/// What stands under a name.
#[derive(Clone, Copy, Default)]
struct Found<'a> {
    /// As it is written; of several the last counts, as in a browser.
    last: Option<&'a RawValue>,
    is_repeated: bool,
}

impl Field {
    fn mistake(&self, found: Found<'_>) -> Option<String> {
        let Self { name, kind, is_required } = self;
        let Some(value) = found.last.map(RawValue::get) else {
            return is_required.then(|| format!("{name} must be {kind}, and is missing"));
        };
        if found.is_repeated {
            return Some(format!("{name} is given more than once"));
        }
        let fits = match kind {
            _ if value == "null" => !is_required,
            Kind::Text if serde_json::from_str::<String>(value).is_ok() => true,
            Kind::Text if value.starts_with('"') => {
                return Some(format!("{name} is not Unicode: it holds half of a surrogate pair"));
            }
            Kind::Text => false,
            Kind::Flag => matches!(value, "true" | "false"),
            Kind::Number(most) => value.parse().is_ok_and(|number| (1..=*most).contains(&number)),
        };
        (!fits).then(|| format!("{name} must be {kind}"))
    }
}

/// What stands under these names in an object; none if it is not one.
fn values<'a>(json: &'a str, names: &[&str]) -> Option<Vec<Found<'a>>> {
    let mut json = serde_json::Deserializer::from_str(json);
    let values = Named(names).deserialize(&mut json).ok()?;
    json.end().ok().map(|()| values)
}

/// Keeps what is asked for only: a megabyte of other values takes no memory.
struct Named<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Vec<Found<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Named<'_> {
    type Value = Vec<Found<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = vec![Found::default(); self.0.len()];
        // Names as they are written too: they may hold half of a surrogate pair.
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Some(at) = self.0.iter().position(|wanted| is(wanted, name.get())) {
                found[at] = Found { last: Some(value), is_repeated: found[at].last.is_some() };
            }
        }
        Ok(found)
    }
}

/// Whether this name is written so.
fn is(name: &str, written: &str) -> bool {
    let plain = written.get(1..written.len() - 1);
    plain == Some(name)
        || (written.contains('\\')
            && serde_json::from_str::<String>(written).is_ok_and(|written| written == name))
}

/// A text, with U+FFFD for what of it is no Unicode.
fn text_of(value: &RawValue) -> Option<String> {
    let written = value.get();
    if !written.starts_with('"') {
        return None;
    }
    serde_json::from_str(written).ok().or_else(|| serde_json::from_str(&mended(written)).ok())
}

/// The same JSON text with `\ufffd` for each escape that is half of a surrogate pair.
fn mended(written: &str) -> String {
    let mut mended = String::with_capacity(written.len());
    let mut rest = written;
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match (unit(rest), rest.get(6..).and_then(unit)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
            (Some(0xd800..0xe000), _) => {
                mended.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (Some(_), _) => 6,
            // An escape of one character, which is ASCII.
            (None, _) => 2,
        };
        let (escape, behind) = rest.split_at(length.min(rest.len()));
        mended.push_str(escape);
        rest = behind;
    }
    mended.push_str(rest);
    mended
}

/// The UTF-16 unit that a text begins with, written as `\uXXXX`.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field::required("sessionId", Kind::Text),
        Field::required("content", Kind::Text),
        Field::optional("clientOffset", Kind::Text),
        Field::optional("enabled", Kind::Flag),
        Field::optional("limit", Kind::Number(500)),
    ];

    #[test]
    fn each_mistake_is_told_in_words_for_people() {
        for (json, text) in [
            ("{", "the payload is not JSON"),
            ("[]", "the payload must be an object"),
            ("42", "the payload must be an object"),
            ("{}", "sessionId must be a string, and is missing"),
            (r#"{"sessionId":null}"#, "sessionId must be a string"),
            (r#"{"sessionId":"a","content":42}"#, "content must be a string"),
            (r#"{"sessionId":"a","content":["x"]}"#, "content must be a string"),
            (
                r#"{"sessionId":"a","content":"\ud800"}"#,
                "content is not Unicode: it holds half of a surrogate pair",
            ),
            (r#"{"sessionId":"a","content":"","content":""}"#, "content is given more than once"),
            (
                r#"{"sessionId":"a","content":"b","clientOffset":7}"#,
                "clientOffset must be a string",
            ),
            (r#"{"sessionId":"a","content":"b","enabled":"yes"}"#, "enabled must be true or false"),
            (
                r#"{"sessionId":"a","content":"b","limit":1e3}"#,
                "limit must be a whole number from 1 to 500",
            ),
            (
                r#"{"sessionId":"a","content":"b","\ud800":1}"#,
                "the payload has a name that is not Unicode",
            ),
        ] {
            assert_eq!(mistake("the payload", json, FIELDS), text, "{json}");
        }
    }

    #[test]
    fn what_can_be_read_is_read_whatever_stands_beside_it() {
        let read = |json: &str| echoes(json, ["sessionId", "clientOffset"]);
        let both = [Some("a".to_owned()), Some("1".to_owned())];
        for beside in [r#""\ud800""#, "42", "null", r#"{"a":["\udc00"]}"#, r#""x","content":1"#] {
            let json = format!(r#"{{"sessionId":"a","content":{beside},"clientOffset":"1"}}"#);
            assert_eq!(read(&json), both, "{json}");
        }
        assert_eq!(read(r#"{"\ud800":1,"session\u0049d":"a","clientOffset":"1"}"#), both);
        assert_eq!(read(r#"{"sessionId":"x","sessionId":"a","clientOffset":"1"}"#), both);
        assert_eq!(read(r#"{"sessionId":42,"clientOffset":{}}"#), [None, None]);
        assert_eq!(read("[]"), [None, None]);
        let long = format!(r#"{{"sessionId":"{}"}}"#, "я".repeat(100_000));
        assert_eq!(read(&long), [Some("я".repeat(256)), None]);
    }

    #[test]
    fn half_of_a_pair_is_left_out_and_the_rest_stays() {
        let read = |written: &str| echoes(&format!(r#"{{"a":"{written}"}}"#), ["a"]);
        for (written, text) in [
            (r"x\ud83dy", "x\u{fffd}y"),
            (r"\ud83d\ude00\ude00", "😀\u{fffd}"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\\ud800 \n\udfff", "\\ud800 \n\u{fffd}"),
            (r"я\ud800я", "я\u{fffd}я"),
        ] {
            assert_eq!(read(written), [Some(text.to_owned())], "{written}");
        }
    }

    #[test]
    fn an_echo_is_cut_between_characters_and_short_words_come_back_whole() {
        assert_eq!([echo(""), echo("ключ")], ["", "ключ"]);
        for word in ["x", "я", "😀"] {
            assert_eq!(echo(&word.repeat(256)), word.repeat(256));
            assert_eq!(echo(&word.repeat(1_000_000)), word.repeat(256));
        }
    }
}
