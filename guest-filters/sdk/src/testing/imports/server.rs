//! The server.

use crate::testing::call::{REQUESTS, RUNNING, attempt, with};
use crate::{Errno, ThreadModel};

/// Moves the clock, and returns at once.
pub(crate) fn sleep(ns: u64) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        let mut world = call.world();
        world.calls.push(format!("sleep {ns}"));
        world.fault("sleep")?;
        world.time = world.time.saturating_add(ns);
        Ok(())
    })
}

pub(crate) fn thread_model_below() -> ThreadModel {
    with("server.thread-model-below", &RUNNING, |_| ThreadModel::Parallel)
}

pub(crate) fn shutdown() -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let mut world = call.world();
        world.shutdown_asked |= world.may_use_powers;
        if world.may_use_powers { Ok(()) } else { Err(Errno::Eperm) }
    })
}

pub(crate) fn connections() -> u32 {
    with("server.connections", &RUNNING, |call| call.world().connections)
}
