//! `rbdkit:filter/buffer`.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll};

use memchr::memmem::Finder;
use rbdkit_plugin_api::Errno;
use sha2::{Digest as _, Sha256};
use wasmtime::component::{Linker, WasmList};
use wasmtime::{Result, StoreContextMut};

use super::lend::bound_by_hand;
use super::phases::OPEN_DATA;
use crate::connection::bindings::host::buffer::Host;
use crate::connection::import_error::ImportError;
use crate::guest::buffers::{Access, CallBuffers};
use crate::guest::context::Context;
use crate::guest::fault::mistake;

/// Binds `write`, which copies from the guest's memory straight into the buffer, and `xor`, which
/// mostly ends at once. The generated bindings would copy the bytes into a list first, and make a
/// future.
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    let mut buffer = linker.instance("rbdkit:filter/buffer@0.1.0")?;
    buffer.func_wrap("write", write)?;
    buffer.func_wrap_async("xor", |mut store, (buf, at, length, key, skip): (u32, u32, u32, WasmList<u8>, u64)| {
        match xor_at_once(&mut store, (buf, at, length), &key, skip) {
            Some(Ok(())) => Box::new(Finished),
            Some(Err(error)) => Box::new(std::future::ready(Err(error))),
            None => {
                let key = key.as_le_slice(&store).to_vec();
                Box::new(async move { store.data_mut().xor(buf, at, length, key, skip).await })
            }
        }
    })
}

/// Success at once, of a function without a result. It has no size, so boxing it allocates nothing.
struct Finished;

impl Future for Finished {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The longest key that [`xor_at_once`] takes, in bytes.
const SHORT_KEY: usize = 64;

/// `xor` of a range of one piece with a short key, as most filters use it: without a list on the
/// heap and without a future. None for anything else.
fn xor_at_once(
    store: &mut StoreContextMut<'_, Context>,
    (buf, at, length): (u32, u32, u32),
    key: &WasmList<u8>,
    skip: u64,
) -> Option<Result<()>> {
    if length > PIECE || !(1..=SHORT_KEY).contains(&key.len()) {
        return None;
    }
    let mut short = [0; SHORT_KEY];
    let short = &mut short[..key.len()];
    short.copy_from_slice(key.as_le_slice(&*store));
    let context = store.data_mut();
    if let Err(error) = context.require(OPEN_DATA, "buffer.xor") {
        return Some(Err(error));
    }
    let changed = context.call.buffers.change(buf, at, length);
    Some(changed.map(|(buffer, span)| {
        short.rotate_left((skip % short.len() as u64) as usize);
        buffer.modify(span, |bytes| match short {
            [byte] => bytes.iter_mut().for_each(|changed| *changed ^= *byte),
            key => bytes.chunks_mut(key.len()).for_each(|bytes| xor_bytes(bytes, key)),
        });
    }))
}

/// XORs bytes with those of a key that is at least as long.
fn xor_bytes(bytes: &mut [u8], key: &[u8]) {
    bytes.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
}

#[inline(always)]
pub(super) fn write(mut store: StoreContextMut<'_, Context>, (buf, at, data): (u32, u32, WasmList<u8>)) -> Result<()> {
    let context = store.data_mut();
    context.require(OPEN_DATA, "buffer.write")?;
    let length = u32::try_from(data.len()).map_err(|_| mistake("buffer.write of more than 4 GiB"))?;
    let (mut buffer, span) = context.call.buffers.lend(buf, at, length, Access::Write)?;
    context.shared.counters.bytes_out.fetch_add(u64::from(length), Relaxed);
    buffer.put(span.at, data.as_le_slice(&store));
    store.data_mut().call.buffers.restore(buf, buffer);
    Ok(())
}

impl Host for Context {
    fn len(&mut self, buf: u32) -> Result<u32> {
        self.require(OPEN_DATA, "buffer.len")?;
        self.call.buffers.len(buf)
    }

    fn alloc(&mut self, length: u32) -> Result<u32, ImportError> {
        self.allow(OPEN_DATA)?;
        let conn = Arc::clone(self.call.conn.as_ref().ok_or(Errno::Enxio)?);
        Ok(self.call.buffers.alloc(conn.below.pool(), length)?)
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
            Ok::<(), Infallible>(())
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

    async fn mismatch(&mut self, a: u32, a_at: u32, b: u32, b_at: u32, length: u32) -> Result<Option<u32>> {
        self.require(OPEN_DATA, "buffer.mismatch")?;
        self.look_at_both((a, a_at), (b, b_at), length)?;
        self.in_pieces(length, |buffers, at, length| {
            let differs = buffers.mismatch((a, a_at + at), (b, b_at + at), length)?;
            Ok(differs.map(|differs| at + differs))
        })
        .await
    }

    async fn xor(&mut self, buf: u32, at: u32, length: u32, key: Vec<u8>, skip: u64) -> Result<()> {
        self.require(OPEN_DATA, "buffer.xor")?;
        let key = XorKey::new(key)?;
        self.change_in_pieces((buf, at, length), |bytes, done| key.apply(bytes, skip, done)).await
    }

    async fn translate(&mut self, buf: u32, at: u32, length: u32, table: Vec<u8>) -> Result<()> {
        self.require(OPEN_DATA, "buffer.translate")?;
        let table: [u8; 256] = table.try_into().map_err(|table: Vec<u8>| {
            mistake(format!("buffer.translate with a table of {} bytes, which must be 256", table.len()))
        })?;
        self.change_in_pieces((buf, at, length), |bytes, _| {
            bytes.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
        })
        .await
    }

    async fn swap(&mut self, buf: u32, at: u32, length: u32, width: u32) -> Result<()> {
        self.require(OPEN_DATA, "buffer.swap")?;
        let reverse = match width {
            2 => reverse_groups::<2>,
            4 => reverse_groups::<4>,
            8 => reverse_groups::<8>,
            _ => return Err(mistake(format!("buffer.swap of groups of {width} bytes, which must be 2, 4 or 8"))),
        };
        if !length.is_multiple_of(width) {
            return Err(mistake(format!("buffer.swap of {length} bytes, which is no multiple of {width}")));
        }
        self.change_in_pieces((buf, at, length), |bytes, _| reverse(bytes)).await
    }

    async fn find(&mut self, buf: u32, at: u32, length: u32, pattern: Vec<u8>) -> Result<Option<u32>> {
        self.require(OPEN_DATA, "buffer.find")?;
        let wanted = list_length("buffer.find", &pattern)?;
        self.call.buffers.look(buf, at, length)?;
        let finder = Finder::new(&pattern);
        // A piece is followed by as many bytes of the next as a match that begins in it can take.
        self.in_pieces(length, |buffers, piece_at, piece| {
            let rest = length - piece_at;
            let (buffer, span) = buffers.look(buf, at + piece_at, rest.min(piece + wanted - 1))?;
            Ok(finder.find(buffer.bytes(span)).map(|found| piece_at + found as u32))
        })
        .await
    }

    async fn sha256(&mut self, buf: u32, at: u32, length: u32) -> Result<Vec<u8>> {
        self.require(OPEN_DATA, "buffer.sha256")?;
        self.call.buffers.look(buf, at, length)?;
        let mut digest = Sha256::new();
        self.in_pieces(length, |buffers, piece_at, piece| {
            let (buffer, span) = buffers.look(buf, at + piece_at, piece)?;
            digest.update(buffer.bytes(span));
            Ok(None::<()>)
        })
        .await?;
        Ok(digest.finalize().to_vec())
    }

    async fn crc32c(&mut self, buf: u32, at: u32, length: u32, before: u32) -> Result<u32> {
        self.require(OPEN_DATA, "buffer.crc32c")?;
        self.call.buffers.look(buf, at, length)?;
        let mut sum = before;
        self.in_pieces(length, |buffers, piece_at, piece| {
            let (buffer, span) = buffers.look(buf, at + piece_at, piece)?;
            sum = crc32c::crc32c_append(sum, buffer.bytes(span));
            Ok(None::<()>)
        })
        .await?;
        Ok(sum)
    }
}

impl Context {
    /// Checks two ranges as a whole.
    fn look_at_both(&mut self, a: (u32, u32), b: (u32, u32), length: u32) -> Result<()> {
        self.call.buffers.look(a.0, a.1, length)?;
        self.call.buffers.look(b.0, b.1, length)?;
        Ok(())
    }

    /// Calls `work` with one piece of a range after another, until one returns an answer. Between
    /// pieces other requests run, because no tick can end a host function. `work` gets the piece's
    /// position within the range, and its length.
    async fn in_pieces<T>(
        &mut self,
        length: u32,
        mut work: impl FnMut(&mut CallBuffers, u32, u32) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut at = 0;
        while at < length {
            if at > 0 {
                self.clock.waiting(tokio::task::yield_now).await;
            }
            let now = PIECE.min(length - at);
            if let Some(answer) = work(&mut self.call.buffers, at, now)? {
                return Ok(Some(answer));
            }
            at += now;
        }
        Ok(None)
    }

    /// Lets `work` change one piece of a range after another. It gets the bytes of the piece, and
    /// the piece's position within the range.
    pub(super) async fn change_in_pieces(
        &mut self,
        (buf, at, length): (u32, u32, u32),
        mut work: impl FnMut(&mut [u8], u32) + Send,
    ) -> Result<()> {
        self.call.buffers.look(buf, at, length)?;
        self.in_pieces(length, |buffers, piece_at, piece| {
            let (buffer, span) = buffers.change(buf, at + piece_at, piece)?;
            buffer.modify(span, |bytes| work(bytes, piece_at));
            Ok(None::<()>)
        })
        .await?;
        Ok(())
    }
}

/// Bytes that a function works through before it lets other requests run: at most some
/// milliseconds. A multiple of each width of `swap` and of each sector of `crypto`.
const PIECE: u32 = 1 << 20;

/// The longest key of `xor` and pattern of `find`, in bytes.
const LONGEST_LIST: usize = 1 << 16;

/// The length of a key or pattern.
fn list_length(what: &str, list: &[u8]) -> Result<u32> {
    match list.len() {
        length @ 1..=LONGEST_LIST => Ok(length as u32),
        length => Err(mistake(format!("{what} of {length} bytes, which must be 1 to {LONGEST_LIST}"))),
    }
}

/// The key of `xor`.
struct XorKey {
    /// The key, repeated so that it has at least [`XorKey::REPEATED`] bytes: long runs are quicker.
    bytes: Vec<u8>,
    /// The length of the key itself.
    period: u64,
}

impl XorKey {
    const REPEATED: usize = 1 << 10;

    fn new(key: Vec<u8>) -> Result<XorKey> {
        let period = list_length("buffer.xor with a key", &key)?;
        Ok(XorKey { bytes: key.repeat(XorKey::REPEATED.div_ceil(key.len())), period: period.into() })
    }

    /// XORs `bytes`, whose first one is byte `skip + done` of the repeated key.
    fn apply(&self, bytes: &mut [u8], skip: u64, done: u32) {
        let start = (skip % self.period + u64::from(done)) % self.period;
        let (first, rest) = bytes.split_at_mut(bytes.len().min(self.bytes.len() - start as usize));
        xor_bytes(first, &self.bytes[start as usize..]);
        rest.chunks_mut(self.bytes.len()).for_each(|bytes| xor_bytes(bytes, &self.bytes));
    }
}

/// Reverses each group of `WIDTH` bytes.
fn reverse_groups<const WIDTH: usize>(bytes: &mut [u8]) {
    bytes.as_chunks_mut::<WIDTH>().0.iter_mut().for_each(|group| group.reverse());
}
