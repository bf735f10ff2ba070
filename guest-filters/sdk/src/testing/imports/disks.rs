//! Disks beside the one below. They are in the simulated host's memory.

use super::next::words;
use crate::testing::call::{Call, REQUESTS, attempt};
use crate::testing::disk::Disk;
use crate::{CommandFlags, Errno, Extent, Support};

/// A use of a disk that is shown to the test: `operation` with the disk's name behind it, and then
/// `arguments`.
fn used<T>(
    (param, nth): (&str, u32),
    operation: &str,
    arguments: String,
    body: impl FnOnce(&mut Call, &mut Disk) -> Result<T, Errno>,
) -> Result<T, Errno> {
    attempt(&REQUESTS, |call| {
        let name = name(call, param, nth)?;
        let mut disk = {
            let mut world = call.world();
            if !world.open_disks.contains(&name) {
                world.calls.push(format!("disk-open {name}"));
                world.fault("disk-open")?;
                world.open_disks.insert(name.clone());
            }
            if operation != "size" {
                let operation = format!("disk-{operation}");
                world.calls.push(format!("{operation} {name}{arguments}"));
                world.fault(&operation)?;
            }
            world.disks.remove(&name).expect("each disk that is given exists")
        };
        let result = body(call, &mut disk);
        call.world().disks.insert(name, disk);
        result
    })
}

/// What was given for the `nth` occurrence of a parameter.
fn name(call: &Call, param: &str, nth: u32) -> Result<String, Errno> {
    let world = call.world();
    if !world.is_disk(param) {
        let is_given = world.paths.iter().any(|(name, _)| name == param);
        return Err(if is_given { Errno::Einval } else { Errno::Enoent });
    }
    let mut given = world.paths.iter().filter(|(name, _)| name == param);
    given.nth(nth as usize).map(|(_, name)| name.clone()).ok_or(Errno::Enoent)
}

pub(crate) fn size(param: &str, nth: u32) -> Result<u64, Errno> {
    used((param, nth), "size", String::new(), |_, disk| Ok(disk.size()))
}

pub(crate) fn pread(param: &str, nth: u32, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
    used((param, nth), "pread", format!(" {offset} {length}"), |call, disk| {
        let bytes = disk.range(offset, length.into())?;
        call.part(buf, at, length).copy_from_slice(bytes);
        Ok(())
    })
}

pub(crate) fn extents(
    param: &str,
    nth: u32,
    offset: u64,
    length: u64,
    flags: CommandFlags,
) -> Result<Vec<Extent>, Errno> {
    let arguments = format!(" {offset} {length}{}", words(flags));
    used((param, nth), "extents", arguments, |_, disk| disk.extents(offset, length, 0, flags))
}

pub(crate) fn cache(param: &str, nth: u32, offset: u64, length: u64) -> Result<(), Errno> {
    used((param, nth), "cache", format!(" {offset} {length}"), |_, disk| match disk.can.cache {
        Support::None => Err(Errno::Enotsup),
        _ => disk.range(offset, length).map(drop),
    })
}
