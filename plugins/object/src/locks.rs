//! One operation at a time changes a block.

use tokio::sync::{Mutex, MutexGuard};

/// The locks. Blocks that are this far apart share one, which costs time and is not wrong: an
/// operation holds one at a time.
const COUNT: u64 = 1024;

/// The locks of a disk's blocks.
#[derive(Debug)]
pub(crate) struct BlockLocks(Box<[Mutex<()>]>);

impl BlockLocks {
    pub(crate) fn new() -> BlockLocks {
        BlockLocks((0..COUNT).map(|_| Mutex::new(())).collect())
    }

    pub(crate) async fn lock(&self, block: u64) -> MutexGuard<'_, ()> {
        self.0[(block % COUNT) as usize].lock().await
    }
}
