//! The handshake: greeting, client flags, options.
//!
//! [`Handshake::advance`] eats complete messages off the front of the input and writes replies to `out`. What needs the chain comes back
//! as a [`Wish`]; its answer (`list`, `accept`, `refuse`) has to be given before the next `advance`, because the protocol is strictly
//! one option at a time. A client that sends options ahead is served in order.

use rbdkit_plugin_api::{BlockSizes, Capabilities, ExportEntry, Support};

use super::wire::{self, Reader, info, opt, rep, transmission};
use super::{Session, Violation};

/// The longest string of the protocol, in bytes.
pub const MAX_STRING: usize = 4096;

/// The longest option data, in bytes: two strings of the longest kind and some thousand queries or information requests. It bounds
/// what a client that has shown no interest in any export can make the server hold.
pub const MAX_OPTION: u32 = 64 * 1024;

/// The most options before an export is chosen. Real clients send fewer than ten; listing tools two for each export that they look at.
pub const MAX_OPTIONS: u32 = 1024;

/// What the server is willing to negotiate.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeConfig {
    /// Grant structured replies to who asks for them.
    pub structured_replies: bool,
    /// Handshake flags to offer, of those that there are.
    pub flags: u16,
}

impl Default for HandshakeConfig {
    fn default() -> HandshakeConfig {
        HandshakeConfig { structured_replies: true, flags: wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES }
    }
}

/// An export, as far as the handshake tells of it.
#[derive(Clone, Debug)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// What it can do; read-only if it cannot write.
    pub can: Capabilities,
    /// The canonical name, if the client wanted to know it.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Block sizes, if the layers named any.
    pub block_sizes: Option<BlockSizes>,
}

impl Export {
    /// The transmission flags.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let can = &self.can;
        [
            (true, transmission::HAS_FLAGS),
            (!can.write, transmission::READ_ONLY),
            (can.flush, transmission::SEND_FLUSH),
            (can.fua != Support::None, transmission::SEND_FUA),
            (can.rotational, transmission::ROTATIONAL),
            (can.trim, transmission::SEND_TRIM),
            (can.zero != Support::None, transmission::SEND_WRITE_ZEROES),
            (can.fast_zero, transmission::SEND_FAST_ZERO),
            (can.multi_conn, transmission::CAN_MULTI_CONN),
            (can.cache != Support::None, transmission::SEND_CACHE),
            (structured, transmission::SEND_DF),
        ]
        .into_iter()
        .filter_map(|(set, flag)| set.then_some(flag))
        .sum()
    }
}

/// Which option asked for an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    ExportName,
    Info,
    Go,
}

/// A client asks for an export: to see it or to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    how: How,
    /// As the client wrote it; empty for the default export.
    pub name: String,
    /// The canonical name is wanted too.
    pub wants_name: bool,
    wants_description: bool,
    wants_block_size: bool,
}

impl Opening {
    /// The client only looks: the export is closed again after the answer.
    pub fn only_info(&self) -> bool {
        self.how == How::Info
    }

    /// A refusal cannot be told: the connection has to end.
    pub fn cannot_be_refused(&self) -> bool {
        self.how == How::ExportName
    }

    fn option(&self) -> u32 {
        match self.how {
            How::ExportName => opt::EXPORT_NAME,
            How::Info => opt::INFO,
            How::Go => opt::GO,
        }
    }
}

/// What only the chain can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The exports: [`Handshake::list`] or [`Handshake::cannot_list`].
    List,
    /// One export: [`Handshake::accept`] or [`Handshake::refuse`].
    Open(Opening),
    /// The client leaves; the reply is written already.
    Abort,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    config: HandshakeConfig,
    /// The client's flags, once they have come: a subset of what was offered.
    client_flags: Option<u16>,
    /// Options seen.
    options: u32,
    /// Structured replies were granted.
    structured: bool,
    /// `base:allocation` was selected for the export of this name. Only with `structured`.
    base_allocation: Option<String>,
}

/// The bytes in front of an option's data: magic, option, length.
const OPTION_HEADER: usize = 16;

impl Handshake {
    /// A connection on which nothing was sent yet.
    pub fn new(config: HandshakeConfig) -> Handshake {
        let flags = config.flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        Handshake {
            config: HandshakeConfig { flags, ..config },
            client_flags: None,
            options: 0,
            structured: false,
            base_allocation: None,
        }
    }

    /// What the server says first.
    pub fn greeting(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&wire::MAGIC.to_be_bytes());
        out.extend_from_slice(&wire::IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&self.config.flags.to_be_bytes());
    }

    /// Takes complete messages off `input` and answers them, up to the first that is a wish. None: more input is needed.
    ///
    /// # Errors
    /// A [`Violation`] ends the connection; what is in `out` may still be sent.
    pub fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<Wish>, Violation> {
        let client_flags = match self.client_flags {
            Some(flags) => flags,
            None => {
                let mut reader = Reader(input);
                let Some(flags) = reader.u32() else { return Ok(None) };
                *input = reader.0;
                let known = u16::try_from(flags).ok().filter(|flags| flags & !self.config.flags == 0);
                let known = known.ok_or(Violation::ClientFlags(flags))?;
                self.client_flags = Some(known);
                known
            }
        };
        loop {
            let mut reader = Reader(input);
            let (Some(magic), Some(option), Some(length)) = (reader.u64(), reader.u32(), reader.u32()) else {
                return Ok(None);
            };
            if magic != wire::IHAVEOPT {
                return Err(Violation::OptionMagic(magic));
            }
            if length > MAX_OPTION {
                return Err(Violation::OptionTooLong(length));
            }
            if option != opt::EXPORT_NAME && client_flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
                return Err(Violation::OptionNotFixed(option));
            }
            let Some(data) = reader.bytes(length as usize) else { return Ok(None) };
            *input = reader.0;
            self.options += 1;
            if self.options > MAX_OPTIONS {
                return Err(Violation::TooManyOptions);
            }
            if let Some(wish) = self.option(option, data, out)? {
                return Ok(Some(wish));
            }
        }
    }

    /// How many more bytes are surely needed before [`Handshake::advance`] can do anything with `input`: at least 1.
    pub fn wanted(&self, input: &[u8]) -> usize {
        let whole = match self.client_flags {
            None => 4,
            Some(_) => match input.get(12..OPTION_HEADER) {
                Some(&[a, b, c, d]) => OPTION_HEADER + u32::from_be_bytes([a, b, c, d]).min(MAX_OPTION) as usize,
                _ => OPTION_HEADER,
            },
        };
        whole.saturating_sub(input.len()).max(1)
    }

    fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Option<Wish>, Violation> {
        match option {
            opt::EXPORT_NAME => {
                let name = string(data).ok_or(Violation::ExportName)?;
                return Ok(Some(Wish::Open(Opening {
                    how: How::ExportName,
                    name,
                    wants_name: false,
                    wants_description: false,
                    wants_block_size: false,
                })));
            }
            opt::ABORT => {
                // Data makes no sense here, but neither does refusing to let go.
                reply(out, option, rep::ACK, &[]);
                return Ok(Some(Wish::Abort));
            }
            opt::LIST if data.is_empty() => return Ok(Some(Wish::List)),
            opt::INFO | opt::GO => match opening(option, data) {
                Some(opening) => return Ok(Some(Wish::Open(opening))),
                None => error(out, option, rep::ERR_INVALID, "the name or the list of information is malformed"),
            },
            opt::STRUCTURED_REPLY if !self.config.structured_replies => {
                error(out, option, rep::ERR_UNSUP, "structured replies are switched off");
            }
            opt::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(out, option, rep::ACK, &[]);
            }
            opt::STARTTLS if data.is_empty() => error(out, option, rep::ERR_UNSUP, "TLS is not supported"),
            opt::LIST | opt::STRUCTURED_REPLY | opt::STARTTLS => {
                error(out, option, rep::ERR_INVALID, "this option has no data");
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(option, data, out),
            _ => error(out, option, rep::ERR_UNSUP, "unknown option"),
        }
        Ok(None)
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let set = option == opt::SET_META_CONTEXT;
        if set {
            // Whatever comes of it, the earlier selection is void.
            self.base_allocation = None;
        }
        if !self.structured {
            return error(out, option, rep::ERR_INVALID, "structured replies have to be negotiated first");
        }
        let Some((name, queries)) = meta_queries(data) else {
            return error(out, option, rep::ERR_INVALID, "the name or a query is malformed");
        };
        let matches = queries.iter().any(|query| match *query {
            b"base:allocation" => true,
            // Everything of a namespace can be listed, but is never selected.
            b"base:" => !set,
            _ => false,
        });
        if matches || (!set && queries.is_empty()) {
            let id = if set { wire::BASE_ALLOCATION_ID } else { 0 };
            reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), b"base:allocation"]);
            if set {
                self.base_allocation = Some(name);
            }
        }
        reply(out, option, rep::ACK, &[]);
    }

    /// Answers [`Wish::List`]. Names that the protocol cannot carry are left out.
    pub fn list(&self, exports: &[ExportEntry], out: &mut Vec<u8>) {
        for export in exports.iter().filter(|export| is_carried(&export.name)) {
            let description = export.description.as_deref().map_or("", |text| cut(text, MAX_STRING));
            let length = (export.name.len() as u32).to_be_bytes();
            reply(out, opt::LIST, rep::SERVER, &[&length, export.name.as_bytes(), description.as_bytes()]);
        }
        reply(out, opt::LIST, rep::ACK, &[]);
    }

    /// Answers [`Wish::List`] if there is no list.
    pub fn cannot_list(&self, message: &str, out: &mut Vec<u8>) {
        error(out, opt::LIST, rep::ERR_PLATFORM, message);
    }

    /// Answers [`Wish::Open`] if the export cannot be had, for whatever reason. Writes nothing if the option has no error reply
    /// ([`Opening::cannot_be_refused`]).
    ///
    /// The specification's word for it is "not available", which clients show as a missing export. ERR_PLATFORM would say that the server does not
    /// support the option, and clients show it so.
    pub fn refuse(&self, opening: &Opening, message: &str, out: &mut Vec<u8>) {
        if !opening.cannot_be_refused() {
            error(out, opening.option(), rep::ERR_UNKNOWN, message);
        }
    }

    /// Answers [`Wish::Open`] with the export. The transmission begins if there is a session.
    pub fn accept(&self, opening: &Opening, export: &Export, out: &mut Vec<u8>) -> Option<Session> {
        let flags = export.transmission_flags(self.structured);
        let option = opening.option();
        if opening.how == How::ExportName {
            out.extend_from_slice(&export.size.to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
            if self.client_flags.unwrap_or(0) & wire::FLAG_NO_ZEROES == 0 {
                out.extend_from_slice(&[0; 124]);
            }
            return Some(self.session(opening, export));
        }
        let kind = |kind: u16| kind.to_be_bytes();
        reply(out, option, rep::INFO, &[&kind(info::EXPORT), &export.size.to_be_bytes(), &flags.to_be_bytes()]);
        if let Some(name) = export.name.as_ref().filter(|name| opening.wants_name && is_carried(name)) {
            reply(out, option, rep::INFO, &[&kind(info::NAME), name.as_bytes()]);
        }
        if let Some(text) = export.description.as_ref().filter(|_| opening.wants_description) {
            reply(out, option, rep::INFO, &[&kind(info::DESCRIPTION), cut(text, MAX_STRING).as_bytes()]);
        }
        if let Some(sizes) = export.block_sizes.filter(|_| opening.wants_block_size) {
            let [minimum, preferred, maximum] =
                [sizes.minimum, sizes.preferred, sizes.maximum].map(|size| size.to_be_bytes());
            reply(out, option, rep::INFO, &[&kind(info::BLOCK_SIZE), &minimum, &preferred, &maximum]);
        }
        reply(out, option, rep::ACK, &[]);
        (!opening.only_info()).then(|| self.session(opening, export))
    }

    fn session(&self, opening: &Opening, export: &Export) -> Session {
        Session {
            size: export.size,
            can: export.can,
            structured: self.structured,
            // A selection holds for the export that it was made for.
            base_allocation: self.base_allocation.as_ref() == Some(&opening.name),
        }
    }
}

/// A name as the protocol wants it: UTF-8, no NUL, not too long.
fn string(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= MAX_STRING && !text.contains('\0')).then(|| text.to_string())
}

fn opening(option: u32, data: &[u8]) -> Option<Opening> {
    let mut reader = Reader(data);
    let name = string(reader.counted()?)?;
    let count = reader.u16()?;
    let mut opening = Opening {
        how: if option == opt::GO { How::Go } else { How::Info },
        name,
        wants_name: false,
        wants_description: false,
        wants_block_size: false,
    };
    for _ in 0..count {
        match reader.u16()? {
            info::NAME => opening.wants_name = true,
            info::DESCRIPTION => opening.wants_description = true,
            info::BLOCK_SIZE => opening.wants_block_size = true,
            // EXPORT is always sent; what is unknown is to be ignored.
            _ => {}
        }
    }
    reader.is_empty().then_some(opening)
}

/// The export name and the queries.
fn meta_queries(data: &[u8]) -> Option<(String, Vec<&[u8]>)> {
    let mut reader = Reader(data);
    let name = string(reader.counted()?)?;
    let count = reader.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = reader.counted().filter(|query| query.len() <= MAX_STRING)?;
        queries.push(query);
    }
    reader.is_empty().then_some((name, queries))
}

/// Whether the protocol can carry it as a name.
fn is_carried(name: &str) -> bool {
    name.len() <= MAX_STRING && !name.contains('\0')
}

/// The longest beginning of `text` of at most `limit` bytes, without a NUL.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    // For a client a NUL ends the text, or is an error.
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(limit)]
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    // All parts are bounded (strings by MAX_STRING), so the sum fits.
    let length: usize = data.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&wire::REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

fn error(out: &mut Vec<u8>, option: u32, kind: u32, message: &str) {
    reply(out, option, kind, &[cut(message, MAX_STRING).as_bytes()]);
}
