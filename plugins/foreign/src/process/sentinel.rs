//! The thread that finds connections whose requests wait behind a long call.
//!
//! It looks every two milliseconds while calls of the plugin run, less often if the same calls run
//! for long, and it sleeps while none does.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, Once, Weak};
use std::time::Duration;

use rbdkit_plugin_api::lock;
use rustix::thread::futex;

/// How often it looks.
const TICK: Duration = Duration::from_millis(2);

/// How often it looks if nothing has changed for [`QUIET`] ticks.
const SLOW_TICK: Duration = Duration::from_millis(20);

const QUIET: u32 = 16;

/// A thread of a connection.
#[derive(Default)]
pub(super) struct Worker {
    /// Odd while it is in a call of the plugin.
    pub(super) calls: AtomicU64,
    /// Set if its call takes so long that it does not count as awake.
    pub(super) is_stuck: AtomicBool,
}

/// A connection, as the sentinel sees it.
pub(super) trait Watched: Send + Sync {
    /// How many requests were taken from the ring.
    fn taken(&self) -> u32;
    /// Whether requests wait.
    fn has_waiting(&self) -> bool;
    /// Requests wait behind a long call: another thread is to take them.
    fn help_waiting(self: Arc<Self>);
    /// The threads.
    fn threads(&self) -> Vec<Arc<Worker>>;
    /// A thread's call takes long: the thread does not count as awake.
    fn set_stuck(&self, worker: &Worker, call: u64);
}

static CONNECTIONS: Mutex<Vec<Weak<dyn Watched>>> = Mutex::new(Vec::new());

/// 1 while the thread sleeps, and waits for its change.
static ASLEEP: AtomicU32 = AtomicU32::new(0);

/// Watches a new connection, until it is dropped.
pub(super) fn watch(connection: Weak<dyn Watched>) {
    static START: Once = Once::new();
    lock(&CONNECTIONS).push(connection);
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
        #[expect(clippy::disallowed_methods, reason = "a call that takes long sends no event")]
        std::thread::sleep(if quiet < QUIET { TICK } else { SLOW_TICK });
        let connections: Vec<Arc<dyn Watched>> = {
            let mut list = lock(&CONNECTIONS);
            list.retain(|connection| connection.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let mut state = Motion::Idle;
        let now: Vec<Seen> = connections
            .iter()
            .map(|connection| {
                let before = seen.iter().find(|seen| seen.which == address(connection));
                let (now, found) = look(connection, before);
                state = state.max(found);
                now
            })
            .collect();
        drop(connections);
        seen = now;
        quiet = if state == Motion::Moving { 0 } else { quiet + 1 };
        if state == Motion::Idle && quiet >= QUIET {
            ASLEEP.store(1, SeqCst);
            let is_busy = lock(&CONNECTIONS).iter().filter_map(Weak::upgrade).any(|connection| is_busy(&*connection));
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
enum Motion {
    /// No call runs.
    Idle,
    /// The same calls run as before.
    Stuck,
    /// Calls begin and end, or requests wait.
    Moving,
}

/// A connection at the last look.
struct Seen {
    which: usize,
    taken: u32,
    calls: Vec<u64>,
}

/// What a connection is told from others by.
fn address(connection: &Arc<dyn Watched>) -> usize {
    Arc::as_ptr(connection).cast::<()>() as usize
}

fn is_busy(connection: &dyn Watched) -> bool {
    connection.has_waiting() || connection.threads().iter().any(|thread| thread.calls.load(SeqCst) % 2 == 1)
}

fn look(connection: &Arc<dyn Watched>, before: Option<&Seen>) -> (Seen, Motion) {
    let threads = connection.threads();
    let calls: Vec<u64> = threads.iter().map(|thread| thread.calls.load(SeqCst)).collect();
    let taken = connection.taken();
    let mut state = if calls.iter().any(|call| call % 2 == 1) { Motion::Stuck } else { Motion::Idle };
    if let Some(before) = before {
        for ((thread, now), then) in threads.iter().zip(&calls).zip(&before.calls) {
            if now == then && now % 2 == 1 && !thread.is_stuck.load(SeqCst) {
                connection.set_stuck(thread, *now);
            }
        }
        if before.taken == taken && connection.has_waiting() {
            Arc::clone(connection).help_waiting();
            state = Motion::Moving;
        }
    }
    if before.is_none_or(|before| before.taken != taken || before.calls != calls) {
        state = Motion::Moving;
    }
    (Seen { which: address(connection), taken, calls }, state)
}
