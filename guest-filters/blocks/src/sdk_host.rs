//! The host of a component, through the SDK.

use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_sdk::{Errno, maps::When};

use crate::host::{self, Host, HostError, Mode, Words, ZeroFlags};

/// All state belongs to the export, so that its connections share it.
const SCOPE: Scope = Scope::Exportname;

/// The [`Host`] of a component.
pub struct SdkHost;

impl HostError for Errno {
    const NOT_SUPPORTED: Errno = Errno::Enotsup;

    fn is_full(self) -> bool {
        self == Errno::Enospc
    }
}

fn fua_flag(fua: bool) -> CommandFlags {
    if fua { CommandFlags::FUA } else { CommandFlags::empty() }
}

impl Host for SdkHost {
    type Error = Errno;

    fn lock(&self, offset: u64, length: u64, mode: Mode) -> Result<(), Errno> {
        let mode = match mode {
            Mode::Shared => locks::Mode::Shared,
            Mode::Exclusive => locks::Mode::Exclusive,
        };
        locks::lock(SCOPE, offset, length, mode)
    }

    fn unlock(&self) {
        locks::unlock();
    }

    fn run(&self, map: u32, first: u64, limit: u64) -> (u8, u64) {
        let run = maps::get_run(SCOPE, map, first, limit);
        // Past the end of the map the host returns 0 blocks. A request never reaches that, but
        // callers must not loop forever if it did.
        (run.state, run.count.max(1))
    }

    fn find(&self, map: u32, first: u64, states: u8) -> Option<u64> {
        maps::find(SCOPE, map, first, states)
    }

    fn set(&self, map: u32, first: u64, count: u64, states: u8, to: u8) -> u64 {
        maps::set(SCOPE, map, first, count, states, to, When::Now)
    }

    fn count(&self, map: u32, state: u8) -> u64 {
        maps::count(SCOPE, map, state)
    }

    fn slot(&self, slot: u32) -> Words {
        let words = slots::get(SCOPE, slot);
        Words { version: words.version, words: [words.a, words.b, words.c, words.d] }
    }

    fn replace(&self, slot: u32, version: u64, [a, b, c, d]: [u64; 4]) -> bool {
        slots::replace(SCOPE, slot, version, a, b, c, d)
    }

    fn scratch_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        scratch::pread(SCOPE, offset, length, buf, at)
    }

    fn scratch_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        scratch::pwrite(SCOPE, offset, length, buf, at)
    }

    fn scratch_punch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        scratch::punch(SCOPE, offset, length)
    }

    fn size(&self) -> Result<u64, Errno> {
        next::get_size()
    }

    fn next_max(&self) -> u32 {
        // The host accepts no request longer than 64 MiB.
        next::block_size().map_or(64 << 20, |sizes| sizes.maximum.clamp(1, 64 << 20))
    }

    fn next_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        next::pread(offset, length, buf, at)
    }

    fn next_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32, fua: bool) -> Result<(), Errno> {
        next::pwrite(offset, length, buf, at, fua_flag(fua))
    }

    fn next_flush(&self) -> Result<(), Errno> {
        next::flush()
    }

    fn next_zero(&self, offset: u64, length: u64, zero: ZeroFlags) -> Result<(), Errno> {
        let mut flags = fua_flag(zero.fua);
        flags.set(CommandFlags::MAY_TRIM, zero.may_trim);
        flags.set(CommandFlags::FAST_ZERO, zero.fast);
        next::zero(offset, length, flags)
    }

    fn next_trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Errno> {
        next::trim(offset, length, fua_flag(fua))
    }

    fn next_cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        next::cache(offset, length)
    }

    fn next_extents(&self, offset: u64, length: u64, limit: u64, one: bool) -> Result<Vec<host::Extent>, Errno> {
        let flags = if one { CommandFlags::REQ_ONE } else { CommandFlags::empty() };
        let list = next::extents_until(offset, length, limit, flags)?;
        let convert = |e: &Extent| host::Extent {
            offset: e.offset,
            length: e.length,
            hole: e.kind.contains(ExtentType::HOLE),
            zero: e.kind.contains(ExtentType::ZERO),
        };
        Ok(list.iter().map(convert).collect())
    }

    fn alloc(&self, length: u32) -> Result<u32, Errno> {
        buffer::alloc(length)
    }

    fn free(&self, buf: u32) {
        buffer::free(buf);
    }

    fn copy(&self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32) {
        buffer::copy(to, to_at, from, from_at, length);
    }

    fn clear(&self, buf: u32, at: u32, length: u32) {
        buffer::fill(buf, at, length, 0);
    }
}
