//! The gate before the filter's layer.

use crate::Errno;
use crate::testing::call::{Phase, attempt, with};

/// No request is within the layer when an event is called here, so closing does not wait.
pub(crate) fn close() -> Result<(), Errno> {
    attempt(&[Phase::Server, Phase::Event, Phase::Data], |call| {
        if call.is_in(&[Phase::Data]) {
            return Err(Errno::Edeadlk);
        }
        let mut world = call.world();
        world.gate_is_closed = true;
        world.fault("gate-close")
    })
}

pub(crate) fn open() {
    with("gate.open", &[Phase::Server, Phase::Event, Phase::Data], |call| call.world().gate_is_closed = false);
}
