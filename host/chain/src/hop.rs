//! [`Hop`]: the gate in front of one layer of one connection.
//!
//! A hop asks a fresh handle once for its size and capabilities, and checks the answers. After that
//! it checks every request: range, flags, read-only. It lets requests through as the layer's thread
//! model allows, and emulates what the layer cannot do.
//!
//! Block sizes and the description are optional. The hop asks for them when somebody wants to know
//! them, and a failure only means that there are none. It passes on requests that do not keep to
//! the block sizes, as nbdkit does: many layers serve them, and one that cannot says so itself.
//! Only a client that negotiated block sizes is held to them (`host/nbd`).
//!
//! The protocol (`host/nbd`) checks a client's range and flags as well, before the first hop. That
//! check exists for the client's sake: it gives the same errors as nbdkit, in the same order. The
//! check here protects the layer: filters also send requests of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_plugin_api::{
    BlockSizes, Buffer, Capabilities, Client, DiskId, Done, Errno, Error, Extents, Flags, Handle, MAX_REQUEST, Op,
    Pool, RangeCommand, Result, Span, Support, ThreadModel,
};
use tokio::sync::OnceCell;

use super::disk::DiskLookup;
use super::emulate::{self, Steps};
use super::long::{first_piece, in_pieces, is_long};
use super::needed::{Dropped, while_needed};
use super::thread_model::RequestQueue;
use super::writes::counted;

/// The only way to call a layer. Shared by all requests of the connection.
pub struct Hop {
    name: String,
    handle: Arc<dyn Handle>,
    queue: RequestQueue,
    size: u64,
    /// Empty until somebody asks.
    block_sizes: OnceCell<Option<BlockSizes>>,
    can: Capabilities,
    is_prompt: bool,
    /// The layer was asked to change data, so a flush has something to make durable.
    has_written: AtomicBool,
    disk: DiskLookup,
    pool: Pool,
    /// The number of the client, for messages.
    connection: u64,
}

/// Trim or zero of a hop: (offset, length, flags).
type RangeCall = fn(&Arc<Hop>, u64, u64, Flags) -> Op<Result<()>>;

/// Whether an operation of a layer changes data or makes changes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Reads,
    Writes,
}

impl Hop {
    /// Asks a fresh handle for its size and capabilities, and checks the answers. If a check fails,
    /// the handle is closed. `thread_model` is that of the whole chain.
    ///
    /// # Errors
    /// The handle's own, or EIO for a size beyond 2^63 - 1.
    pub(super) async fn open(
        name: String,
        handle: Arc<dyn Handle>,
        mut queue: RequestQueue,
        disk: DiskLookup,
        thread_model: ThreadModel,
        (pool, connection): (Pool, u64),
    ) -> Result<Arc<Hop>> {
        match Hop::describe(&name, &*handle).await {
            Ok((size, mut can)) => {
                can.write &= !disk.is_readonly();
                // A second connection would wait for the end of the first.
                can.multi_conn &= thread_model > ThreadModel::SerializeConnections;
                let can = can.normalized();
                let is_prompt = handle.is_prompt();
                queue.reads_for = queue.reads_for.filter(|_| handle.drops_reads());
                let (block_sizes, has_written) = (OnceCell::new(), AtomicBool::new(false));
                Ok(Arc::new(Hop {
                    name,
                    handle,
                    queue,
                    size,
                    block_sizes,
                    can,
                    is_prompt,
                    has_written,
                    disk,
                    pool,
                    connection,
                }))
            }
            Err(error) => {
                // The first error is the one worth reporting.
                let _ = handle.finalize().await;
                handle.close().await;
                Err(error)
            }
        }
    }

    async fn describe(name: &str, handle: &dyn Handle) -> Result<(u64, Capabilities)> {
        let size = handle.get_size().await?;
        if size > i64::MAX as u64 {
            return Err(Error::new(Errno::Eio, format!("{name}: size {size} is beyond 2^63 - 1")));
        }
        Ok((size, handle.can().await?))
    }

    /// The layer's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size of the export, in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The block sizes, if the layer names any that are possible. The layer is asked once. If it
    /// fails, the log says why.
    pub fn block_sizes(self: &Arc<Self>) -> Op<Option<BlockSizes>> {
        if let Some(known) = self.block_sizes.get() {
            return Op::Ready(*known);
        }
        let hop = Arc::clone(self);
        Op::later(async move { *hop.block_sizes.get_or_init(|| hop.ask_block_sizes()).await })
    }

    async fn ask_block_sizes(&self) -> Option<BlockSizes> {
        let name = &self.name;
        match self.handle.block_size().await {
            Ok(Some(sizes)) if !sizes.is_valid() => {
                let BlockSizes { minimum, preferred, maximum } = sizes;
                tracing::error!(
                    "{name}: impossible block sizes: minimum {minimum}, preferred {preferred}, maximum {maximum}; \
                        the export has no block sizes"
                );
                None
            }
            Ok(sizes) => sizes,
            Err(error) => {
                tracing::error!("{name}: block_size: {error}; the export has no block sizes");
                None
            }
        }
    }

    /// The description of the export, for people. If the layer fails, the log says why, and there
    /// is none.
    pub fn description(self: &Arc<Self>) -> Op<Option<String>> {
        let hop = Arc::clone(self);
        Op::later(async move {
            hop.handle.export_description().await.unwrap_or_else(|error| {
                tracing::error!("{}: export_description: {error}; the export has no description", hop.name);
                None
            })
        })
    }

    /// Which disk the layer serves here. Two hops of a layer with equal ids have the same data.
    ///
    /// # Errors
    /// The layer's own, from listing its exports.
    pub async fn disk(&self) -> Result<DiskId> {
        self.disk.find(&*self.handle).await
    }

    /// What the layer can do, normalized. The hop emulates what is [`Support::Emulate`].
    #[inline]
    pub fn can(&self) -> Capabilities {
        self.can
    }

    /// See [`Handle::is_prompt`].
    #[inline]
    pub fn is_prompt(&self) -> bool {
        self.is_prompt
    }

    /// See [`Handle::zero_step`].
    pub fn zero_step(&self) -> u32 {
        self.handle.zero_step()
    }

    /// Reads `span.len` bytes at `offset` into `span` of the buffer. Bytes that the layer leaves
    /// unfilled read as zero.
    pub fn pread(self: &Arc<Self>, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if let Err(error) = self.check_data(&buffer, span, offset) {
            return Op::Ready((buffer, Err(error)));
        }
        tracing::trace!(
            target: "rbdkit::ops",
            connection = self.connection,
            "{}: pread offset={offset} length={}",
            self.name, span.len
        );
        self.queued(Effect::Reads, move |handle| handle.pread(buffer, span, offset))
    }

    /// Writes `span` of the buffer at `offset`.
    pub fn pwrite(self: &Arc<Self>, mut buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let checked = self.check_data(&buffer, span, offset).and_then(|()| self.check_write(flags));
        if let Err(error) = checked {
            return Op::Ready((buffer, Err(error)));
        }
        tracing::trace!(
            target: "rbdkit::ops",
            connection = self.connection,
            "{}: pwrite offset={offset} length={} fua={}",
            self.name,
            span.len,
            flags.fua
        );
        buffer.materialize(span);
        let flush_after = flags.fua && self.can.fua == Support::Emulate;
        let flags = Flags { fua: flags.fua && !flush_after, ..Flags::NONE };
        let op = self.queued(self.writes(), move |handle| handle.pwrite(buffer, span, offset, flags));
        if flush_after { emulate::flush_after_write(self, op) } else { op }
    }

    /// Makes completed writes durable.
    pub fn flush(self: &Arc<Self>) -> Op<Result<()>> {
        if !self.can.flush {
            return Op::Ready(Err(self.refuse("flush is not offered")));
        }
        tracing::trace!(target: "rbdkit::ops", connection = self.connection, "{}: flush", self.name);
        let has_written = self.has_written.load(Ordering::Relaxed);
        self.queued(if has_written { Effect::Writes } else { Effect::Reads }, |handle| handle.flush())
    }

    /// Discards a range.
    pub fn trim(self: &Arc<Self>, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let checked = self.check_range(offset, length).and_then(|()| self.check_write(flags));
        let checked =
            checked.and_then(|()| if self.can.trim { Ok(()) } else { Err(self.refuse("trim is not offered")) });
        if let Err(error) = checked {
            return Op::Ready(Err(error));
        }
        if is_long(length) && !self.handle.takes_long(RangeCommand::Trim) {
            return self.in_pieces(offset, length, flags, Hop::trim);
        }
        tracing::trace!(
            target: "rbdkit::ops",
            connection = self.connection,
            "{}: trim offset={offset} length={length} fua={}",
            self.name, flags.fua
        );
        let flush_after = flags.fua && self.can.fua == Support::Emulate;
        let flags = Flags { fua: flags.fua && !flush_after, ..Flags::NONE };
        let op = self.queued(self.writes(), move |handle| handle.trim(offset, length, flags));
        if flush_after { emulate::flush_after(self, op) } else { op }
    }

    /// Makes a range read as zero.
    pub fn zero(self: &Arc<Self>, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        if let Err(error) = self.check_range(offset, length).and_then(|()| self.check_write(flags)) {
            return Op::Ready(Err(error));
        }
        match self.can.zero {
            Support::None => return Op::Ready(Err(self.refuse("zero is not offered"))),
            _ if flags.fast_zero && !self.can.fast_zero => return Op::Ready(Err(Errno::Enotsup.into())),
            Support::Emulate if flags.fast_zero => return Op::Ready(Err(Errno::Enotsup.into())),
            Support::Emulate => return emulate::zero_by_pwrite(self, offset, length, flags),
            Support::Native if is_long(length) && !self.handle.takes_long(RangeCommand::Zero) => {
                return self.in_pieces(offset, length, flags, Hop::zero);
            }
            Support::Native => {}
        }
        tracing::trace!(
            target: "rbdkit::ops",
            connection = self.connection,
            "{}: zero offset={offset} length={length} fua={} may_trim={} fast_zero={}",
            self.name, flags.fua, flags.may_trim, flags.fast_zero
        );
        let flush_after = flags.fua && self.can.fua == Support::Emulate;
        let to_layer = Flags { fua: flags.fua && !flush_after, req_one: false, ..flags };
        let op = self.queued(self.writes(), move |handle| handle.zero(offset, length, to_layer));
        let op = if flags.fast_zero { op } else { emulate::zero_if_refused(self, op, offset, length, to_layer) };
        if flush_after { emulate::flush_after(self, op) } else { op }
    }

    /// Brings a range into caches below.
    pub fn cache(self: &Arc<Self>, offset: u64, length: u64) -> Op<Result<()>> {
        if let Err(error) = self.check_range(offset, length) {
            return Op::Ready(Err(error));
        }
        tracing::trace!(
            target: "rbdkit::ops",
            connection = self.connection,
            "{}: cache offset={offset} length={length}",
            self.name
        );
        match self.can.cache {
            Support::None => Op::Ready(Err(self.refuse("cache is not offered"))),
            Support::Emulate => emulate::cache_by_pread(self, offset, length),
            Support::Native if is_long(length) && !self.handle.takes_long(RangeCommand::Cache) => {
                in_pieces(self, &self.queue.client, offset, length, Hop::cache)
            }
            Support::Native => self.queued(Effect::Reads, move |handle| handle.cache(offset, length)),
        }
    }

    /// The extents of a range: contiguous from `offset`, which is checked. Without `req_one` the
    /// last one may run on beyond the range, up to the size. A layer without extents is all data. A
    /// layer that does not take long requests is asked about the beginning of the range.
    pub fn extents(self: &Arc<Self>, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        if let Err(error) = self.check_range(offset, length) {
            return Op::Ready(Err(error));
        }
        if !self.can.extents {
            let known = if flags.req_one { length } else { self.size - offset };
            return Op::Ready(Ok(Extents::all_data(offset, known)));
        }
        let length = match is_long(length) && !self.handle.takes_long(RangeCommand::Extents) {
            true => first_piece(offset, length),
            false => length,
        };
        tracing::trace!(
            target: "rbdkit::ops",
            connection = self.connection,
            "{}: extents offset={offset} length={length} req_one={}",
            self.name,
            flags.req_one
        );
        let req_one = flags.req_one;
        let to_layer = Flags { req_one, ..Flags::NONE };
        let (name, size) = (self.name.clone(), self.size);
        self.queued(Effect::Reads, move |handle| handle.extents(offset, length, to_layer)).map(move |answer| {
            let list = answer?;
            Extents::check(list.as_slice().iter().copied(), offset, length, size, req_one).map_err(|error| {
                tracing::error!("{name}: {error}");
                error
            })
        })
    }

    /// Lets this layer and those below finish their work while they can still do I/O.
    pub async fn finalize(&self) -> Result<()> {
        self.handle.finalize().await
    }

    /// Whether the layer was asked to change data.
    pub fn has_written(&self) -> bool {
        self.has_written.load(Ordering::Relaxed)
    }

    /// Closes the handles of this layer and those below.
    pub async fn close(&self) {
        self.handle.close().await;
    }

    /// Trims or zeroes a long range in pieces. If FUA is emulated, one flush at the end is enough.
    fn in_pieces(self: &Arc<Self>, offset: u64, length: u64, flags: Flags, call: RangeCall) -> Op<Result<()>> {
        let flush_after = flags.fua && self.can.fua == Support::Emulate;
        let flags = Flags { fua: flags.fua && !flush_after, ..flags };
        let piece = move |hop: &Arc<Hop>, offset, length| call(hop, offset, length, flags);
        let op = in_pieces(self, &self.queue.client, offset, length, piece);
        if flush_after { emulate::flush_after(self, op) } else { op }
    }

    /// The effect of a request that changes data.
    #[inline]
    fn writes(&self) -> Effect {
        if !self.has_written.load(Ordering::Relaxed) {
            self.has_written.store(true, Ordering::Relaxed);
        }
        Effect::Writes
    }

    /// Calls the layer as soon as its thread model allows. A read of a plugin that drops reads ends
    /// when its client has gone.
    fn queued<T: Dropped + Send + 'static>(
        &self,
        effect: Effect,
        call: impl FnOnce(&dyn Handle) -> Op<T> + Send + 'static,
    ) -> Op<T> {
        let client = self.queue.reads_for.as_ref().filter(|_| effect == Effect::Reads);
        while_needed(self.in_turn(effect, call), client)
    }

    fn in_turn<T: Send + 'static>(
        &self,
        effect: Effect,
        call: impl FnOnce(&dyn Handle) -> Op<T> + Send + 'static,
    ) -> Op<T> {
        let writes = self.queue.writes.as_ref().filter(|_| effect == Effect::Writes);
        let Some(permits) = &self.queue.requests else {
            return counted(call(&*self.handle), writes);
        };
        match Arc::clone(permits).try_acquire_owned() {
            Ok(permit) => match counted(call(&*self.handle), writes) {
                Op::Later(future) => Op::later(async move {
                    let answer = future.await;
                    drop(permit);
                    answer
                }),
                ready => ready,
            },
            Err(_) => {
                let (permits, handle, writes) = (Arc::clone(permits), Arc::clone(&self.handle), writes.cloned());
                Op::later(async move {
                    let permit = permits.acquire_owned().await;
                    // A match, because awaiting an `Op` needs `T: Unpin`.
                    let answer = match counted(call(&*handle), writes.as_ref()) {
                        Op::Later(future) => future.await,
                        Op::Ready(answer) => answer,
                        Op::Taken => std::future::pending().await,
                    };
                    drop(permit);
                    answer
                })
            }
        }
    }

    fn refuse(&self, what: &str) -> Error {
        Error::new(Errno::Einval, format!("{}: {what}", self.name))
    }

    fn check_data(&self, buffer: &Buffer, span: Span, offset: u64) -> Result<()> {
        if !buffer.contains(span) {
            return Err(self.refuse("the span is not within the buffer"));
        }
        if span.len > MAX_REQUEST {
            return Err(self.refuse("the request is longer than 64 MiB"));
        }
        self.check_range(offset, u64::from(span.len))
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        if length == 0 {
            return Err(self.refuse("a request for no bytes"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(self.refuse("the range is not within the export")),
        }
    }

    fn check_write(&self, flags: Flags) -> Result<()> {
        if !self.can.write {
            return Err(Error::new(Errno::Erofs, format!("{}: the export is read-only", self.name)));
        }
        if flags.fua && self.can.fua == Support::None {
            return Err(self.refuse("FUA is not offered"));
        }
        Ok(())
    }
}

impl Steps for Hop {
    fn can(&self) -> Capabilities {
        self.can
    }

    fn client(&self) -> &Arc<Client> {
        &self.queue.client
    }

    fn block_sizes(self: &Arc<Self>) -> Op<Option<BlockSizes>> {
        Hop::block_sizes(self)
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn zero_step(&self) -> u32 {
        Hop::zero_step(self)
    }

    fn pread(self: &Arc<Self>, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        Hop::pread(self, buffer, span, offset)
    }

    fn pwrite(self: &Arc<Self>, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        Hop::pwrite(self, buffer, span, offset, flags)
    }

    fn flush(self: &Arc<Self>) -> Op<Result<()>> {
        Hop::flush(self)
    }
}
