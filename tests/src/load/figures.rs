//! What a run measured: figures with names and units; several runs become medians with a range.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Things.
    Count,
    /// Things a second.
    PerSecond,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
    /// Kibibytes.
    Kib,
    /// Mebibytes.
    Mib,
    /// One thing divided by another.
    Ratio,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::PerSecond => "/s",
            Self::Micros => "µs",
            Self::Millis => "ms",
            Self::Seconds => "s",
            Self::Kib => "KiB",
            Self::Mib => "MiB",
            Self::Ratio => "x",
        }
    }

    fn decimals(self, value: f64) -> usize {
        match self {
            Self::Count | Self::PerSecond => 0,
            Self::Ratio | Self::Seconds | Self::Millis => 2,
            Self::Micros | Self::Kib | Self::Mib if value < 10.0 => 2,
            Self::Micros | Self::Kib | Self::Mib => 1,
        }
    }
}

/// What one run measured, in the order of the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(Vec<(String, Unit, f64)>);

impl Figures {
    /// Adds a figure.
    pub(super) fn add(&mut self, name: impl Into<String>, unit: Unit, value: f64) {
        self.0.push((name.into(), unit, value));
    }

    /// Adds a number of things.
    pub(super) fn count(&mut self, name: impl Into<String>, count: u64) {
        self.add(name, Unit::Count, float(count));
    }

    /// Adds the middle, the tail and the end of a distribution of microseconds, in milliseconds.
    pub(super) fn latency(&mut self, name: &str, micros: &Histogram<u64>) {
        if micros.is_empty() {
            return;
        }
        for (quantile, value) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("most", 1.0)] {
            let value = float(micros.value_at_quantile(value)) / 1e3;
            self.add(format!("{name} {quantile}"), Unit::Millis, value);
        }
    }

    /// One of the figures.
    pub(super) fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(of, ..)| of == name).map(|(.., value)| *value)
    }

    /// The same under other names.
    pub(super) fn renamed(self, name: impl Fn(&str) -> String) -> Self {
        Self(self.0.into_iter().map(|(of, unit, value)| (name(&of), unit, value)).collect())
    }

    /// The others.
    pub(super) fn without(self, names: &[&str]) -> Self {
        Self(self.0.into_iter().filter(|(of, ..)| !names.contains(&of.as_str())).collect())
    }

    /// Appends others.
    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// The runs of one build.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// What is compared, if anything is.
    pub(super) name: String,
    runs: Vec<Figures>,
}

impl Runs {
    pub(super) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), runs: Vec::new() }
    }

    pub(super) fn push(&mut self, figures: Figures) {
        self.runs.push(figures);
    }

    /// Every figure: the median, and the range of several runs.
    pub(super) fn table(&self) -> String {
        let mut table = String::new();
        if !self.name.is_empty() {
            let _ = writeln!(table, "{}:", self.name);
        }
        for (name, unit, values) in self.columns() {
            let shown = |value: f64| format!("{value:.*}", unit.decimals(value));
            let range = match values.as_slice() {
                [_] => String::new(),
                [least, .., most] => format!("  ({} .. {})", shown(*least), shown(*most)),
                [] => continue,
            };
            let value = format!("{} {}", shown(median(&values)), unit.name());
            let _ = writeln!(table, "  {name:<44} {value:>14}{range}");
        }
        table
    }

    /// Every figure with the values of all runs, sorted.
    pub(super) fn json(&self) -> Value {
        let figure = |(name, unit, values): (String, Unit, Vec<f64>)| json!({"name": name, "unit": unit.name(), "median": median(&values), "values": values});
        let figures: Vec<_> = self.columns().map(figure).collect();
        json!({"build": self.name, "runs": self.runs.len(), "figures": figures})
    }

    fn columns(&self) -> impl Iterator<Item = (String, Unit, Vec<f64>)> {
        let mut names: Vec<(String, Unit)> = Vec::new();
        for (name, unit, _) in self.runs.iter().flat_map(|run| &run.0) {
            if names.iter().all(|(of, _)| of != name) {
                names.push((name.clone(), *unit));
            }
        }
        names.into_iter().map(|(name, unit)| {
            let mut values: Vec<_> = self.runs.iter().filter_map(|run| run.get(&name)).collect();
            values.sort_by(f64::total_cmp);
            (name, unit, values)
        })
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A count as a number to divide; what is counted here is below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// A histogram of microseconds, up to ten minutes, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    const TEN_MINUTES: u64 = 600_000_000;
    Histogram::new_with_bounds(1, TEN_MINUTES, 3).unwrap_or_else(|error| unreachable!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_a_median_with_a_range() {
        let mut runs = Runs::default();
        for value in [3.0, 1.0, 2.0] {
            let mut figures = Figures::default();
            figures.add("rate", Unit::PerSecond, value);
            runs.push(figures);
        }
        assert!(runs.table().contains("2 /s  (1 .. 3)"), "{}", runs.table());
        assert_eq!(runs.json()["figures"][0]["values"], json!([1.0, 2.0, 3.0]));
    }
}
