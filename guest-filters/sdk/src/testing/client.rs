//! A client of the simulated server, and the gate between it and the filter's layer.

use std::cell::Cell;
use std::rc::Rc;

use crate::host::client::Ending;
use crate::{BlockSizes, Capabilities, CommandFlags, Errno, Extent, ExtentType, Support};

use super::call::{Access, Call, ConnectionState, Phase};
use super::exported::Exported;
use super::extents;
use super::facts::ClientFacts;
use super::host::Served;
use super::imports::{next, next_open};
use super::offers::sensible;
use super::world::Owner;

/// A connection to the filter's layer. Dropping it disconnects.
pub struct Client<'s, F: Exported> {
    served: &'s Served<F>,
    connection: Rc<ConnectionState>,
    size: u64,
    can: Capabilities,
    progress: Progress,
}

/// How far the filter has come with a connection. It decides what is called at the end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Begun,
    Opened,
    Prepared,
}

/// The length in bytes of the writes of zeroes that the host makes for a filter that cannot zero.
const ZEROES: u64 = 1 << 20;

impl<'s, F: Exported> Client<'s, F> {
    /// Opens the export for a client that may connect.
    pub(super) fn open(
        served: &'s Served<F>,
        facts: ClientFacts,
        access: Access,
        exportname: String,
    ) -> Result<Client<'s, F>, Errno> {
        let readonly = access == Access::ReadOnly;
        let id = {
            let mut world = served.world.borrow_mut();
            world.connections += 1;
            world.last_connection += 1;
            world.last_connection
        };
        let connection = Rc::new(ConnectionState {
            id,
            exportname,
            readonly,
            facts: Rc::new(facts),
            handle: Cell::new(0),
            next: Cell::new(None),
            generation: Cell::new(0),
            instance: served.instance_for_connection(),
            is_replayed: Cell::new(false),
        });
        served.connections.borrow_mut().push(Rc::downgrade(&connection));
        let can = Capabilities {
            write: false,
            flush: false,
            rotational: false,
            trim: false,
            fast_zero: false,
            extents: false,
            multi_conn: false,
            zero: Support::None,
            fua: Support::None,
            cache: Support::None,
        };
        // From here on dropping the client closes the connection.
        let mut client = Client { served, connection, size: 0, can, progress: Progress::Begun };
        client.begin(readonly)?;
        Ok(client)
    }

    /// Opens the layer, and asks what it is.
    fn begin(&mut self, readonly: bool) -> Result<(), Errno> {
        let name = self.connection.exportname.clone();
        let is_tls = self.connection.facts.is_tls;
        let handle = self.call(Phase::Open, Vec::new(), |filter| match filter.open(readonly, &name, is_tls, false) {
            Some(answer) => answer,
            None => next_open::open(readonly, &name).map(|()| 0),
        });
        self.connection.handle.set(handle.0?);
        self.progress = Progress::Opened;
        self.size = self.open_call(|filter| filter.get_size().unwrap_or_else(next::get_size))?;
        let nature = self.served.nature;
        let (below, claimed) = self.open_call(|filter| {
            let below = match self.connection.next.get() {
                Some(_) => next::can()?,
                None => self.can,
            };
            Ok((below, filter.can(below).transpose()?))
        })?;
        let (can, wrong) = nature.offers(below, claimed);
        for claim in wrong {
            self.served.world.borrow_mut().log.push(format!("error: {claim}"));
        }
        self.can = sensible(if readonly { Capabilities { write: false, ..can } } else { can });
        self.open_call(|filter| filter.prepare().unwrap_or(Ok(())))?;
        self.progress = Progress::Prepared;
        self.served.event_call(|filter| filter.opened(self.connection.id));
        if self.disconnected().is_some() { Err(Errno::Eshutdown) } else { Ok(()) }
    }

    /// A call of one of the filter's exports.
    fn call<T>(
        &self,
        phase: Phase,
        payload: Vec<u8>,
        export: impl FnOnce(&F) -> Result<T, Errno>,
    ) -> (Result<T, Errno>, Call) {
        let is_request = phase == Phase::Data;
        let held = is_request && self.served.gate_is_closed();
        assert!(!held, "testing: the filter's gate is closed, and a request would wait for ever");
        let filter = self.served.instance(&self.connection);
        let call = Call::new(&self.served.world, phase, Some(&self.connection));
        let call = if is_request { call.payload(payload) } else { call };
        if is_request && self.disconnected().is_some() {
            return (Err(Errno::Eshutdown), call);
        }
        let (answer, call) = call.serve(|| export(&filter));
        match self.disconnected() {
            // The client does not get the answer.
            Some(Ending::AtOnce) if is_request => (Err(Errno::Eshutdown), call),
            _ => (answer, call),
        }
    }

    fn open_call<T>(&self, export: impl FnOnce(&F) -> Result<T, Errno>) -> Result<T, Errno> {
        self.call(Phase::Open, Vec::new(), export).0
    }

    fn data_call<T>(&self, export: impl FnOnce(&F) -> Result<T, Errno>) -> Result<T, Errno> {
        self.call(Phase::Data, Vec::new(), export).0
    }

    /// Refuses a range that the server would refuse.
    fn check(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let end = offset.checked_add(length).filter(|end| length > 0 && *end <= self.size);
        end.map(drop).ok_or(Errno::Einval)
    }

    /// What the filter's layer gets of the flags, and whether the host flushes afterwards.
    fn split_fua(&self, flags: CommandFlags) -> Result<(CommandFlags, bool), Errno> {
        match (flags.contains(CommandFlags::FUA), self.can.fua) {
            (false, _) | (true, Support::Native) => Ok((flags, false)),
            (true, Support::Emulate) => Ok((flags & !CommandFlags::FUA, true)),
            (true, Support::None) => Err(Errno::Einval),
        }
    }

    fn flush_if(&self, needed: bool) -> Result<(), Errno> {
        if needed { self.flush() } else { Ok(()) }
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the filter's layer offers.
    pub fn can(&self) -> Capabilities {
        self.can
    }

    /// The block sizes.
    ///
    /// # Errors
    /// `Enotsup` if the layer states none.
    pub fn block_size(&self) -> Result<BlockSizes, Errno> {
        self.open_call(|filter| filter.block_size().unwrap_or_else(next::block_size))
    }

    /// The description for people.
    pub fn export_description(&self) -> Option<String> {
        let described =
            self.open_call(|filter| Ok(filter.export_description().unwrap_or_else(next::export_description)));
        described.ok().flatten()
    }

    /// Reads `length` bytes at `offset`.
    ///
    /// # Errors
    /// Those of the filter, and `Einval` for a range outside of the disk.
    pub fn pread(&self, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        self.check(offset, length.into())?;
        // A byte that the filter does not fill reads as zero.
        let (result, mut call) = self.call(Phase::Data, vec![0; length as usize], |filter| {
            let passed = || next::pread(offset, length, 0, 0);
            filter.pread(offset, length, CommandFlags::empty()).unwrap_or_else(passed)
        });
        result.map(|()| call.part(0, 0, length).to_vec())
    }

    /// Writes `bytes` to `offset`.
    ///
    /// # Errors
    /// Those of the filter, `Erofs` if the layer cannot write, and `Einval` for a range outside of
    /// the disk.
    pub fn pwrite(&self, offset: u64, bytes: &[u8], flags: CommandFlags) -> Result<(), Errno> {
        self.writable(offset, bytes.len() as u64)?;
        let (flags, flush) = self.split_fua(flags)?;
        let length = bytes.len() as u32;
        let (result, _) = self.call(Phase::Data, bytes.to_vec(), |filter| {
            filter.pwrite(offset, length, flags).unwrap_or_else(|| next::pwrite(offset, length, 0, 0, flags))
        });
        result?;
        self.flush_if(flush)
    }

    fn writable(&self, offset: u64, length: u64) -> Result<(), Errno> {
        if !self.can.write {
            return Err(Errno::Erofs);
        }
        self.check(offset, length)
    }

    /// Makes every write durable that was answered before.
    ///
    /// # Errors
    /// Those of the filter, and `Einval` if the layer cannot flush.
    pub fn flush(&self) -> Result<(), Errno> {
        match self.can.flush {
            true => self.data_call(|filter| filter.flush().unwrap_or_else(next::flush)),
            false => Err(Errno::Einval),
        }
    }

    /// Discards a range.
    ///
    /// # Errors
    /// Those of the filter, `Erofs` if the layer cannot write, and `Einval` if it cannot trim.
    pub fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.writable(offset, length)?;
        if !self.can.trim {
            return Err(Errno::Einval);
        }
        let (flags, flush) = self.split_fua(flags)?;
        self.data_call(|filter| {
            filter.trim(offset, length, flags).unwrap_or_else(|| next::trim(offset, length, flags))
        })?;
        self.flush_if(flush)
    }

    /// Makes a range read as zero. If the layer cannot zero, the host writes zeroes.
    ///
    /// # Errors
    /// Those of the filter, and `Enotsup` for a fast zero that is not fast.
    pub fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.writable(offset, length)?;
        let fast = flags.contains(CommandFlags::FAST_ZERO);
        if fast && !self.can.fast_zero {
            return Err(Errno::Enotsup);
        }
        if self.can.zero == Support::Native {
            let (flags, flush) = self.split_fua(flags)?;
            let zeroed = self.data_call(|filter| {
                filter.zero(offset, length, flags).unwrap_or_else(|| next::zero(offset, length, flags))
            });
            match zeroed {
                Err(Errno::Enotsup) if !fast => {}
                zeroed => return zeroed.and_then(|()| self.flush_if(flush)),
            }
        }
        let mut at = offset;
        while at < offset + length {
            let n = ZEROES.min(offset + length - at);
            self.pwrite(at, &vec![0; n as usize], flags & CommandFlags::FUA)?;
            at += n;
        }
        Ok(())
    }

    /// The types of the bytes of a range. Without extents the layer is one extent of data.
    ///
    /// # Errors
    /// Those of the filter, and `Eio` if its answer breaks the rules of extents; then the log says
    /// which.
    pub fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno> {
        self.check(offset, length)?;
        if !self.can.extents {
            return Ok(vec![Extent { offset, length, kind: ExtentType::empty() }]);
        }
        let (result, call) = self.call(Phase::Data, Vec::new(), |filter| {
            filter
                .extents(offset, length, flags)
                .unwrap_or_else(|| next::extents_until(offset, length, u64::MAX, flags))
        });
        let mut list = call.appended;
        let returned = result?;
        // What follows an extent that runs on is left out.
        if !call.runs_on {
            returned.into_iter().for_each(|extent| list.push(extent));
        }
        let one = flags.contains(CommandFlags::REQ_ONE);
        extents::checked(list, (offset, length), self.size, one).map_err(|broken| {
            self.served.world.borrow_mut().log.push(format!("error: {broken}"));
            Errno::Eio
        })
    }

    /// Caches a range. If the layer cannot, the host reads it.
    ///
    /// # Errors
    /// Those of the filter.
    pub fn cache(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.check(offset, length)?;
        match self.can.cache {
            Support::None => Err(Errno::Einval),
            Support::Emulate => self.pread(offset, length.min(u32::MAX.into()) as u32).map(drop),
            Support::Native => {
                self.data_call(|filter| filter.cache(offset, length).unwrap_or_else(|| next::cache(offset, length)))
            }
        }
    }

    /// The next range that the filter would have the host cache in the background: offset and
    /// length. None if there is nothing to do, or if the filter does not export `background`.
    pub fn next_range(&self) -> Option<(u64, u64)> {
        self.data_call(|filter| Ok(filter.next_range().flatten())).ok().flatten()
    }

    /// How the filter has disconnected this client, if it has. Requests fail with `Eshutdown` from
    /// then on, and so does the request under way if the connection ends at once.
    pub fn disconnected(&self) -> Option<Ending> {
        self.served.world.borrow().disconnected.get(&self.connection.id).copied()
    }

    /// Disconnects.
    ///
    /// # Errors
    /// Those of the filter's `finalize`.
    pub fn close(self) -> Result<(), Errno> {
        let finalized = self.finish();
        std::mem::forget(self);
        finalized
    }

    fn finish(&self) -> Result<(), Errno> {
        let finalized = self.finalize();
        self.close_layer();
        finalized
    }

    /// The first half of the end.
    pub(super) fn finalize(&self) -> Result<(), Errno> {
        // No alarm of the connection sounds any more.
        let id = self.connection.id;
        self.served.world.borrow_mut().alarms.retain(|(owner, _), _| *owner != Owner::Connection(id));
        match self.progress {
            Progress::Prepared => self.open_call(|filter| filter.finalize().unwrap_or(Ok(()))),
            _ => Ok(()),
        }
    }

    /// The second half of the end, of a client that was finalized.
    pub(super) fn end(self) {
        self.close_layer();
        std::mem::forget(self);
    }

    fn close_layer(&self) {
        let id = self.connection.id;
        self.connection.next.set(None);
        if self.progress >= Progress::Opened {
            let _ = self.open_call(|filter| {
                filter.close();
                Ok(())
            });
        }
        self.served.world.borrow_mut().close(id);
        self.served.connections.borrow_mut().retain(|known| known.as_ptr() != Rc::as_ptr(&self.connection));
        self.served.event_call(|filter| filter.closed(id));
    }
}

impl<F: Exported> Drop for Client<'_, F> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = self.finish();
        }
    }
}
