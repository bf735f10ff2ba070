//! `rbdkit:filter/disks`.

use std::sync::Arc;

use rbdkit_chain::{Hop, STEP};
use rbdkit_plugin_api::{Client, Errno, Extents, Flags, Op};
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

use super::lend::{BufferPart, ImportFuture, bound_by_hand, lend};
use super::phases::OPEN_DATA;
use crate::connection::bindings::host::disks::Host;
use crate::connection::bindings::host::types as wit;
use crate::connection::disks::Disk;
use crate::connection::import_error::ImportError;
use crate::guest::buffers::Access;
use crate::guest::context::Context;

/// The parameter, its occurrence, the offset, the length, the buffer and the position in it.
pub(super) type DiskPart = (String, u32, u64, u32, u32, u32);

/// Binds the reads ([`lend`](super::lend)).
pub(super) fn bind_by_hand(linker: &mut Linker<Context>) -> Result<()> {
    linker.instance("rbdkit:filter/disks@0.1.0")?.func_wrap_async("pread", pread)
}

pub(super) fn pread(
    store: StoreContextMut<'_, Context>,
    (param, nth, offset, length, buf, at): DiskPart,
) -> ImportFuture<'_> {
    lend(
        store,
        BufferPart { buf, at, length, access: Access::Write },
        |context| Ok(context.disk(&param, nth).map(|_| ())?),
        |context, buffer, span| {
            let (disk, asker) = match context.disk(&param, nth) {
                Ok(found) => found,
                Err(errno) => return Op::Ready((buffer, Err(errno.into()))),
            };
            match disk.open_now() {
                Some(next) => next.hop.pread(buffer, span, offset),
                None => {
                    let (disk, asker) = (Arc::clone(disk), Arc::clone(asker));
                    Op::later(async move {
                        match disk.open(&asker).await {
                            Ok(next) => next.hop.pread(buffer, span, offset).await,
                            Err(error) => (buffer, Err(error)),
                        }
                    })
                }
            }
        },
    )
}

impl Context {
    /// The disk of a parameter, and the client of the call.
    fn disk(&self, param: &str, nth: u32) -> Result<(&Arc<Disk>, &Arc<Client>), Errno> {
        self.allow(OPEN_DATA).map_err(|_| Errno::Enxio)?;
        let conn = self.call.conn.as_ref().ok_or(Errno::Enxio)?;
        let Some(disk) = conn.disks().get(param, nth) else {
            self.shared.files.check_given(param, nth)?;
            return Err(Errno::Einval);
        };
        Ok((disk, conn.client()))
    }

    /// Waits for an operation with the disk of a parameter. `bytes` is what it takes at most.
    async fn with_disk<T: Send + Unpin + 'static>(
        &mut self,
        (param, nth): (&str, u32),
        bytes: u64,
        operation: impl FnOnce(Arc<Hop>) -> Op<rbdkit_plugin_api::Result<T>> + Send + 'static,
    ) -> Result<T, ImportError> {
        let (disk, asker) = self.disk(param, nth)?;
        let result = match disk.open_now() {
            Some(next) => self.wait_for(bytes, || operation(Arc::clone(&next.hop))).await?,
            None => {
                let (disk, asker) = (Arc::clone(disk), Arc::clone(asker));
                let open = async move {
                    let next = disk.open(&asker).await?;
                    operation(Arc::clone(&next.hop)).await
                };
                self.wait_for(bytes, || Op::later(open)).await?
            }
        };
        Ok(self.answer(result)?)
    }
}

impl Host for Context {
    async fn size(&mut self, param: String, nth: u32) -> Result<u64, ImportError> {
        self.with_disk((&param, nth), 0, |hop| Op::Ready(Ok(hop.size()))).await
    }

    async fn pread(&mut self, _: String, _: u32, _: u64, _: u32, _: u32, _: u32) -> Result<(), ImportError> {
        Ok(bound_by_hand()?)
    }

    async fn extents(
        &mut self,
        param: String,
        nth: u32,
        offset: u64,
        length: u64,
        flags: wit::CommandFlags,
    ) -> Result<Vec<wit::Extent>, ImportError> {
        let flags = Flags { req_one: Flags::from(flags).req_one, ..Flags::NONE };
        let (asked, bytes) = self.extents_to_ask(length);
        let ask = move |hop: Arc<Hop>| hop.extents(offset, asked, flags);
        let mut list: Extents = self.with_disk((&param, nth), bytes, ask).await?;
        // The gate has checked that the range does not overflow.
        list.cut(offset + length);
        Ok(list.as_slice().iter().map(|extent| (*extent).into()).collect())
    }

    async fn cache(&mut self, param: String, nth: u32, offset: u64, length: u64) -> Result<(), ImportError> {
        self.with_disk((&param, nth), length.min(STEP.into()), move |hop| hop.cache(offset, length)).await
    }
}
