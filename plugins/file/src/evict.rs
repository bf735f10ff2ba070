//! `reduce-memory-pressure=true`: removes what was read and written from the page cache.
//!
//! Pages that were read are clean and are dropped at once. Pages that were written can be dropped
//! only after they are on the disk, and waiting for that with every write would make writes as slow
//! as the disk. So they are dropped in batches. The kernel gets the advice at once, which makes it
//! start writing the pages back. When a batch is complete, one request waits for it and drops all
//! its pages.

use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use rbdkit_plugin_api::{Result, lock};
use rustix::fs::Advice;

/// The size of a batch, in bytes: large compared with the cost of waiting (a few milliseconds, in
/// which a disk writes about a megabyte, for one of the requests in flight), and small compared
/// with the memory of any machine.
const BATCH: u64 = 32 << 20;

/// The smallest page size, in bytes. The kernel drops only whole pages, so ranges are extended to
/// pages; a page that two requests share must be dropped too. Where pages are larger, the ends of a
/// range stay in the cache.
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
    /// Those of `sync`. The client must get them, because the kernel reports a failed write-back
    /// only once.
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

    /// Syncs, and drops all pages that were written before.
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
    // The call is only advice: data is not lost if the kernel ignores it.
    let _ = rustix::fs::fadvise(fd, start, NonZeroU64::new(end - start), Advice::DontNeed);
}
