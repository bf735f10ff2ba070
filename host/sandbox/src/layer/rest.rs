//! Pauses between the calls that no client waits for.

use crate::connection::shared::FilterShared;

/// Waits until the filter's events may use a processor again. False: the server stops.
pub(super) async fn rest(shared: &FilterShared) -> bool {
    loop {
        let wait = shared.background.wait_for_an_event(std::time::Instant::now());
        if wait.is_zero() {
            return !shared.stopping.is_set();
        }
        tokio::select! {
            biased;
            () = shared.stopping.wait() => return false,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
