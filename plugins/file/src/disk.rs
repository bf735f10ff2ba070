//! The system calls on one open file.
//!
//! Whether a file system or device supports a call is only known after trying it. So each ability
//! is assumed until a call is refused, and is not tried again after that. All functions but
//! [`Disk::read_now`] and [`Disk::write_now`] may wait for a disk.

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

/// The most pairs of data and hole that one extents request looks for. The answer may end early,
/// and the client asks again from there. So no request occupies a thread for long: at 1 to 10 us
/// for each pair, 2^15 pairs take 0.03 to 0.3 s.
const MAX_RUNS: usize = 1 << 15;

/// A write that takes longer than this for each [`SLOW_BYTES`] had to wait: the kernel throttles
/// writers, or a journal is full. Copying 64 KiB into the page cache takes some 10 us, a hundredth
/// of this.
const SLOW_WRITE: Duration = Duration::from_millis(1);
const SLOW_BYTES: u32 = 64 << 10;

/// After a slow write, this many writes go to threads before the next one is tried at once.
const WRITES_AFTER_SLOW: u32 = 64;

/// The smallest page size of Linux on common machines, in bytes. Writing a part of a page that is
/// not in memory has to read the page first.
const PAGE: u64 = 4096;

/// An ability of the file that is assumed until a call is refused.
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
    /// The logical block size of a block device, whose fallocate works in whole blocks.
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
    /// How many more writes go to threads without being tried at once.
    slow_writes: AtomicU32,
}

impl Disk {
    pub(crate) fn new(opened: Opened, access: Access) -> Result<Disk> {
        let Opened { fd, stat, writable, id: _ } = opened;
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

    /// Reads what is in memory, without waiting. Returns how many bytes were read from the
    /// beginning on; 0 if the kernel cannot tell.
    pub(crate) fn read_now(&self, bytes: &mut [u8], offset: u64) -> usize {
        // With cache=none nothing stays in memory, and dropping pages is work for a thread.
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
            // The read would have to wait. Any other error shows again on the thread that reads the
            // rest.
            Err(_) => 0,
        }
    }

    /// Whether the first and the last byte of the range are in memory, which is a guess for all of
    /// it.
    pub(crate) fn is_near(&self, offset: u64, length: u32) -> bool {
        let mut byte = [0];
        let last = offset + u64::from(length.saturating_sub(1));
        self.read_now(&mut byte, last) == 1 && self.read_now(&mut byte, offset) == 1
    }

    /// Whether reads can be spliced at all.
    pub(crate) fn can_splice(&self) -> bool {
        // Pages that are dropped from the page cache after they were read cannot be sent from
        // there.
        self.splices.get() && self.evict.is_none()
    }

    /// Splices the bytes at `offset` into `buffer`: see [`Buffer::splice_from`]. Waits for the disk
    /// if they are not in memory.
    pub(crate) fn splice_into(&self, buffer: &mut Buffer, offset: u64) -> Option<u32> {
        let mut at = offset;
        buffer.splice_from(|input, wanted| {
            // NONBLOCK concerns a full pipe, not the file.
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
    /// EIO at the end of the file: it has become smaller since it was opened.
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

    /// Writes into the page cache what can be written there (most likely) without waiting. Returns
    /// how many bytes were written from the beginning on.
    ///
    /// `pwritev2(RWF_NOWAIT)` never waits, but of the common file systems only XFS and btrfs
    /// support it for the page cache. On the others an ordinary write of whole pages waits only
    /// while the kernel throttles writers. That is measured, and the next writes go to threads
    /// then.
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
            // A race of writers makes the count wrong by a few, which does not matter.
            self.slow_writes.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }

    /// Writes all of `bytes`, durably with `flags.fua`.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let fua = flags.fua;
        let dsync = fua && self.writes_dsync.get();
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let at = offset + done as u64;
            let written = if dsync {
                // Cheaper than fdatasync, which also writes out the data of other requests.
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
                    // Writes everything again; the first part was durable already.
                    return self.write(bytes, offset, flags);
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

    /// Makes all completed writes durable, including those of other connections.
    pub(crate) fn flush(&self) -> Result<()> {
        match &self.evict {
            Some(evict) => evict.flush(self.fd.as_fd(), || self.sync()),
            None => self.sync(),
        }
    }

    fn sync(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.fd)).map_err(|error| failed("file: fdatasync", error))
    }

    /// Discards the range. A part that cannot be discarded is left as it is, because trim is only
    /// advice.
    pub(crate) fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        if let Some((offset, length)) = self.whole_blocks(offset, length) {
            self.fallocate(&self.punches, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?;
        }
        if flags.fua { self.sync() } else { Ok(()) }
    }

    /// Makes the range read as zero.
    ///
    /// # Errors
    /// ENOTSUP: zeroes would have to be written.
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
        // For a device that cannot zero, the kernel writes the zeroes, which is not fast.
        if flags.fast_zero && self.block.is_some() {
            return Ok(false);
        }
        if self.fallocate(&self.zeroes, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, length)? {
            return Ok(true);
        }
        // For example on tmpfs: makes a hole and allocates it again.
        Ok(self.block.is_none()
            && self.allocates.get()
            && self.fallocate(&self.punches, punch, offset, length)?
            && self.fallocate(&self.allocates, FallocateFlags::empty(), offset, length)?)
    }

    /// Calls fallocate(2). Returns false, and does nothing, if the file does not support `mode`.
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

    /// The part of a range that consists of whole blocks of a device; the whole range for a regular
    /// file.
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

    /// Where the file has holes. The last extent runs on beyond the range, because the kernel says
    /// where it ends in any case.
    pub(crate) fn extents(&self, offset: u64, length: u64, flags: Flags) -> Result<Extents> {
        if !self.extents {
            return Ok(Extents::all_data(offset, length));
        }
        let failed = |error| failed("file: lseek", error);
        let (end, size) = (offset + length, self.size());
        let mut extents = Extents::new(offset, length);
        for _ in 0..MAX_RUNS {
            let at = extents.next_offset();
            let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
                Ok(data) => data.clamp(at, size),
                // No data from here on.
                Err(Raw::NXIO) => size,
                Err(error) => return Err(failed(error)),
            };
            let mut kept = extents.push(data - at, true, true);
            if kept && data < end {
                let hole = match rustix::fs::seek(&self.fd, SeekFrom::Hole(data)) {
                    // Another process changes the file. Reporting the rest as data is always
                    // correct.
                    Ok(hole) if hole <= data => end,
                    Ok(hole) => hole.min(size),
                    Err(Raw::NXIO) => size,
                    Err(error) => return Err(failed(error)),
                };
                kept = extents.push(hole - data, false, false);
            }
            if !kept || extents.next_offset() >= end || flags.req_one {
                break;
            }
        }
        Ok(extents)
    }
}

/// Whether a block device is rotational. A partition has the queue of its disk.
fn is_rotational(stat: &Stat) -> bool {
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    ["queue/rotational", "../queue/rotational"]
        .iter()
        .find_map(|file| std::fs::read_to_string(format!("{device}/{file}")).ok())
        .is_some_and(|text| text.trim() == "1")
}
