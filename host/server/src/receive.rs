//! The receive buffer: what one `read` brings, and payloads that go past it.
//!
//! A connection that waits holds no buffer: what is left over between reads is less than a request's header and sits in a few bytes
//! of its own. So idle clients cost next to nothing, and a client that sends half a header costs no more.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rbdkit_plugin_api::shelf::{Shelf, Stir};
use rbdkit_plugin_api::{Buffer, Fill, Span};

use super::socket::{Input, Patience, read_into};
use rbdkit_nbd::RequestHeader;

/// Bytes that one `read` may bring: what a Unix socket holds by default is some 200 KiB, of which small requests fill less; 64 KiB
/// are 2,340 requests without payload, or 15 writes of 4 KiB.
const RECEIVE: usize = 64 * 1024;

/// Bytes that one `read` may bring of a client that sends long payloads: enough for a few headers. What it brought of a payload has to be
/// copied once more, while the rest of it goes straight where it belongs.
const RECEIVE_LITTLE: usize = 512;

/// A payload that is long in this sense, in bytes.
const LONG: u32 = 16 * 1024;

/// Buffers kept for the next reader: 2 MiB.
const KEEP: usize = 32;

/// Receive buffers not in use.
#[derive(Debug)]
pub(super) struct ReceivePool {
    shelf: Mutex<Shelf<Box<[u8]>>>,
    stir: Arc<Stir>,
}

impl ReceivePool {
    /// With none in it. It stirs when one comes back, for who calls [`ReceivePool::free_spare`].
    pub(super) fn new(stir: Arc<Stir>) -> ReceivePool {
        ReceivePool { shelf: Mutex::default(), stir }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<Box<[u8]>>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Box<[u8]> {
        let kept = self.shelf().take();
        kept.unwrap_or_else(|| vec![0; RECEIVE].into_boxed_slice())
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let mut kept = self.shelf();
        if kept.len() < KEEP {
            kept.put(buffer);
        }
        // Not left to the answers: this may be long after the last of them. Locked, as where other buffers come back.
        self.stir.stir();
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.shelf().len()
    }

    /// Frees those that nobody has needed since this was last called.
    pub(super) fn free_spare(&self) {
        let spare = self.shelf().spare(0);
        drop(spare);
    }
}

/// What was received and not yet used: `bytes[from..to]`, or if there is no buffer the first `to` of `rest`.
#[derive(Debug, Default)]
pub(super) struct Received {
    bytes: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    /// Only without `bytes`: `from` is 0 and `to` less than its length.
    rest: [u8; RequestHeader::SIZE],
    /// The last payload was a long one, so probably the next is.
    long: bool,
}

impl Received {
    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Some(bytes) => &bytes[self.from..self.to],
            None => &self.rest[..self.to],
        }
    }

    /// Takes `count` of them off the front.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(self.from + count <= self.to);
        self.from += count;
    }

    /// Gives the buffer back if what is left is so little that it can do without, which it is once all complete requests are taken.
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

    /// Says how long the next payload is.
    pub fn expect(&mut self, payload: u32) {
        self.long = payload >= LONG;
    }

    /// Room behind what is left over, in a buffer that is there from now on.
    fn room<'a>(bytes: &'a mut Option<Box<[u8]>>, rest: &[u8], pool: &ReceivePool, long: bool) -> &'a mut [u8] {
        let bytes = bytes.get_or_insert_with(|| {
            let mut bytes = pool.take();
            bytes[..rest.len()].copy_from_slice(rest);
            bytes
        });
        let most = if long { RECEIVE_LITTLE } else { RECEIVE };
        &mut bytes[rest.len()..most]
    }

    /// Reads more, waiting as a thread if there is a way to (see [`Input::read_here`]). 0: the client has ended its side. May be dropped
    /// while it waits.
    pub async fn read(
        &mut self,
        input: &mut Input,
        pool: &ReceivePool,
        patience: Option<&mut Patience>,
    ) -> io::Result<usize> {
        if patience.is_none() {
            self.shrink(pool);
        }
        let left = self.to - self.from;
        if let Some(bytes) = &mut self.bytes {
            bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, left);
        }
        let (bytes, rest, long) = (&mut self.bytes, &self.rest, self.long);
        let left_over = &rest[..left.min(rest.len())];
        let attempt = |fd: BorrowedFd<'_>| read_into(fd, Received::room(bytes, left_over, pool, long), &mut []);
        let count = match patience {
            Some(patience) => input.read_here(patience, attempt)?,
            None => input.read(attempt).await?,
        };
        self.to += count;
        Ok(count)
    }

    /// Moves what is there into `buffer`, from `filled` on. Answers how far it is filled then.
    pub fn fill(&mut self, buffer: &mut Buffer, filled: u32) -> u32 {
        let wanted = (buffer.len() - filled) as usize;
        let here = self.bytes();
        let count = here.len().min(wanted);
        buffer.put(filled, &here[..count]);
        self.consume(count);
        filled + count as u32
    }

    /// Reads the rest of a payload straight into `buffer`, and what follows it behind. Answers how far it is filled then; no
    /// further than before: the client has ended its side. Everything received has to be used up. May be dropped while it waits.
    pub async fn read_payload(
        &mut self,
        input: &mut Input,
        pool: &ReceivePool,
        patience: Option<&mut Patience>,
        buffer: &mut Buffer,
        filled: u32,
    ) -> io::Result<u32> {
        debug_assert!(self.bytes().is_empty());
        let wanted = Span::new(filled, buffer.len() - filled);
        let (bytes, long) = (&mut self.bytes, self.long);
        (self.from, self.to) = (0, 0);
        let attempt = |fd: BorrowedFd<'_>| {
            let behind = Received::room(bytes, &[], pool, long);
            let mut answer = Ok((0, 0));
            // "Failed" whatever happened, as it is marked below how much was read.
            let _ = buffer.fill_with(wanted, |payload| {
                answer = read_into(fd, payload, behind);
                Err(())
            });
            answer
        };
        let count = match patience {
            Some(patience) => input.read_here(patience, attempt)?,
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
    fn a_buffer_that_comes_back_stirs_and_is_gone_two_looks_later() {
        let stir = Arc::new(Stir::default());
        let pool = ReceivePool::new(Arc::clone(&stir));
        pool.give_back(pool.take());
        assert!(stir.settle());
        pool.free_spare();
        assert_eq!((pool.kept(), stir.settle()), (1, false));
        pool.free_spare();
        assert_eq!(pool.kept(), 0);
    }
}
