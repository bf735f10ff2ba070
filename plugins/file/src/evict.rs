//! `cache=none`: keeps what was read and written out of the page cache.
//!
//! Pages that were read are clean and go at once. Pages that were written cannot go before they are on the disk, and waiting for
//! that with every write would make it as slow as the disk. So they go together, some megabytes at a time: the kernel is told at once, which
//! makes it start to write them back, and when enough have been written somebody waits for them and drops them all.

use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use rbdkit_plugin_api::{Result, lock};
use rustix::fs::Advice;

/// Bytes that may be written before they are waited for. Large against the cost of waiting (a few milliseconds, in which a disk writes
/// a megabyte or so, and which only one of the requests in flight pays), small against any machine's memory.
const BATCH: u64 = 32 << 20;

/// Only whole pages are dropped, so ranges are widened to pages: a page that two requests share must go as well. No page is smaller;
/// where they are larger, what lies at the ends of a range stays.
const PAGE: u64 = 4096;

#[derive(Default)]
pub(crate) struct Evict {
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    ranges: Vec<(u64, u64)>,
    bytes: u64,
}

impl Evict {
    /// A range was read.
    pub(crate) fn read(&self, fd: BorrowedFd<'_>, offset: u64, length: u64) {
        drop_pages(fd, offset, length);
    }

    /// A range was written.
    ///
    /// # Errors
    /// What `sync` says: it has to reach the client, because the system says it only once.
    pub(crate) fn wrote(
        &self,
        fd: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        sync: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        drop_pages(fd, offset, length);
        let batch = {
            let mut written = lock(&self.written);
            written.ranges.push((offset, length));
            written.bytes += length;
            if written.bytes < BATCH {
                return Ok(());
            }
            std::mem::take(&mut *written)
        };
        sync()?;
        batch.drop_pages(fd);
        Ok(())
    }

    /// Syncs, and drops what was written before.
    pub(crate) fn flush(&self, fd: BorrowedFd<'_>, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let batch = std::mem::take(&mut *lock(&self.written));
        sync()?;
        batch.drop_pages(fd);
        Ok(())
    }
}

impl Written {
    fn drop_pages(&self, fd: BorrowedFd<'_>) {
        for (offset, length) in &self.ranges {
            drop_pages(fd, *offset, *length);
        }
    }
}

fn drop_pages(fd: BorrowedFd<'_>, offset: u64, length: u64) {
    let start = offset / PAGE * PAGE;
    let end = (offset + length).next_multiple_of(PAGE);
    // Only advice: if it cannot be followed, nothing is lost.
    let _ = rustix::fs::fadvise(fd, start, NonZeroU64::new(end - start), Advice::DontNeed);
}
