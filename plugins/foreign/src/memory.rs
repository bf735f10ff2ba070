//! The memory that the server and the plugin's process share for one connection.
//!
//! It is a sealed file in memory: neither side can make it shorter, so reading it cannot fail. It
//! has two rings of slot numbers (requests from the server, and answers to it), 128 slots with the
//! fields of a request and its answer, and a place for the payload of each slot. The places are 64
//! MiB each, which is the longest request. Pages that nobody wrote take no memory.
//!
//! The process may write anything at any time. So all fields are atomics, the server reads each
//! once and checks it, and payloads are only copied in and out.
#![allow(unsafe_code, reason = "memory that two processes share is reached by pointers")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;

/// Requests of one connection at a time. The last slot is only for its end.
pub(crate) const SLOTS: usize = 128;

/// The slot of the request that ends the connection, so that there is one even if all others hang.
pub(crate) const LAST_SLOT: usize = SLOTS - 1;

/// Bytes of the place for one payload: the longest request.
pub(crate) const PLACE: usize = 64 << 20;

/// Bytes before the first place.
const HEAD: usize = 64 << 10;

/// The size of the memory. Almost all of it is never touched.
const SIZE: usize = HEAD + SLOTS * PLACE;

/// The first slots keep this many bytes of their places for the next request. The server takes a
/// free slot that was used last, so a client with few requests uses only these.
const KEPT_FIRST: usize = 512 << 10;

/// How many slots keep so much.
const FIRST: usize = 16;

/// The others keep this many bytes.
const KEPT: usize = 16 << 10;

/// What a request is.
pub(crate) mod op {
    /// The plugin's `preconnect`. The payload says who the client is, as in the next three.
    pub(crate) const PRECONNECT: u32 = 1;
    pub(crate) const LIST_EXPORTS: u32 = 2;
    pub(crate) const DEFAULT_EXPORT: u32 = 3;
    pub(crate) const OPEN: u32 = 4;
    pub(crate) const GET_SIZE: u32 = 5;
    /// All of the plugin's `can_*` functions.
    pub(crate) const CAN: u32 = 6;
    pub(crate) const BLOCK_SIZE: u32 = 7;
    pub(crate) const DESCRIPTION: u32 = 8;
    pub(crate) const PREAD: u32 = 9;
    pub(crate) const PWRITE: u32 = 10;
    pub(crate) const FLUSH: u32 = 11;
    pub(crate) const TRIM: u32 = 12;
    pub(crate) const ZERO: u32 = 13;
    pub(crate) const CACHE: u32 = 14;
    pub(crate) const EXTENTS: u32 = 15;
    /// Waits until no other request runs, and closes the plugin's handle if it is open.
    pub(crate) const CLOSE: u32 = 16;
}

/// A counter on a cache line of its own.
#[repr(C, align(64))]
pub(crate) struct Counter(pub(crate) AtomicU32);

/// A request and its answer.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// See [`op`].
    pub(crate) op: AtomicU32,
    /// nbdkit's flags.
    pub(crate) flags: AtomicU32,
    pub(crate) offset: AtomicU64,
    /// Bytes of the range; for the requests about a connection the bytes of the payload.
    pub(crate) count: AtomicU32,
    /// The most bytes that the answer's payload may have.
    pub(crate) room: AtomicU32,
    /// The answer: 0 or more, or -1 for an error.
    pub(crate) result: AtomicI64,
    /// Of an error.
    pub(crate) errno: AtomicI32,
    /// Bytes of the answer's payload.
    pub(crate) length: AtomicU32,
}

/// What is before the places.
#[repr(C)]
pub(crate) struct Head {
    /// How many requests the server has put into the ring. The process waits for its change.
    pub(crate) asked: Counter,
    /// How many threads of the process wait.
    pub(crate) sleeping: Counter,
    /// How many threads of the process run or are about to.
    pub(crate) awake: Counter,
    /// 1 if a thread was woken and does not run yet.
    pub(crate) waking: Counter,
    /// 1 if the plugin's calls take so long that each request needs a thread of its own.
    pub(crate) eager: Counter,
    /// How many answers the process has put into the ring.
    pub(crate) answered: Counter,
    /// 1 if the server has to be told of the next answer.
    pub(crate) listening: Counter,
    pub(crate) asks: [AtomicU32; SLOTS],
    pub(crate) answers: [AtomicU32; SLOTS],
    pub(crate) slots: [Slot; SLOTS],
}

impl Head {
    /// Wakes a thread of the process, unless one is being woken.
    pub(crate) fn wake(&self) {
        if self.waking.0.swap(1, SeqCst) == 0 {
            let woken = futex::wake(&self.asked.0, futex::Flags::empty(), 1);
            // A thread that is woken clears the mark. Without one nobody would.
            if woken != Ok(1) {
                self.waking.0.store(0, SeqCst);
            }
        }
    }
}

const _: () = assert!(size_of::<Head>() <= HEAD);

/// A mapping of the memory.
pub(crate) struct Memory {
    start: NonNull<u8>,
    file: OwnedFd,
}

// SAFETY: the fields are atomics, and payloads are reached by raw pointers as `read` and `write`
// say.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Makes new memory, all zero.
    pub(crate) fn new() -> io::Result<Memory> {
        let file = memfd_create("rbdkit-plugin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, SIZE as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Memory::map(file)
    }

    /// Maps memory that the other process made.
    pub(crate) fn map(file: OwnedFd) -> io::Result<Memory> {
        if fstat(&file)?.st_size != SIZE as i64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the address, so no other memory is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), SIZE, protection, flags, &file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { start, file })
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(crate) fn head(&self) -> &Head {
        // SAFETY: the mapping is longer than the head, page aligned and lives as long as `self`.
        // Every value of an atomic is valid.
        unsafe { self.start.cast::<Head>().as_ref() }
    }

    pub(crate) fn slot(&self, slot: usize) -> &Slot {
        &self.head().slots[slot]
    }

    /// The first byte of a slot's place.
    pub(crate) fn place(&self, slot: usize) -> *mut u8 {
        assert!(slot < SLOTS);
        // SAFETY: it is within the mapping.
        unsafe { self.start.as_ptr().add(HEAD + slot * PLACE) }
    }

    /// Copies the beginning of a slot's payload.
    pub(crate) fn read(&self, slot: usize, into: &mut [u8]) {
        assert!(into.len() <= PLACE);
        // SAFETY: the place has so many bytes, and `into` is not in the mapping. The process may
        // write the bytes meanwhile; any bytes are a valid payload.
        unsafe { std::ptr::copy_nonoverlapping(self.place(slot).cast_const(), into.as_mut_ptr(), into.len()) };
    }

    /// Writes the beginning of a slot's payload.
    pub(crate) fn write(&self, slot: usize, from: &[u8]) {
        assert!(from.len() <= PLACE);
        // SAFETY: as in `read`, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.place(slot), from.len()) };
    }

    /// Gives memory back that a long payload of this many bytes took.
    pub(crate) fn trim(&self, slot: usize, used: usize) {
        let kept = if slot < FIRST { KEPT_FIRST } else { KEPT };
        if used > kept {
            let from = (HEAD + slot * PLACE + kept) as u64;
            // If it fails the memory is used again by the next long request.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(self.file.as_fd(), hole, from, (PLACE - kept) as u64);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_mappings_have_the_same_bytes_and_neither_can_be_shortened() {
        let ours = Memory::new().unwrap();
        let theirs = Memory::map(ours.file.try_clone().unwrap()).unwrap();
        ours.write(5, b"hello");
        let mut read = [0; 5];
        theirs.read(5, &mut read);
        assert_eq!(&read, b"hello");
        assert!(ftruncate(&theirs.file, 0).is_err());
        let blocks = || fstat(&ours.file).unwrap().st_blocks;
        theirs.write(LAST_SLOT, &vec![1; PLACE]);
        let before = blocks();
        ours.trim(LAST_SLOT, PLACE);
        assert!(before - blocks() > (50 << 20) / 512, "{before} {}", blocks());
    }
}
