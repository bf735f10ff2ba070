//! A disk in memory, as clients see it: all connections share it, and no operation waits.

use rbdkit_plugin_api::{
    BlockSizes, Buffer, Capabilities, Done, Extents, Flags, Handle, Op, RangeCommand, Result, Span,
};

/// What keeps the bytes. The gate in front of the plugin has checked that every range lies within
/// the disk.
pub trait Storage: Send + Sync + 'static {
    /// The size and alignment in bytes at which writes cost least, a power of two.
    fn preferred_block(&self) -> u32;

    /// Reads the bytes at `offset` into `span` of the buffer. Holes are marked as zero rather than
    /// written.
    ///
    /// # Errors
    /// ENOMEM.
    fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Result<()>;

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// ENOMEM; a first part may have been written.
    fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Makes the range read as zero.
    ///
    /// # Errors
    /// ENOMEM; a part may have been zeroed.
    fn zero(&self, offset: u64, length: u64) -> Result<()>;

    /// Whether the time for zeroing a range depends on what is stored there, and not on its length.
    fn skips_holes(&self) -> bool;

    /// Where the range has holes. The last extent runs on beyond the range, at most to `limit`, as
    /// far as is cheap to find out.
    fn extents(&self, offset: u64, length: u64, limit: u64, flags: Flags) -> Extents;
}

/// A disk that is one handle for all connections.
pub struct RamDisk<S> {
    size: u64,
    storage: S,
}

impl<S> RamDisk<S> {
    /// A disk of `size` bytes.
    pub fn new(size: u64, storage: S) -> RamDisk<S> {
        RamDisk { size, storage }
    }
}

impl<S: Storage> Handle for RamDisk<S> {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        Op::Ready(Ok(Some(BlockSizes { minimum: 1, preferred: self.storage.preferred_block(), maximum: u32::MAX })))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        // FUA, flush and cache succeed without doing anything: memory is the most durable and the
        // nearest that this disk has.
        Op::Ready(Ok(Capabilities::NATIVE))
    }

    fn takes_long(&self, command: RangeCommand) -> bool {
        match command {
            RangeCommand::Trim | RangeCommand::Zero => self.storage.skips_holes(),
            RangeCommand::Cache | RangeCommand::Extents => true,
        }
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let result = self.storage.pread(&mut buffer, span, offset);
        Op::Ready((buffer, result))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        let result = self.storage.pwrite(buffer.data(span), offset);
        Op::Ready((buffer, result))
    }

    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }

    fn trim(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        Op::Ready(self.storage.zero(offset, length))
    }

    fn zero(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        Op::Ready(self.storage.zero(offset, length))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        let limit = if flags.req_one { offset + length } else { self.size };
        Op::Ready(Ok(self.storage.extents(offset, length, limit, flags)))
    }
}
