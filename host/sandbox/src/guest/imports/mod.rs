//! The imports of the contract: one file for each of its interfaces.
//!
//! Each function acts on the call that is being served. It checks that it is allowed in this phase
//! and that its arguments name something that exists, and then does one step on the chain, the
//! state or the clock. The gate of the layer below checks the ranges of `next`. Waiting does not
//! use up the guest's time ([`clock`](super::clock)), and ends when the client leaves
//! ([`awaited`](super::awaited)).
//!
//! Some functions are bound by hand because the generated binding costs more. They stand beside the
//! interface's trait, each with its reason.

mod alarms;
mod buffer;
mod client;
mod clock;
mod counters;
mod crypto;
mod disks;
mod files;
mod gate;
mod lend;
mod locks;
mod log;
mod maps;
mod next;
mod next_open;
mod phases;
mod request;
mod scratch;
mod scripts;
mod server;
mod shown;
mod slots;
mod storage;
mod traced;
mod types;
mod wait;

use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Engine, Result};

use super::context::Context;
use crate::connection::bindings::host;
use crate::connection::trace::Recording;

pub(super) use shown::flags;

/// A linker with all interfaces of the contract.
pub(crate) fn linker(engine: &Engine, recording: Recording) -> Result<Linker<Context>> {
    let mut linker = Linker::new(engine);
    if recording == Recording::On {
        traced::add_to_linker(&mut linker)?;
        return Ok(linker);
    }
    macro_rules! add {
        ($($interface:ident),*) => {
            $(host::$interface::add_to_linker::<Context, HasSelf<Context>>(&mut linker, |context| context)?;)*
        };
    }
    add!(types, log, request, client, next, next_open, buffer, locks, slots, maps, scratch, files, crypto);
    add!(storage, disks, scripts, counters, clock, server, alarms, gate);
    linker.allow_shadowing(true);
    buffer::bind_by_hand(&mut linker)?;
    disks::bind_by_hand(&mut linker)?;
    locks::bind_by_hand(&mut linker)?;
    next::bind_by_hand(&mut linker)?;
    scratch::bind_by_hand(&mut linker)?;
    storage::bind_by_hand(&mut linker)?;
    linker.allow_shadowing(false);
    Ok(linker)
}
