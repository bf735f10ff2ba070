//! The call being served.

use crate::testing::call::{CLIENTS, REQUESTS, with};

pub(crate) fn connection() -> u64 {
    // A test connects after what the phase N asks for.
    with("request.connection", &CLIENTS, |call| match call.is_connected() {
        true => call.connection().id,
        false => call.world().last_connection + 1,
    })
}

pub(crate) fn exportname() -> String {
    with("request.exportname", &REQUESTS, |call| call.connection().exportname.clone())
}

pub(crate) fn readonly() -> bool {
    with("request.readonly", &REQUESTS, |call| call.connection().readonly)
}

pub(crate) fn handle() -> u64 {
    with("request.handle", &REQUESTS, |call| call.connection().handle.get())
}

/// The client of a test waits for its answer.
pub(crate) fn cancelled() -> bool {
    with("request.cancelled", &REQUESTS, |_| false)
}
