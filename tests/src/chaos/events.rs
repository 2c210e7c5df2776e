//! Server-sent events as they arrive, of which connections make parts of any size (WHATWG HTML, section 9.2).

use anyhow::{Context, Result};
use serde_json::Value;

/// An event with JSON.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// The events of one connection.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// What came of a line that has not ended.
    line: Vec<u8>,
    name: String,
    data: String,
    id: Option<String>,
    /// The `id` of the last event that has ended.
    last_id: Option<String>,
}

impl Events {
    /// The events that end with this part.
    pub(super) fn read(&mut self, part: &[u8]) -> Vec<Result<Event>> {
        let mut events = Vec::new();
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend(piece);
            if self.line.pop_if(|last| *last == b'\n').is_some() {
                let line = std::mem::take(&mut self.line);
                events.extend(self.read_line(&String::from_utf8_lossy(&line)));
            }
        }
        events
    }

    /// The `id` of the last event that has ended, if one had any.
    pub(super) fn last_id(&self) -> Option<String> {
        self.last_id.clone()
    }

    fn read_line(&mut self, line: &str) -> Option<Result<Event>> {
        if line.is_empty() {
            return self.end();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data += value,
            "id" => self.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }

    fn end(&mut self) -> Option<Result<Event>> {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        self.last_id = self.id.take().or(self.last_id.take());
        let read = || Ok(Event { data: serde_json::from_str(&data).context("an event")?, name });
        (!data.is_empty()).then(read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_read_whatever_parts_they_come_in() {
        let text = ":\n\nevent: a\ndata: {\"x\":\"größer\"}\n\nevent: b\ndata: 1\nid: i\n\ndata: 2";
        let a = Event { name: "a".to_owned(), data: json!({ "x": "größer" }) };
        let b = Event { name: "b".to_owned(), data: json!(1) };
        for size in 1..=text.len() {
            let mut events = Events::default();
            let parts = text.as_bytes().chunks(size);
            let read: Vec<_> =
                parts.flat_map(|part| events.read(part)).map(Result::unwrap).collect();
            assert_eq!(read, [a.clone(), b.clone()]);
            assert_eq!(events.last_id().as_deref(), Some("i"));
        }
    }
}
