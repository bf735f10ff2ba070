//! Opening the layer below. All names open the same disk.

use crate::testing::call::{Access, CLIENTS, Call, Phase, REQUESTS, attempt, with};
use crate::{Errno, ExportEntry};

fn open_next(call: &Call, readonly: bool, exportname: &str) -> Result<(), Errno> {
    let connection = call.connection();
    if connection.readonly && !readonly {
        return Err(Errno::Erofs);
    }
    let mut world = call.world();
    let line = match exportname {
        "" => "open".to_string(),
        name => format!("open {name}"),
    };
    let recorded = world.recorded.as_mut().map_or(Ok(()), |below| below.call(&line));
    world.calls.push(line);
    world.fault("open")?;
    recorded?;
    connection.next.set(Some(Access::new(readonly)));
    Ok(())
}

pub(crate) fn open(readonly: bool, exportname: &str) -> Result<(), Errno> {
    attempt(&[Phase::Open], |call| match call.connection().next.get() {
        Some(_) if call.connection().is_replayed.get() => Ok(()),
        Some(_) => Err(Errno::Enxio),
        None => open_next(call, readonly, exportname),
    })
}

/// There is one disk, so this is as `open`.
pub(crate) fn open_shared(readonly: bool, exportname: &str) -> Result<(), Errno> {
    open(readonly, exportname)
}

pub(crate) fn generation() -> u64 {
    with("next-open.generation", &REQUESTS, |call| call.connection().generation.get())
}

pub(crate) fn reopen(generation: u64, readonly: bool, exportname: &str) -> Result<u64, Errno> {
    attempt(&[Phase::Data], |call| {
        let now = call.connection().generation.get();
        if now == generation {
            open_next(call, readonly, exportname)?;
            call.connection().generation.set(now + 1);
        }
        Ok(call.connection().generation.get())
    })
}

pub(crate) fn preconnect(_readonly: bool) -> Result<(), Errno> {
    attempt(&[Phase::Names], |_| Ok(()))
}

/// One export, without a name.
pub(crate) fn list_exports(_readonly: bool) -> Result<Vec<ExportEntry>, Errno> {
    attempt(&CLIENTS[..2], |call| {
        let description = call.world().disk.description.clone();
        Ok(vec![ExportEntry { name: String::new(), description }])
    })
}

pub(crate) fn default_export(_readonly: bool) -> Result<String, Errno> {
    attempt(&CLIENTS[..2], |_| Ok(String::new()))
}
