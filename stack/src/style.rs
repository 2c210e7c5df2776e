//! Colours on a terminal, plain text elsewhere.

use std::env;
use std::io::{self, IsTerminal};

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    is_terminal: bool,
    is_coloured: bool,
}

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// What to look at.
    Strong,
    /// What to pass over.
    Faint,
    /// What went well.
    Good,
    /// What may be wrong.
    Warning,
    /// What is wrong.
    Bad,
    /// One of several things to be told apart.
    Number(usize),
}

/// Colours that are read on light and on dark: cyan, magenta, blue, green.
const NUMBERED: [&str; 4] = ["36", "35", "34", "32"];

impl Style {
    /// Of standard error, where everything but results goes.
    pub fn of_errors() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    /// Of standard output.
    pub fn of_output() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// <https://no-color.org>, and terminals that know no colours.
    fn of(is_terminal: bool) -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { is_terminal, is_coloured: is_terminal && !refused && !is_dumb }
    }

    /// Without any colour, wherever it goes.
    pub fn plain() -> Self {
        Self { is_terminal: false, is_coloured: false }
    }

    /// Whether a line may be written over.
    pub fn is_terminal(self) -> bool {
        self.is_terminal
    }

    /// The text, painted where that is wanted.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if !self.is_coloured {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Strong => "1",
            Paint::Faint => "2",
            Paint::Good => "32",
            Paint::Warning => "33",
            Paint::Bad => "31",
            Paint::Number(number) => NUMBERED[number % NUMBERED.len()],
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::{Paint, Style};

    #[test]
    fn a_pipe_gets_the_text_as_it_is() {
        let (pipe, terminal) = (Style::plain(), Style { is_terminal: true, is_coloured: true });
        for paint in [Paint::Strong, Paint::Bad, Paint::Number(7)] {
            assert_eq!(pipe.paint(paint, "text"), "text");
            let painted = terminal.paint(paint, "text");
            assert!(painted.starts_with("\x1b[") && painted.ends_with("text\x1b[0m"));
        }
    }
}
