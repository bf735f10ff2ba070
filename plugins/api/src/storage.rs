//! The memory of buffers, and the idle memory for the next buffers, by size class.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::fills::Fills;
use crate::idle::{Activity, IdlePool};
use crate::lock::lock;
use crate::pipe::Pipe;
use crate::span::Fill;

/// What a [`crate::Buffer`] points to.
pub(crate) struct Storage {
    /// As long as the size class; the buffer is the first `len` bytes.
    pub(crate) bytes: Vec<u8>,
    pub(crate) len: u32,
    pub(crate) fills: Fills,
    /// Holds the bytes, all of them data, while they are spliced.
    pub(crate) pipe: Option<Pipe>,
    /// The bytes will be read where they are, so splicing them would only cost more.
    pub(crate) never_splice: bool,
    /// The pool that it returns to when the buffer is dropped. None while it is idle in that pool.
    pub(crate) classes: Option<Arc<SizeClasses>>,
}

impl Storage {
    /// `len` bytes of `bytes`, all of them unfilled.
    pub(crate) fn new(bytes: Vec<u8>, len: u32, classes: Option<Arc<SizeClasses>>) -> Box<Storage> {
        let mut storage =
            Box::new(Storage { bytes, len: 0, fills: Fills::new(), pipe: None, never_splice: false, classes });
        storage.reset(len);
        storage
    }

    #[inline]
    fn reset(&mut self, len: u32) {
        self.len = len;
        self.pipe = None;
        self.never_splice = false;
        self.fills.reset(len, Fill::Unfilled);
    }
}

/// Capacities of pooled storage in bytes: 4 KiB (the most frequent request), then steps of four up
/// to 4 MiB. Longer requests are rare and slow, so the cost of allocating memory for them does not
/// matter.
const CLASSES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];

/// The most bytes that a class keeps for the next requests: 64 requests of 256 KiB, which is what
/// nbdcopy has in flight. Storage that is not needed is freed ([`SizeClasses::free_idle`]), so an
/// idle server holds less.
const KEEP_BYTES: usize = 16 << 20;

type Class = Mutex<IdlePool<Box<Storage>>>;

fn locked(class: &Class) -> MutexGuard<'_, IdlePool<Box<Storage>>> {
    lock(class)
}

/// Idle storage, by capacity.
#[derive(Default)]
pub(crate) struct SizeClasses {
    classes: [Class; CLASSES.len()],
    pub(crate) activity: Arc<Activity>,
}

impl SizeClasses {
    fn class(len: usize) -> Option<usize> {
        CLASSES.iter().position(|capacity| len <= *capacity)
    }

    /// Storage of `len` bytes, all of them unfilled.
    pub(crate) fn take(classes: &Arc<SizeClasses>, len: u32) -> Box<Storage> {
        let Some(class) = SizeClasses::class(len as usize) else {
            return Storage::new(vec![0; len as usize], len, None);
        };
        let kept = locked(&classes.classes[class]).take();
        match kept {
            Some(mut storage) => {
                storage.reset(len);
                storage.classes = Some(Arc::clone(classes));
                storage
            }
            None => Storage::new(vec![0; CLASSES[class]], len, Some(Arc::clone(classes))),
        }
    }

    /// Keeps storage that is no longer used.
    pub(crate) fn give_back(&self, storage: Box<Storage>) {
        let Some(class) = SizeClasses::class(storage.bytes.len()) else { return };
        let mut idle = locked(&self.classes[class]);
        if idle.len() * CLASSES[class] < KEEP_BYTES {
            idle.put(storage);
        }
        // Signalled while the lock is held: a thread that checks for activity and then takes the
        // lock either finds this storage or is notified again.
        self.activity.signal();
    }

    /// Frees the storage that was not needed since the last call.
    pub(crate) fn free_idle(&self) {
        for class in &self.classes {
            // Dropped after the lock is released, so that other callers do not wait while the
            // kernel takes pages back.
            let spare = locked(class).take_spare(0);
            drop(spare);
        }
    }

    /// How many pieces of storage are idle.
    pub(crate) fn idle(&self) -> usize {
        self.classes.iter().map(|class| locked(class).len()).sum()
    }
}
