//! A disk that is computed: one handle for all connections, whose answers need no I/O.

use std::sync::Arc;

use rbdkit_plugin_api::{
    Buffer, Capabilities, Done, Errno, Extents, Flags, Handle, Op, Result, Span, Support, run_blocking_with,
};

/// What a computed disk contains, and what it does with writes. The gate in front of the plugin has
/// checked that every range lies within the disk.
pub trait Content: Send + Sync + 'static {
    /// The most bytes of a read or write that are computed in the calling task. Longer ones go to a
    /// thread, so that they do not hold up other clients.
    const AT_ONCE: u32 = u32::MAX;

    /// The size in bytes.
    fn size(&self) -> u64;

    /// What clients can do. By default they read, over any number of connections.
    fn capabilities(&self) -> Capabilities {
        READABLE
    }

    /// Computes the bytes at `offset` into `span` of the buffer.
    fn read(&self, buffer: &mut Buffer, span: Span, offset: u64);

    /// Takes a write.
    ///
    /// # Errors
    /// As [`Handle::pwrite`].
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let _ = (bytes, offset);
        Err(Errno::Erofs.into())
    }

    /// Discards a range.
    ///
    /// # Errors
    /// As [`Handle::trim`].
    fn trim(&self, offset: u64, length: u64) -> Result<()> {
        let _ = (offset, length);
        Err(Errno::Einval.into())
    }

    /// Makes a range zero.
    ///
    /// # Errors
    /// As [`Handle::zero`].
    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let _ = (offset, length);
        Err(Errno::Enotsup.into())
    }

    /// Where the range has holes.
    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Extents {
        let _ = flags;
        Extents::all_data(offset, length)
    }
}

/// Reading, over several connections. Nothing has to be prefetched, so the default of cache, which
/// succeeds and does nothing, is native.
const READABLE: Capabilities = Capabilities { multi_conn: true, cache: Support::Native, ..Capabilities::READ_ONLY };

/// A computed disk as clients see it.
pub struct SyntheticDisk<C>(Arc<C>);

impl<C: Content> SyntheticDisk<C> {
    /// The disk with this content.
    pub fn new(content: C) -> SyntheticDisk<C> {
        SyntheticDisk(Arc::new(content))
    }
}

impl<C: Content> Handle for SyntheticDisk<C> {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.0.size()))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.0.capabilities()))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if span.len <= C::AT_ONCE {
            self.0.read(&mut buffer, span, offset);
            return Op::Ready((buffer, Ok(())));
        }
        let content = Arc::clone(&self.0);
        run_blocking_with(buffer, move |buffer| {
            content.read(buffer, span, offset);
            Ok(())
        })
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        if span.len <= C::AT_ONCE {
            let result = self.0.write(buffer.data(span), offset);
            return Op::Ready((buffer, result));
        }
        let content = Arc::clone(&self.0);
        run_blocking_with(buffer, move |buffer| content.write(buffer.data(span), offset))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn trim(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        Op::Ready(self.0.trim(offset, length))
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let _ = flags;
        Op::Ready(self.0.zero(offset, length))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        Op::Ready(Ok(self.0.extents(offset, length, flags)))
    }
}
