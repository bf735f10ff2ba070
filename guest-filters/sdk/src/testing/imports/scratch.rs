//! The temporary file.

use crate::testing::call::{REQUESTS, attempt, with};
use crate::{Errno, Scope};

pub(crate) fn pread(s: Scope, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        let owner = call.owner(s);
        call.world().fault("scratch-pread")?;
        let mut bytes = vec![0; length as usize];
        call.world().state(owner).scratch.read(offset, &mut bytes);
        call.part(buf, at, length).copy_from_slice(&bytes);
        Ok(())
    })
}

pub(crate) fn pwrite(s: Scope, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        let owner = call.owner(s);
        let bytes = call.part(buf, at, length).to_vec();
        let mut world = call.world();
        world.fault("scratch-pwrite")?;
        let quota = world.quota;
        world.state(owner).scratch.write(offset, &bytes, quota)
    })
}

pub(crate) fn punch(s: Scope, offset: u64, length: u64) -> Result<(), Errno> {
    attempt(&REQUESTS, |call| {
        let owner = call.owner(s);
        call.world().state(owner).scratch.punch(offset, length);
        Ok(())
    })
}

pub(crate) fn allocated(s: Scope) -> u64 {
    with("scratch.allocated", &REQUESTS, |call| {
        let owner = call.owner(s);
        call.world().state(owner).scratch.allocated()
    })
}

pub(crate) fn quota(_s: Scope) -> u64 {
    with("scratch.quota", &REQUESTS, |call| call.world().quota)
}
