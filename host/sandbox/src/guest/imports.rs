//! What a guest may call: each import of the contract, on the call that is being served.
//!
//! One rule each: is it allowed in this phase, does what it names exist, then one step of the chain, the state or the clock. Ranges of
//! next are checked by its gate. What can wait is not the guest's time ([`super::clock`]), and ends with its client ([`super::awaited`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use rbdkit_plugin_api::{Buffer, Client, Done, Errno, Fill, Flags, Op, Peer, Span};
use wasmtime::component::{HasSelf, Linker, WasmList};
use wasmtime::{Result, StoreContextMut};

use super::awaited::Awaited;
use super::buffers::{Access, Bytes};
use super::call::{CallKind, Phase};
use super::clock::Overrun;
use super::context::Context;
use super::fault::mistake;
use super::text::protocol_string;
use crate::connection::bindings::host;
use crate::connection::bindings::host::types as wit;
use crate::connection::log::Level;
use crate::connection::waiting::WaitPolicy;
use crate::state::{self, ChangeTiming, HeldLock, LockMode, OnShutdown, SlotWords};
use rbdkit_chain::{Hop, STEP};

type Answer<T> = Result<std::result::Result<T, wit::Errno>>;

const OPEN_DATA: Phase = Phase::OPEN.or(Phase::DATA);
const NOT_CONFIGURE: Phase = OPEN_DATA.or(Phase::BEFORE).or(Phase::READY);

/// A list of extents for a guest has at most so many: some 1.5 MiB of its memory. It may ask again from where the list ends.
const EXTENTS_FOR_GUEST: usize = 1 << 16;

/// All that a filter may import of the contract.
pub(crate) fn linker(engine: &wasmtime::Engine) -> Result<Linker<Context>> {
    let mut linker = Linker::new(engine);
    macro_rules! add {
        ($($interface:ident),*) => {
            $(host::$interface::add_to_linker::<Context, HasSelf<Context>>(&mut linker, |context| context)?;)*
        };
    }
    add!(types, log, request, client, next, next_open, buffer, locks, slots, maps, scratch, files, clock, server);
    linker.allow_shadowing(true);
    // Copied from the guest's memory straight into the buffer, where the generated binding would make a list of its own in between.
    linker.instance("rbdkit:filter/buffer@0.1.0")?.func_wrap("write", buffer_write)?;
    // Begun before there is a future, where the generated binding would make one that begins when it is polled: most complete at once.
    let mut next = linker.instance("rbdkit:filter/next@0.1.0")?;
    next.func_wrap_async("pread", next_pread)?;
    next.func_wrap_async("pwrite", next_pwrite)?;
    let mut scratch = linker.instance("rbdkit:filter/scratch@0.1.0")?;
    scratch.func_wrap_async("pread", scratch_pread)?;
    scratch.func_wrap_async("pwrite", scratch_pwrite)?;
    linker.instance("rbdkit:filter/locks@0.1.0")?.func_wrap_async("lock", lock)?;
    linker.allow_shadowing(false);
    Ok(linker)
}

/// What an import that has no result besides success answers, as the linker wants it.
type Plain = (std::result::Result<(), wit::Errno>,);
type Promise<'a> = Box<dyn Future<Output = Result<Plain>> + Send + 'a>;

/// Success at once. It has no size, so that boxing it allocates nothing.
struct Succeeded;

impl Future for Succeeded {
    type Output = Result<Plain>;

    fn poll(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Result<Plain>> {
        Poll::Ready(Ok((Ok(()),)))
    }
}

/// What is already known.
fn at_once<'a>(answer: Answer<()>) -> Promise<'a> {
    match answer {
        Ok(Ok(())) => Box::new(Succeeded),
        other => Box::new(std::future::ready(other.map(|answer| (answer,)))),
    }
}

/// A part of a guest's buffer, for one operation.
#[derive(Clone, Copy)]
struct Part {
    buf: u32,
    at: u32,
    length: u32,
    /// What the operation does with it.
    access: Access,
}

/// An operation with a guest's buffer that did not complete at once.
struct Lent<'a> {
    store: StoreContextMut<'a, Context>,
    operation: Awaited<Done>,
    buf: u32,
    /// What it was to fill.
    unfilled: Option<Span>,
}

impl Future for Lent<'_> {
    type Output = Result<Plain>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Result<Plain>> {
        let this = self.get_mut();
        let context = this.store.data_mut();
        this.operation.poll(context, cx).map(|done| Ok((context.finish(this.buf, this.unfilled, done?)?,)))
    }
}

/// Runs an operation with a part of a guest's buffer, if `allowed` says that it may.
fn lend<'a>(
    mut store: StoreContextMut<'a, Context>,
    part: Part,
    allowed: impl FnOnce(&Context) -> Answer<()>,
    operation: impl FnOnce(&Context, Buffer, Span) -> Op<Done>,
) -> Promise<'a> {
    let context = store.data_mut();
    match allowed(context) {
        Ok(Ok(())) => {}
        refused => return at_once(refused),
    }
    let (buffer, span) = match context.call.buffers.lend(part.buf, part.at, part.length, part.access) {
        Ok(lent) => lent,
        Err(trap) => return at_once(Err(trap)),
    };
    let unfilled = (part.access == Access::Write).then_some(span);
    let length = u64::from(buffer.len());
    let wait = context.clock.wait();
    match operation(context, buffer, span) {
        Op::Ready(done) => {
            context.clock.end(&wait);
            at_once(context.finish(part.buf, unfilled, done))
        }
        Op::Later(operation) => {
            let bytes = if part.buf == 0 { Bytes::Request(length) } else { Bytes::Own(length) };
            let mut operation = Awaited::new(operation, bytes, wait);
            // Most complete at their first poll, and need no future of their own then. One that does not is polled again at once, by its waker.
            match operation.poll(context, &mut TaskContext::from_waker(Waker::noop())) {
                Poll::Ready(Ok(done)) => at_once(context.finish(part.buf, unfilled, done)),
                Poll::Ready(Err(overrun)) => at_once(Err(overrun.into())),
                Poll::Pending => Box::new(Lent { store, operation, buf: part.buf, unfilled }),
            }
        }
        Op::Taken => at_once(Err(wasmtime::format_err!("an operation that was polled to its end"))),
    }
}

/// An operation of next with a part of a guest's buffer.
fn lend_to_next(
    store: StoreContextMut<'_, Context>,
    part: Part,
    operation: impl FnOnce(&Arc<Hop>, Buffer, Span) -> Op<Done>,
) -> Promise<'_> {
    lend(
        store,
        part,
        |context| Ok(context.next().map(|_| ())),
        |context, buffer, span| match context.next() {
            Ok(next) => operation(&next.hop, buffer, span),
            Err(_) => Op::Ready((buffer, Err(Errno::Enxio.into()))),
        },
    )
}

fn next_pread(store: StoreContextMut<'_, Context>, (offset, length, buf, at): (u64, u32, u32, u32)) -> Promise<'_> {
    let part = Part { buf, at, length, access: Access::Write };
    lend_to_next(store, part, move |hop, buffer, span| hop.pread(buffer, span, offset))
}

fn next_pwrite(
    store: StoreContextMut<'_, Context>,
    (offset, length, buf, at, flags): (u64, u32, u32, u32, wit::CommandFlags),
) -> Promise<'_> {
    let part = Part { buf, at, length, access: Access::Read };
    lend_to_next(store, part, move |hop, buffer, span| hop.pwrite(buffer, span, offset, flags.into()))
}

/// An operation of a scope's scratch file with a part of a guest's buffer.
fn lend_to_scratch<'a>(
    store: StoreContextMut<'a, Context>,
    part: Part,
    scope: wit::Scope,
    what: &str,
    operation: impl FnOnce(&Arc<state::Scratch>, Buffer, Span) -> Op<Done>,
) -> Promise<'a> {
    lend(
        store,
        part,
        |context| match context.allow(OPEN_DATA) {
            Ok(()) => context.scope(scope, what).map(|_| Ok(())),
            Err(errno) => Ok(Err(errno)),
        },
        |context, buffer, span| match context.scope(scope, what) {
            Ok(scope) => operation(scope.scratch(), buffer, span),
            Err(_) => Op::Ready((buffer, Err(Errno::Enxio.into()))),
        },
    )
}

fn scratch_pread(
    store: StoreContextMut<'_, Context>,
    (scope, offset, length, buf, at): (wit::Scope, u64, u32, u32, u32),
) -> Promise<'_> {
    let part = Part { buf, at, length, access: Access::Write };
    lend_to_scratch(store, part, scope, "scratch.pread", move |scratch, buffer, span| {
        scratch.pread(buffer, span, offset)
    })
}

fn scratch_pwrite(
    store: StoreContextMut<'_, Context>,
    (scope, offset, length, buf, at): (wit::Scope, u64, u32, u32, u32),
) -> Promise<'_> {
    let part = Part { buf, at, length, access: Access::Read };
    lend_to_scratch(store, part, scope, "scratch.pwrite", move |scratch, buffer, span| {
        scratch.pwrite(buffer, span, offset)
    })
}

fn lock(
    mut store: StoreContextMut<'_, Context>,
    (scope, offset, length, mode): (wit::Scope, u64, u64, host::locks::Mode),
) -> Promise<'_> {
    let context = store.data_mut();
    if let Err(errno) = context.allow(OPEN_DATA) {
        return at_once(Ok(Err(errno)));
    }
    if context.call.lock.is_some() {
        return at_once(Ok(Err(wit::Errno::Edeadlk)));
    }
    let locks = match context.scope(scope, "locks.lock") {
        Ok(scope) => scope.locks(),
        Err(trap) => return at_once(Err(trap)),
    };
    let mode = match mode {
        host::locks::Mode::Shared => LockMode::Shared,
        host::locks::Mode::Exclusive => LockMode::Exclusive,
    };
    let policy = context.call.wait_policy();
    let on_shutdown = match policy {
        WaitPolicy::UntilDone => OnShutdown::KeepWaiting,
        WaitPolicy::WhileClientIsThere => OnShutdown::GiveUp,
    };
    match locks.lock_now(offset, length, mode, on_shutdown) {
        Op::Ready(held) => at_once(Ok(context.hold(held))),
        waiting => {
            let Some(conn) = context.call.conn.clone() else { return at_once(Ok(Err(wit::Errno::Enxio))) };
            Box::new(async move {
                let context = store.data_mut();
                let held = context.clock.waiting(|| policy.wait(conn.client(), waiting)).await;
                Ok((context.hold(held.unwrap_or(Err(Errno::Eshutdown))),))
            })
        }
    }
}

impl Context {
    /// A lock was granted to the call, or refused.
    fn hold(&mut self, held: std::result::Result<HeldLock, Errno>) -> std::result::Result<(), wit::Errno> {
        self.call.lock = Some(held?);
        Ok(())
    }
}

/// The trait's version of a function that the linker has another of.
fn bound_by_hand<T>() -> Result<T> {
    Err(wasmtime::format_err!("this function is bound by hand"))
}

fn buffer_write(mut store: StoreContextMut<'_, Context>, (buf, at, data): (u32, u32, WasmList<u8>)) -> Result<()> {
    let context = store.data_mut();
    context.require(OPEN_DATA, "buffer.write")?;
    let length = u32::try_from(data.len()).map_err(|_| mistake("buffer.write of more than 4 GiB"))?;
    let (mut buffer, span) = context.call.buffers.lend(buf, at, length, Access::Write)?;
    context.shared.counters.bytes_out.fetch_add(u64::from(length), Relaxed);
    buffer.put(span.at, data.as_le_slice(&store));
    store.data_mut().call.buffers.restore(buf, buffer);
    Ok(())
}

/// A state function's trap.
fn trap(trap: state::Misuse) -> wasmtime::Error {
    mistake(trap.0)
}

impl host::types::Host for Context {}

impl host::log::Host for Context {
    fn error(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Error, &message);
        Ok(())
    }
    fn warn(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Warn, &message);
        Ok(())
    }
    fn debug(&mut self, message: String) -> Result<()> {
        self.shared.log.write(Level::Debug, &message);
        Ok(())
    }
}

impl host::request::Host for Context {
    fn connection(&mut self) -> Result<u64> {
        Ok(self.conn("request.connection")?.id())
    }
    fn exportname(&mut self) -> Result<String> {
        Ok(self.conn("request.exportname")?.exportname.clone())
    }
    fn readonly(&mut self) -> Result<bool> {
        Ok(self.conn("request.readonly")?.readonly)
    }
    fn handle(&mut self) -> Result<u64> {
        Ok(self.conn("request.handle")?.handle.load(Relaxed))
    }
    fn cancelled(&mut self) -> Result<bool> {
        Ok(self.conn("request.cancelled")?.client().is_gone())
    }
}

impl Context {
    fn client(&self, what: &str) -> Result<&Arc<Client>> {
        self.require(OPEN_DATA.or(Phase::BEFORE), what)?;
        let of_conn = self.call.conn.as_ref().map(|conn| conn.client());
        let client = of_conn.or_else(|| self.call.below.as_ref().map(|below| below.client()));
        client.ok_or_else(|| mistake(format!("it called {what} where there is no client")))
    }
}

impl host::client::Host for Context {
    fn peer_name(&mut self) -> Result<host::client::Peer> {
        use host::client::{Inet, Vsock};
        Ok(match &self.client("client.peer-name")?.peer {
            Peer::Ip(address) => {
                let octets = match address.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                    std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                host::client::Peer::Ip(Inet { address: octets, port: address.port() })
            }
            Peer::Unix => host::client::Peer::Unix,
            Peer::Vsock { cid, port } => {
                // A port beyond 16 bits is the wire's own business; the contract has 32.
                host::client::Peer::Vsock(Vsock { cid: *cid, port: *port })
            }
            Peer::Unknown => host::client::Peer::Unknown,
        })
    }
    fn peer_credentials(&mut self) -> Answer<(i64, i64, i64)> {
        Ok(self.client("client.peer-credentials")?.credentials.ok_or(wit::Errno::Enxio))
    }
    fn is_tls(&mut self) -> Result<bool> {
        Ok(self.client("client.is-tls")?.tls)
    }
}

/// Takes the value or answers the errno.
macro_rules! attempt {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(errno) => return Ok(Err(errno)),
        }
    };
}

impl Context {
    /// Waits for an operation that has at most so many bytes of its own. The call ends here if its client goes meanwhile.
    async fn wait_for<T: Send + 'static>(&mut self, bytes: u64, begin: impl FnOnce() -> Op<T>) -> Result<T> {
        let wait = self.clock.wait();
        match begin() {
            Op::Ready(answer) => {
                self.clock.end(&wait);
                Ok(answer)
            }
            Op::Later(operation) => {
                let mut operation = Awaited::new(operation, Bytes::Request(bytes), wait);
                Ok(std::future::poll_fn(|cx| operation.poll(self, cx)).await?)
            }
            Op::Taken => Err(wasmtime::format_err!("an operation that was polled to its end")),
        }
    }

    /// The end of an operation with a buffer.
    fn finish(&mut self, buf: u32, unfilled: Option<Span>, done: Done) -> Answer<()> {
        let (mut buffer, result) = done;
        if buffer.is_empty() {
            // A layer below has left it to an operation that goes on, which it does for nobody who would still be there.
            return Err(Overrun::Gone.into());
        }
        if let (Err(_), Some(span)) = (&result, unfilled) {
            buffer.mark(span, Fill::Unfilled);
        }
        self.call.buffers.restore(buf, buffer);
        Ok(self.answer(result))
    }
}

impl host::next::Host for Context {
    fn get_size(&mut self) -> Answer<u64> {
        Ok(self.next().map(|next| next.hop.size()))
    }
    fn can(&mut self) -> Answer<wit::Capabilities> {
        Ok(self.next().map(|next| next.hop.can().into()))
    }
    fn block_size(&mut self) -> Answer<wit::BlockSizes> {
        Ok(self.next().and_then(|next| next.hop.block_sizes().map(Into::into).ok_or(wit::Errno::Enotsup)))
    }
    fn export_description(&mut self) -> Result<Option<String>> {
        self.require(OPEN_DATA, "next.export-description")?;
        Ok(self.next().ok().and_then(|next| next.hop.description().map(str::to_string)))
    }

    async fn pread(&mut self, _: u64, _: u32, _: u32, _: u32) -> Answer<()> {
        bound_by_hand()
    }

    async fn pwrite(&mut self, _: u64, _: u32, _: u32, _: u32, _: wit::CommandFlags) -> Answer<()> {
        bound_by_hand()
    }

    async fn flush(&mut self) -> Answer<()> {
        let next = Arc::clone(attempt!(self.next()));
        let result = self.wait_for(0, || next.hop.flush()).await?;
        Ok(self.answer(result))
    }

    async fn trim(&mut self, offset: u64, length: u64, flags: wit::CommandFlags) -> Answer<()> {
        let next = Arc::clone(attempt!(self.next()));
        let result = self.wait_for(0, || next.hop.trim(offset, length, flags.into())).await?;
        Ok(self.answer(result))
    }

    async fn zero(&mut self, offset: u64, length: u64, flags: wit::CommandFlags) -> Answer<()> {
        let next = Arc::clone(attempt!(self.next()));
        let result = self.wait_for(length.min(STEP.into()), || next.hop.zero(offset, length, flags.into())).await?;
        Ok(self.answer(result))
    }

    async fn cache(&mut self, offset: u64, length: u64) -> Answer<()> {
        let next = Arc::clone(attempt!(self.next()));
        let result = self.wait_for(length.min(STEP.into()), || next.hop.cache(offset, length)).await?;
        Ok(self.answer(result))
    }

    async fn extents(&mut self, offset: u64, length: u64, flags: wit::CommandFlags) -> Answer<Vec<wit::Extent>> {
        let next = Arc::clone(attempt!(self.next()));
        let result = self.wait_for(0, || next.hop.extents(offset, length, flags.into())).await?;
        let list = attempt!(self.answer(result));
        Ok(Ok(list.as_slice().iter().take(EXTENTS_FOR_GUEST).map(|extent| (*extent).into()).collect()))
    }

    async fn extents_forward(&mut self, offset: u64, length: u64, to: u64, flags: wit::CommandFlags) -> Answer<()> {
        let next = Arc::clone(attempt!(self.next()));
        let expected = attempt!(self.call.extents.as_ref().map(|answer| answer.expected()).ok_or(wit::Errno::Enxio));
        if to != expected {
            return Err(mistake(format!("next.extents-forward to {to}, where {expected} had to follow")));
        }
        let flags = Flags { req_one: Flags::from(flags).req_one, ..Flags::NONE };
        let result = self.wait_for(0, || next.hop.extents(offset, length, flags)).await?;
        let list = attempt!(self.answer(result));
        if let Some(answer) = &mut self.call.extents {
            answer.append(&list, length);
        }
        Ok(Ok(()))
    }

    fn prefetch(&mut self, offset: u64, length: u64) -> Result<bool> {
        self.require(OPEN_DATA, "next.prefetch")?;
        let (Some(conn), Some(next)) = (&self.call.conn, self.call.next()) else { return Ok(false) };
        Ok(conn.prefetcher.ask(next, offset, length))
    }
}

/// An export's name, if it can be one.
fn name(text: &str) -> std::result::Result<&str, wit::Errno> {
    protocol_string(text).map_err(|_| wit::Errno::Einval)
}

impl host::next_open::Host for Context {
    async fn open(&mut self, readonly: bool, exportname: String) -> Answer<()> {
        attempt!(self.allow(Phase::OPEN));
        if self.call.kind == CallKind::Replay {
            return Ok(Ok(()));
        }
        // Prepare and what follows come when it is too late to open anything.
        let Some(conn) = self.call.conn.clone().filter(|conn| !conn.is_live() && self.call.kind != CallKind::Ending)
        else {
            return Ok(Err(wit::Errno::Enxio));
        };
        attempt!(name(&exportname));
        let result = self.clock.waiting(|| conn.open_next(readonly, &exportname)).await;
        self.call.next = conn.replaceable_next();
        Ok(self.answer(result))
    }

    fn generation(&mut self) -> Result<u64> {
        Ok(self.conn("next-open.generation")?.generation())
    }

    async fn reopen(&mut self, generation: u64, readonly: bool, exportname: String) -> Answer<u64> {
        attempt!(self.allow(Phase::DATA));
        let Some(conn) = self.call.conn.clone() else { return Ok(Err(wit::Errno::Enxio)) };
        attempt!(name(&exportname));
        let reopening = Arc::clone(&conn);
        let reopen = async move { reopening.reopen(generation, readonly, &exportname).await };
        let result = self.wait_for(0, || Op::later(reopen)).await?;
        // A retry goes on in this call, with what it has just opened.
        self.call.next = conn.replaceable_next();
        Ok(self.answer(result))
    }

    async fn preconnect(&mut self, readonly: bool) -> Answer<()> {
        attempt!(self.allow(Phase::BEFORE));
        let Some(below) = self.call.below.clone() else { return Ok(Err(wit::Errno::Enxio)) };
        let result = self.clock.waiting(|| below.preconnect(readonly)).await;
        Ok(self.answer(result))
    }

    async fn list_exports(&mut self, readonly: bool) -> Answer<Vec<wit::ExportEntry>> {
        attempt!(self.allow(Phase::BEFORE.or(Phase::OPEN)));
        let Some(below) = self.below() else { return Ok(Err(wit::Errno::Enxio)) };
        let result = self.clock.waiting(|| below.list_exports(readonly)).await;
        Ok(self.answer(result).map(|list| list.into_iter().map(Into::into).collect()))
    }

    async fn default_export(&mut self, readonly: bool) -> Answer<String> {
        attempt!(self.allow(Phase::BEFORE.or(Phase::OPEN)));
        let Some(below) = self.below() else { return Ok(Err(wit::Errno::Enxio)) };
        let result = self.clock.waiting(|| below.default_export(readonly)).await;
        Ok(self.answer(result))
    }
}

impl Context {
    fn below(&self) -> Option<rbdkit_chain::Below> {
        self.call.below.clone().or_else(|| self.call.conn.as_ref().map(|conn| conn.below.clone()))
    }
}

impl host::buffer::Host for Context {
    fn len(&mut self, buf: u32) -> Result<u32> {
        self.require(OPEN_DATA, "buffer.len")?;
        self.call.buffers.len(buf)
    }

    fn alloc(&mut self, length: u32) -> Answer<u32> {
        attempt!(self.allow(OPEN_DATA));
        let Some(conn) = self.call.conn.clone() else { return Ok(Err(wit::Errno::Enxio)) };
        Ok(self.call.buffers.alloc(conn.below.pool(), length).map_err(Into::into))
    }

    fn free(&mut self, buf: u32) -> Result<()> {
        self.require(OPEN_DATA, "buffer.free")?;
        self.call.buffers.free(buf)
    }

    fn read(&mut self, buf: u32, at: u32, length: u32) -> Result<Vec<u8>> {
        self.require(OPEN_DATA, "buffer.read")?;
        let (buffer, span) = self.call.buffers.look(buf, at, length)?;
        let bytes = buffer.bytes(span).to_vec();
        self.shared.counters.bytes_in.fetch_add(u64::from(length), Relaxed);
        Ok(bytes)
    }

    fn write(&mut self, _: u32, _: u32, _: Vec<u8>) -> Result<()> {
        bound_by_hand()
    }

    fn fill(&mut self, buf: u32, at: u32, length: u32, byte: u8) -> Result<()> {
        self.require(OPEN_DATA, "buffer.fill")?;
        let (buffer, span) = self.call.buffers.change(buf, at, length)?;
        if byte == 0 {
            buffer.set_zero(span);
            return Ok(());
        }
        let filled = buffer.fill_with(span, |bytes| {
            bytes.fill(byte);
            Ok::<(), std::convert::Infallible>(())
        });
        match filled {
            Ok(()) => Ok(()),
            Err(never) => match never {},
        }
    }

    fn copy(&mut self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32) -> Result<()> {
        self.require(OPEN_DATA, "buffer.copy")?;
        self.call.buffers.copy(to, to_at, from, from_at, length)
    }

    fn is_zero(&mut self, buf: u32, at: u32, length: u32) -> Result<bool> {
        self.require(OPEN_DATA, "buffer.is-zero")?;
        let (buffer, span) = self.call.buffers.look(buf, at, length)?;
        Ok(buffer.is_zero(span))
    }

    fn equal(&mut self, a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> Result<bool> {
        self.require(OPEN_DATA, "buffer.equal")?;
        self.call.buffers.equal(a, a_at, b, b_at, length)
    }
}

impl host::locks::Host for Context {
    async fn lock(&mut self, _: wit::Scope, _: u64, _: u64, _: host::locks::Mode) -> Answer<()> {
        bound_by_hand()
    }

    fn unlock(&mut self) -> Result<()> {
        self.require(OPEN_DATA, "locks.unlock")?;
        self.call.changes.publish();
        self.call.lock = None;
        Ok(())
    }
}

impl host::slots::Host for Context {
    fn get(&mut self, s: wit::Scope, slot: u32) -> Result<host::slots::Words> {
        let words = self.scope(s, "slots.get")?.slots().get(slot).map_err(trap)?;
        Ok(host::slots::Words { version: words.version, a: words.a, b: words.b, c: words.c, d: words.d })
    }
    fn replace(&mut self, s: wit::Scope, slot: u32, version: u64, a: u64, b: u64, c: u64, d: u64) -> Result<bool> {
        let slots = self.scope(s, "slots.replace")?.slots();
        slots.replace(slot, SlotWords { version, a, b, c, d }).map_err(trap)
    }
    fn add(&mut self, s: wit::Scope, slot: u32, delta: i64) -> Result<u64> {
        self.scope(s, "slots.add")?.slots().add(slot, delta).map_err(trap)
    }
    fn add_until_close(&mut self, s: wit::Scope, slot: u32, delta: i64) -> Result<u64> {
        let conn = self.conn("slots.add-until-close")?;
        conn.deltas.add(conn.scope(s), slot, delta).map_err(trap)
    }
}

impl host::maps::Host for Context {
    fn resize(&mut self, s: wit::Scope, id: u32, block: u32, bytes: u64) -> Answer<()> {
        attempt!(self.allow(OPEN_DATA));
        let map = self.scope(s, "maps.resize")?.map(id).map_err(trap)?;
        Ok(map.resize(block, bytes).map_err(Into::into))
    }
    fn get_run(&mut self, s: wit::Scope, id: u32, first: u64, limit: u64) -> Result<host::maps::Run> {
        let run = self.scope(s, "maps.get-run")?.map(id).and_then(|map| map.get_run(first, limit)).map_err(trap)?;
        Ok(host::maps::Run { state: run.state, count: run.count })
    }
    fn find(&mut self, s: wit::Scope, id: u32, first: u64, states: u8) -> Result<Option<u64>> {
        self.scope(s, "maps.find")?.map(id).and_then(|map| map.find(first, states)).map_err(trap)
    }
    fn set(
        &mut self,
        s: wit::Scope,
        id: u32,
        first: u64,
        count: u64,
        if_states: u8,
        to: u8,
        w: host::maps::When,
    ) -> Result<u64> {
        let scope = Arc::clone(self.scope(s, "maps.set")?);
        let timing = match w {
            host::maps::When::Now => ChangeTiming::Now,
            host::maps::When::OnSuccess => ChangeTiming::OnSuccess,
            host::maps::When::UndoOnFailure => ChangeTiming::UndoOnFailure,
        };
        self.call.changes.set(&scope, id, first, count, if_states, to, timing).map_err(trap)
    }
    fn count(&mut self, s: wit::Scope, id: u32, state: u8) -> Result<u64> {
        self.scope(s, "maps.count")?.map(id).and_then(|map| map.count(state)).map_err(trap)
    }
}

impl host::scratch::Host for Context {
    async fn pread(&mut self, _: wit::Scope, _: u64, _: u32, _: u32, _: u32) -> Answer<()> {
        bound_by_hand()
    }

    async fn pwrite(&mut self, _: wit::Scope, _: u64, _: u32, _: u32, _: u32) -> Answer<()> {
        bound_by_hand()
    }

    async fn punch(&mut self, s: wit::Scope, offset: u64, length: u64) -> Answer<()> {
        attempt!(self.allow(OPEN_DATA));
        let scratch = Arc::clone(self.scope(s, "scratch.punch")?.scratch());
        let result = self.wait_for(0, || scratch.punch(offset, length)).await?;
        Ok(self.answer(result))
    }

    fn allocated(&mut self, s: wit::Scope) -> Result<u64> {
        Ok(self.scope(s, "scratch.allocated")?.scratch().allocated())
    }
    fn quota(&mut self, s: wit::Scope) -> Result<u64> {
        Ok(self.scope(s, "scratch.quota")?.scratch().quota())
    }
}

impl host::files::Host for Context {
    fn size(&mut self, param: String, nth: u32) -> Answer<u64> {
        attempt!(self.allow(NOT_CONFIGURE));
        Ok(self.shared.files.size(&param, nth).map_err(Into::into))
    }
    fn read(&mut self, param: String, nth: u32, offset: u64, length: u32) -> Answer<Vec<u8>> {
        attempt!(self.allow(NOT_CONFIGURE));
        Ok(self.shared.files.read(&param, nth, offset, length).map_err(Into::into))
    }
    fn append(&mut self, param: String, nth: u32, data: Vec<u8>) -> Answer<()> {
        attempt!(self.allow(NOT_CONFIGURE));
        Ok(self.shared.files.append(&param, nth, &data).map_err(Into::into))
    }
    fn holds(&mut self, param: String, nth: u32) -> Answer<bool> {
        attempt!(self.allow(NOT_CONFIGURE));
        Ok(self.shared.files.holds(&param, nth).map_err(Into::into))
    }
}

impl host::clock::Host for Context {
    fn monotonic(&mut self) -> Result<u64> {
        Ok(self.now())
    }
    fn realtime(&mut self) -> Result<u64> {
        Ok(u64::try_from(self.inputs.realtime().as_nanos()).unwrap_or(u64::MAX))
    }
    fn random(&mut self) -> Result<u64> {
        self.inputs.word()
    }
}

impl Context {
    /// Suspends the guest for so long, where it may be and while there is a client that wants it.
    pub(crate) async fn sleep_for(&mut self, ns: u64) -> std::result::Result<(), wit::Errno> {
        self.allow(OPEN_DATA)?;
        let conn = self.call.conn.clone().ok_or(wit::Errno::Enxio)?;
        let policy = self.call.wait_policy();
        // Finalize and close go on when the client has gone. Nothing else would ever end their sleep, and they have an instance.
        let asked = Duration::from_nanos(ns);
        let mut time = asked;
        if self.call.kind == CallKind::Ending {
            time = asked.min(self.shared.limits.setup.saturating_sub(self.call.slept));
            self.call.slept += time;
        }
        let over = async move {
            match tokio::time::Instant::now().checked_add(time) {
                Some(end) => tokio::time::sleep_until(end).await,
                // It cannot be reckoned.
                None => std::future::pending().await,
            }
        };
        self.clock.waiting(|| policy.wait(conn.client(), over)).await.ok_or(wit::Errno::Eshutdown)?;
        if time < asked { Err(wit::Errno::Eshutdown) } else { Ok(()) }
    }
}

impl host::server::Host for Context {
    async fn sleep(&mut self, ns: u64) -> Answer<()> {
        Ok(self.sleep_for(ns).await)
    }

    fn thread_model_below(&mut self) -> Result<wit::ThreadModel> {
        self.require(NOT_CONFIGURE, "server.thread-model-below")?;
        // Before get-ready nothing is known: the answer that promises least.
        let model = self.shared.model_below.get().copied();
        Ok(model.unwrap_or(rbdkit_plugin_api::ThreadModel::SerializeConnections).into())
    }

    fn connections(&mut self) -> Result<u32> {
        self.require(NOT_CONFIGURE, "server.connections")?;
        Ok(self.shared.connections.load(Relaxed))
    }
}
