//! Remembers the last answer about extents: a client that asks for one extent after the other causes one question below for many of its own.
//!
//! The answer is kept in the export's scratch file, and a slot says which range it is of. Instances and connections share it without a lock for
//! reading: who reads it looks at the slot before and after, and the slot changes before the file does.
#![deny(unsafe_code)]

mod list;

use buffer::Buffer;
use list::{MOST, Run, answer, pack, size, unpack};
use locks::{Held, Mode};
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

/// What is known: from, to, and how many runs; all zeroes for nothing. Its version also changes with every write, which is how an answer from
/// before a write is known not to be worth keeping.
const KNOWN: Slot = Slot { scope: Scope::Exportname, index: 0 };

/// The filter.
pub struct CacheExtents;

/// Forgets. The slot changes in any case.
fn forget() {
    while !KNOWN.replace(KNOWN.get(), [0; 4]) {}
}

/// A change of the export: what is known is wrong from its beginning, and what is asked meanwhile is not to be kept.
fn change(operation: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    forget();
    let result = operation();
    forget();
    result
}

/// What is known of a range, if something is.
fn known(offset: u64, end: u64, one: bool) -> Option<Vec<Extent>> {
    let slot = KNOWN.get();
    if slot.c == 0 || offset < slot.a || offset >= slot.b {
        return None;
    }
    let bytes = Buffer::new(size(slot.c)).ok()?;
    scratch::pread(Scope::Exportname, 0, size(slot.c), bytes.id(), 0).ok()?;
    let runs = unpack(&buffer::read(bytes.id(), 0, size(slot.c)));
    if KNOWN.get().version != slot.version {
        return None;
    }
    let list = answer(&runs, offset, end.min(slot.b), one);
    (!list.is_empty()).then(|| list.into_iter().map(extent).collect())
}

fn extent((offset, length, kind): (u64, u64, u8)) -> Extent {
    let mut flags = ExtentType::empty();
    flags.set(ExtentType::HOLE, kind & 1 != 0);
    flags.set(ExtentType::ZERO, kind & 2 != 0);
    Extent { offset, length, kind: flags }
}

/// Keeps an answer, unless something has changed since `version`.
fn keep(version: u64, extents: &[Extent]) -> Result<(), Errno> {
    let kind =
        |kind: ExtentType| u8::from(kind.contains(ExtentType::HOLE)) | u8::from(kind.contains(ExtentType::ZERO)) << 1;
    let runs: Vec<Run> =
        extents.iter().take(MOST).map(|e| Run { end: e.offset + e.length, kind: kind(e.kind) }).collect();
    let (Some(first), Some(last)) = (extents.first(), runs.last()) else { return Ok(()) };
    let bytes = pack(&runs);
    let buf = Buffer::new(bytes.len() as u32)?;
    buffer::write(buf.id(), 0, &bytes);
    // One writes at a time; nobody waits for long.
    let lock = Held::new(Scope::Exportname, 0, 1, Mode::Exclusive)?;
    let slot = KNOWN.get();
    if slot.version == version && KNOWN.replace(slot, [0; 4]) {
        let emptied = KNOWN.get();
        if emptied.c == 0 {
            scratch::pwrite(Scope::Exportname, 0, bytes.len() as u32, buf.id(), 0)?;
            KNOWN.replace(emptied, [first.offset, last.end, runs.len() as u64, 0]);
        }
    }
    lock.release();
    Ok(())
}

impl Filter for CacheExtents {
    fn describe() -> Description {
        Description::new("cacheextents", env!("CARGO_PKG_VERSION"), "remembers the last answer about extents")
            .help("For clients that ask for one extent after the other, over a source that is slow to answer.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .state_version(1)
    }

    fn configure(_params: &Params) -> Result<Self, String> {
        Ok(CacheExtents)
    }
}

impl Writes for CacheExtents {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        change(|| next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Trims for CacheExtents {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        change(|| next::trim(offset, length, flags))
    }
}

impl Zeroes for CacheExtents {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        change(|| next::zero(offset, length, flags))
    }
}

impl Mapping for CacheExtents {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let one = flags.contains(CommandFlags::REQ_ONE);
        if let Some(list) = known(offset, offset + length, one) {
            return Ok(list);
        }
        let version = KNOWN.get().version;
        // All of them, whatever was asked for: the client will ask for the rest.
        let mut list = next::extents(offset, length, flags & !CommandFlags::REQ_ONE)?;
        // Whether it can be kept must not matter to who asked.
        let _ = keep(version, &list);
        if one {
            list.truncate(1);
        }
        Ok(list)
    }
}

rbdkit_filter_sdk::export!(CacheExtents: writes, trims, zeroes, mapping);
