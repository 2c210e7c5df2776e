//! A `.env` file, read as the Node server read it: by the rules of the npm package `dotenv` 17.
//!
//! Those rules are one regular expression, in which white space may be line breaks:
//!
//! ```text
//! ^\s*(?:export\s+)?([\w.-]+)(?:\s*=\s*?|:\s+?)(\s*'(?:\\'|[^'])*'|\s*"…"|\s*`…`|[^#\r\n]+)?\s*(?:#.*)?$
//! ```
//!
//! What it does not match is passed over. `$` means nothing. `tests/fixtures/dotenv_17.json` holds what the package itself
//! makes of files.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;

/// What a file sets.
#[derive(Debug, Default)]
pub struct EnvFile {
    /// By the names of the variables.
    pub values: HashMap<String, String>,
    /// Numbers of the lines that set nothing and are no comments.
    pub passed_over: Vec<usize>,
}

impl EnvFile {
    /// The file with this name; one that is not there sets nothing.
    pub fn read(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// The file with this text.
    pub fn parse(text: &str) -> Self {
        let text: Vec<char> = text.replace("\r\n", "\n").replace('\r', "\n").chars().collect();
        let mut file = Self::default();
        let (mut at, mut read) = (0, Vec::new());
        while let Some(begin) = line_start(&text, at) {
            match Assignment::at(&text, begin) {
                Some(Assignment { key, value, end }) => {
                    file.values.insert(key, value);
                    read.push(begin..end);
                    at = end.max(begin + 1);
                }
                None => at = begin + 1,
            }
        }
        file.passed_over = passed_over(&text, &read);
        file
    }
}

/// What JavaScript takes for white space, also in `trim`.
fn is_space(c: char) -> bool {
    matches!(
        c,
        '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'
            ..='\u{200a}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{202f}'
                | '\u{205f}'
                | '\u{3000}'
                | '\u{feff}'
    )
}

/// What ends a line for `^`, `$` and `.`.
fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}

fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// The first beginning of a line from a place on.
fn line_start(text: &[char], from: usize) -> Option<usize> {
    (from..text.len()).find(|at| *at == 0 || ends_line(text[at - 1]))
}

/// Where those characters end that begin here and are all of a kind.
fn skip(text: &[char], from: usize, is_of_kind: impl Fn(char) -> bool) -> usize {
    (from..text.len()).find(|at| !is_of_kind(text[*at])).unwrap_or(text.len())
}

/// A variable that is set, and where what sets it ends.
struct Assignment {
    key: String,
    value: String,
    end: usize,
}

impl Assignment {
    /// The one in the line that begins here, or behind blank ones.
    fn at(text: &[char], begin: usize) -> Option<Self> {
        let begin = skip(text, begin, is_space);
        let export: Vec<char> = "export".chars().collect();
        let behind_export = text[begin..]
            .starts_with(&export)
            .then(|| (begin + export.len(), skip(text, begin + export.len(), is_space)))
            .filter(|(end, key)| key > end);
        let exported = behind_export.and_then(|(_, key)| Self::of_key(text, key));
        exported.or_else(|| Self::of_key(text, begin))
    }

    fn of_key(text: &[char], begin: usize) -> Option<Self> {
        let end = skip(text, begin, is_of_key);
        let value = if end == begin { None } else { behind_key(text, end) }?;
        let key = text[begin..end].iter().collect();
        let (value, end) = value_at(text, value);
        Some(Self { key, value: unquoted(value), end })
    }
}

/// Where the value begins of the key that ends here.
fn behind_key(text: &[char], end: usize) -> Option<usize> {
    let equals = skip(text, end, is_space);
    if text.get(equals) == Some(&'=') {
        return Some(equals + 1);
    }
    let is_colon = text.get(end) == Some(&':') && text.get(end + 1).is_some_and(|c| is_space(*c));
    is_colon.then_some(end + 2)
}

/// The value that begins here, with its quotes, and where the line ends behind it.
fn value_at(text: &[char], begin: usize) -> (&[char], usize) {
    if let Some(quoted) = quoted_at(text, begin) {
        return quoted;
    }
    let end = skip(text, begin, |c| c != '#' && c != '\n');
    // Behind such a value there is nothing, or a comment.
    (&text[begin..end], line_end(text, end).unwrap_or(end))
}

/// A value in quotes, behind which the line ends. A quote behind a backslash ends it only where no other one does.
fn quoted_at(text: &[char], begin: usize) -> Option<(&[char], usize)> {
    let open = skip(text, begin, is_space);
    let quote = *text.get(open).filter(|c| matches!(c, '\'' | '"' | '`'))?;
    let mut closing = Vec::new();
    for at in (open + 1..text.len()).filter(|at| text[*at] == quote) {
        closing.push(at);
        if text[at - 1] != '\\' {
            break;
        }
    }
    let ended = |at: usize| Some((&text[begin..=at], line_end(text, at + 1)?));
    closing.into_iter().rev().find_map(ended)
}

/// Where a line ends in which nothing but white space and a comment follows; blank lines behind it, and a comment
/// behind those, are taken with it.
fn line_end(text: &[char], from: usize) -> Option<usize> {
    let most = skip(text, from, is_space);
    (from..=most).rev().find_map(|at| match text.get(at) {
        None => Some(at),
        Some('#') => Some(skip(text, at, |c| !ends_line(c))),
        Some(c) => ends_line(*c).then_some(at),
    })
}

/// The value without its quotes; within double ones `\n` and `\r` are what they stand for.
fn unquoted(value: &[char]) -> String {
    let value: String = value.iter().collect();
    let value = value.trim_matches(is_space);
    let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"' | '`'));
    let inner = quote.and_then(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let inner = inner.unwrap_or(value);
    if quote == Some('"') {
        inner.replace("\\n", "\n").replace("\\r", "\r")
    } else {
        inner.to_owned()
    }
}

/// The numbers of lines of which nothing was read and that are no comments.
fn passed_over(text: &[char], read: &[Range<usize>]) -> Vec<usize> {
    let mut passed_over = Vec::new();
    let (mut begin, mut number) = (0, 1);
    while begin < text.len() {
        let end = skip(text, begin, |c| c != '\n');
        let first = skip(&text[..end], begin, is_space);
        let says_something = first < end && text[first] != '#';
        let is_read = |range: &Range<usize>| range.start < end && begin < range.end;
        if says_something && !read.iter().any(is_read) {
            passed_over.push(number);
        }
        (begin, number) = (end + 1, number + 1);
    }
    passed_over
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_file_is_read_as_dotenv_17_reads_it() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/fixtures/dotenv_17.json")).unwrap();
        assert!(cases.len() >= 40);
        for case in cases {
            let parsed = EnvFile::parse(case["file"].as_str().unwrap()).values;
            assert_eq!(serde_json::json!(parsed), case["parsed"], "{}", case["file"]);
        }
    }

    #[test]
    fn lines_that_set_nothing_are_known_by_their_numbers() {
        let text = "# a comment\n\nA=1\nprose, and no setting\r\n  export B='x\ny' # both\n=3\n\tC: 4\nD\n";
        let file = EnvFile::parse(text);
        assert_eq!(file.passed_over, [4, 7, 9]);
        assert_eq!((file.values["B"].as_str(), file.values["C"].as_str()), ("x\ny", "4"));
        assert_eq!(EnvFile::parse("").passed_over, [0; 0]);
    }
}
