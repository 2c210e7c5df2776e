//! What many rounds found.

use std::fmt::Write as _;
use std::time::Duration;

use super::case::Case;
use super::verdict::{Breakage, Verdict};

/// The longest name of a case.
const CASE: usize = 30;

/// A line for each round, and one for each case.
pub(super) fn table(verdicts: &[Verdict]) -> String {
    let mut table = head();
    for case in Case::ALL {
        let of_case: Vec<_> = verdicts.iter().filter(|verdict| verdict.case == case).collect();
        for verdict in &of_case {
            let _ = writeln!(table, "{}", row(&case.to_string(), &[verdict]));
        }
        if of_case.len() > 1 {
            let _ = writeln!(table, "{}", row(&format!("= {} rounds", of_case.len()), &of_case));
        }
    }
    table
}

/// One round, for whoever waits for the next.
pub(super) fn line(verdict: &Verdict) -> String {
    let refused: Vec<_> =
        verdict.refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!(
        "{}{}\n    refused: {}",
        head(),
        row(&verdict.case.to_string(), &[verdict]),
        refused.join(", ")
    )
}

fn head() -> String {
    let mut head = format!(
        "{:CASE$} {:>6} {:>6} {:>6} {:>8} {:>6}",
        "case", "load s", "sent", "stored", "accepted", "shown"
    );
    for (_, name) in Breakage::ALL {
        let _ = write!(head, "  {name}");
    }
    head + "  oldest gone ms  back s\n"
}

/// Of several rounds the sums, and the longest times.
fn row(name: &str, verdicts: &[&Verdict]) -> String {
    let sum = |count: &dyn Fn(&Verdict) -> usize| verdicts.iter().map(|v| count(v)).sum::<usize>();
    let load: Duration = verdicts.iter().map(|verdict| verdict.load).sum();
    let mut row = format!(
        "{name:CASE$} {:>6.1} {:>6} {:>6} {:>8} {:>6}",
        load.as_secs_f64(),
        sum(&|verdict| verdict.sent),
        sum(&|verdict| verdict.stored),
        sum(&|verdict| verdict.accepted),
        sum(&|verdict| verdict.shown),
    );
    for (breakage, name) in Breakage::ALL {
        let width = name.len();
        let _ = write!(row, "  {:>width$}", sum(&|verdict| verdict.count(breakage)));
    }
    let oldest = verdicts.iter().filter_map(|verdict| verdict.oldest).max();
    let oldest = oldest.map_or_else(|| "-".to_owned(), |age| age.as_millis().to_string());
    let back: Option<Vec<_>> = verdicts.iter().map(|verdict| verdict.back).collect();
    let back = back.and_then(|all| all.into_iter().max());
    let back = back.map_or_else(|| "never".to_owned(), |back| format!("{:.1}", back.as_secs_f64()));
    format!("{row}  {oldest:>14}  {back:>6}")
}
