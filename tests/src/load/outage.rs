//! Acks while Postgres is stopped, and whether everything comes after.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::arguments::Outage;
use super::figures::Figures;
use super::talk::Conversation;
use super::target::Target;

/// Until gateways have noticed: a send that waits for what is not stored is acked after `STORED_WAIT`, and those
/// after it at once.
const NOTICED: Duration = Duration::from_secs(1);

/// Stops Postgres under load for the measured time.
pub(super) async fn measure(target: &Target, outage: &Outage) -> Result<Figures> {
    let stack = target.stack.as_ref().context("only a stack of our own can be broken")?;
    let crowd = &outage.open.crowd;
    let load = outage.open.load();
    let conversation = Conversation::begin(target, crowd.sessions, load).await?;
    let tally = Rc::clone(&conversation.tally);
    let breaking = async {
        sleep(crowd.warms_up()).await;
        stack.postgres().stop().await;
        println!("  Postgres is stopped");
        sleep(NOTICED).await;
        tally.begin();
        sleep(crowd.measured()).await;
        tally.end();
        stack.postgres().start().await;
        println!("  Postgres is back");
        let mut figures = Figures::default();
        figures.latency("ack from the second second on,", &tally.ack.borrow());
        // What is said now waits for what was said meanwhile.
        sleep(crowd.warms_up()).await;
        figures.extend(conversation.finish(target).await?);
        Ok(figures)
    };
    tokio::select! {
        figures = breaking => figures,
        () = tally.show_progress() => unreachable!("it never ends"),
    }
}
