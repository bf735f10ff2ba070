//! The simulated host, as one client's present request sees it.

use std::panic::resume_unwind;
use std::sync::MutexGuard;

use crate::host::{Extent, Host, Mode, PAYLOAD, Words, ZeroFlags};

use super::settings::{Settings, SimError, Writes};
use super::shared::Shared;
use super::world::{Lock, Status, World};

/// The payload of the unwinding that stands for a trap.
pub struct Trap;

/// The host of one client's present request.
pub struct Call<'s> {
    shared: &'s Shared,
    client: usize,
}

impl<'s> Call<'s> {
    pub fn new(shared: &'s Shared, client: usize) -> Call<'s> {
        Call { shared, client }
    }

    pub fn client(&self) -> usize {
        self.client
    }

    /// Ends a call, for subjects that serve several requests one after another.
    pub fn answered(&self) {
        self.shared.world().release(self.client);
    }

    fn settings(&self) -> &'s Settings {
        &self.shared.settings
    }

    /// Lets other clients run until it is this client's turn again.
    pub fn turn_without_faults(&self) -> MutexGuard<'s, World> {
        let mut world = self.shared.world();
        self.shared.pass_turn(&mut world);
        self.shared.wait_for_turn(self.client, world)
    }

    /// Lets other clients run until it is this client's turn again. Then it may trap.
    fn turn(&self) -> MutexGuard<'s, World> {
        let mut world = self.turn_without_faults();
        if self.settings().traps > 0 && world.rng.below(10000) < self.settings().traps {
            world.stats.traps += 1;
            drop(world);
            resume_unwind(Box::new(Trap));
        }
        world
    }

    /// Calls `piece` for parts of a range (with their position and length), with other clients in
    /// between.
    fn in_pieces(&self, length: u32, mut piece: impl FnMut(&mut World, usize, usize)) {
        let mut done = 0;
        while done < length as usize {
            let mut world = self.turn();
            let n = (1 + world.rng.below(24) as usize).min(length as usize - done);
            piece(&mut world, done, n);
            done += n;
        }
    }

    fn next_fails(&self) -> bool {
        let mut world = self.turn();
        world.rng.permille(self.settings().next_fails)
    }

    fn check_range(&self, offset: u64, length: u64) {
        let size = self.settings().size;
        assert!(length > 0 && offset + length <= size, "{offset}+{length} is outside of next");
    }

    /// Changes bytes of next. `value` returns the new value of the byte at a position in the range,
    /// or `None` to leave it.
    fn change_next(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        value: impl Fn(&mut World, usize) -> Option<u8>,
    ) -> Result<(), SimError> {
        assert!(self.settings().writes != Writes::Kept, "next was written to");
        self.check_range(offset, length);
        let fails = self.next_fails();
        // A request that fails has changed a part of its range, or nothing.
        let length = if fails { self.turn().rng.below(length) } else { length };
        self.in_pieces(length as u32, |world, at, n| {
            for position in at..at + n {
                if let Some(value) = value(world, position) {
                    world.change_next(self.client, offset as usize + position, value);
                }
            }
        });
        if fails {
            return Err(SimError::Io);
        }
        if fua {
            self.turn().make_durable(self.client, offset as usize..(offset + length) as usize);
        }
        Ok(())
    }
}

impl Host for Call<'_> {
    type Error = SimError;

    fn lock(&self, offset: u64, length: u64, mode: Mode) -> Result<(), SimError> {
        let mut world = self.turn();
        if world.locks.iter().any(|lock| lock.client == self.client) {
            return Err(SimError::Deadlock);
        }
        world.locks.push(Lock { client: self.client, start: offset, end: offset + length, mode, granted: false });
        world.status[self.client] = Status::Waiting;
        world.grant();
        if world.status[self.client] == Status::Waiting {
            world.stats.waits += 1;
            self.shared.pass_turn(&mut world);
            drop(self.shared.wait_for_turn(self.client, world));
        }
        Ok(())
    }

    fn unlock(&self) {
        self.turn().release(self.client);
    }

    fn run(&self, map: u32, first: u64, limit: u64) -> (u8, u64) {
        let world = self.turn();
        let rest = &world.maps[map as usize][first as usize..];
        let state = rest[0];
        let count = rest.iter().take(limit as usize).take_while(|other| **other == state).count();
        (state, count as u64)
    }

    fn find(&self, map: u32, first: u64, states: u8) -> Option<u64> {
        let world = self.turn();
        let rest = world.maps[map as usize].get(first as usize..)?;
        rest.iter().position(|state| states >> state & 1 == 1).map(|n| first + n as u64)
    }

    fn set(&self, map: u32, first: u64, count: u64, states: u8, to: u8) -> u64 {
        let mut world = self.turn();
        let mut changed = 0;
        for state in &mut world.maps[map as usize][first as usize..(first + count) as usize] {
            if states >> *state & 1 == 1 {
                *state = to;
                changed += 1;
            }
        }
        changed
    }

    fn count(&self, map: u32, state: u8) -> u64 {
        self.turn().maps[map as usize].iter().filter(|other| **other == state).count() as u64
    }

    fn slot(&self, slot: u32) -> Words {
        self.turn().slots[slot as usize]
    }

    fn replace(&self, slot: u32, version: u64, words: [u64; 4]) -> bool {
        let mut world = self.turn();
        let slot = &mut world.slots[slot as usize];
        let same = slot.version == version;
        if same {
            *slot = Words { version: version + 1, words };
        }
        same
    }

    fn scratch_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), SimError> {
        self.in_pieces(length, |world, done, n| {
            let from = offset as usize + done;
            let bytes = world.scratch[from..from + n].to_vec();
            world.buffer(self.client, buf)[at as usize + done..][..n].copy_from_slice(&bytes);
        });
        Ok(())
    }

    fn scratch_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), SimError> {
        let bits = self.settings().bits;
        {
            let mut world = self.turn();
            let blocks = (offset >> bits) as usize..=((offset + u64::from(length) - 1) >> bits) as usize;
            let used = world.allocated.iter().filter(|allocated| **allocated).count();
            let more = world.allocated[blocks.clone()].iter().filter(|allocated| !**allocated).count();
            let full = self.settings().scratch_full;
            if (used + more) as u64 > self.settings().quota || world.rng.permille(full) {
                world.stats.full += 1;
                // Part of the range may have been overwritten, if all of it takes space already.
                let world = &mut *world;
                let n = if more == 0 { world.rng.below(u64::from(length)) as usize } else { 0 };
                let bytes = world.buffer(self.client, buf)[at as usize..][..n].to_vec();
                world.scratch[offset as usize..][..n].copy_from_slice(&bytes);
                return Err(SimError::Full);
            }
            world.allocated[blocks].fill(true);
            world.stats.peak = world.stats.peak.max((used + more) as u64);
        }
        self.in_pieces(length, |world, done, n| {
            let bytes = world.buffer(self.client, buf)[at as usize + done..][..n].to_vec();
            let to = offset as usize + done;
            world.scratch[to..to + n].copy_from_slice(&bytes);
        });
        Ok(())
    }

    fn scratch_punch(&self, offset: u64, length: u64) -> Result<(), SimError> {
        let bits = self.settings().bits;
        let end = offset + length;
        self.in_pieces(length as u32, |world, done, n| {
            let from = offset as usize + done;
            world.scratch[from..from + n].fill(0);
        });
        let mut world = self.turn();
        let size = self.settings().size;
        for block in (offset.div_ceil(1 << bits))..if end == size { end.div_ceil(1 << bits) } else { end >> bits } {
            world.allocated[block as usize] = false;
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, SimError> {
        Ok(self.settings().size)
    }

    fn next_max(&self) -> u32 {
        self.settings().next_max
    }

    fn next_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), SimError> {
        self.check_range(offset, length.into());
        self.turn().stats.next_reads += 1;
        let fails = self.next_fails();
        self.in_pieces(length, |world, done, n| {
            let from = offset as usize + done;
            let bytes = if fails { vec![0xdd; n] } else { world.next[from..from + n].to_vec() };
            world.buffer(self.client, buf)[at as usize + done..][..n].copy_from_slice(&bytes);
        });
        if fails { Err(SimError::Io) } else { Ok(()) }
    }

    fn next_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32, fua: bool) -> Result<(), SimError> {
        assert!(length <= self.settings().next_max);
        self.turn().stats.next_writes += 1;
        let client = self.client;
        self.change_next(offset, length.into(), fua, |world, n| Some(world.buffer(client, buf)[at as usize + n]))
    }

    fn next_flush(&self) -> Result<(), SimError> {
        if self.next_fails() {
            return Err(SimError::Io);
        }
        let mut world = self.turn();
        let whole = 0..world.next.len();
        if self.settings().multi_conn {
            for client in 0..self.settings().clients {
                world.make_durable(client, whole.clone());
            }
        } else {
            world.make_durable(self.client, whole);
        }
        Ok(())
    }

    fn next_zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), SimError> {
        if flags.fast && self.turn().rng.permille(500) {
            return Err(SimError::NotSupported);
        }
        self.change_next(offset, length, flags.fua, |_, _| Some(0))
    }

    fn next_trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), SimError> {
        self.change_next(offset, length, fua, |world, _| world.rng.permille(500).then_some(0))
    }

    fn next_cache(&self, offset: u64, length: u64) -> Result<(), SimError> {
        self.check_range(offset, length);
        self.turn().stats.next_caches += 1;
        if self.next_fails() { Err(SimError::Io) } else { Ok(()) }
    }

    fn next_extents(&self, offset: u64, length: u64, limit: u64, one: bool) -> Result<Vec<Extent>, SimError> {
        self.check_range(offset, length);
        if self.next_fails() {
            return Err(SimError::Io);
        }
        let mut world = self.turn();
        let mut list: Vec<Extent> = Vec::new();
        let max = 1 + world.rng.below(6) as usize;
        let end = offset + length;
        let limit = if one || world.rng.permille(300) { end } else { limit.clamp(end, self.settings().size) };
        for position in offset..limit {
            let zero = world.next[position as usize] == 0;
            let count = list.len();
            match list.last_mut() {
                Some(last) if last.zero == zero => last.length += 1,
                _ if count == max || one && count == 1 || position >= end => break,
                _ => list.push(Extent { offset: position, length: 1, hole: zero, zero }),
            }
        }
        Ok(list)
    }

    fn alloc(&self, length: u32) -> Result<u32, SimError> {
        let mut world = self.turn();
        if world.rng.permille(self.settings().no_memory) {
            return Err(SimError::NoMemory);
        }
        let buffers = &mut world.buffers[self.client];
        buffers.push(Some(vec![0; length as usize]));
        Ok(buffers.len() as u32 - 1)
    }

    fn free(&self, buf: u32) {
        // This also runs while a trap unwinds, so it must not trap or wait.
        assert_ne!(buf, PAYLOAD);
        self.shared.world().buffers[self.client][buf as usize] = None;
    }

    fn copy(&self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32) {
        let mut world = self.turn();
        let bytes = world.buffer(self.client, from)[from_at as usize..][..length as usize].to_vec();
        world.buffer(self.client, to)[to_at as usize..][..length as usize].copy_from_slice(&bytes);
    }

    fn clear(&self, buf: u32, at: u32, length: u32) {
        self.turn().buffer(self.client, buf)[at as usize..][..length as usize].fill(0);
    }
}
