//! Bytes to entries. The bytes may come from anywhere.

use std::borrow::Cow;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use rbdkit_plugin_api::{BlockSizes, Capabilities, Errno, Extent, Extents, Flags, MAX_REQUEST, Peer, Support};

use crate::entry::{
    Answer, Call, ClientFacts, DIGEST, ERRNOS, End, Entry, Finish, Gate, GivenParameter, Kind, ListedExport,
    MAX_PARAMETERS, MAX_TEXT, Outcome, Payload, Reason, Session, Start, peer, tag,
};

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It ends before the field.
    #[error("the entry ends before its {0}")]
    Short(&'static str),
    /// Bytes follow that belong to no field.
    #[error("the entry has {0} bytes too many")]
    Long(usize),
    /// A number that stands for nothing.
    #[error("the {what} is {value}, which is not defined")]
    Undefined { what: &'static str, value: u64 },
    /// A range that no export has.
    #[error("the range of {length} bytes at {offset} is not possible")]
    Range { offset: u64, length: u64 },
    /// A flag that the call does not have.
    #[error("the call has no such flag")]
    Flags,
    /// A text that is too long, or not UTF-8.
    #[error("the {0} is not a text of at most {MAX_TEXT} bytes")]
    Text(&'static str),
    /// A payload whose length is not its request's.
    #[error("the payload has {found} bytes, and its request {wanted}")]
    Payload { found: usize, wanted: u32 },
    /// More parameters than a layer can have.
    #[error("the layer has {0} parameters, and {MAX_PARAMETERS} are possible")]
    Parameters(usize),
    /// Extents that are no answer.
    #[error("the extents are not possible")]
    Extents,
    /// Block sizes that the protocol does not allow.
    #[error("the block sizes are not possible")]
    BlockSizes,
}

/// Reads a body of a record of this version. `range_of` gives the offset and length of the call of
/// this number, which an answer needs: None if the call has no range or is not known, which the
/// caller reports.
///
/// # Errors
/// What is wrong with it.
pub fn decode(body: &[u8], version: u32, range_of: impl FnOnce(u64) -> Option<(u64, u64)>) -> Result<Entry<'_>, Wrong> {
    let mut fields = Fields { rest: body, version };
    let entry = match fields.byte("kind")? {
        tag::SESSION => Entry::Session(fields.session()?),
        tag::START => Entry::Start(fields.start()?),
        tag::END => Entry::End(fields.end(range_of)?),
        tag::FINISH => {
            let (time, lost) = (fields.long("time")?, fields.long("count")?);
            Entry::Finish(Finish { time, lost, reason: fields.reason()? })
        }
        other => return Err(undefined("kind of entry", other)),
    };
    match fields.rest.len() {
        0 => Ok(entry),
        left => Err(Wrong::Long(left)),
    }
}

fn undefined(what: &'static str, value: impl Into<u64>) -> Wrong {
    Wrong::Undefined { what, value: value.into() }
}

/// Refuses flags of a call that has none.
fn no_flags(flags: Flags) -> Result<(), Wrong> {
    if flags == Flags::NONE { Ok(()) } else { Err(Wrong::Flags) }
}

/// The rest of a body.
struct Fields<'a> {
    rest: &'a [u8],
    version: u32,
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Wrong> {
        let (field, rest) = self.rest.split_at_checked(count).ok_or(Wrong::Short(what))?;
        self.rest = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Wrong> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(Wrong::Short(what))?;
        self.rest = rest;
        Ok(*field)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Wrong> {
        Ok(self.array::<1>(what)?[0])
    }

    fn short(&mut self, what: &'static str) -> Result<u16, Wrong> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    fn word(&mut self, what: &'static str) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn long(&mut self, what: &'static str) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn truth(&mut self, what: &'static str) -> Result<bool, Wrong> {
        match self.byte(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(undefined(what, other)),
        }
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, Wrong> {
        let length = usize::from(self.short(what)?);
        if length > MAX_TEXT {
            return Err(Wrong::Text(what));
        }
        std::str::from_utf8(self.take(length, what)?).map_err(|_| Wrong::Text(what))
    }

    fn maybe_text(&mut self, what: &'static str) -> Result<Option<Cow<'a, str>>, Wrong> {
        Ok(if self.truth(what)? { Some(Cow::Borrowed(self.text(what)?)) } else { None })
    }

    fn session(&mut self) -> Result<Session, Wrong> {
        Ok(Session {
            began: self.long("time")?,
            is_filter: self.truth("sort of layer")?,
            has_payloads: self.truth("sort of payloads")?,
            program: self.text("program's version")?.to_string(),
            layer: self.text("layer's name")?.to_string(),
            parameters: if self.version == 1 { Vec::new() } else { self.parameters()? },
        })
    }

    fn parameters(&mut self) -> Result<Vec<GivenParameter>, Wrong> {
        let count = usize::from(self.short("number of parameters")?);
        if count > MAX_PARAMETERS {
            return Err(Wrong::Parameters(count));
        }
        let mut parameters = Vec::new();
        for _ in 0..count {
            let (key, kind) = (self.text("parameter's key")?.to_string(), self.text("parameter's kind")?.to_string());
            let value = self.maybe_text("parameter's value")?.map(Cow::into_owned);
            parameters.push(GivenParameter { key, kind, value });
        }
        Ok(parameters)
    }

    fn reason(&mut self) -> Result<Reason, Wrong> {
        const ALL: [Reason; 4] = [Reason::Whole, Reason::Limit, Reason::File, Reason::Slow];
        let number = self.byte("reason")?;
        ALL.into_iter().find(|reason| *reason as u8 == number).ok_or(undefined("reason", number))
    }

    fn kind(&mut self) -> Result<Kind, Wrong> {
        let number = self.byte("kind of call")?;
        let known = if self.version == 1 { &Kind::ALL[..Kind::OF_VERSION_1] } else { &Kind::ALL[..] };
        known.get(usize::from(number)).copied().ok_or(undefined("kind of call", number))
    }

    fn start(&mut self) -> Result<Start<'a>, Wrong> {
        let (number, time) = (self.long("number")?, self.long("time")?);
        let gate = if self.truth("gate")? { Gate::Below } else { Gate::Above };
        let handle = self.word("handle")?;
        let kind = self.kind()?;
        Ok(Start { number, time, gate, handle, call: self.call(kind)? })
    }

    fn call(&mut self, kind: Kind) -> Result<Call<'a>, Wrong> {
        Ok(match kind {
            Kind::Open => {
                let (client, readonly) = (self.long("client")?, self.truth("mode")?);
                Call::Open { client, readonly, name: Cow::Borrowed(self.text("export's name")?) }
            }
            Kind::Pread => {
                let (offset, length, flags) = self.data_range()?;
                no_flags(flags)?;
                Call::Pread { offset, length }
            }
            Kind::Pwrite => {
                let (offset, length, flags) = self.data_range()?;
                Call::Pwrite { offset, length, flags, payload: self.payload(length)? }
            }
            Kind::Trim => {
                let (offset, length, flags) = self.range()?;
                Call::Trim { offset, length, flags }
            }
            Kind::Zero => {
                let (offset, length, flags) = self.range()?;
                Call::Zero { offset, length, flags }
            }
            Kind::Cache => {
                let (offset, length, flags) = self.range()?;
                no_flags(flags)?;
                Call::Cache { offset, length }
            }
            Kind::Extents => {
                let (offset, length, flags) = self.range()?;
                Call::Extents { offset, length, flags }
            }
            Kind::Flush => Call::Flush,
            Kind::BlockSizes => Call::BlockSizes,
            Kind::Description => Call::Description,
            Kind::Disk => Call::Disk,
            Kind::Finalize => Call::Finalize,
            Kind::Close => Call::Close,
            Kind::Preconnect => {
                let (client, readonly) = self.client()?;
                Call::Preconnect { client, readonly, facts: self.facts()? }
            }
            Kind::ListExports => {
                let (client, readonly) = self.client()?;
                Call::ListExports { client, readonly }
            }
            Kind::DefaultExport => {
                let (client, readonly) = self.client()?;
                Call::DefaultExport { client, readonly }
            }
        })
    }

    fn client(&mut self) -> Result<(u64, bool), Wrong> {
        Ok((self.long("client")?, self.truth("mode")?))
    }

    fn facts(&mut self) -> Result<ClientFacts<'a>, Wrong> {
        const ADDRESS: &str = "client's address";
        let peer = match self.byte(ADDRESS)? {
            peer::UNKNOWN => Peer::Unknown,
            peer::UNIX => Peer::Unix,
            peer::VSOCK => Peer::Vsock { cid: self.word(ADDRESS)?, port: self.word(ADDRESS)? },
            peer::V4 => {
                let ip = Ipv4Addr::from(self.array::<4>(ADDRESS)?);
                Peer::Ip(SocketAddr::V4(SocketAddrV4::new(ip, self.short(ADDRESS)?)))
            }
            peer::V6 => {
                let (ip, port) = (Ipv6Addr::from(self.array::<16>(ADDRESS)?), self.short(ADDRESS)?);
                let (flow, scope) = (self.word(ADDRESS)?, self.word(ADDRESS)?);
                Peer::Ip(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
            }
            other => return Err(undefined("sort of address", other)),
        };
        let credentials = match self.truth("credentials")? {
            false => None,
            true => Some((self.id()?, self.id()?, self.id()?)),
        };
        let security_context = self.maybe_text("security context")?;
        Ok(ClientFacts { peer, credentials, security_context, tls: self.truth("encryption")? })
    }

    fn id(&mut self) -> Result<i64, Wrong> {
        Ok(self.long("credentials")?.cast_signed())
    }

    fn range(&mut self) -> Result<(u64, u64, Flags), Wrong> {
        let (offset, length) = (self.long("offset")?, self.long("length")?);
        let is_possible = length > 0 && offset.checked_add(length).is_some_and(|end| end <= i64::MAX as u64);
        if !is_possible {
            return Err(Wrong::Range { offset, length });
        }
        let bits = self.byte("flags")?;
        if bits > 15 {
            return Err(undefined("set of flags", bits));
        }
        let is_set = |at: u8| bits >> at & 1 == 1;
        Ok((offset, length, Flags { fua: is_set(0), may_trim: is_set(1), fast_zero: is_set(2), req_one: is_set(3) }))
    }

    fn data_range(&mut self) -> Result<(u64, u32, Flags), Wrong> {
        let (offset, length, flags) = self.range()?;
        match u32::try_from(length) {
            Ok(short) if short <= MAX_REQUEST => Ok((offset, short, flags)),
            _ => Err(Wrong::Range { offset, length }),
        }
    }

    fn payload(&mut self, length: u32) -> Result<Payload<'a>, Wrong> {
        Ok(match self.byte("payload")? {
            0 => Payload::Zeroes,
            1 => Payload::Digest(self.array::<DIGEST>("digest")?),
            2 => {
                let bytes = std::mem::take(&mut self.rest);
                if bytes.len() != length as usize {
                    return Err(Wrong::Payload { found: bytes.len(), wanted: length });
                }
                Payload::Bytes(Cow::Borrowed(bytes))
            }
            other => return Err(undefined("sort of payload", other)),
        })
    }

    fn end(&mut self, range_of: impl FnOnce(u64) -> Option<(u64, u64)>) -> Result<End<'a>, Wrong> {
        let (number, time) = (self.long("number")?, self.long("time")?);
        let kind = self.kind()?;
        let outcome = match self.byte("result")? {
            0 => Outcome::Answered(self.answer(kind, range_of(number))?),
            1 => Outcome::Failed(self.errno()?),
            2 => Outcome::Dropped,
            other => return Err(undefined("result", other)),
        };
        Ok(End { number, time, kind, outcome })
    }

    fn errno(&mut self) -> Result<Errno, Wrong> {
        let number = self.byte("error")?;
        let known = ERRNOS.iter().find(|(_, known)| *known == number);
        known.map(|(errno, _)| *errno).ok_or(undefined("error", number))
    }

    fn answer(&mut self, kind: Kind, range: Option<(u64, u64)>) -> Result<Answer<'a>, Wrong> {
        let (offset, length) = range.unwrap_or_default();
        Ok(match kind {
            Kind::Open => {
                let size = self.long("size")?;
                if size > i64::MAX as u64 {
                    return Err(undefined("size", size));
                }
                Answer::Opened { size, can: self.capabilities()? }
            }
            Kind::Pread => Answer::Data(self.payload(u32::try_from(length).unwrap_or(0))?),
            Kind::Extents => Answer::Extents(self.extents(offset, length)?),
            Kind::BlockSizes => Answer::BlockSizes(self.block_sizes()?),
            Kind::Description => Answer::Description(self.maybe_text("description")?),
            Kind::Disk => Answer::Disk(self.maybe_text("disk")?),
            Kind::ListExports => Answer::Exports(self.exports()?),
            Kind::DefaultExport => Answer::DefaultExport(Cow::Borrowed(self.text("export's name")?)),
            Kind::Pwrite
            | Kind::Flush
            | Kind::Trim
            | Kind::Zero
            | Kind::Cache
            | Kind::Finalize
            | Kind::Close
            | Kind::Preconnect => Answer::Done,
        })
    }

    /// The list grows as it is read, so a large number in front of a short body takes no memory.
    fn exports(&mut self) -> Result<Vec<ListedExport<'a>>, Wrong> {
        let count = self.word("number of exports")?;
        let mut list = Vec::new();
        for _ in 0..count {
            let name = Cow::Borrowed(self.text("export's name")?);
            list.push(ListedExport { name, description: self.maybe_text("export's description")? });
        }
        Ok(list)
    }

    fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>, Wrong> {
        const EACH: usize = 9;
        let count = self.word("number of extents")? as usize;
        if count == 0 || count > Extents::limit(length) {
            return Err(Wrong::Extents);
        }
        let all = self.take(count * EACH, "extents")?;
        let mut extents = Vec::with_capacity(count);
        let mut at = offset;
        for each in all.chunks_exact(EACH) {
            let mut each = Fields { rest: each, version: self.version };
            let (length, bits) = (each.long("extents")?, each.byte("extents")?);
            let end = at.checked_add(length).filter(|end| length > 0 && *end <= i64::MAX as u64 && bits <= 3);
            let end = end.ok_or(Wrong::Extents)?;
            extents.push(Extent { offset: at, length, hole: bits & 1 == 1, zero: bits & 2 == 2 });
            at = end;
        }
        Ok(extents)
    }

    fn block_sizes(&mut self) -> Result<Option<BlockSizes>, Wrong> {
        if !self.truth("block sizes")? {
            return Ok(None);
        }
        let [minimum, preferred, maximum] =
            [self.word("block sizes")?, self.word("block sizes")?, self.word("block sizes")?];
        let sizes = BlockSizes { minimum, preferred, maximum };
        if sizes.is_valid() { Ok(Some(sizes)) } else { Err(Wrong::BlockSizes) }
    }

    fn capabilities(&mut self) -> Result<Capabilities, Wrong> {
        let bits = self.byte("capabilities")?;
        if bits > 127 {
            return Err(undefined("set of capabilities", bits));
        }
        let is_set = |at: u8| bits >> at & 1 == 1;
        Ok(Capabilities {
            write: is_set(0),
            flush: is_set(1),
            rotational: is_set(2),
            trim: is_set(3),
            fast_zero: is_set(4),
            extents: is_set(5),
            multi_conn: is_set(6),
            zero: self.support()?,
            fua: self.support()?,
            cache: self.support()?,
        })
    }

    fn support(&mut self) -> Result<Support, Wrong> {
        match self.byte("capabilities")? {
            0 => Ok(Support::None),
            1 => Ok(Support::Emulate),
            2 => Ok(Support::Native),
            other => Err(undefined("capability", other)),
        }
    }
}
