//! The power cut: what NATS and Postgres have on their disk is all that is left, and is compared with what clients
//! were told before.
//!
//! `round` makes one cut, `client` talks and keeps an `account` of what it was told, `verdict` compares that with
//! what is stored, `table` shows the verdicts of many rounds.

mod account;
mod case;
mod client;
mod crowd;
mod round;
mod table;
mod verdict;

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

pub use case::Case;
pub use round::{Plan, play};
pub use verdict::{Breakage, Verdict};

/// Makes so many rounds of each case; whether every promise held in all of them.
pub(crate) async fn drill(cases: &[Case], rounds: u32, plan: &Plan) -> bool {
    let mut verdicts = Vec::new();
    let mut failed = 0;
    for case in cases {
        for round in 1..=rounds {
            println!("{case}, round {round} of {rounds}");
            let seed = plan.seed + u64::from(round);
            let playing = play(*case, Plan { seed, ..plan.clone() });
            // What the harness cannot do in one round, say start a server, is no end of the others.
            match AssertUnwindSafe(playing).catch_unwind().await {
                Ok(Some(verdict)) => verdicts.push(show(verdict)),
                Ok(None) => return true,
                Err(_) => failed += 1,
            }
        }
    }
    println!("\n{}", table::table(&verdicts));
    println!("rounds that could not be ended: {failed}");
    failed == 0 && verdicts.iter().all(Verdict::held)
}

fn show(verdict: Verdict) -> Verdict {
    println!("{}", table::line(&verdict));
    for example in &verdict.examples {
        println!("    {example}");
    }
    verdict
}
