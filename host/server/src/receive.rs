//! The receive buffer for what one `read` returns. Long payloads bypass it.
//!
//! A connection that waits for requests holds no buffer. The bytes left over between reads are
//! fewer than a request's header, and they stay in an array of the connection. So idle clients cost
//! very little, and a client that sends half a header costs no more.
//!
//! All connections together have a limited number of buffers. A connection that gets none reads
//! header by header into its array, which takes a system call for each request.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rbdkit_nbd::RequestHeader;
use rbdkit_plugin_api::idle::{Activity, IdlePool};
use rbdkit_plugin_api::{Buffer, Fill, Quota, Span, Usage, lock};

use super::socket::{Input, Source, read_into};
use super::spin::SpinWait;

/// The most bytes that one `read` returns. A Unix socket holds some 200 KiB by default; small
/// requests fill less of it. 64 KiB are 2,340 requests without a payload, or 15 writes of 4 KiB.
const MAX_READ: usize = 64 * 1024;

/// The same for a client that sends long payloads: enough for a few headers. Payload bytes that
/// land in the receive buffer have to be copied once more; the rest goes straight into the
/// request's buffer.
const MAX_READ_BEFORE_LONG: usize = 512;

/// A payload from this length on, in bytes, is a long one.
const LONG: u32 = 16 * 1024;

/// Buffers that the pool keeps: 2 MiB.
const MAX_KEPT: usize = 32;

/// Receive buffers that are not in use.
#[derive(Debug)]
pub(super) struct ReceivePool {
    idle: Mutex<IdlePool<Box<[u8]>>>,
    activity: Arc<Activity>,
    /// Bytes of all buffers, idle ones too.
    bytes: Quota,
}

impl ReceivePool {
    /// An empty pool of at most `bytes`. It signals activity when a buffer comes back, so that
    /// [`ReceivePool::free_spare`] is called later.
    pub(super) fn new(activity: Arc<Activity>, bytes: u64) -> ReceivePool {
        ReceivePool { idle: Mutex::default(), activity, bytes: Quota::new(bytes) }
    }

    /// The bytes of all buffers.
    pub(super) fn usage(&self) -> Usage {
        self.bytes.usage("receive")
    }

    fn idle(&self) -> MutexGuard<'_, IdlePool<Box<[u8]>>> {
        lock(&self.idle)
    }

    fn take(&self) -> Option<Box<[u8]>> {
        let kept = self.idle().take();
        kept.or_else(|| self.bytes.take(MAX_READ as u64).then(|| vec![0; MAX_READ].into_boxed_slice()))
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let mut kept = self.idle();
        if kept.len() < MAX_KEPT {
            kept.put(buffer);
        } else {
            self.bytes.give(MAX_READ as u64);
        }
        // The reply queue also signals activity, but this may happen long after the last reply. It
        // signals under the lock, as the pool of payload buffers does.
        self.activity.signal();
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.idle().len()
    }

    /// Frees the buffers that were not needed since the last call.
    pub(super) fn free_spare(&self) {
        let spare = self.idle().take_spare(0);
        self.bytes.give(spare.len() as u64 * MAX_READ as u64);
        drop(spare);
    }
}

/// What was received and is not used yet: `from..to` of `bytes`, or of `rest` without a buffer.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    bytes: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    /// Used only without `bytes`.
    rest: [u8; RequestHeader::MAX_SIZE],
    /// The last payload was a long one, so the next probably is, too.
    long: bool,
}

impl ReceiveBuffer {
    /// What was received and is not used yet.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Some(bytes) => &bytes[self.from..self.to],
            None => &self.rest[self.from..self.to],
        }
    }

    /// Takes `count` bytes off the front.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(self.from + count <= self.to);
        self.from += count;
    }

    /// Gives the buffer back if the remaining bytes fit into `rest`. They fit once all complete
    /// requests are taken.
    fn shrink(&mut self, pool: &ReceivePool) {
        let left = self.to - self.from;
        if left < self.rest.len()
            && let Some(bytes) = self.bytes.take()
        {
            self.rest[..left].copy_from_slice(&bytes[self.from..self.to]);
            (self.from, self.to) = (0, left);
            pool.give_back(bytes);
        }
    }

    /// Announces the length of the payload that comes next.
    pub fn expect(&mut self, payload: u32) {
        self.long = payload >= LONG;
    }

    /// The free space after the first `left` bytes. Takes a buffer if there is none, and does with
    /// the array if it gets none.
    fn room<'a>(
        bytes: &'a mut Option<Box<[u8]>>,
        rest: &'a mut [u8; RequestHeader::MAX_SIZE],
        left: usize,
        pool: &ReceivePool,
        long: bool,
    ) -> &'a mut [u8] {
        if bytes.is_none() {
            *bytes = pool.take();
            if let Some(bytes) = bytes {
                bytes[..left].copy_from_slice(&rest[..left]);
            }
        }
        let most = if long { MAX_READ_BEFORE_LONG } else { MAX_READ };
        match bytes {
            Some(bytes) => &mut bytes[left..most],
            None => &mut rest[left..],
        }
    }

    /// Reads more. With `spin` the thread itself waits (see [`Input::read_blocking`]). 0: the
    /// client has closed its side. The future may be dropped while it waits.
    pub async fn read(
        &mut self,
        input: &mut Input,
        pool: &ReceivePool,
        spin: Option<&mut SpinWait>,
    ) -> io::Result<usize> {
        if spin.is_none() {
            self.shrink(pool);
        }
        let left = self.to - self.from;
        match &mut self.bytes {
            Some(bytes) => bytes.copy_within(self.from..self.to, 0),
            None => self.rest.copy_within(self.from..self.to, 0),
        }
        (self.from, self.to) = (0, left);
        let (bytes, rest, long) = (&mut self.bytes, &mut self.rest, self.long);
        let attempt =
            |source: Source<'_>| read_into(source, ReceiveBuffer::room(bytes, rest, left, pool, long), &mut []);
        let count = match spin {
            Some(spin) => input.read_blocking(spin, attempt)?,
            None => input.read(attempt).await?,
        };
        self.to += count;
        Ok(count)
    }

    /// Moves received bytes into `buffer`, from `filled` on. Returns up to where `buffer` is now
    /// filled.
    pub fn fill(&mut self, buffer: &mut Buffer, filled: u32) -> u32 {
        let wanted = (buffer.len() - filled) as usize;
        let here = self.bytes();
        let count = here.len().min(wanted);
        buffer.put(filled, &here[..count]);
        self.consume(count);
        filled + count as u32
    }

    /// Reads the rest of a payload straight into `buffer`, and what follows it into this receive
    /// buffer, which must be empty. Returns up to where `buffer` is now filled; if that is
    /// `filled`, the client has closed its side. The future may be dropped while it waits.
    pub async fn read_payload(
        &mut self,
        input: &mut Input,
        pool: &ReceivePool,
        spin: Option<&mut SpinWait>,
        buffer: &mut Buffer,
        filled: u32,
    ) -> io::Result<u32> {
        debug_assert!(self.bytes().is_empty());
        let wanted = Span::new(filled, buffer.len() - filled);
        let (bytes, rest, long) = (&mut self.bytes, &mut self.rest, self.long);
        (self.from, self.to) = (0, 0);
        let attempt = |source: Source<'_>| {
            let behind = ReceiveBuffer::room(bytes, rest, 0, pool, long);
            let mut answer = Ok((0, 0));
            // The closure always returns an error, so that `fill_with` marks nothing as filled. The
            // bytes that were read are marked below.
            let _ = buffer.fill_with(wanted, |payload| {
                answer = read_into(source, payload, behind);
                Err(())
            });
            answer
        };
        let count = match spin {
            Some(spin) => input.read_blocking(spin, attempt)?,
            None => input.read(attempt).await?,
        };
        let filled_now = count.min(wanted.len as usize);
        buffer.mark(Span::new(filled, filled_now as u32), Fill::Data);
        self.to = count - filled_now;
        Ok(filled + filled_now as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_counts_as_activity_and_is_freed_two_checks_later() {
        let activity = Arc::new(Activity::default());
        let pool = ReceivePool::new(Arc::clone(&activity), u64::MAX);
        pool.give_back(pool.take().unwrap());
        assert!(activity.take());
        pool.free_spare();
        assert_eq!((pool.kept(), activity.take()), (1, false));
        pool.free_spare();
        assert_eq!(pool.kept(), 0);
    }
}
