//! The power goes under load: what clients were told before is there afterwards, and they go on.

use stack::nats::SYNC_INTERVAL;
use tests::power::{Case, Plan, play};

/// Messages a second: enough that something is under way at any moment.
const RATE: u64 = 100;

/// Nothing that was acked or shown is missing, doubled, in another order or unseen, and everybody goes on.
async fn holds(case: Case) {
    let sync_interval = SYNC_INTERVAL.to_owned();
    let plan = Plan { gateways: 1, persisters: 1, rate: RATE, sync_interval, seed: 1 };
    let Some(verdict) = play(case, plan).await else { return };
    assert!(verdict.stored + verdict.accepted > 0, "nothing was at stake: {verdict:#?}");
    assert!(verdict.held(), "{verdict:#?}");
}

#[tokio::test]
async fn a_power_cut_with_everything_up_takes_back_nothing() {
    holds(Case::Everything).await;
}

#[tokio::test]
async fn a_power_cut_while_no_persister_works_takes_back_nothing() {
    holds(Case::PersisterStopped).await;
}

#[tokio::test]
async fn a_power_cut_while_postgres_is_away_takes_back_nothing() {
    holds(Case::PostgresStopped).await;
}

#[tokio::test]
async fn a_disk_lost_under_nats_while_gateways_live_takes_back_nothing() {
    holds(Case::Nats).await;
}

#[tokio::test]
async fn a_power_cut_of_postgres_alone_takes_back_nothing() {
    holds(Case::Postgres).await;
}

#[tokio::test]
async fn a_power_cut_within_seconds_of_the_very_first_start_takes_back_nothing() {
    holds(Case::FirstStart).await;
}
