//! The pool that buffers come from.

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::idle::Activity;
use crate::pipe;
use crate::storage::SizeClasses;

/// A shared pool of buffers. Cloning it shares it.
///
/// It keeps at most some 96 MiB of idle buffers, and frees those that are not needed
/// ([`Pool::free_spare`]). It has no limit on buffers in use: the server counts the bytes in flight
/// before it takes a buffer.
#[derive(Clone)]
pub struct Pool(Arc<SizeClasses>);

impl Default for Pool {
    fn default() -> Pool {
        Pool::new()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Pool {
        Pool(Arc::default())
    }

    /// A buffer of `len` bytes, all of it unfilled.
    pub fn take(&self, len: u32) -> Buffer {
        Buffer::from_storage(SizeClasses::take(&self.0, len))
    }

    /// A buffer that comes back signals this, for the caller of [`Pool::free_spare`]. Other code
    /// may signal it too when there may be something to free.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.0.activity
    }

    /// Frees the buffers and idle pipes that were not needed since the last call. Two calls in a
    /// row without activity in between leave none.
    pub fn free_spare(&self) {
        self.0.free_idle();
        pipe::close_spare();
    }

    /// How many buffers are idle, for tests.
    pub fn kept(&self) -> usize {
        self.0.idle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_buffer_never_shows_old_bytes() {
        let pool = Pool::new();
        let mut first = pool.take(4096);
        first
            .fill_with(first.span(), |bytes| {
                bytes.fill(7);
                Ok::<_, ()>(())
            })
            .unwrap();
        drop(first);
        let mut second = pool.take(100);
        second.put(10, &[1]);
        let all = second.span();
        let bytes = second.bytes(all);
        assert_eq!(bytes[10], 1);
        assert!(bytes.iter().enumerate().all(|(i, b)| i == 10 || *b == 0));
    }

    #[test]
    fn buffers_that_were_not_needed_for_a_while_are_freed() {
        let pool = Pool::new();
        let burst: Vec<Buffer> = (0..8).map(|n| pool.take(4096 << (n % 2 * 4))).collect();
        assert_eq!((pool.kept(), pool.activity().take()), (0, false));
        drop(burst);
        assert_eq!((pool.kept(), pool.activity().take()), (8, true));
        // They were in use since the last look. From then on only one is.
        pool.free_spare();
        assert_eq!(pool.kept(), 8);
        for _ in 0..3 {
            drop(pool.take(4096));
        }
        pool.free_spare();
        assert_eq!((pool.kept(), pool.activity().take()), (1, true));
        pool.free_spare();
        assert_eq!((pool.kept(), pool.activity().take()), (0, false));
        assert_eq!(pool.take(4096).len(), 4096);
    }
}
