//! The system calls on one open file, with what it turned out not to support.
//!
//! What a file system or device can do is only known once it was asked, so each ability is assumed until it is refused, and not asked
//! for again after that. All calls but [`Disk::read_now`] and [`Disk::write_now`] may wait for a disk.

use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::{Buffer, Capabilities, Errno, Error, Extents, Flags, Result, Support};
use rustix::fs::{Advice, FallocateFlags, FileType, SeekFrom, Stat};
use rustix::io::{Errno as Raw, ReadWriteFlags};
use rustix::pipe::{SpliceFlags, splice};

use crate::config::Access;
use crate::error::failed;
use crate::evict::Evict;
use crate::source::Opened;

/// Holes and data that one extents request looks for. The answer may end early and the client asks again from there, so that no
/// request holds a thread for long: at 1 to 10 us a run this is 0.03 to 0.3 s.
const MAX_RUNS: usize = 1 << 15;

/// The page cache takes 64 KiB in some 10 us. A write that takes a hundred times that, for each 64 KiB of it, had to wait: the kernel slows
/// writers down, or a journal is full.
const SLOW_WRITE: Duration = Duration::from_millis(1);
const SLOW_BYTES: u32 = 64 << 10;

/// After a slow write, so many go to threads before the next one is tried at once.
const WRITES_AFTER_SLOW: u32 = 64;

/// Writing a part of a page that is not in memory has to read it first. No page that Linux on common machines uses is smaller.
const PAGE: u64 = 4096;

/// An ability that is assumed until it is refused.
struct Ability(AtomicBool);

impl Ability {
    fn assumed() -> Ability {
        Ability(AtomicBool::new(true))
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn refused(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

pub(crate) struct Disk {
    fd: OwnedFd,
    size: u64,
    writable: bool,
    /// A block device's logical block size: its fallocate works in whole blocks.
    block: Option<u64>,
    rotational: bool,
    extents: bool,
    evict: Option<Evict>,
    reads_now: Ability,
    splices: Ability,
    writes_nowait: Ability,
    writes_dsync: Ability,
    punches: Ability,
    zeroes: Ability,
    allocates: Ability,
    /// How many more writes go to threads without a try.
    slow_writes: AtomicU32,
}

impl Disk {
    pub(crate) fn new(opened: Opened, access: Access) -> Result<Disk> {
        let Opened { fd, stat, writable } = opened;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        let (size, block) = if is_device {
            let size = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|error| failed("finding the size", error))?;
            let block = rustix::fs::ioctl_blksszget(&fd).map_err(|error| failed("finding the block size", error))?;
            (size, Some(u64::from(block.max(1))))
        } else {
            (u64::try_from(stat.st_size).unwrap_or(0), None)
        };
        // Only a hint.
        let _ = rustix::fs::fadvise(&fd, 0, None, access.advice);
        Ok(Disk {
            size,
            writable,
            block,
            rotational: is_device && is_rotational(&stat),
            extents: rustix::fs::seek(&fd, SeekFrom::Hole(0)).is_ok(),
            evict: access.evict.then(Evict::default),
            reads_now: Ability::assumed(),
            splices: Ability::assumed(),
            writes_nowait: Ability::assumed(),
            writes_dsync: Ability::assumed(),
            punches: Ability::assumed(),
            zeroes: Ability::assumed(),
            allocates: Ability::assumed(),
            slow_writes: AtomicU32::new(0),
            fd,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities {
            write: self.writable,
            flush: true,
            rotational: self.rotational,
            trim: true,
            fast_zero: true,
            extents: self.extents,
            // All connections go to one file, and fdatasync covers all of it.
            multi_conn: true,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
        }
    }

    /// Reads what is in memory, without waiting: answers how many bytes that is from the beginning on, 0 if it is not known.
    pub(crate) fn read_now(&self, bytes: &mut [u8], offset: u64) -> usize {
        // What is not kept in memory will not be found there, and dropping it is work for a thread.
        if !self.reads_now.get() || self.evict.is_some() {
            return 0;
        }
        let mut slices = [IoSliceMut::new(bytes)];
        match rustix::io::preadv2(&self.fd, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(length) => length,
            Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::INVAL) => {
                self.reads_now.refused();
                0
            }
            // It would have to wait; or an error, which the thread that does the rest meets as well.
            Err(_) => 0,
        }
    }

    /// Whether the range is in memory, as far as its ends tell.
    pub(crate) fn is_near(&self, offset: u64, length: u32) -> bool {
        let mut byte = [0];
        let last = offset + u64::from(length.saturating_sub(1));
        self.read_now(&mut byte, last) == 1 && self.read_now(&mut byte, offset) == 1
    }

    /// Whether reads can be spliced at all.
    pub(crate) fn can_splice(&self) -> bool {
        // Pages that are dropped from the page cache after they were read cannot be sent from there.
        self.splices.get() && self.evict.is_none()
    }

    /// Splices the bytes at `offset` into `buffer`: see [`Buffer::splice_from`]. Waits for the disk if they are not in memory.
    pub(crate) fn splice_into(&self, buffer: &mut Buffer, offset: u64) -> Option<u32> {
        let mut at = offset;
        buffer.splice_from(|input, wanted| {
            // NONBLOCK is for a pipe that is full, not for the file.
            let spliced = splice(&self.fd, Some(&mut at), input, None, wanted, SpliceFlags::NONBLOCK);
            if matches!(spliced, Err(Raw::INVAL | Raw::OPNOTSUPP | Raw::NOSYS)) {
                self.splices.refused();
            }
            Ok(spliced?)
        })
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// EIO at the end of the file: then it has become smaller since it was opened.
    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pread(&self.fd, &mut bytes[done..], offset + done as u64) {
                Ok(0) => return Err(Error::new(Errno::Eio, "file: pread: the file has become smaller")),
                Ok(length) => done += length,
                Err(Raw::INTR) => {}
                Err(error) => return Err(failed("file: pread", error)),
            }
        }
        if let Some(evict) = &self.evict {
            evict.read(self.fd.as_fd(), offset, bytes.len() as u64);
        }
        Ok(())
    }

    /// Writes into memory what can be written there (most likely) without waiting: answers how many bytes from the beginning on.
    ///
    /// `pwritev2(RWF_NOWAIT)` promises that, but of the common file systems only XFS and btrfs have it for the page cache. On the others an
    /// ordinary write of whole pages waits only when the kernel slows writers down; that shows, and then they go to threads.
    pub(crate) fn write_now(&self, bytes: &[u8], offset: u64) -> usize {
        if self.evict.is_some() || self.is_slow() {
            return 0;
        }
        if self.writes_nowait.get() {
            match rustix::io::pwritev2(&self.fd, &[IoSlice::new(bytes)], offset, ReadWriteFlags::NOWAIT) {
                Ok(length) => return length,
                Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::INVAL) => self.writes_nowait.refused(),
                Err(_) => return 0,
            }
        }
        if !(offset | bytes.len() as u64).is_multiple_of(PAGE) {
            return 0;
        }
        let started = Instant::now();
        let written = rustix::io::pwrite(&self.fd, bytes, offset).unwrap_or(0);
        if started.elapsed() > SLOW_WRITE * (bytes.len() as u32).div_ceil(SLOW_BYTES) {
            self.slow_writes.store(WRITES_AFTER_SLOW, Ordering::Relaxed);
        }
        written
    }

    fn is_slow(&self) -> bool {
        let left = self.slow_writes.load(Ordering::Relaxed);
        if left > 0 {
            // Writers that race here lose count by a few, which does not matter.
            self.slow_writes.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }

    /// Writes all of `bytes`, durably if `fua`.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64, fua: bool) -> Result<()> {
        let dsync = fua && self.writes_dsync.get();
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let at = offset + done as u64;
            let written = if dsync {
                // Cheaper than fdatasync, which writes out everybody's data.
                rustix::io::pwritev2(&self.fd, &[IoSlice::new(rest)], at, ReadWriteFlags::DSYNC)
            } else {
                rustix::io::pwrite(&self.fd, rest, at)
            };
            match written {
                Ok(0) => return Err(Error::new(Errno::Eio, "file: pwrite: nothing could be written")),
                Ok(length) => done += length,
                Err(Raw::INTR) => {}
                Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::INVAL) if dsync => {
                    self.writes_dsync.refused();
                    // What was written with DSYNC before is written once more: nothing is lost.
                    return self.write(bytes, offset, fua);
                }
                Err(error) => return Err(failed("file: pwrite", error)),
            }
        }
        if fua && !dsync {
            self.sync()?;
        }
        match &self.evict {
            Some(evict) => evict.wrote(self.fd.as_fd(), offset, bytes.len() as u64, || self.sync()),
            None => Ok(()),
        }
    }

    /// Makes all completed writes durable, those of other connections as well.
    pub(crate) fn flush(&self) -> Result<()> {
        match &self.evict {
            Some(evict) => evict.flush(self.fd.as_fd(), || self.sync()),
            None => self.sync(),
        }
    }

    fn sync(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.fd)).map_err(|error| failed("file: fdatasync", error))
    }

    /// Discards; only advice, so what cannot be discarded is left as it is.
    pub(crate) fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        if let Some((offset, length)) = self.whole_blocks(offset, length) {
            self.fallocate(&self.punches, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?;
        }
        if flags.fua { self.sync() } else { Ok(()) }
    }

    /// Makes the range read as zero.
    ///
    /// # Errors
    /// ENOTSUP if zeroes would have to be written.
    pub(crate) fn zero(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        if !self.zero_range(offset, length, flags)? {
            return Err(Errno::Enotsup.into());
        }
        if flags.fua { self.sync() } else { Ok(()) }
    }

    fn zero_range(&self, offset: u64, length: u64, flags: Flags) -> Result<bool> {
        if self.whole_blocks(offset, length) != Some((offset, length)) {
            return Ok(false);
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if flags.may_trim && self.fallocate(&self.punches, punch, offset, length)? {
            return Ok(true);
        }
        // A device that cannot zero lets the kernel write the zeroes for it, which is right but not fast.
        if flags.fast_zero && self.block.is_some() {
            return Ok(false);
        }
        if self.fallocate(&self.zeroes, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, length)? {
            return Ok(true);
        }
        // tmpfs, for one: a hole, filled with space again.
        Ok(self.block.is_none()
            && self.allocates.get()
            && self.fallocate(&self.punches, punch, offset, length)?
            && self.fallocate(&self.allocates, FallocateFlags::empty(), offset, length)?)
    }

    /// Whether the file can do that; if so it is done.
    fn fallocate(&self, ability: &Ability, mode: FallocateFlags, offset: u64, length: u64) -> Result<bool> {
        if !ability.get() {
            return Ok(false);
        }
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.fd, mode, offset, length)) {
            Ok(()) => Ok(true),
            Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::NODEV) => {
                ability.refused();
                Ok(false)
            }
            Err(error) => Err(failed("file: fallocate", error)),
        }
    }

    /// The part of a range that consists of whole blocks of a device; all of it for a regular file.
    fn whole_blocks(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let Some(block) = self.block else { return Some((offset, length)) };
        let start = offset.next_multiple_of(block);
        let end = (offset + length) / block * block;
        (start < end).then(|| (start, end - start))
    }

    /// Asks the kernel to read ahead.
    pub(crate) fn cache(&self, offset: u64, length: u64) -> Result<()> {
        rustix::fs::fadvise(&self.fd, offset, NonZeroU64::new(length), Advice::WillNeed)
            .map_err(|error| failed("file: posix_fadvise", error))
    }

    /// Where the file has holes.
    pub(crate) fn extents(&self, offset: u64, length: u64, flags: Flags) -> Result<Extents> {
        if !self.extents {
            return Ok(Extents::all_data(offset, length));
        }
        let failed = |error| failed("file: lseek", error);
        let end = offset + length;
        let mut extents = Extents::new(offset);
        for _ in 0..MAX_RUNS {
            let at = extents.next_offset();
            let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
                Ok(data) => data.clamp(at, end),
                // No data from here on.
                Err(Raw::NXIO) => end,
                Err(error) => return Err(failed(error)),
            };
            extents.push(data - at, true, true);
            if data < end {
                let hole = match rustix::fs::seek(&self.fd, SeekFrom::Hole(data)) {
                    // Somebody changes the file beside us: calling the rest data is always right.
                    Ok(hole) if hole <= data => end,
                    Ok(hole) => hole.min(end),
                    Err(Raw::NXIO) => end,
                    Err(error) => return Err(failed(error)),
                };
                extents.push(hole - data, false, false);
            }
            if extents.next_offset() >= end || flags.req_one {
                break;
            }
        }
        Ok(extents)
    }
}

/// Whether a block device is a disk that turns. A partition's queue is its disk's.
fn is_rotational(stat: &Stat) -> bool {
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    ["queue/rotational", "../queue/rotational"]
        .iter()
        .find_map(|file| std::fs::read_to_string(format!("{device}/{file}")).ok())
        .is_some_and(|text| text.trim() == "1")
}
