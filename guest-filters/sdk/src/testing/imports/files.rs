//! The files that parameters name. They are in the simulated host's memory.

use crate::Errno;
use crate::testing::call::{Call, Phase, RUNNING, attempt};

/// What was given for the `nth` occurrence of a parameter.
pub(super) fn path(call: &Call, param: &str, nth: u32) -> Result<String, Errno> {
    let world = call.world();
    let mut given = world.paths.iter().filter(|(name, _)| name == param);
    let path = given.nth(nth as usize).map(|(_, path)| path.clone()).ok_or(Errno::Enoent)?;
    if world.is_disk(param) { Err(Errno::Einval) } else { Ok(path) }
}

pub(crate) fn size(param: &str, nth: u32) -> Result<u64, Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        call.world().files.get(&path).map(|bytes| bytes.len() as u64).ok_or(Errno::Enoent)
    })
}

pub(crate) fn read(param: &str, nth: u32, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        let world = call.world();
        let bytes = world.files.get(&path).ok_or(Errno::Enoent)?;
        let from = offset.min(bytes.len() as u64) as usize;
        let length = (length as usize).min(1 << 20).min(bytes.len() - from);
        Ok(bytes[from..from + length].to_vec())
    })
}

pub(crate) fn append(param: &str, nth: u32, data: &[u8]) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        call.world().files.entry(path).or_default().extend_from_slice(data);
        Ok(())
    })
}

pub(crate) fn truncate(param: &str, nth: u32) -> Result<(), Errno> {
    attempt(&[Phase::Server], |call| {
        let path = path(call, param, nth)?;
        if let Some(bytes) = call.world().files.get_mut(&path) {
            bytes.clear();
        }
        Ok(())
    })
}

pub(crate) fn sync(param: &str, nth: u32) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        path(call, param, nth)?;
        call.world().fault("sync")
    })
}

pub(crate) fn holds(param: &str, nth: u32) -> Result<bool, Errno> {
    attempt(&RUNNING, |call| {
        path(call, param, nth)?;
        Ok(call.world().holds(param, nth))
    })
}
