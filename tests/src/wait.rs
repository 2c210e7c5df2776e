//! Waiting and failing.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Looks until `condition` is true; panics with `what` when `within` is over.
///
/// # Panics
/// That is how it fails.
pub async fn eventually(within: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {within:?} in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The value, or a panic that says what was being done.
#[track_caller]
pub(crate) fn must<T, E: Debug>(result: Result<T, E>, doing: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{doing}: {error:?}"),
    }
}

/// Runs what waits without `await` beside the test's runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> T {
    must(must(tokio::task::spawn_blocking(work).await, doing), doing)
}
