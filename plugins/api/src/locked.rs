//! Memory for passwords and keys. It is overwritten when it is dropped, it is not swapped out, and
//! core dumps leave it out.
//!
//! Each value has pages of its own, because the system locks whole pages. Where pages may not be
//! locked (`ulimit -l`), or there are none, the value is kept all the same.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, without_provenance_mut};
use std::sync::Mutex;
use std::{fmt, io};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::{Zeroize, Zeroizing};

use crate::lock;

/// The smallest page that Linux has.
const PAGE: usize = 4096;

/// All pages, by their start, and their bytes: a fork unlocks them.
static ALL: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// Whole pages that belong to one value.
struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

#[allow(unsafe_code, reason = "the pages belong to one value, as those of a Box")]
// SAFETY: nothing else refers to the pages, so they may be used from any thread that has the value.
unsafe impl Send for Pages {}

#[allow(unsafe_code, reason = "the pages belong to one value, as those of a Box")]
// SAFETY: a shared reference to the value only reads them.
unsafe impl Sync for Pages {}

impl Pages {
    /// Pages for so many bytes, which are zero. None if the system has none.
    fn new(bytes: usize) -> Option<Pages> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE)?;
        #[allow(unsafe_code, reason = "mmap makes memory")]
        // SAFETY: the kernel chooses the address, so no memory that is in use is replaced.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let pages = Pages { start: NonNull::new(start.ok()?.cast())?, bytes };
        lock(&ALL).insert(pages.start.as_ptr() as usize, bytes);
        // Where it is not allowed, the value is kept all the same.
        let _ = keep_in_memory(pages.start.as_ptr() as usize, bytes);
        advise_against_dumps(pages.start.as_ptr() as usize, bytes);
        Some(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        lock(&ALL).remove(&(self.start.as_ptr() as usize));
        #[allow(unsafe_code, reason = "the pages are raw memory here")]
        // SAFETY: the value that owned the pages is gone, and they are `bytes` long. Nothing refers
        // to them after this.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes).zeroize();
            let _ = munmap(self.start.as_ptr().cast(), self.bytes);
        }
    }
}

/// Locks pages into memory.
fn keep_in_memory(start: usize, bytes: usize) -> rustix::io::Result<()> {
    #[allow(unsafe_code, reason = "mlock takes a pointer")]
    // SAFETY: the kernel neither reads nor writes the pages, which are mapped.
    unsafe {
        mlock(without_provenance_mut(start), bytes)
    }
}

/// Leaves pages out of core dumps. A kernel that cannot do that keeps them in.
fn advise_against_dumps(start: usize, bytes: usize) {
    #[allow(unsafe_code, reason = "madvise takes a pointer")]
    // SAFETY: this advice changes nothing that the process sees.
    let _ = unsafe { madvise(without_provenance_mut(start), bytes, Advice::LinuxDontDump) };
}

/// Locks all of it again. A process calls it after it was forked: the locks are its parent's.
///
/// # Errors
/// Something cannot be locked (see `ulimit -l`), so it may be swapped out.
pub fn lock_again() -> io::Result<()> {
    let locked = lock(&ALL).iter().map(|(start, bytes)| keep_in_memory(*start, *bytes)).collect::<Vec<_>>();
    Ok(locked.into_iter().collect::<rustix::io::Result<()>>()?)
}

/// Leaves memory out of core dumps that is used for a secret for a while, and is too large to be
/// locked. What shares its first or last page with something else stays in.
pub fn leave_out_of_dumps<T>(memory: &[T]) {
    let range = memory.as_ptr_range();
    let start = (range.start as usize).next_multiple_of(PAGE);
    let end = range.end as usize / PAGE * PAGE;
    if start < end {
        advise_against_dumps(start, end - start);
    }
}

/// A value in memory of its own. It is dropped, and then its memory is overwritten.
pub struct Locked<T>(Place<T>);

enum Place<T> {
    Pages(Pages, PhantomData<T>),
    /// The system has no pages.
    Heap(Box<T>),
}

impl<T> Locked<T> {
    /// Moves a value there. The compiler may leave a copy on the stack.
    pub fn new(value: T) -> Locked<T> {
        let fits = align_of::<T>() <= PAGE;
        let Some(pages) = fits.then(|| Pages::new(size_of::<T>())).flatten() else {
            return Locked(Place::Heap(Box::new(value)));
        };
        #[allow(unsafe_code, reason = "the pages are raw memory")]
        // SAFETY: the pages are large enough, aligned to a page, and hold no value yet.
        unsafe {
            pages.start.cast::<T>().write(value);
        }
        Locked(Place::Pages(pages, PhantomData))
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            #[allow(unsafe_code, reason = "the pages are raw memory")]
            // SAFETY: `new` has put a value there, and only dropping takes it away.
            Place::Pages(pages, _) => unsafe { pages.start.cast::<T>().as_ref() },
            Place::Heap(value) => value,
        }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        if let Place::Pages(pages, _) = &self.0 {
            #[allow(unsafe_code, reason = "the pages are raw memory")]
            // SAFETY: `new` has put a value there. Nothing uses it after this.
            unsafe {
                pages.start.cast::<T>().drop_in_place();
            }
        }
    }
}

/// Bytes in memory of their own.
pub struct LockedBytes {
    memory: Bytes,
    length: usize,
}

enum Bytes {
    Pages(Pages),
    /// The system has no pages.
    Heap(Zeroizing<Vec<u8>>),
}

impl LockedBytes {
    /// So many bytes, which are zero.
    pub fn zeroed(length: usize) -> LockedBytes {
        let memory = match Pages::new(length) {
            Some(pages) => Bytes::Pages(pages),
            None => Bytes::Heap(Zeroizing::new(vec![0; length])),
        };
        LockedBytes { memory, length }
    }

    /// A copy of these.
    pub fn copy(bytes: &[u8]) -> LockedBytes {
        let mut copy = LockedBytes::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }
}

impl Clone for LockedBytes {
    fn clone(&self) -> LockedBytes {
        LockedBytes::copy(self)
    }
}

impl Deref for LockedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            #[allow(unsafe_code, reason = "the pages are raw memory")]
            // SAFETY: the pages have at least `length` bytes, and all have been set.
            Bytes::Pages(pages) => unsafe { std::slice::from_raw_parts(pages.start.as_ptr(), self.length) },
            Bytes::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for LockedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            #[allow(unsafe_code, reason = "the pages are raw memory")]
            // SAFETY: as above, and nothing else refers to them.
            Bytes::Pages(pages) => unsafe { std::slice::from_raw_parts_mut(pages.start.as_ptr(), self.length) },
            Bytes::Heap(bytes) => bytes,
        }
    }
}

impl fmt::Debug for LockedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What the kernel says of the mapping that this address is in: the flags of its pages.
    fn flags(address: usize) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_in = false;
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(start, end)| (number(start), number(end))) {
                is_in = (start..end).contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags: ").filter(|_| is_in) {
                return flags.split_whitespace().map(str::to_string).collect();
            }
        }
        panic!("no mapping has {address:#x}");
    }

    #[test]
    fn bytes_are_locked_and_left_out_of_dumps() {
        let mut bytes = LockedBytes::copy(b"hush");
        bytes[0] = b'H';
        let copy = bytes.clone();
        for bytes in [&bytes, &copy] {
            assert_eq!((&bytes[..], format!("{bytes:?}").as_str()), (&b"Hush"[..], "***"));
            let flags = flags(bytes.as_ptr() as usize);
            assert!(flags.contains(&"dd".to_string()), "{flags:?}");
            // `lo`: locked. A process without the right to lock keeps them all the same.
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            assert!(limit.is_some_and(|limit| limit < 1 << 20) || flags.contains(&"lo".to_string()), "{flags:?}");
        }
        let _ = lock_again();
        assert_eq!(LockedBytes::zeroed(0).len(), 0);
        let large = LockedBytes::zeroed(100_000);
        assert!(large.len() == 100_000 && large.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_value_is_dropped_once_and_its_pages_go() {
        let value = Arc::new(7);
        let locked = Locked::new((Arc::clone(&value), [1_u8; 5000]));
        let there: &(Arc<i32>, [u8; 5000]) = &locked;
        assert_eq!((*there.0, there.1[4999], Arc::strong_count(&value)), (7, 1, 2));
        let start = std::ptr::from_ref(there) as usize;
        assert!(lock(&ALL).contains_key(&start));
        drop(locked);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn memory_that_is_used_for_a_while_is_left_out_of_dumps() {
        let memory = vec![0_u64; 1 << 20];
        leave_out_of_dumps(&memory);
        assert!(flags(memory[1 << 19..].as_ptr() as usize).contains(&"dd".to_string()));
        leave_out_of_dumps(&memory[..1]);
    }
}
