//! An error and what caused it, in one line.

use std::error::Error;

/// The error's text and behind it those of its causes; what stands there already is not said again. Many
/// libraries put the text of a cause into their own and name it as their source, too.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        next = cause.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::told;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, rest) = texts.split_first().unwrap();
        let source = (!rest.is_empty()).then(|| Box::new(layers(rest)));
        Layer { text, source }
    }

    #[test]
    fn a_cause_is_said_once() {
        let said = |texts: &[&'static str]| told(&layers(texts));
        assert_eq!(said(&["cannot start", "no file"]), "cannot start: no file");
        assert_eq!(said(&["cannot start: no file", "no file"]), "cannot start: no file");
        assert_eq!(said(&["a", "in b: c", "c", "d"]), "a: in b: c: d");
        assert_eq!(
            said(&["connecting: refused (111)", "refused", "refused (111)"]),
            "connecting: refused (111)"
        );
    }
}
