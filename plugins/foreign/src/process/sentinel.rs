//! The thread that finds connections whose requests wait behind a long call.
//!
//! It looks every two milliseconds while calls of the plugin run, less often if the same calls run
//! for long, and it sleeps while none does.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, Once, Weak};
use std::time::Duration;

use rbdkit_plugin_api::lock;
use rustix::thread::futex;

use super::connection::Connection;

/// How often it looks.
const TICK: Duration = Duration::from_millis(2);

/// How often it looks if nothing has changed for [`QUIET`] ticks.
const SLOW_TICK: Duration = Duration::from_millis(20);

const QUIET: u32 = 16;

static CONNECTIONS: Mutex<Vec<Weak<Connection>>> = Mutex::new(Vec::new());

/// 1 while the thread sleeps, and waits for its change.
static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Watches a new connection, until it is dropped.
pub(super) fn watch(connection: &Arc<Connection>) {
    static START: Once = Once::new();
    lock(&CONNECTIONS).push(Arc::downgrade(connection));
    START.call_once(|| {
        // Without it, requests behind a call that hangs wait for its end.
        let _ = std::thread::Builder::new().name("sentinel".into()).spawn(run);
    });
}

/// A call begins.
pub(super) fn wake() {
    if ASLEEP.load(SeqCst) != 0 && ASLEEP.swap(0, SeqCst) != 0 {
        let _ = futex::wake(&ASLEEP, futex::Flags::PRIVATE, 1);
    }
}

fn run() {
    let mut seen: Vec<Seen> = Vec::new();
    let mut quiet = 0;
    loop {
        std::thread::sleep(if quiet < QUIET { TICK } else { SLOW_TICK });
        let connections: Vec<Arc<Connection>> = {
            let mut list = lock(&CONNECTIONS);
            list.retain(|connection| connection.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let mut state = State::Idle;
        let now: Vec<Seen> = connections
            .iter()
            .map(|connection| {
                let before = seen.iter().find(|seen| std::ptr::eq(seen.which, Arc::as_ptr(connection)));
                let (now, found) = look(connection, before);
                state = state.max(found);
                now
            })
            .collect();
        drop(connections);
        seen = now;
        quiet = if state == State::Moving { 0 } else { quiet + 1 };
        if state == State::Idle && quiet >= QUIET {
            ASLEEP.store(1, SeqCst);
            let is_busy = lock(&CONNECTIONS).iter().filter_map(Weak::upgrade).any(|connection| is_busy(&connection));
            if !is_busy {
                let _ = futex::wait(&ASLEEP, futex::Flags::PRIVATE, 1, None);
            }
            ASLEEP.store(0, SeqCst);
            quiet = 0;
        }
    }
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// No call runs.
    Idle,
    /// The same calls run as before.
    Stuck,
    /// Calls begin and end, or requests wait.
    Moving,
}

/// A connection at the last look.
struct Seen {
    /// Only compared, never followed.
    which: *const Connection,
    taken: u32,
    calls: Vec<u64>,
}

fn is_busy(connection: &Connection) -> bool {
    connection.has_waiting() || connection.threads().iter().any(|thread| thread.calls.load(SeqCst) % 2 == 1)
}

fn look(connection: &Arc<Connection>, before: Option<&Seen>) -> (Seen, State) {
    let threads = connection.threads();
    let calls: Vec<u64> = threads.iter().map(|thread| thread.calls.load(SeqCst)).collect();
    let taken = connection.taken.load(Relaxed);
    let mut state = if calls.iter().any(|call| call % 2 == 1) { State::Stuck } else { State::Idle };
    if let Some(before) = before {
        for ((thread, now), then) in threads.iter().zip(&calls).zip(&before.calls) {
            if now == then && now % 2 == 1 && !thread.is_stuck.load(SeqCst) {
                connection.set_stuck(thread, *now);
            }
        }
        if before.taken == taken && connection.has_waiting() {
            connection.help_waiting();
            state = State::Moving;
        }
    }
    if before.is_none_or(|before| before.taken != taken || before.calls != calls) {
        state = State::Moving;
    }
    (Seen { which: Arc::as_ptr(connection), taken, calls }, state)
}
