//! Versions as programs print them.

use std::fmt;

/// The part of a version that decides whether a program will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number; 0 where none is printed.
    pub minor: u32,
}

impl Version {
    /// The version `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Finds the version in what `program --version` prints: the first word that begins with a
    /// digit, or with a `v` before one.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::of_word)
    }

    fn of_word(word: &str) -> Option<Self> {
        let mut parts = word.strip_prefix('v').unwrap_or(word).split('.');
        let major = leading_number(parts.next()?)?;
        let minor = parts.next().and_then(leading_number).unwrap_or(0);
        Some(Self { major, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// `18` of `18beta1`; nothing of `PostgreSQL`.
fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn reads_what_the_programs_print() {
        let cases = [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", Version::new(15, 14)),
            ("postgres (PostgreSQL) 18beta1", Version::new(18, 0)),
            ("nats-server: v2.9.10\n", Version::new(2, 9)),
            ("v20.20.2\n", Version::new(20, 20)),
        ];
        for (text, version) in cases {
            assert_eq!(Version::find(text), Some(version), "{text}");
        }
        assert_eq!(Version::find("command not found"), None);
    }

    #[test]
    fn compares_numbers_and_not_text() {
        assert!(Version::new(2, 9) < Version::new(2, 11));
    }
}
