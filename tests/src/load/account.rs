//! What a client was shown of each sender of its session, in which order: what was lost, doubled or
//! turned round shows by the numbers that the messages carry.

use std::collections::{BTreeSet, HashSet};

/// Characters of a message.
const CONTENT_CHARS: usize = 100;
/// What the content of a message of ours begins with, as it stands in a packet.
const MARK: &str = "\"content\":\"load ";
/// Digits of a sender's number.
const SENDER_DIGITS: usize = 6;
/// Digits of a message's number.
const NUMBER_DIGITS: usize = 9;

/// Which message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Its sender among all of the run.
    pub(super) sender: usize,
    /// Its number among all of that sender.
    pub(super) number: u64,
}

impl Name {
    /// The content of the message with this name.
    pub(super) fn content(self) -> String {
        let Self { sender, number } = self;
        let mut content = format!("load {sender:0SENDER_DIGITS$} {number:0NUMBER_DIGITS$} ");
        content.extend(std::iter::repeat_n('x', CONTENT_CHARS - content.len()));
        content
    }

    /// Reads the name from a packet, without parsing the rest of it.
    pub(super) fn find(packet: &str) -> Option<Self> {
        let content = &packet[packet.find(MARK)? + MARK.len()..];
        let sender = content.get(..SENDER_DIGITS)?.parse().ok()?;
        let number =
            content.get(SENDER_DIGITS + 1..=SENDER_DIGITS + NUMBER_DIGITS)?.parse().ok()?;
        Some(Self { sender, number })
    }
}

/// What one client was shown of one sender.
#[derive(Debug, Default)]
pub(super) struct Shown {
    next: u64,
    /// Numbers below `next` that were not shown yet.
    missing: BTreeSet<u64>,
    doubled: u64,
    turned: u64,
}

/// What went wrong, summed up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// Taken or of unknown outcome, and never shown to a client.
    pub(super) lost: u64,
    /// Shown to a client more than once.
    pub(super) doubled: u64,
    /// Shown after a later message of the same sender.
    pub(super) turned: u64,
    /// Surely not taken, and shown all the same.
    pub(super) risen: u64,
}

impl Shown {
    /// One more was shown.
    pub(super) fn add(&mut self, number: u64) {
        if number >= self.next {
            self.missing.extend(self.next..number);
            self.next = number + 1;
        } else if self.missing.remove(&number) {
            self.turned += 1;
        } else {
            self.doubled += 1;
        }
    }

    /// What of so many sends went wrong; `refused` were surely not taken.
    pub(super) fn faults(&self, sent: u64, refused: &HashSet<u64>) -> Faults {
        let lost = self.missing.iter().copied().chain(self.next..sent);
        let is_shown = |number: &&u64| **number < self.next && !self.missing.contains(number);
        Faults {
            lost: lost.filter(|number| !refused.contains(number)).map(|_| 1).sum(),
            doubled: self.doubled,
            turned: self.turned,
            risen: refused.iter().filter(is_shown).map(|_| 1).sum(),
        }
    }
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.turned += other.turned;
        self.risen += other.risen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_a_packet() {
        let name = Name { sender: 4_711, number: 1_234 };
        let content = name.content();
        assert_eq!(content.len(), CONTENT_CHARS);
        let packet = format!(r#"42["message",{{"id":"x","content":"{content}","isAI":false}}]"#);
        assert_eq!(Name::find(&packet), Some(name));
        assert_eq!(Name::find(r#"42["message",{"content":"hello"}]"#), None);
    }

    #[test]
    fn what_is_lost_doubled_or_turned_round_is_counted() {
        let mut shown = Shown::default();
        for number in [0, 1, 1, 4, 3] {
            shown.add(number);
        }
        let faults = shown.faults(7, &HashSet::from([6]));
        assert_eq!((faults.lost, faults.doubled, faults.turned, faults.risen), (2, 1, 1, 0));
        assert_eq!(shown.faults(7, &HashSet::from([4])).risen, 1);
    }
}
