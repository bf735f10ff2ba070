//! Remembers the last answer about extents. A client that asks for one extent after the other then
//! causes only one request to the layer below for many of its own.
//!
//! The answer is kept in the export's scratch file, and a slot says which range it covers. All
//! instances and connections share it. A reader takes no lock: it reads the slot before and after
//! it reads the file, and a writer changes the slot before it changes the file.

mod list;

use buffer::Buffer;
use list::{MAX_RUNS, Run, answer, pack, packed_size, unpack};
use locks::{Held, Mode};
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

/// Describes the remembered answer. Word a: where its range starts. Word b: where it ends. Word c:
/// how many runs it has; 0 if nothing is remembered. The version also changes with every write, so
/// that an answer from before a write is not remembered after it.
const ANSWER: Slot = Slot { scope: Scope::Exportname, index: 0 };

/// The filter.
pub struct CacheExtents;

/// Forgets the answer. The version of the slot always changes.
fn forget() {
    while !ANSWER.replace(ANSWER.get(), [0; 4]) {}
}

/// Runs an operation that changes the export. The remembered answer is invalid from the start of
/// the operation, and an answer that arrives during the operation must not be remembered.
fn forget_around(operation: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    forget();
    let result = operation();
    forget();
    result
}

/// Answers a request from the remembered answer, if that covers `offset`.
fn recall(offset: u64, end: u64, one: bool) -> Option<Vec<Extent>> {
    let slot = ANSWER.get();
    if slot.c == 0 || offset < slot.a || offset >= slot.b {
        return None;
    }
    let bytes = Buffer::new(packed_size(slot.c)).ok()?;
    scratch::pread(Scope::Exportname, 0, packed_size(slot.c), bytes.id(), 0).ok()?;
    let runs = unpack(&bytes.read(..));
    if ANSWER.get().version != slot.version {
        return None;
    }
    let list = answer(&runs, offset, end, one);
    (!list.is_empty()).then(|| list.into_iter().map(extent).collect())
}

fn extent((offset, length, kind): (u64, u64, u8)) -> Extent {
    let mut flags = ExtentType::empty();
    flags.set(ExtentType::HOLE, kind & 1 != 0);
    flags.set(ExtentType::ZERO, kind & 2 != 0);
    Extent { offset, length, kind: flags }
}

/// Remembers an answer, unless the slot has changed since `version`.
fn remember(version: u64, extents: &[Extent]) -> Result<(), Errno> {
    let kind =
        |kind: ExtentType| u8::from(kind.contains(ExtentType::HOLE)) | u8::from(kind.contains(ExtentType::ZERO)) << 1;
    let runs: Vec<Run> =
        extents.iter().take(MAX_RUNS).map(|e| Run { end: e.offset + e.length, kind: kind(e.kind) }).collect();
    let (Some(first), Some(last)) = (extents.first(), runs.last()) else { return Ok(()) };
    let bytes = pack(&runs);
    let buf = Buffer::new(bytes.len() as u32)?;
    buf.write(0, &bytes);
    // Only one call writes the file at a time.
    let lock = Held::new(Scope::Exportname, 0, 1, Mode::Exclusive)?;
    let slot = ANSWER.get();
    if slot.version == version && ANSWER.replace(slot, [0; 4]) {
        let emptied = ANSWER.get();
        if emptied.c == 0 {
            scratch::pwrite(Scope::Exportname, 0, bytes.len() as u32, buf.id(), 0)?;
            ANSWER.replace(emptied, [first.offset, last.end, runs.len() as u64, 0]);
        }
    }
    lock.release();
    Ok(())
}

impl Filter for CacheExtents {
    type Params = ();

    fn describe() -> Description {
        Description::new("cacheextents", env!("CARGO_PKG_VERSION"), "remembers the last answer about extents")
            .help("For clients that ask for one extent after the other, over a source that takes long for each answer.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
            .state_version(1)
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(CacheExtents)
    }
}

impl Writes for CacheExtents {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        forget_around(|| next::pwrite(offset, length, PAYLOAD, 0, flags))
    }
}

impl Trims for CacheExtents {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        forget_around(|| next::trim(offset, length, flags))
    }
}

impl Zeroes for CacheExtents {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        forget_around(|| next::zero(offset, length, flags))
    }
}

impl Mapping for CacheExtents {
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        let one = flags.contains(CommandFlags::REQ_ONE);
        if let Some(list) = recall(offset, offset + length, one) {
            return Ok(list);
        }
        let version = ANSWER.get().version;
        // Ask for all extents even if the client wants one: it will ask for the others next.
        let mut list = next::extents_until(offset, length, u64::MAX, flags & !CommandFlags::REQ_ONE)?;
        // A failure to remember the answer must not fail the request.
        let _ = remember(version, &list);
        if one {
            list.truncate(1);
        }
        Ok(list)
    }
}

rbdkit_filter_sdk::export!(CacheExtents: writes, trims, zeroes, mapping);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn an_answer_is_remembered_until_a_write() {
        let host = Host::new(Disk::zeroes(65536)).serve::<CacheExtents>(&[]).unwrap();
        let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
        two.pwrite(8192, b"data", CommandFlags::empty()).unwrap();
        host.take_calls();
        let first = one.extents(0, 16384, CommandFlags::REQ_ONE).unwrap();
        let second = two.extents(8192, 4096, CommandFlags::REQ_ONE).unwrap();
        assert_eq!((first[0].length, second[0].kind), (8192, ExtentType::empty()));
        assert_eq!(host.take_calls(), ["extents 0 16384"]);
        two.zero(8192, 4096, CommandFlags::empty()).unwrap();
        assert_eq!(one.extents(0, 16384, CommandFlags::REQ_ONE).unwrap()[0].length, 16384);
        assert_eq!(host.take_calls(), ["zero 8192 4096", "extents 0 16384"]);
    }
}
