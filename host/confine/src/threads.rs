//! Puts Landlock's rules in force on every thread of the process.
//!
//! Each thread that exists when the process is confined has to restrict itself with
//! [`confine_thread`]. The runtime's workers call it when they next wake. The runtime's blocking
//! threads are kept busy all at once with tasks that call it. The thread that advances the
//! sandbox's clock calls it at its next tick. Plugins start their threads when they first need
//! them; those threads inherit the rules.

use std::cell::Cell;
use std::sync::{Arc, Barrier, OnceLock};

use landlock::{RestrictionStatus, RulesetCreated, RulesetStatus};

use super::error::Error;
use super::landlock_rules::restrict_thread;

/// The most blocking threads to confine. At this point of the start there are few threads: workers,
/// the sandbox's clock, and those that plugins started to get ready.
const MAX_BLOCKING_THREADS: usize = 64;

/// The rules, once the process is confined.
static RULES: OnceLock<RulesetCreated> = OnceLock::new();

thread_local! {
    static IS_CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Confines this thread if the process is confined. It costs one load if there is nothing to do.
#[inline]
pub fn confine_thread() {
    if let Some(rules) = RULES.get() {
        confine_once(rules);
    }
}

fn confine_once(rules: &RulesetCreated) {
    if IS_CONFINED.replace(true) {
        return;
    }
    if let Err(why) = restrict_with(rules) {
        tracing::error!("a thread could not be confined: {why}");
    }
}

fn restrict_with(rules: &RulesetCreated) -> Result<RestrictionStatus, Error> {
    restrict_thread(rules.try_clone()?)
}

/// Confines the main thread, which calls this, and all other threads. Returns what is in force, for
/// the log.
pub(super) async fn confine_all(rules: RulesetCreated) -> String {
    // Counted first, because the rules forbid reading /proc.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    let in_force = confine_main_thread(RULES.get_or_init(|| rules));
    confine_blocking_threads(threads).await;
    in_force
}

fn confine_main_thread(rules: &RulesetCreated) -> String {
    IS_CONFINED.set(true);
    match restrict_with(rules) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::NotEnforced, .. }) => "no Landlock in this kernel".into(),
        Ok(RestrictionStatus { ruleset: RulesetStatus::PartiallyEnforced, .. }) => {
            "Landlock, as far as this kernel has it".into()
        }
        Ok(_) => "Landlock".into(),
        Err(why) => format!("no Landlock ({why})"),
    }
}

/// Runs as many tasks as there are threads. No task ends before all have begun, so they are on all
/// blocking threads.
async fn confine_blocking_threads(threads: usize) {
    let threads = threads.min(MAX_BLOCKING_THREADS);
    let all = Arc::new(Barrier::new(threads));
    let tasks: Vec<_> = (0..threads)
        .map(|_| {
            let all = Arc::clone(&all);
            tokio::task::spawn_blocking(move || {
                confine_thread();
                all.wait();
            })
        })
        .collect();
    for task in tasks {
        // A panic in the task was reported.
        let _ = task.await;
    }
}
