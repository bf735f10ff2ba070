//! What the server keeps for the next burst, and gives back when none comes.
//!
//! Buffers, pipes and instances of filters are kept when they are free, because making them costs more than a request; and the C library keeps what
//! is freed, an arena a thread. So a burst leaves its memory behind. As long as something is going on, this looks every [`PERIOD`] for what
//! nobody has needed since the look before and frees it; once a whole period has gone by in which nothing went on, it frees all of that, makes
//! the C library give its free pages back to the system, and sleeps until there is something again. An idle server is not woken by it.
//!
//! What it costs the requests: a load where a buffer comes back and where answers have gone out ([`Stir`]), a comparison where something is taken
//! ([`Shelf`]). What is needed in every period stays, so a steady load never has to make anything anew.
//!
//! [`Shelf`]: rbdkit_plugin_api::shelf::Shelf
//! [`Stir`]: rbdkit_plugin_api::shelf::Stir

use std::sync::Arc;
use std::time::Duration;

use super::Server;

/// How far apart the looks are. Memory is back two periods after the last request, at most. A burst that comes again within one finds all as
/// it left it; one that comes later takes some milliseconds for it (24 MiB of buffers are 6000 pages of half a microsecond).
pub(super) const PERIOD: Duration = Duration::from_secs(5);

/// Looks between two that give back free pages while something is going on. It takes the locks of the allocator, and what is given back
/// too early has to be asked for again: once a minute that is lost in the noise.
const LOOKS: u32 = 12;

/// What one look is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    /// Whether free pages go back to the system.
    pages: bool,
    /// Whether it was the last one until something stirs.
    last: bool,
}

/// Decides what the looks do.
#[derive(Debug, Default)]
struct Looks {
    /// Since free pages went back.
    kept: u32,
}

impl Looks {
    /// The next look, after a period in which something was going on or nothing was.
    fn next(&mut self, busy: bool) -> Look {
        self.kept += 1;
        let pages = !busy || self.kept >= LOOKS;
        if pages {
            self.kept = 0;
        }
        Look { pages, last: !busy }
    }
}

impl Server {
    /// Gives back what is not needed, for as long as it is polled.
    pub(super) async fn give_back(self: &Arc<Self>) {
        let mut looks = Looks::default();
        loop {
            self.chain.pool().stir().stirred().await;
            loop {
                tokio::time::sleep(self.options.limits.look_period).await;
                // Asked before anything is looked at: what comes back from now on stirs again.
                let look = looks.next(self.chain.pool().stir().settle());
                let server = Arc::clone(self);
                // Taking pages back takes milliseconds where there are many.
                let looked = tokio::task::spawn_blocking(move || server.look(look));
                // A panic in it has been reported.
                let _ = looked.await;
                if look.last {
                    break;
                }
            }
        }
    }

    fn look(&self, look: Look) {
        self.chain.free_spare();
        self.receive_pool.free_spare();
        if look.pages {
            return_free_pages();
        }
    }
}

/// Gives the allocator's free pages back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "the C library has this function, and nobody wraps it")]
fn return_free_pages() {
    // SAFETY: it locks what it looks at, and only takes pages away in which nothing is allocated.
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
        let mut looks = Looks::default();
        for _ in 0..2 {
            for _ in 1..LOOKS {
                assert_eq!(looks.next(true), Look { pages: false, last: false });
            }
            assert_eq!(looks.next(true), Look { pages: true, last: false });
        }
        assert_eq!(looks.next(true), Look { pages: false, last: false });
        assert_eq!(looks.next(false), Look { pages: true, last: true });
    }
}
