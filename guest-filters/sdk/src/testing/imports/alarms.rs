//! Alarms, which sound when the test moves the clock.

use crate::testing::call::{Call, REQUESTS, RUNNING, attempt};
use crate::testing::world::Owner;
use crate::{Errno, Scope};

/// Whose alarm this is.
fn owner(call: &Call, scope: Scope, id: u32) -> Result<Owner, Errno> {
    if id > 15 {
        return Err(Errno::Einval);
    }
    if !call.world().hears_alarms {
        return Err(Errno::Enotsup);
    }
    match scope {
        Scope::Connection if call.is_in(&REQUESTS) => Ok(Owner::Connection(call.connection().id)),
        Scope::Connection => Err(Errno::Enxio),
        Scope::Exportname => Err(Errno::Einval),
        Scope::Server => Ok(Owner::Server),
    }
}

pub(crate) fn set(s: Scope, id: u32, at: u64) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let owner = owner(call, s, id)?;
        let mut world = call.world();
        let at = at.max(world.time);
        world.alarms.insert((owner, id), at);
        Ok(())
    })
}

pub(crate) fn cancel(s: Scope, id: u32) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let owner = owner(call, s, id)?;
        call.world().alarms.remove(&(owner, id));
        Ok(())
    })
}
