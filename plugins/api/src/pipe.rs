//! Pipes that hold bytes of a file by reference, for [`crate::Buffer::lend`].
//!
//! A pipe refers to the pages that were spliced into it, so `splice` from a file to a socket by way of a pipe copies nothing. There are at most
//! [`MOST`] in the process, kept for a while when they are empty: each takes two file descriptors and 10 KiB of the kernel's memory, and its
//! pages count against what the system lets one user have in pipes (64 MiB by default).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::lock::lock;
use crate::shelf::Shelf;

/// Bytes from which on a pipe is worth its system calls. Measured over a Unix socket on 2 cores: 16 KiB lose a fifth by it, 32 KiB gain as much, 64 KiB
/// gain a half.
pub(crate) const SHORTEST: u32 = 32 << 10;

/// What a pipe holds, in bytes: the most that a user without privileges may ask for.
const CAPACITY: usize = 1 << 20;

/// A page is a place in a pipe, and a range that does not begin with one takes one more.
pub(crate) const LONGEST: u32 = CAPACITY as u32;

/// Pipes at a time, of 1 MiB each.
const MOST: usize = 32;

static IN_ALL: AtomicUsize = AtomicUsize::new(0);
/// The system gave none once; it is not asked again and again.
static REFUSED: AtomicBool = AtomicBool::new(false);
static EMPTY: Mutex<Shelf<Ends>> = Mutex::new(Shelf::new());

fn empty() -> MutexGuard<'static, Shelf<Ends>> {
    lock(&EMPTY)
}

#[derive(Debug)]
struct Ends {
    output: OwnedFd,
    input: OwnedFd,
}

impl Drop for Ends {
    fn drop(&mut self) {
        IN_ALL.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pipe and how many bytes are in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// None only while it is dropped.
    ends: Option<Ends>,
    left: u32,
}

impl Pipe {
    /// An empty one, unless there are too many or the system gives none.
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

    /// Lets `fill` put up to `wanted` bytes in, and answers how many it did.
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

    /// Lets `send` take bytes out, and answers how many it did.
    pub(crate) fn empty(&mut self, send: impl FnOnce(BorrowedFd<'_>, usize) -> io::Result<usize>) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let count = send(ends.output.as_fd(), self.left as usize)?.min(self.left as usize);
        self.left -= count as u32;
        Ok(count)
    }

    /// Fills `bytes` from it.
    ///
    /// # Errors
    /// If there are not as many, which `left` tells before.
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
        // One that still holds something is closed: that is the quickest way to empty it.
        if self.left == 0
            && let Some(ends) = self.ends.take()
        {
            empty().put(ends);
        }
    }
}

/// Closes those that nobody has needed since this was last called.
pub(crate) fn close_spare() {
    let spare = empty().spare(0);
    drop(spare);
}

fn make() -> Option<Ends> {
    if REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    let one_more = |now: usize| (now < MOST).then_some(now + 1);
    IN_ALL.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
    let ends = match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
        // From here on dropping it counts it out.
        Ok((output, input)) => Some(Ends { output, input }),
        Err(_) => {
            IN_ALL.fetch_sub(1, Ordering::Relaxed);
            None
        }
    };
    let wide = ends.filter(|ends| fcntl_setpipe_size(&ends.input, CAPACITY).is_ok_and(|size| size >= CAPACITY));
    if wide.is_none() {
        REFUSED.store(true, Ordering::Relaxed);
    }
    wide
}

#[cfg(test)]
mod tests {
    use crate::{Buffer, Fill, Pool, Span};
    use std::io::Write;
    use std::os::fd::AsFd;

    const LEN: u32 = 256 << 10;

    fn pattern(len: u32) -> Vec<u8> {
        (0..len).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn file(bytes: &[u8]) -> std::fs::File {
        let fd = rustix::fs::memfd_create("lent", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes).unwrap();
        file
    }

    fn lend(buffer: &mut Buffer, file: &std::fs::File) -> Option<u32> {
        let mut at = 0;
        buffer.lend(|input, wanted| {
            let flags = rustix::pipe::SpliceFlags::empty();
            Ok(rustix::pipe::splice(file.as_fd(), Some(&mut at), input, None, wanted, flags)?)
        })
    }

    #[test]
    fn lent_bytes_are_those_of_the_file_however_they_are_looked_at() {
        let bytes = pattern(LEN);
        let file = file(&bytes);
        let pool = Pool::new();
        let lent = || {
            let mut buffer = pool.take(LEN);
            assert_eq!(lend(&mut buffer, &file), Some(LEN));
            assert_eq!(buffer.lent(), LEN);
            assert_eq!(buffer.fills().collect::<Vec<_>>(), [(buffer.span(), Fill::Data)]);
            buffer
        };
        let all = Span::new(0, LEN);
        assert!(lent().bytes(all) == bytes);
        assert!(lent().bytes(Span::new(5000, 77)) == &bytes[5000..5077]);
        assert!(lent().duplicate().bytes(all) == bytes);
        assert!(!lent().is_zero(all));
        let mut changed = lent();
        changed.put(100, &[1, 2, 3]);
        changed.set_zero(Span::new(200, 10));
        let mut wanted = bytes.clone();
        wanted[100..103].copy_from_slice(&[1, 2, 3]);
        wanted[200..210].fill(0);
        assert!(changed.bytes(all) == wanted);
        let mut replaced = lent();
        replaced.set_zero(all);
        assert_eq!(replaced.lent(), 0);
        assert!(replaced.is_zero(all));
        let mut again = lent();
        assert_eq!(lend(&mut again, &file), Some(LEN));
        assert!(again.bytes(all) == bytes);
    }

    #[test]
    fn what_was_sent_is_gone_and_the_rest_is_still_there() {
        let bytes = pattern(LEN);
        let file = file(&bytes);
        let mut buffer = Pool::new().take(LEN);
        assert_eq!(lend(&mut buffer, &file), Some(LEN));
        let mut sent = vec![0; LEN as usize];
        let mut done = 0;
        while buffer.lent() > 0 {
            let part = &mut sent[done..];
            done += buffer
                .send_lent(|output, left| {
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
        let bytes = pattern(50_000);
        let mut buffer = Pool::new().take(LEN);
        assert_eq!(lend(&mut buffer, &file(&bytes)), Some(50_000));
        assert_eq!(buffer.lent(), 0);
        let beginning = Span::new(0, 50_000);
        assert!(buffer.data(beginning) == bytes);
        assert_eq!(buffer.fills().nth(1), Some((Span::new(50_000, LEN - 50_000), Fill::Unfilled)));
    }

    #[test]
    fn short_and_very_long_reads_and_the_one_too_many_are_not_lent() {
        let file = file(&pattern(LEN));
        let pool = Pool::new();
        assert_eq!(lend(&mut pool.take(4096), &file), None);
        assert_eq!(lend(&mut pool.take((1 << 20) + 1), &file), None);
        let mut held = Vec::new();
        loop {
            let mut buffer = pool.take(LEN);
            if lend(&mut buffer, &file).is_none() {
                break;
            }
            held.push(buffer);
            assert!(held.len() <= super::MOST);
        }
        drop(held);
        assert_eq!(lend(&mut pool.take(LEN), &file), Some(LEN));
    }
}
