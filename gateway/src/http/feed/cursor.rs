//! How far a feed is: the position of each partition, as a text that is opaque to clients.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::announcement::{Epoch, Position};
use shared::partition::Partition;

/// The first byte: how the rest is to be read.
const VERSION: u8 = 1;
/// What stands for the beginning.
const BEGINNING: &str = "0";
/// Bytes of a partition: its number, its epoch, the sequence.
const PLACE_BYTES: usize = 2 + 8 + 8;

/// Up to where a feed has everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor(pub BTreeMap<Partition, Position>);

impl Cursor {
    /// Reads what was written; `None` if it is something else. `0` stands before everything, and so does one without
    /// a place: it is of a gateway that had heard of no partition yet.
    pub fn parse(text: &str) -> Option<Self> {
        if text == BEGINNING {
            return Some(Self::default());
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, places) = bytes.split_first()?;
        if *version != VERSION || places.len() % PLACE_BYTES != 0 {
            return None;
        }
        let place = |bytes: &[u8]| {
            let number = u16::from_be_bytes(bytes[..2].try_into().ok()?);
            let epoch = i64::from_be_bytes(bytes[2..10].try_into().ok()?);
            let sequence = u64::from_be_bytes(bytes[10..].try_into().ok()?);
            // As Postgres stores it.
            i64::try_from(sequence).ok()?;
            Some((Partition::new(number), Position { epoch: Epoch(epoch), sequence }))
        };
        places.chunks(PLACE_BYTES).map(place).collect::<Option<_>>().map(Self)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        for (partition, Position { epoch, sequence }) in &self.0 {
            bytes.extend(partition.number().to_be_bytes());
            bytes.extend(epoch.0.to_be_bytes());
            bytes.extend(sequence.to_be_bytes());
        }
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_round_trips_and_nothing_else_is_one() {
        let place = |number: u16, epoch, sequence| {
            (Partition::new(number), Position { epoch: Epoch(epoch), sequence })
        };
        let cursor = Cursor([place(0, 1, 0), place(63, i64::MAX, 7)].into());
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor.clone()));
        for beginning in ["0", &Cursor::default().to_string()] {
            assert_eq!(Cursor::parse(beginning), Some(Cursor::default()));
        }
        let longer = format!("{cursor}AA");
        let negative = Cursor([place(0, 1, u64::MAX)].into()).to_string();
        for text in ["", "x", "AQA", "AgAAAAAAAAAAAAAAAAAAAAAAAA", "ü", &longer, &negative] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
