//! `cache=none`: keeps what was read and written out of the page cache.
//!
//! Pages that were read are clean and go at once. Pages that were written cannot go before they are on the disk, and waiting for
//! that with every write would make it as slow as the disk. So the kernel is told twice: at once, which makes it start to write
//! the pages back, and again some writes later, when most likely they are clean and so are dropped.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Advice;

/// How many writes may be on their way to the disk before the oldest is dropped from memory: enough for a disk's queue to stay
/// filled by a copy of 256 KiB requests, and at most 512 MiB with the largest requests there are. nbdkit keeps as many.
const WRITES_UNDER_WAY: usize = 8;

/// Only whole pages are dropped, so ranges are widened to pages: a page that two requests share must go as well. Larger than any page
/// would do no harm but to drop a little more.
const PAGE: u64 = 4096;

#[derive(Default)]
pub(crate) struct Evict {
    written: Mutex<VecDeque<(u64, u64)>>,
}

impl Evict {
    /// A range was read.
    pub(crate) fn read(&self, fd: BorrowedFd<'_>, offset: u64, length: u64) {
        drop_pages(fd, offset, length);
    }

    /// A range was written.
    pub(crate) fn wrote(&self, fd: BorrowedFd<'_>, offset: u64, length: u64) {
        drop_pages(fd, offset, length);
        let oldest = {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.push_back((offset, length));
            if written.len() > WRITES_UNDER_WAY { written.pop_front() } else { None }
        };
        if let Some((offset, length)) = oldest {
            drop_pages(fd, offset, length);
        }
    }

    /// All that was written is on the disk.
    pub(crate) fn flushed(&self, fd: BorrowedFd<'_>) {
        let written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        for (offset, length) in written {
            drop_pages(fd, offset, length);
        }
    }
}

fn drop_pages(fd: BorrowedFd<'_>, offset: u64, length: u64) {
    let start = offset / PAGE * PAGE;
    let end = (offset + length).next_multiple_of(PAGE);
    // Only advice: if it cannot be followed, nothing is lost.
    let _ = rustix::fs::fadvise(fd, start, NonZeroU64::new(end - start), Advice::DontNeed);
}
