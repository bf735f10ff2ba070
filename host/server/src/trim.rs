//! Frees memory that the server kept for a next burst, if no burst comes.
//!
//! Free buffers, pipes and instances of filters are kept, because making them costs more than a
//! request. The C library also keeps freed memory, in an arena for each thread. So a burst leaves
//! memory behind. While the server is in use, this task runs once every
//! [`trim_interval`](super::options::ServerLimits::trim_interval) and frees what was not needed
//! since the last time. After a whole interval without any use it frees the rest, makes the C
//! library give its free pages back to the system, and sleeps until the server is used again. So it
//! never wakes an idle server.
//!
//! The cost for requests is a load when a buffer comes back and when replies were written
//! ([`Activity`]), and a comparison when something is taken ([`IdlePool`]). What is needed in every
//! interval stays, so under a steady load nothing is freed and allocated again.
//!
//! [`IdlePool`]: rbdkit_plugin_api::idle::IdlePool
//! [`Activity`]: rbdkit_plugin_api::idle::Activity

use std::sync::Arc;

use super::state::ServerState;

/// A server that is in use gives free pages back to the system in every 12th round, once a minute
/// by default. Doing so takes the allocator's locks, and the system has to supply again pages that
/// were given back too early.
const ROUNDS_BETWEEN_PAGES: u32 = 12;

/// What one round does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    /// Whether free pages go back to the system.
    pages: bool,
    /// Whether it is the last round until the server is used again.
    last: bool,
}

/// Decides what each round does.
#[derive(Debug, Default)]
struct Schedule {
    /// Rounds since free pages went back.
    since_pages: u32,
}

/// Whether the server was used since the last round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    InUse,
    Idle,
}

impl Schedule {
    fn next(&mut self, since_last: Use) -> Round {
        self.since_pages += 1;
        let last = since_last == Use::Idle;
        let pages = last || self.since_pages >= ROUNDS_BETWEEN_PAGES;
        if pages {
            self.since_pages = 0;
        }
        Round { pages, last }
    }
}

/// Frees what is not needed, for as long as it is polled.
pub(super) async fn run(server: &Arc<ServerState>) {
    let activity = server.chain.pool().activity();
    let mut schedule = Schedule::default();
    loop {
        activity.wait().await;
        loop {
            tokio::time::sleep(server.options.limits.trim_interval).await;
            // Taken before anything is freed, so that what comes back from now on counts as new
            // activity.
            let since_last = if activity.take() { Use::InUse } else { Use::Idle };
            let round = schedule.next(since_last);
            let server = Arc::clone(server);
            // Giving back many pages takes milliseconds.
            let freed = tokio::task::spawn_blocking(move || free(&server, round));
            // A panic in it was reported.
            let _ = freed.await;
            if round.last {
                break;
            }
        }
    }
}

fn free(server: &ServerState, round: Round) {
    server.chain.free_spare();
    server.receive_pool.free_spare();
    if round.pages {
        return_free_pages();
    }
}

/// Gives the allocator's free pages back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "no crate wraps this function of the C library")]
fn return_free_pages() {
    // SAFETY: it takes the allocator's locks, and only returns pages in which nothing is allocated.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators do it by themselves, or not at all.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn return_free_pages() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_go_back_when_it_is_quiet_and_once_a_minute_when_it_is_not() {
        let mut schedule = Schedule::default();
        for _ in 0..2 {
            for _ in 1..ROUNDS_BETWEEN_PAGES {
                assert_eq!(schedule.next(Use::InUse), Round { pages: false, last: false });
            }
            assert_eq!(schedule.next(Use::InUse), Round { pages: true, last: false });
        }
        assert_eq!(schedule.next(Use::InUse), Round { pages: false, last: false });
        assert_eq!(schedule.next(Use::Idle), Round { pages: true, last: true });
    }
}
