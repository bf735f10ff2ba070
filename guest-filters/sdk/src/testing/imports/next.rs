//! The layer below: the test's disk.

use crate::testing::call::{Access, Call, REQUESTS, attempt, with};
use crate::testing::extents;
use crate::{BlockSizes, Capabilities, CommandFlags, Errno, Extent, Scope, Support};

/// A use of next that is shown to the test: `line` begins with the operation's name.
fn used<T>(line: String, body: impl FnOnce(&mut Call) -> Result<T, Errno>) -> Result<T, Errno> {
    attempt(&REQUESTS, |call| {
        call.next()?;
        {
            let mut world = call.world();
            let operation = line.split(' ').next().unwrap_or_default().to_string();
            let recorded = world.recorded.as_mut().map_or(Ok(()), |below| below.call(&line));
            world.calls.push(line);
            world.fault(&operation)?;
            recorded?;
        }
        body(call)
    })
}

/// The names of the flags, each with a blank before it.
pub(in crate::testing) fn words(flags: CommandFlags) -> String {
    let names = [
        (CommandFlags::FUA, " fua"),
        (CommandFlags::MAY_TRIM, " may-trim"),
        (CommandFlags::FAST_ZERO, " fast-zero"),
        (CommandFlags::REQ_ONE, " req-one"),
    ];
    names.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name).collect()
}

/// What next offers on this connection.
fn offered(call: &Call) -> Result<Capabilities, Errno> {
    let can = call.world().disk.can;
    Ok(match call.next()? {
        Access::ReadWrite => can,
        Access::ReadOnly => {
            let none = Support::None;
            Capabilities { write: false, trim: false, fast_zero: false, zero: none, fua: none, ..can }
        }
    })
}

/// Fails for a change of a read-only next.
fn writable(call: &Call) -> Result<Capabilities, Errno> {
    let can = offered(call)?;
    if can.write { Ok(can) } else { Err(Errno::Erofs) }
}

pub(crate) fn get_size() -> Result<u64, Errno> {
    attempt(&REQUESTS, |call| {
        call.next()?;
        Ok(call.world().disk.size())
    })
}

pub(crate) fn can() -> Result<Capabilities, Errno> {
    attempt(&REQUESTS, |call| offered(call))
}

pub(crate) fn block_size() -> Result<BlockSizes, Errno> {
    attempt(&REQUESTS, |call| {
        call.next()?;
        let mut world = call.world();
        world.fault("block-size")?;
        world.disk.block_sizes.ok_or(Errno::Enotsup)
    })
}

pub(crate) fn export_description() -> Option<String> {
    with("next.export-description", &REQUESTS, |call| call.world().disk.description.clone())
}

pub(crate) fn pread(offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
    used(format!("pread {offset} {length}"), |call| {
        let bytes = call.world().read(offset, length.into())?.to_vec();
        call.part(buf, at, length).copy_from_slice(&bytes);
        Ok(())
    })
}

pub(crate) fn pwrite(offset: u64, length: u32, buf: u32, at: u32, flags: CommandFlags) -> Result<(), Errno> {
    used(format!("pwrite {offset} {length}{}", words(flags)), |call| {
        writable(call)?;
        let bytes = call.part(buf, at, length).to_vec();
        call.world().change(offset, length.into())?.copy_from_slice(&bytes);
        Ok(())
    })
}

pub(crate) fn flush() -> Result<(), Errno> {
    used("flush".to_string(), |_| Ok(()))
}

/// There is one disk, so flushing it once flushes it for all connections.
pub(crate) fn flush_all(scope: Scope) -> Result<(), Errno> {
    used(format!("flush-all {scope:?}").to_lowercase(), |_| Ok(()))
}

/// Discards by writing zeroes.
pub(crate) fn trim(offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
    used(format!("trim {offset} {length}{}", words(flags)), |call| match writable(call)?.trim {
        true => call.world().change(offset, length).map(|bytes| bytes.fill(0)),
        false => Err(Errno::Enotsup),
    })
}

pub(crate) fn zero(offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
    used(format!("zero {offset} {length}{}", words(flags)), |call| {
        let can = writable(call)?;
        if flags.contains(CommandFlags::FAST_ZERO) && !can.fast_zero || can.zero == Support::None {
            return Err(Errno::Enotsup);
        }
        call.world().change(offset, length)?.fill(0);
        Ok(())
    })
}

pub(crate) fn cache(offset: u64, length: u64) -> Result<(), Errno> {
    used(format!("cache {offset} {length}"), |call| call.world().disk.range(offset, length).map(drop))
}

pub(crate) fn extents(offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
    extents_until(offset, length, 0, flags)
}

pub(crate) fn extents_until(offset: u64, length: u64, limit: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
    let line = format!("extents {offset} {length}{}", words(flags));
    used(line.clone(), |call| {
        let mut world = call.world();
        if let Some(list) = world.recorded.as_mut().and_then(|below| below.extents(&line)) {
            return Ok(list);
        }
        world.disk.extents(offset, length, limit, flags)
    })
}

pub(crate) fn extents_forward(offset: u64, length: u64, to: u64, flags: CommandFlags) -> Result<(), Errno> {
    extents_forward_until(offset, length, 0, to, flags)
}

pub(crate) fn extents_forward_until(
    offset: u64,
    length: u64,
    limit: u64,
    to: u64,
    flags: CommandFlags,
) -> Result<(), Errno> {
    let list = extents_until(offset, length, limit, flags)?;
    with("next.extents-forward", &REQUESTS, |call| {
        if call.runs_on {
            return;
        }
        for extent in list {
            call.runs_on |= extent.offset + extent.length > offset + length;
            extents::push(&mut call.appended, Extent { offset: extent.offset - offset + to, ..extent });
        }
    });
    Ok(())
}

/// The test sees what was asked for. Nothing is prefetched.
pub(crate) fn prefetch(offset: u64, length: u64) -> bool {
    with("next.prefetch", &REQUESTS, |call| {
        let mut world = call.world();
        world.calls.push(format!("prefetch {offset} {length}"));
        world.disk.can.cache != Support::None
    })
}
