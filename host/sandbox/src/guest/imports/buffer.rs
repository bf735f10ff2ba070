//! `rbdkit:filter/buffer`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rbdkit_plugin_api::Errno;
use wasmtime::component::{Linker, WasmList};
use wasmtime::{Result, StoreContextMut};

use super::lend::bound_by_hand;
use super::phases::OPEN_DATA;
use crate::connection::bindings::host::buffer::Host;
use crate::connection::import_error::ImportError;
use crate::guest::buffers::Access;
use crate::guest::context::Context;
use crate::guest::fault::mistake;

/// Binds `write`, which copies from the guest's memory straight into the buffer. The generated
/// binding would copy the bytes into a list first.
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    linker.instance("rbdkit:filter/buffer@0.1.0")?.func_wrap("write", write)
}

fn write(mut store: StoreContextMut<'_, Context>, (buf, at, data): (u32, u32, WasmList<u8>)) -> Result<()> {
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
}
