//! Pipes that hold bytes of a file by reference, for [`crate::Buffer::splice_from`].
//!
//! A pipe refers to the pages that were spliced into it, so `splice` from a file to a socket
//! through a pipe copies nothing. The process has at most [`MAX_PIPES`], because each takes two
//! file descriptors and 10 KiB of the kernel's memory, and its pages count against the limit of a
//! user's pipes (64 MiB by default). Empty pipes are kept for a while.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::idle::IdlePool;
use crate::lock::lock;

/// The shortest read that is spliced, in bytes. Measured over a Unix socket on 2 cores: with a
/// pipe, reads of 16 KiB are 20 % slower, reads of 32 KiB 20 % faster and reads of 64 KiB 50 %
/// faster.
pub(crate) const MIN_SPLICE: u32 = 32 << 10;

/// The capacity of a pipe in bytes: the most that a user without privileges may ask for.
const CAPACITY: usize = 1 << 20;

/// The longest read that is spliced, in bytes. Each page takes a place in the pipe, and a range
/// that does not begin at a page takes one more, so such a range of this length does not fit
/// completely.
pub(crate) const MAX_SPLICE: u32 = CAPACITY as u32;

/// The most pipes in the process, of 1 MiB each.
const MAX_PIPES: usize = 32;

/// Pipes in the process.
static PIPES: AtomicUsize = AtomicUsize::new(0);
/// The kernel has refused a pipe, and is not asked again.
static REFUSED: AtomicBool = AtomicBool::new(false);
static EMPTY: Mutex<IdlePool<Ends>> = Mutex::new(IdlePool::new());

fn empty() -> MutexGuard<'static, IdlePool<Ends>> {
    lock(&EMPTY)
}

#[derive(Debug)]
struct Ends {
    output: OwnedFd,
    input: OwnedFd,
}

impl Drop for Ends {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pipe and how many bytes are in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// None only during drop.
    ends: Option<Ends>,
    left: u32,
}

impl Pipe {
    /// An empty pipe. None if there are too many, or if the kernel refuses.
    pub(crate) fn take() -> Option<Pipe> {
        let kept = empty().take();
        let ends = match kept {
            Some(ends) => ends,
            None => make()?,
        };
        Some(Pipe { ends: Some(ends), left: 0 })
    }

    /// Bytes in it.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// Lets `fill` put up to `wanted` bytes in. Returns how many it did.
    pub(crate) fn fill(
        &mut self,
        wanted: u32,
        fill: &mut impl FnMut(BorrowedFd<'_>, usize) -> io::Result<usize>,
    ) -> io::Result<u32> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let count = fill(ends.input.as_fd(), wanted as usize)?.min(wanted as usize) as u32;
        self.left += count;
        Ok(count)
    }

    /// Lets `send` take bytes out. Returns how many it did.
    pub(crate) fn empty(&mut self, send: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<usize>) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let count = send(ends.output.as_fd(), self.left as usize)?.min(self.left as usize);
        self.left -= count as u32;
        Ok(count)
    }

    /// Fills `bytes` from it.
    ///
    /// # Errors
    /// The pipe holds fewer bytes, which `left` tells before.
    pub(crate) fn copy_out(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &mut bytes[done..];
            let wanted = rest.len();
            match self.empty(|output, left| Ok(rustix::io::read(output, &mut rest[..left.min(wanted)])?)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // A pipe that still holds bytes is closed, which is the fastest way to empty it.
        if self.left == 0
            && let Some(ends) = self.ends.take()
        {
            empty().put(ends);
        }
    }
}

/// Closes the pipes that were not needed since the last call.
pub(crate) fn close_spare() {
    let spare = empty().take_spare(0);
    drop(spare);
}

fn make() -> Option<Ends> {
    if REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    let one_more = |now: usize| (now < MAX_PIPES).then_some(now + 1);
    PIPES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
    let ends = match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
        // Dropping the ends uncounts the pipe from here on.
        Ok((output, input)) => Some(Ends { output, input }),
        Err(_) => {
            PIPES.fetch_sub(1, Ordering::Relaxed);
            None
        }
    };
    let large = ends.filter(|ends| fcntl_setpipe_size(&ends.input, CAPACITY).is_ok_and(|size| size >= CAPACITY));
    if large.is_none() {
        REFUSED.store(true, Ordering::Relaxed);
    }
    large
}

#[cfg(test)]
mod tests {
    use crate::{Buffer, Fill, Pool, Span};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::sync::RwLock;

    use crate::{read_lock, write_lock};

    const LEN: u32 = 256 << 10;

    /// The tests of one process share its pipes. The test that takes all of them holds this alone.
    static PIPES_IN_TESTS: RwLock<()> = RwLock::new(());

    fn pattern(len: u32) -> Vec<u8> {
        (0..len).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn file(bytes: &[u8]) -> std::fs::File {
        let fd = rustix::fs::memfd_create("spliced", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes).unwrap();
        file
    }

    fn splice(buffer: &mut Buffer, file: &std::fs::File) -> Option<u32> {
        let mut at = 0;
        buffer.splice_from(|input, wanted| {
            let flags = rustix::pipe::SpliceFlags::empty();
            Ok(rustix::pipe::splice(file.as_fd(), Some(&mut at), input, None, wanted, flags)?)
        })
    }

    #[test]
    fn spliced_bytes_are_those_of_the_file_however_they_are_read() {
        let _pipes = read_lock(&PIPES_IN_TESTS);
        let bytes = pattern(LEN);
        let file = file(&bytes);
        let pool = Pool::new();
        let spliced = || {
            let mut buffer = pool.take(LEN);
            assert_eq!(splice(&mut buffer, &file), Some(LEN));
            assert_eq!(buffer.spliced(), LEN);
            assert_eq!(buffer.fills().collect::<Vec<_>>(), [(buffer.span(), Fill::Data)]);
            buffer
        };
        let all = Span::new(0, LEN);
        assert!(spliced().bytes(all) == bytes);
        assert!(spliced().bytes(Span::new(5000, 77)) == &bytes[5000..5077]);
        assert!(spliced().duplicate().bytes(all) == bytes);
        assert!(!spliced().is_zero(all));
        let mut changed = spliced();
        changed.put(100, &[1, 2, 3]);
        changed.set_zero(Span::new(200, 10));
        let mut wanted = bytes.clone();
        wanted[100..103].copy_from_slice(&[1, 2, 3]);
        wanted[200..210].fill(0);
        assert!(changed.bytes(all) == wanted);
        let mut replaced = spliced();
        replaced.set_zero(all);
        assert_eq!(replaced.spliced(), 0);
        assert!(replaced.is_zero(all));
        let mut again = spliced();
        assert_eq!(splice(&mut again, &file), Some(LEN));
        assert!(again.bytes(all) == bytes);
    }

    #[test]
    fn what_was_sent_is_gone_and_the_rest_is_still_there() {
        let _pipes = read_lock(&PIPES_IN_TESTS);
        let bytes = pattern(LEN);
        let file = file(&bytes);
        let mut buffer = Pool::new().take(LEN);
        assert_eq!(splice(&mut buffer, &file), Some(LEN));
        let mut sent = vec![0; LEN as usize];
        let mut done = 0;
        while buffer.spliced() > 0 {
            let part = &mut sent[done..];
            done += buffer
                .splice_out(|output, left| {
                    assert_eq!(left, part.len());
                    let most = part.len().min(100_000);
                    Ok(rustix::io::read(output, &mut part[..most])?)
                })
                .unwrap();
        }
        assert!(sent == bytes);
    }

    #[test]
    fn a_file_that_ends_early_fills_the_beginning() {
        let _pipes = read_lock(&PIPES_IN_TESTS);
        let bytes = pattern(50_000);
        let mut buffer = Pool::new().take(LEN);
        assert_eq!(splice(&mut buffer, &file(&bytes)), Some(50_000));
        assert_eq!(buffer.spliced(), 0);
        let beginning = Span::new(0, 50_000);
        assert!(buffer.data(beginning) == bytes);
        assert_eq!(buffer.fills().nth(1), Some((Span::new(50_000, LEN - 50_000), Fill::Unfilled)));
    }

    #[test]
    fn short_and_very_long_reads_and_the_one_too_many_are_not_spliced() {
        let _pipes = write_lock(&PIPES_IN_TESTS);
        let file = file(&pattern(LEN));
        let pool = Pool::new();
        assert_eq!(splice(&mut pool.take(4096), &file), None);
        assert_eq!(splice(&mut pool.take((1 << 20) + 1), &file), None);
        let mut held = Vec::new();
        loop {
            let mut buffer = pool.take(LEN);
            if splice(&mut buffer, &file).is_none() {
                break;
            }
            held.push(buffer);
            assert!(held.len() <= super::MAX_PIPES);
        }
        drop(held);
        assert_eq!(splice(&mut pool.take(LEN), &file), Some(LEN));
    }
}
