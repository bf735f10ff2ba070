//! The fields of an entry. The bytes may come from anywhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::host::client::{Inet, Peer, Vsock};
use crate::testing::facts::ClientFacts;
use crate::{BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent, ExtentType, Support};

use super::entry::{Answer, EntryCall, EntryPayload, Gate, GivenParameter, Outcome, Session};

/// The longest text in bytes.
const MAX_TEXT: usize = 4096;

/// The most parameters.
const MAX_PARAMETERS: usize = 4096;

/// The most extents of an answer.
const MAX_EXTENTS: usize = 1 << 16;

/// The longest read or write in bytes.
pub(super) const MAX_REQUEST: u32 = 64 << 20;

/// What is wrong, as the end of a sentence that begins with the entry.
type Result<T> = std::result::Result<T, String>;

/// One entry.
pub(super) enum Entry {
    Session(Session),
    Start { number: u64, gate: Gate, handle: u32, call: EntryCall },
    End { number: u64, kind: u8, outcome: Outcome },
    Finish { lost: u64 },
}

/// The rest of an entry's body.
pub(super) struct EntryFields<'a> {
    rest: &'a [u8],
    /// Where in the file the body ends.
    end: usize,
    version: u32,
}

impl<'a> EntryFields<'a> {
    pub(super) fn new(body: &'a [u8], end: usize, version: u32) -> EntryFields<'a> {
        EntryFields { rest: body, end, version }
    }

    /// The entry. `range_of` gives offset and length of the call with this number.
    pub(super) fn entry(mut self, range_of: impl FnOnce(u64) -> Option<(u64, u64)>) -> Result<Entry> {
        let entry = match self.byte()? {
            1 => Entry::Session(self.session()?),
            2 => {
                let (number, _time, gate) = (self.long()?, self.long()?, self.truth()?);
                let gate = if gate { Gate::Below } else { Gate::Above };
                let (handle, kind) = (self.word()?, self.byte()?);
                Entry::Start { number, gate, handle, call: self.call(kind)? }
            }
            3 => {
                let (number, _time, kind) = (self.long()?, self.long()?, self.byte()?);
                let outcome = match self.byte()? {
                    0 => Outcome::Answered(self.answer(kind, range_of(number))?),
                    1 => Outcome::Failed(self.errno()?),
                    2 => Outcome::Dropped,
                    other => return Err(format!("ends with the result {other}, which is not defined")),
                };
                Entry::End { number, kind, outcome }
            }
            4 => {
                let (_time, lost, _why) = (self.long()?, self.long()?, self.byte()?);
                Entry::Finish { lost }
            }
            other => return Err(format!("is of the kind {other}, which is not defined")),
        };
        if self.rest.is_empty() { Ok(entry) } else { Err(format!("has {} bytes too many", self.rest.len())) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (field, rest) = self.rest.split_at_checked(count).ok_or("is too short")?;
        self.rest = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk().ok_or("is too short")?;
        self.rest = rest;
        Ok(*field)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn short(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn word(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn long(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn truth(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("has the truth value {other}")),
        }
    }

    fn text(&mut self) -> Result<String> {
        let length = usize::from(self.short()?);
        if length > MAX_TEXT {
            return Err(format!("has a text of {length} bytes, and {MAX_TEXT} are allowed"));
        }
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "has a text that is not UTF-8")?;
        Ok(text.to_string())
    }

    fn maybe_text(&mut self) -> Result<Option<String>> {
        Ok(if self.truth()? { Some(self.text()?) } else { None })
    }

    fn session(&mut self) -> Result<Session> {
        let (_began, is_filter, has_payloads) = (self.long()?, self.truth()?, self.truth()?);
        let (_program, layer) = (self.text()?, self.text()?);
        let mut parameters = Vec::new();
        if self.version > 1 {
            let count = usize::from(self.short()?);
            if count > MAX_PARAMETERS {
                return Err(format!("has {count} parameters, and {MAX_PARAMETERS} are possible"));
            }
            for _ in 0..count {
                let (key, kind) = (self.text()?, self.text()?);
                parameters.push(GivenParameter { key, kind, value: self.maybe_text()? });
            }
        }
        Ok(Session { layer, is_filter, has_payloads, parameters })
    }

    fn call(&mut self, kind: u8) -> Result<EntryCall> {
        Ok(match kind {
            0 => {
                let (client, readonly) = (self.long()?, self.truth()?);
                EntryCall::Open { client, readonly, name: self.text()? }
            }
            1 => {
                let (offset, length, _) = self.data_range()?;
                EntryCall::Pread { offset, length }
            }
            2 => {
                let (offset, length, flags) = self.data_range()?;
                EntryCall::Pwrite { offset, length, flags, payload: self.payload(length.into())? }
            }
            3 => EntryCall::Flush,
            4 => {
                let (offset, length, flags) = self.range()?;
                EntryCall::Trim { offset, length, flags }
            }
            5 => {
                let (offset, length, flags) = self.range()?;
                EntryCall::Zero { offset, length, flags }
            }
            6 => {
                let (offset, length, _) = self.range()?;
                EntryCall::Cache { offset, length }
            }
            7 => {
                let (offset, length, flags) = self.range()?;
                EntryCall::Extents { offset, length, flags }
            }
            8 => EntryCall::BlockSizes,
            9 => EntryCall::Description,
            10 => EntryCall::Disk,
            11 => EntryCall::Finalize,
            12 => EntryCall::Close,
            13 if self.version > 1 => {
                let (client, readonly) = (self.long()?, self.truth()?);
                EntryCall::Preconnect { client, readonly, facts: self.facts()? }
            }
            14 if self.version > 1 => EntryCall::ListExports { client: self.long()?, readonly: self.truth()? },
            15 if self.version > 1 => EntryCall::DefaultExport { client: self.long()?, readonly: self.truth()? },
            other => return Err(format!("is of the call {other}, which is not defined")),
        })
    }

    fn facts(&mut self) -> Result<ClientFacts> {
        let inet = |address: Vec<u8>, port| Peer::Ip(Inet { address, port });
        let peer = match self.byte()? {
            0 => Peer::Unknown,
            1 => inet(Ipv4Addr::from(self.array::<4>()?).octets().to_vec(), self.short()?),
            2 => {
                let (address, port) = (Ipv6Addr::from(self.array::<16>()?), self.short()?);
                let (_flow, _scope) = (self.word()?, self.word()?);
                inet(address.octets().to_vec(), port)
            }
            3 => Peer::Unix,
            4 => Peer::Vsock(Vsock { cid: self.word()?, port: self.word()? }),
            other => return Err(format!("has an address of the kind {other}, which is not defined")),
        };
        let credentials = match self.truth()? {
            false => None,
            true => Some((self.long()?.cast_signed(), self.long()?.cast_signed(), self.long()?.cast_signed())),
        };
        let security_context = self.maybe_text()?;
        Ok(ClientFacts {
            peer,
            credentials,
            security_context,
            is_tls: self.truth()?,
            tls_subject: None,
            tls_issuer: None,
        })
    }

    fn range(&mut self) -> Result<(u64, u64, CommandFlags)> {
        let (offset, length) = (self.long()?, self.long()?);
        let is_possible = length > 0 && offset.checked_add(length).is_some_and(|end| end <= i64::MAX as u64);
        if !is_possible {
            return Err(format!("has a range of {length} bytes at {offset}, which is not possible"));
        }
        let bits = self.byte()?;
        if bits > 15 {
            return Err(format!("has the flags {bits}, which are not defined"));
        }
        let all = [CommandFlags::FUA, CommandFlags::MAY_TRIM, CommandFlags::FAST_ZERO, CommandFlags::REQ_ONE];
        let set = (0..).zip(all).filter(|(at, _)| bits >> at & 1 == 1);
        Ok((offset, length, set.fold(CommandFlags::empty(), |flags, (_, flag)| flags | flag)))
    }

    fn data_range(&mut self) -> Result<(u64, u32, CommandFlags)> {
        let (offset, length, flags) = self.range()?;
        match u32::try_from(length) {
            Ok(short) if short <= MAX_REQUEST => Ok((offset, short, flags)),
            _ => Err(format!("has a read or write of {length} bytes, which is not possible")),
        }
    }

    /// The payload, which is last in the body.
    fn payload(&mut self, length: u64) -> Result<EntryPayload> {
        Ok(match self.byte()? {
            0 => EntryPayload::Zeroes,
            1 => {
                self.array::<16>()?;
                EntryPayload::Unknown
            }
            2 => {
                let found = std::mem::take(&mut self.rest).len();
                if found as u64 != length {
                    return Err(format!("has {found} bytes of data, and its request {length}"));
                }
                EntryPayload::Stored(self.end - found..self.end)
            }
            other => return Err(format!("has data of the kind {other}, which is not defined")),
        })
    }

    fn errno(&mut self) -> Result<Errno> {
        Ok(match self.byte()? {
            1 => Errno::Eperm,
            2 => Errno::Enoent,
            5 => Errno::Eio,
            6 => Errno::Enxio,
            12 => Errno::Enomem,
            22 => Errno::Einval,
            28 => Errno::Enospc,
            30 => Errno::Erofs,
            35 => Errno::Edeadlk,
            75 => Errno::Eoverflow,
            95 => Errno::Enotsup,
            108 => Errno::Eshutdown,
            110 => Errno::Etimedout,
            other => return Err(format!("has the error {other}, which is not defined")),
        })
    }

    fn answer(&mut self, kind: u8, range: Option<(u64, u64)>) -> Result<Answer> {
        let (offset, length) = range.unwrap_or_default();
        Ok(match kind {
            0 => {
                let size = self.long()?;
                if size > i64::MAX as u64 {
                    return Err(format!("has the size {size}, which is not possible"));
                }
                Answer::Opened { size, can: self.capabilities()? }
            }
            1 => Answer::Data(self.payload(length)?),
            2..=6 | 11..=13 => Answer::Done,
            7 => Answer::Extents(self.extents(offset)?),
            8 => Answer::BlockSizes(match self.truth()? {
                false => None,
                true => {
                    let (minimum, preferred, maximum) = (self.word()?, self.word()?, self.word()?);
                    Some(BlockSizes { minimum, preferred, maximum })
                }
            }),
            9 => Answer::Description(self.maybe_text()?),
            10 => {
                self.maybe_text()?;
                Answer::Other
            }
            14 => {
                let count = self.word()?;
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(ExportEntry { name: self.text()?, description: self.maybe_text()? });
                }
                Answer::Exports(list)
            }
            15 => Answer::DefaultExport(self.text()?),
            other => return Err(format!("is of the call {other}, which is not defined")),
        })
    }

    fn extents(&mut self, offset: u64) -> Result<Vec<Extent>> {
        let count = self.word()? as usize;
        if count == 0 || count > MAX_EXTENTS {
            return Err(format!("has {count} extents, which is not possible"));
        }
        let (mut list, mut at) = (Vec::new(), offset);
        for _ in 0..count {
            let (length, bits) = (self.long()?, self.byte()?);
            let end = at.checked_add(length).filter(|end| length > 0 && *end <= i64::MAX as u64 && bits <= 3);
            let end = end.ok_or("has extents that are not possible")?;
            let hole = if bits & 1 == 1 { ExtentType::HOLE } else { ExtentType::empty() };
            let zero = if bits & 2 == 2 { ExtentType::ZERO } else { ExtentType::empty() };
            list.push(Extent { offset: at, length, kind: hole | zero });
            at = end;
        }
        Ok(list)
    }

    fn capabilities(&mut self) -> Result<Capabilities> {
        let bits = self.byte()?;
        if bits > 127 {
            return Err(format!("has the capabilities {bits}, which are not defined"));
        }
        let is_set = |at: u8| bits >> at & 1 == 1;
        let mut support = || match self.byte()? {
            0 => Ok(Support::None),
            1 => Ok(Support::Emulate),
            2 => Ok(Support::Native),
            other => Err(format!("has a capability of the kind {other}, which is not defined")),
        };
        Ok(Capabilities {
            write: is_set(0),
            flush: is_set(1),
            rotational: is_set(2),
            trim: is_set(3),
            fast_zero: is_set(4),
            extents: is_set(5),
            multi_conn: is_set(6),
            zero: support()?,
            fua: support()?,
            cache: support()?,
        })
    }
}
