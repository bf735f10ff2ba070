//! Runs operations that block on tokio's threads for blocking calls.
//!
//! If all operations of a plugin block, its handle implements [`BlockingHandle`] and is wrapped in
//! [`Blocking`]. A plugin that blocks only sometimes implements [`Handle`] and uses
//! [`run_blocking`] and [`run_blocking_with`] for those operations.
//!
//! Such a call starts at once, before its answer is polled, and runs to its end even if the answer
//! is dropped. A call of [`run_abandonable`] is told when that happens, and ends what it waits for.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::error::{Errno, Error, Result};
use crate::extents::Extents;
use crate::op::{BoxFuture, Done, Op};
use crate::plugin::Handle;
use crate::span::Span;
use crate::types::{BlockSizes, Capabilities, Flags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// [`Handle`] as ordinary blocking functions. Wrap it in [`Blocking`].
pub trait BlockingHandle: Send + Sync + 'static {
    /// See [`Handle::get_size`].
    fn get_size(&self) -> Result<u64>;
    /// See [`Handle::block_size`].
    fn block_size(&self) -> Result<Option<BlockSizes>> {
        Ok(None)
    }
    /// See [`Handle::export_description`].
    fn export_description(&self) -> Result<Option<String>> {
        Ok(None)
    }
    /// See [`Handle::can`].
    fn can(&self) -> Result<Capabilities>;
    /// Fills all of `bytes`, or fails.
    fn pread(&self, bytes: &mut [u8], offset: u64) -> Result<()>;
    /// See [`Handle::pwrite`].
    fn pwrite(&self, bytes: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let _ = (bytes, offset, flags);
        Err(Errno::Erofs.into())
    }
    /// See [`Handle::flush`].
    fn flush(&self) -> Result<()> {
        Err(Errno::Einval.into())
    }
    /// See [`Handle::trim`].
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        let _ = (offset, length, flags);
        Err(Errno::Einval.into())
    }
    /// See [`Handle::zero`].
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        let _ = (offset, length, flags);
        Err(Errno::Enotsup.into())
    }
    /// See [`Handle::cache`].
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        let _ = (offset, length);
        Ok(())
    }
    /// See [`Handle::extents`].
    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Result<Extents> {
        let _ = flags;
        Ok(Extents::all_data(offset, length))
    }
    /// See [`Handle::close`].
    fn close(&self) {}
}

/// A [`Handle`] whose operations run on tokio's threads for blocking calls.
pub struct Blocking<H>(pub Arc<H>);

impl<H: BlockingHandle> Blocking<H> {
    /// Wraps a blocking handle.
    pub fn new(handle: H) -> Blocking<H> {
        Blocking(Arc::new(handle))
    }

    fn run<T: Send + 'static>(&self, call: impl FnOnce(&H) -> Result<T> + Send + 'static) -> Op<Result<T>> {
        let handle = Arc::clone(&self.0);
        run_blocking(move || call(&handle))
    }

    fn run_with(&self, buffer: Buffer, call: impl FnOnce(&H, &mut Buffer) -> Result<()> + Send + 'static) -> Op<Done> {
        let handle = Arc::clone(&self.0);
        run_blocking_with(buffer, move |buffer| call(&handle, buffer))
    }
}

/// Runs a call on a thread that may block. A panic of the call becomes EIO.
///
/// Needs a tokio runtime, which every operation of a handle has.
pub fn run_blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Op<Result<T>> {
    let task = tokio::task::spawn_blocking(call);
    Op::later(async move { task.await.unwrap_or_else(|_| Err(panicked())) })
}

/// Runs a call that uses a buffer on a thread that may block. A panic of the call becomes EIO, and
/// the buffer still comes back.
pub fn run_blocking_with(
    mut buffer: Buffer,
    call: impl FnOnce(&mut Buffer) -> Result<()> + Send + 'static,
) -> Op<Done> {
    let task = tokio::task::spawn_blocking(move || {
        // The bytes are not read after an error, so their state after a panic does not matter.
        let result = catch_unwind(AssertUnwindSafe(|| call(&mut buffer))).unwrap_or_else(|_| Err(panicked()));
        (buffer, result)
    });
    // The buffer is only lost if the runtime is shut down before the call began.
    Op::later(async move { task.await.unwrap_or_else(|_| (Buffer::new(0), Err(Errno::Eshutdown.into()))) })
}

/// Tells a call that nobody waits for its answer any more.
///
/// Its descriptor has an event (POLLHUP) from then on, so a call that waits in `poll` for something
/// else can wait for both.
#[derive(Debug)]
pub struct Abandoned(PipeReader);

impl Abandoned {
    /// One that is set when the returned value is dropped.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new() -> io::Result<(Abandoned, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        Ok((Abandoned(reader), writer))
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_set(&self) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&at_once)).is_ok_and(|events| events > 0)
    }
}

impl AsFd for Abandoned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// [`run_blocking`] for a call that may wait for long, and that ends soon after its answer was
/// dropped. It costs a pipe.
pub fn run_abandonable<T: Send + 'static>(
    call: impl FnOnce(&Abandoned) -> Result<T> + Send + 'static,
) -> Op<Result<T>> {
    let (abandoned, waiting) = match Abandoned::new() {
        Ok(pair) => pair,
        Err(error) => return Op::Ready(Err(error.into())),
    };
    let call = tokio::task::spawn_blocking(move || call(&abandoned));
    Op::later(async move {
        let answer = call.await.unwrap_or_else(|_| Err(panicked()));
        drop(waiting);
        answer
    })
}

/// [`run_blocking_with`] for a call like that of [`run_abandonable`].
pub fn run_abandonable_with(
    buffer: Buffer,
    call: impl FnOnce(&mut Buffer, &Abandoned) -> Result<()> + Send + 'static,
) -> Op<Done> {
    let (abandoned, waiting) = match Abandoned::new() {
        Ok(pair) => pair,
        Err(error) => return Op::Ready((buffer, Err(error.into()))),
    };
    let call = run_blocking_with(buffer, move |buffer| call(buffer, &abandoned));
    Op::later(async move {
        let answer = call.await;
        drop(waiting);
        answer
    })
}

impl<H: BlockingHandle> Handle for Blocking<H> {
    fn get_size(&self) -> Op<Result<u64>> {
        self.run(H::get_size)
    }
    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        self.run(H::block_size)
    }
    fn export_description(&self) -> Op<Result<Option<String>>> {
        self.run(H::export_description)
    }
    fn can(&self) -> Op<Result<Capabilities>> {
        self.run(H::can)
    }
    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.run_with(buffer, move |handle, buffer| buffer.fill_with(span, |bytes| handle.pread(bytes, offset)))
    }
    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        self.run_with(buffer, move |handle, buffer| handle.pwrite(buffer.data(span), offset, flags))
    }
    fn flush(&self) -> Op<Result<()>> {
        self.run(H::flush)
    }
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.run(move |handle| handle.trim(offset, length, flags))
    }
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.run(move |handle| handle.zero(offset, length, flags))
    }
    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.run(move |handle| handle.cache(offset, length))
    }
    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.run(move |handle| handle.extents(offset, length, flags))
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _ = self
                .run(|handle| {
                    handle.close();
                    Ok(())
                })
                .await;
        })
    }
}

/// The error of a request whose plugin panicked.
fn panicked() -> Error {
    Error::new(Errno::Eio, "a plugin panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_when_its_answer_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (told, hears) = std::sync::mpsc::channel();
            let wait = move |abandoned: &Abandoned| {
                assert!(!abandoned.is_set());
                let _ = poll(&mut [PollFd::new(abandoned, PollFlags::IN)], None);
                told.send(abandoned.is_set()).unwrap();
                Ok(())
            };
            // Also if the answer was never polled.
            drop(run_abandonable(wait.clone()));
            assert_eq!(hears.recv(), Ok(true));
            drop(run_abandonable_with(Buffer::new(1), move |_, abandoned| wait(abandoned)));
            assert_eq!(hears.recv(), Ok(true));
            assert!(run_abandonable(|abandoned| Ok(!abandoned.is_set())).await.unwrap());
        });
    }

    #[test]
    fn a_panic_on_a_thread_is_an_error_and_the_buffer_comes_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (buffer, result) = run_blocking_with(Buffer::new(10), |_| panic!("a test's panic")).await;
            assert_eq!(buffer.len(), 10);
            assert_eq!(result.unwrap_err().errno(), Errno::Eio);
            let result = run_blocking(|| -> Result<()> { panic!("a test's panic") }).await;
            assert_eq!(result.unwrap_err().errno(), Errno::Eio);
        });
    }
}
