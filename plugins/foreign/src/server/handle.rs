//! A connection to the plugin, as the chain sees it.

use std::sync::Arc;

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Disk, DiskId, Done, Errno, Error, Extents, Flags, Handle, Op, Result,
    Span,
};

use super::channel::{Answer, Channel, Request};
use crate::can;
use crate::memory::op;
use crate::wire::{Fields, shown};

/// The most bytes of one request without data: a multiple of every block size.
const MAX_RANGE: u64 = 1 << 31;

/// Bytes of an extent in an answer.
const EXTENT: usize = 16;

/// A request with so many bytes looks for its answer at once. Copying more takes longer than waking
/// a task.
const SHORT_DATA: u32 = 32 << 10;

/// Room for a short answer, in bytes.
const SHORT: u32 = 8 << 10;

/// nbdkit's flags.
mod flag {
    pub(super) const MAY_TRIM: u32 = 1;
    pub(super) const FUA: u32 = 2;
    pub(super) const REQ_ONE: u32 = 4;
    pub(super) const FAST_ZERO: u32 = 8;

    pub(super) fn of(flags: super::Flags) -> u32 {
        let super::Flags { fua, may_trim, fast_zero, req_one } = flags;
        let bits = [(fua, FUA), (may_trim, MAY_TRIM), (fast_zero, FAST_ZERO), (req_one, REQ_ONE)];
        bits.iter().filter(|(set, _)| *set).fold(0, |all, (_, bit)| all | bit)
    }
}

/// A conversation with the plugin. It ends with its value.
pub(crate) struct Session(Arc<Channel>);

impl Session {
    pub(crate) fn new(channel: Arc<Channel>) -> Session {
        Session(channel)
    }

    pub(crate) fn channel(&self) -> &Arc<Channel> {
        &self.0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.0.close());
    }
}

/// See the module.
pub(crate) struct ForeignHandle {
    session: Session,
    /// The plugin's name, for messages.
    name: &'static str,
    /// Whether different names may lead to different disks.
    names_are_disks: bool,
}

impl ForeignHandle {
    pub(crate) fn new(session: Session, name: &'static str, names_are_disks: bool) -> ForeignHandle {
        ForeignHandle { session, name, names_are_disks }
    }

    /// Makes a request without data for each piece of a range.
    fn in_pieces(&self, op: u32, offset: u64, length: u64, flags: u32) -> Op<Result<()>> {
        let channel = Arc::clone(self.session.channel());
        Op::later(async move {
            let (mut offset, mut left) = (offset, length);
            while left > 0 {
                let count = left.min(MAX_RANGE);
                let request = Request { op, flags, offset, count: count as u32, ..Request::default() };
                channel.ask(request).await?.result()?;
                (offset, left) = (offset + count, left - count);
            }
            Ok(())
        })
    }

    /// Asks for something short, and reads the answer.
    fn short<T: Send + 'static>(
        &self,
        op: u32,
        read: impl FnOnce(i64, Fields<'_>) -> Option<T> + Send + 'static,
    ) -> Op<Result<T>> {
        let (channel, name) = (Arc::clone(self.session.channel()), self.name);
        Op::later(async move {
            let answer = channel.ask(Request { op, room: SHORT, ..Request::default() }).await?;
            let result = answer.result()?;
            read(result, Fields::new(&answer.bytes()))
                .ok_or_else(|| Error::new(Errno::Eio, format!("{name}: the plugin's process gave a broken answer")))
        })
    }
}

/// Fills a buffer with what the plugin has read.
fn filled(buffer: &mut Buffer, span: Span, answer: &Answer) -> Result<()> {
    answer.result()?;
    buffer.fill_with(span, |bytes| {
        answer.copy(bytes);
        Ok(())
    })
}

impl Handle for ForeignHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        let name = self.name;
        let size = self.short(op::GET_SIZE, |size, _| Some(size));
        size.map(move |size| {
            let size = size?;
            u64::try_from(size).map_err(|_| Error::new(Errno::Eio, format!("{name}: impossible size {size}")))
        })
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        let sizes = self.short(op::BLOCK_SIZE, |_, mut fields| {
            Some([fields.number()? as u32, fields.number()? as u32, fields.number()? as u32])
        });
        sizes.map(|sizes| {
            let [minimum, preferred, maximum] = sizes?;
            Ok((minimum != 0 || preferred != 0 || maximum != 0).then_some(BlockSizes { minimum, preferred, maximum }))
        })
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        self.short(op::DESCRIPTION, |_, mut fields| Some(fields.optional()?.map(shown)))
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        let disk = match self.names_are_disks {
            true => Disk::ByName(DiskId::DEFAULT),
            false => Disk::ByListedName(DiskId::DEFAULT),
        };
        Box::pin(async { Ok(disk) })
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        self.short(op::CAN, |_, mut fields| {
            let mut answers = [0; can::LENGTH];
            for answer in &mut answers {
                *answer = fields.byte()?;
            }
            Some(can::decode(answers))
        })
    }

    /// The buffer of a read is filled when the answer has come, so it can be freed at any time.
    fn drops_reads(&self) -> bool {
        true
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let channel = self.session.channel();
        let request = Request { op: op::PREAD, offset, count: span.len, ..Request::default() };
        let mut asked = channel.ask_at_once(request);
        let found = asked.as_mut().filter(|_| span.len <= SHORT_DATA).and_then(|asked| channel.look_for(asked));
        if let Some(answer) = found {
            let result = filled(&mut buffer, span, &answer);
            return Op::Ready((buffer, result));
        }
        let channel = Arc::clone(channel);
        Op::later_from(move || async move {
            let answer = match asked {
                Some(asked) => channel.wait(asked).await,
                None => channel.ask(request).await,
            };
            let result = answer.and_then(|answer| filled(&mut buffer, span, &answer));
            (buffer, result)
        })
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let channel = self.session.channel();
        let flags = flag::of(flags);
        let request = |payload| Request { op: op::PWRITE, flags, offset, count: span.len, payload, room: 0 };
        let mut asked = channel.ask_at_once(request(buffer.data(span)));
        let found = asked.as_mut().filter(|_| span.len <= SHORT_DATA).and_then(|asked| channel.look_for(asked));
        if let Some(answer) = found {
            return Op::Ready((buffer, answer.result().map(drop)));
        }
        let channel = Arc::clone(channel);
        Op::later_from(move || async move {
            let answer = match asked {
                Some(asked) => channel.wait(asked).await,
                None => {
                    let payload = buffer.data(span);
                    channel.ask(Request { op: op::PWRITE, flags, offset, count: span.len, payload, room: 0 }).await
                }
            };
            (buffer, answer.and_then(|answer| answer.result().map(drop)))
        })
    }

    fn flush(&self) -> Op<Result<()>> {
        self.short(op::FLUSH, |_, _| Some(()))
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.in_pieces(op::TRIM, offset, length, flag::of(flags))
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.in_pieces(op::ZERO, offset, length, flag::of(flags))
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.in_pieces(op::CACHE, offset, length, 0)
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        let channel = Arc::clone(self.session.channel());
        Op::later(async move {
            let count = length.min(MAX_RANGE);
            let room = (Extents::limit(length) * EXTENT) as u32;
            let flags = flag::of(flags);
            let request = Request { op: op::EXTENTS, flags, offset, count: count as u32, payload: &[], room };
            let answer = channel.ask(request).await?;
            answer.result()?;
            let bytes = answer.bytes();
            let (mut fields, mut extents) = (Fields::new(&bytes), Extents::new(offset, length));
            while let (Some(length), Some(kind)) = (fields.number(), fields.number()) {
                // The sum stays within the range, or the gate refuses the list.
                let fits = extents.next_offset().checked_add(length).is_some();
                if !fits || !extents.push(length, kind & 1 != 0, kind & 2 != 0) {
                    break;
                }
            }
            Ok(extents)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(closed) = self.session.channel().close() {
                // An error means that the process has ended.
                let _ = closed.await;
            }
        })
    }
}
