//! What writing takes from the host: the layer below, and the state that all instances share.

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::write::{self, Below, ClusterMap, Lock, Shared, TableChange, Writer};
use rbdkit_filter_formats::qcow2::{Entry, Image};
use rbdkit_filter_sdk::image::Error;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::luks;

/// All state belongs to the export.
const SCOPE: Scope = Scope::Exportname;

/// The slots of the module [`luks`] in the same scope come first.
const fn slot(index: u32) -> slots::Slot {
    slots::Slot { scope: SCOPE, index: luks::SLOTS + index }
}

/// How often tables were changed.
const GENERATION: slots::Slot = slot(0);
/// The two numbers of the search for space.
const SEARCH: slots::Slot = slot(1);
/// Whether the header has no autoclear bits any more.
const CLEARED: slots::Slot = slot(2);
/// How many connections may write.
const CONNECTIONS: slots::Slot = slot(3);
/// Whether the image can be written: one of the following.
const VERDICT: slots::Slot = slot(4);

/// The two numbers of flushes.
const FLUSHES: slots::Slot = slot(5);
/// The last changes of tables: each is in the slot of its number, which it has as its first word.
const CHANGES: u64 = 8;
/// Marks a change that has an offset and a length.
const IS_RANGE: u64 = 1 << 63;

const fn change_slot(number: u64) -> slots::Slot {
    slot(6 + (number % CHANGES) as u32)
}

const UNKNOWN: u64 = 0;
const CAN_BE_WRITTEN: u64 = 1;
const READ_ONLY: u64 = 2;

/// The number of the lock for opening. Disks have less than 2^54 clusters, and reference counts are
/// locked with 2^60.
const OPENING: u64 = 1 << 61;

/// Another connection may change the header while an image is opened.
const ATTEMPTS: u32 = 16;

/// Zeroes are written in pieces of so many bytes where next cannot zero.
const ZEROES: u64 = 1 << 20;

fn set(slot: slots::Slot, words: [u64; 4]) {
    while !slot.replace(slot.get(), words) {}
}

fn map(map: ClusterMap) -> maps::Map {
    maps::Map { scope: SCOPE, id: map as u32 }
}

/// The layer below of the connection that is being served.
struct Host {
    can: Capabilities,
}

impl Below for Host {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(data.len()).map_err(|_| Errno::Eoverflow)?;
        let buffer = Buffer::new(length)?;
        buffer.write(0, data);
        next::pwrite(offset, length, buffer.id(), 0, CommandFlags::empty())
    }

    fn write_buffer(&self, offset: u64, length: u32, buffer: &buffer::Bytes, at: u32) -> Result<(), Errno> {
        next::pwrite(offset, length, buffer.id(), at, CommandFlags::empty())
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let mut done = 0;
        while self.can.zero != Support::None && done < length {
            let n = (length - done).min(1 << 30);
            match next::zero(offset + done, n, CommandFlags::MAY_TRIM) {
                Err(Errno::Enotsup) => break,
                zeroed => zeroed?,
            }
            done += n;
        }
        if done == length {
            return Ok(());
        }
        let zeroes = Buffer::new(ZEROES.min(length - done) as u32)?;
        while done < length {
            let n = ZEROES.min(length - done);
            next::pwrite(offset + done, n as u32, zeroes.id(), 0, CommandFlags::empty())?;
            done += n;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), Errno> {
        if self.can.trim { next::trim(offset, length, CommandFlags::empty()) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Errno> {
        match (self.can.flush, self.can.multi_conn) {
            (false, _) => Ok(()),
            (true, true) => next::flush(),
            // What other connections wrote has to be durable too.
            (true, false) => next::flush_all(SCOPE),
        }
    }
}

impl Shared for Host {
    fn lock(&self, first: u64, count: u64, lock: Lock) -> Result<(), Errno> {
        let mode = match lock {
            Lock::Shared => locks::Mode::Shared,
            Lock::Exclusive => locks::Mode::Exclusive,
        };
        locks::lock(SCOPE, first, count, mode)
    }
    fn unlock(&self) {
        locks::unlock();
    }
    fn warn(&self, line: &str) {
        warn!("{line}");
    }
    fn generation(&self) -> u64 {
        GENERATION.get().a
    }
    fn count_change(&self, change: TableChange) -> u64 {
        let number = slots::add(SCOPE, GENERATION.index, 1);
        // Who does not find it here takes it for a change of everything.
        let words = match change {
            TableChange::Entry { at, entry } => [number, at, entry.word, entry.bitmap],
            TableChange::Bytes { at, length } => [number, at | IS_RANGE, length, 0],
            TableChange::Table => return number,
        };
        set(change_slot(number), words);
        number
    }
    fn change(&self, number: u64) -> Option<TableChange> {
        let words = change_slot(number).get();
        let at = words.b & !IS_RANGE;
        (words.a == number).then_some(match words.b & IS_RANGE {
            0 => TableChange::Entry { at, entry: Entry { word: words.c, bitmap: words.d } },
            _ => TableChange::Bytes { at, length: words.c },
        })
    }
    fn search(&self) -> (u64, u64) {
        let words = SEARCH.get();
        (words.a, words.b)
    }
    fn set_search(&self, (a, b): (u64, u64)) {
        set(SEARCH, [a, b, 0, 0]);
    }
    fn flushes(&self) -> (u64, u64) {
        let words = FLUSHES.get();
        (words.a, words.b)
    }
    fn set_flushes(&self, (a, b): (u64, u64)) {
        set(FLUSHES, [a, b, 0, 0]);
    }
    fn is_cleared(&self) -> bool {
        CLEARED.get().a != 0
    }
    fn set_cleared(&self) {
        set(CLEARED, [1, 0, 0, 0]);
    }
    fn run(&self, of: ClusterMap, first: u64, limit: u64) -> (u8, u64) {
        let run = map(of).run(first, limit);
        (run.state, run.count)
    }
    fn find(&self, of: ClusterMap, first: u64, states: u8) -> Option<u64> {
        map(of).find(first, states)
    }
    fn set(&self, of: ClusterMap, first: u64, count: u64, states: u8, to: u8) -> u64 {
        map(of).set(first, count, states, to)
    }
}

/// What a connection can do that writes. `can` is what one can do that only reads.
pub fn can(can: Capabilities, below: Capabilities) -> Capabilities {
    let fua = if below.flush { Support::Emulate } else { Support::None };
    Capabilities { write: true, flush: below.flush, trim: true, zero: Support::Native, fua, ..can }
}

/// Writes to an image for which [`prepare`] said true.
///
/// # Errors
/// Those of next.
pub fn writer(image: Image) -> Result<Writer, Errno> {
    let host = Rc::new(Host { can: next::can()? });
    Ok(Writer::new(image, Rc::clone(&host) as Rc<dyn Below>, host))
}

/// Prepares writing for the connection that is being opened. False if the image can only be read;
/// then a line in the log says why. The first of several connections that write finds out what the
/// clusters are used for.
///
/// # Errors
/// Those of next.
pub fn prepare(open: impl Fn() -> Result<Image, Error>) -> Result<bool, Error> {
    for _ in 0..ATTEMPTS {
        // Unlocking an encrypted image takes a lock itself, and a call can have one only.
        let image = open()?;
        locks::lock(SCOPE, OPENING, 1, locks::Mode::Exclusive)?;
        let verdict = match image.is_current() {
            Ok(true) => prepare_locked(&image).map(Some),
            changed => changed.map(|_| None),
        };
        locks::unlock();
        if let Some(can_be_written) = verdict? {
            return Ok(can_be_written);
        }
    }
    Err(Error::image("the header changes all the time: the image cannot be opened for writing"))
}

fn prepare_locked(image: &Image) -> Result<bool, Error> {
    let sized = resize(image);
    let writers = slots::add_until_close(SCOPE, CONNECTIONS.index, 1);
    let known = VERDICT.get().a;
    if writers > 1 && known != UNKNOWN {
        return Ok(known == CAN_BE_WRITTEN);
    }
    set(VERDICT, [UNKNOWN, 0, 0, 0]);
    let found = match sized {
        Ok(()) => examine(image),
        Err(line) => Err(Error::Image(line)),
    };
    let verdict = match found {
        Ok(()) => CAN_BE_WRITTEN,
        Err(Error::Image(line)) => {
            warn!("the disk is read-only: {line}");
            READ_ONLY
        }
        Err(failed) => return Err(failed),
    };
    set(VERDICT, [verdict, 0, 0, 0]);
    Ok(verdict == CAN_BE_WRITTEN)
}

/// Gives the maps their size. The error is a line.
fn resize(image: &Image) -> Result<(), String> {
    let cluster = image.header().cluster_size();
    for of in [ClusterMap::Roles, ClusterMap::Pending] {
        map(of).resize(cluster as u32, image.map().source().size()).map_err(|errno| match errno {
            Errno::Einval => "an image with another cluster size had this name before: restart the server".to_string(),
            errno => format!("there is no memory for the map of its clusters: {errno:?}"),
        })?;
    }
    Ok(())
}

/// Finds out what the clusters of an image are used for. Nobody writes to it yet.
fn examine(image: &Image) -> Result<(), Error> {
    let host = Rc::new(Host { can: next::can()? });
    for of in [ClusterMap::Roles, ClusterMap::Pending] {
        while let Some(first) = map(of).find(0, 0b1110) {
            let count = map(of).run(first, 1 << 30).count;
            map(of).set(first, count, 0b1110, 0);
        }
    }
    host.set_search((0, 0));
    set(CLEARED, [0; 4]);
    host.count_change(TableChange::Table);
    if let Some(line) = write::refusal(image) {
        return Err(Error::Image(line));
    }
    let block = next::block_size().map_or(1, |sizes| sizes.minimum.max(1));
    if block > 1 {
        return Err(Error::Image(format!(
            "the layer below writes blocks of {block} bytes: put --filter=blocksize after --filter=qcow2"
        )));
    }
    write::prepare(image, Rc::clone(&host) as Rc<dyn Below>, &(host as Rc<dyn Shared>))
}
