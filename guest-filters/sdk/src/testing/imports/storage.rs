//! Files that are kept. They are in the simulated host's memory.

use crate::Errno;
use crate::testing::call::{REQUESTS, RUNNING, attempt};

use super::files::path;

/// The most bytes that `read` and `write` move.
const MAX_SMALL: usize = 64 << 10;

pub(crate) fn size(param: &str, nth: u32) -> Result<u64, Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        Ok(call.world().files.get(&path).map_or(0, |bytes| bytes.len() as u64))
    })
}

pub(crate) fn resize(param: &str, nth: u32, size: u64) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        let mut world = call.world();
        if size > world.quota {
            return Err(Errno::Enospc);
        }
        world.files.entry(path).or_default().resize(size as usize, 0);
        Ok(())
    })
}

/// Those bytes count that are not zero, in pages of 4 KiB.
pub(crate) fn allocated(param: &str, nth: u32) -> Result<u64, Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        let world = call.world();
        let Some(bytes) = world.files.get(&path) else { return Ok(0) };
        Ok(4096 * bytes.chunks(4096).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64)
    })
}

pub(crate) fn pread(param: &str, nth: u32, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        let path = path(call, param, nth)?;
        call.world().fault("storage-pread")?;
        let mut found = call.world().files.get(&path).map_or_else(Vec::new, |bytes| {
            let from = offset.min(bytes.len() as u64) as usize;
            bytes[from..bytes.len().min(from + length as usize)].to_vec()
        });
        found.resize(length as usize, 0);
        call.part(buf, at, length).copy_from_slice(&found);
        Ok(())
    })
}

pub(crate) fn pwrite(param: &str, nth: u32, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
    let bytes = attempt(&REQUESTS, |call| {
        path(call, param, nth)?;
        Ok(call.part(buf, at, length).to_vec())
    })?;
    put(param, nth, offset, &bytes)
}

pub(crate) fn read(param: &str, nth: u32, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        if length as usize > MAX_SMALL {
            return Err(Errno::Einval);
        }
        call.world().fault("storage-pread")?;
        let world = call.world();
        let bytes = world.files.get(&path).map_or(&[][..], Vec::as_slice);
        let from = offset.min(bytes.len() as u64) as usize;
        Ok(bytes[from..bytes.len().min(from + length as usize)].to_vec())
    })
}

pub(crate) fn write(param: &str, nth: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
    if data.len() > MAX_SMALL {
        return Err(Errno::Einval);
    }
    put(param, nth, offset, data)
}

fn put(param: &str, nth: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        let mut world = call.world();
        world.fault("storage-pwrite")?;
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::Einval)?;
        if end > world.quota {
            return Err(Errno::Enospc);
        }
        let bytes = world.files.entry(path).or_default();
        bytes.resize(bytes.len().max(end as usize), 0);
        bytes[offset as usize..end as usize].copy_from_slice(data);
        Ok(())
    })
}

pub(crate) fn punch(param: &str, nth: u32, offset: u64, length: u64) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        let path = path(call, param, nth)?;
        if let Some(bytes) = call.world().files.get_mut(&path) {
            let size = bytes.len() as u64;
            bytes[offset.min(size) as usize..offset.saturating_add(length).min(size) as usize].fill(0);
        }
        Ok(())
    })
}

/// Notes `storage-flush` among the calls.
pub(crate) fn flush(param: &str, nth: u32) -> Result<(), Errno> {
    attempt(&RUNNING, |call| {
        path(call, param, nth)?;
        let mut world = call.world();
        world.calls.push("storage-flush".into());
        world.fault("storage-flush")
    })
}
