//! The handshake: greeting, client flags, options.
//!
//! [`Handshake::advance`] takes complete messages off the front of the input and writes replies to
//! `out`. An option that needs the chain comes back as a [`HandshakeAction`]. The server has to
//! answer it (with `end_list`, `accept` or `refuse`) before the next `advance`, because the
//! protocol has strictly one option at a time. Options that a client sends ahead are answered in
//! order.

use rbdkit_plugin_api::{BlockSizes, Capabilities, ExportEntry, Support};

use super::option_data::{BASE_ALLOCATION, MetaQueries, OpenOption, OpenRequest};
use super::strings;
use super::transmission::{ReplyFormat, Session};
use super::violation::Violation;
use super::wire::{self, Reader, info, opt, rep, transmission};

/// The longest option data, in bytes: two strings of the longest kind and some thousand queries or
/// information requests. It limits what the server holds for a client that has not chosen an
/// export.
pub const MAX_OPTION: u32 = 64 * 1024;

/// The most options before an export is chosen, if no exports were listed. Most clients send fewer
/// than ten.
pub const MAX_OPTIONS: u32 = 1024;

/// How many more options are allowed for each export of the longest list that the client got. Tools
/// that list exports send two or three for each export. nbdkit allows 32.
pub const OPTIONS_PER_EXPORT: u32 = 32;

/// Whether clients may encrypt the connection (STARTTLS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// They cannot.
    #[default]
    Off,
    /// They may.
    On,
    /// They have to, before any other option.
    Require,
}

/// What the server is willing to negotiate.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeConfig {
    /// Grant structured replies and extended headers to clients that ask for them.
    pub structured_replies: bool,
    /// Offer metadata contexts.
    pub meta_contexts: bool,
    /// Handshake flags to offer. Flags that do not exist are ignored.
    pub flags: u16,
    /// STARTTLS.
    pub tls: TlsPolicy,
}

impl Default for HandshakeConfig {
    fn default() -> HandshakeConfig {
        HandshakeConfig {
            structured_replies: true,
            meta_contexts: true,
            flags: wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES,
            tls: TlsPolicy::Off,
        }
    }
}

/// What the handshake tells a client about an export.
#[derive(Clone, Debug)]
pub struct Export {
    /// The size in bytes.
    pub size: u64,
    /// What the export can do. It is read-only if it cannot write.
    pub can: Capabilities,
    /// The canonical name, if the client asked for it.
    pub name: Option<String>,
    /// A text for people, if the client asked for it.
    pub description: Option<String>,
    /// Block sizes, if the client asked for them and the layers named any.
    pub block_sizes: Option<BlockSizes>,
}

impl Export {
    /// The transmission flags.
    pub(super) fn transmission_flags(&self, format: ReplyFormat, context: MetaContext) -> u16 {
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
            (format != ReplyFormat::Simple, transmission::SEND_DF),
            (
                format == ReplyFormat::Extended && context == MetaContext::BaseAllocation,
                transmission::BLOCK_STATUS_PAYLOAD,
            ),
        ]
        .into_iter()
        .filter_map(|(set, flag)| set.then_some(flag))
        .sum()
    }
}

/// What the server has to do before the handshake continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeAction {
    /// List the exports: [`Handshake::list_export`] for each and then [`Handshake::end_list`], or
    /// [`Handshake::cannot_list`].
    List,
    /// Open an export: [`Handshake::accept`] or [`Handshake::refuse`].
    Open(OpenRequest),
    /// Encrypt the connection: [`Handshake::accept_tls`], send the reply, and
    /// [`Handshake::begin_tls`] once TLS is agreed upon; or [`Handshake::refuse_tls`]. The client
    /// must not have sent anything behind this option.
    StartTls,
    /// End the connection. The reply is in `out` already.
    Abort,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    config: HandshakeConfig,
    /// The client's flags once they have come, a subset of those offered.
    client_flags: Option<u16>,
    /// How many options have come.
    options: u32,
    /// How many exports the present answer to LIST has so far.
    listing: u32,
    /// How many exports the longest answer to LIST had.
    listed: u32,
    /// TLS was agreed upon. Everything since then is encrypted.
    encrypted: bool,
    negotiated: Negotiated,
}

/// What options have settled so far. The default is what a client gets that sends none. TLS voids
/// all of it.
#[derive(Debug, Default)]
struct Negotiated {
    /// The best format that the client has asked for and that was granted.
    reply_format: ReplyFormat,
    /// `base:allocation` was selected for the export of this name. Not with simple replies.
    base_allocation: Option<String>,
}

/// Whether the client selected a metadata context for the export that it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaContext {
    None,
    BaseAllocation,
}

/// The bytes in front of an option's data: magic, option, length.
const OPTION_HEADER: usize = 16;

impl Handshake {
    /// For a connection on which nothing was sent yet.
    pub fn new(config: HandshakeConfig) -> Handshake {
        let flags = config.flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        Handshake {
            config: HandshakeConfig { flags, ..config },
            client_flags: None,
            options: 0,
            listing: 0,
            listed: 0,
            negotiated: Negotiated::default(),
            encrypted: false,
        }
    }

    /// Writes what the server sends first.
    pub fn greeting(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&wire::MAGIC.to_be_bytes());
        out.extend_from_slice(&wire::IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&self.config.flags.to_be_bytes());
    }

    /// Takes complete messages off `input` and answers them, up to the first one that needs an
    /// action. None: more input is needed.
    ///
    /// # Errors
    /// A [`Violation`] ends the connection; what is in `out` may still be sent.
    pub fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Option<HandshakeAction>, Violation> {
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
            let allowed = self.allowed_options();
            if self.options > allowed {
                return Err(Violation::TooManyOptions(allowed));
            }
            if let Some(action) = self.option(option, data, out)? {
                return Ok(Some(action));
            }
        }
    }

    /// How many options the client may send in all. Listing twice does not add to it.
    fn allowed_options(&self) -> u32 {
        MAX_OPTIONS.saturating_add(self.listed.saturating_mul(OPTIONS_PER_EXPORT))
    }

    /// A lower bound, at least 1, for the bytes that [`Handshake::advance`] needs beyond `input`.
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

    fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Option<HandshakeAction>, Violation> {
        if self.config.tls == TlsPolicy::Require && !self.encrypted {
            match option {
                opt::STARTTLS | opt::ABORT => {}
                // This option has no error reply.
                opt::EXPORT_NAME => return Err(Violation::WithoutTls),
                _ => {
                    error(out, option, rep::ERR_TLS_REQD, "this server requires TLS");
                    return Ok(None);
                }
            }
        }
        match option {
            opt::EXPORT_NAME => {
                if self.negotiated.reply_format == ReplyFormat::Extended {
                    return Err(Violation::ExportNameExtended);
                }
                let name = strings::parse(data).ok_or(Violation::ExportName)?;
                return Ok(Some(HandshakeAction::Open(OpenRequest::new(OpenOption::ExportName, name))));
            }
            opt::ABORT => {
                // This option should have no data, but a client that wants to leave is not refused.
                reply(out, option, rep::ACK, &[]);
                return Ok(Some(HandshakeAction::Abort));
            }
            opt::LIST if data.is_empty() => return Ok(Some(HandshakeAction::List)),
            opt::INFO | opt::GO => match OpenRequest::parse(option, data) {
                Some(request) => return Ok(Some(HandshakeAction::Open(request))),
                None => error(out, option, rep::ERR_INVALID, "the name or the list of information is malformed"),
            },
            opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS if !self.config.structured_replies => {
                error(out, option, rep::ERR_UNSUP, "structured replies are switched off");
            }
            opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS if data.is_empty() => self.better_replies(option, out),
            opt::STARTTLS if data.is_empty() && self.encrypted => {
                error(out, option, rep::ERR_INVALID, "TLS is in use already");
            }
            opt::STARTTLS if data.is_empty() && self.config.tls == TlsPolicy::Off => {
                error(out, option, rep::ERR_UNSUP, "TLS is switched off");
            }
            opt::STARTTLS if data.is_empty() => return Ok(Some(HandshakeAction::StartTls)),
            opt::LIST | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS | opt::STARTTLS => {
                error(out, option, rep::ERR_INVALID, "this option has no data");
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT if !self.config.meta_contexts => {
                error(out, option, rep::ERR_UNSUP, "metadata contexts are switched off");
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(option, data, out),
            _ => error(out, option, rep::ERR_UNSUP, "unknown option"),
        }
        Ok(None)
    }

    /// Answers [`HandshakeAction::StartTls`]: the TLS handshake follows the reply.
    pub fn accept_tls(&self, out: &mut Vec<u8>) {
        reply(out, opt::STARTTLS, rep::ACK, &[]);
    }

    /// Answers [`HandshakeAction::StartTls`] if TLS cannot be begun now.
    pub fn refuse_tls(&self, message: &str, out: &mut Vec<u8>) {
        error(out, opt::STARTTLS, rep::ERR_POLICY, message);
    }

    /// TLS is agreed upon. What was negotiated before is void, because anybody on the way could
    /// have negotiated it.
    pub fn begin_tls(&mut self) {
        self.encrypted = true;
        self.negotiated = Negotiated::default();
    }

    /// Answers STRUCTURED_REPLY and EXTENDED_HEADERS, which are not switched off. Extended headers
    /// take precedence, and there is no way back from them.
    fn better_replies(&mut self, option: u32, out: &mut Vec<u8>) {
        match (option, self.negotiated.reply_format) {
            (opt::STRUCTURED_REPLY, ReplyFormat::Extended) => {
                error(out, option, rep::ERR_EXT_HEADER_REQD, "extended headers were negotiated already");
            }
            (opt::EXTENDED_HEADERS, ReplyFormat::Extended) => {
                error(out, option, rep::ERR_INVALID, "extended headers were negotiated already");
            }
            (opt::STRUCTURED_REPLY, _) => {
                self.negotiated.reply_format = ReplyFormat::Structured;
                reply(out, option, rep::ACK, &[]);
            }
            _ => {
                self.negotiated.reply_format = ReplyFormat::Extended;
                reply(out, option, rep::ACK, &[]);
            }
        }
    }

    /// Answers LIST_META_CONTEXT and SET_META_CONTEXT. There is one context, for every export. A
    /// query that names another is ignored, in whatever namespace, as the protocol wants it.
    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let set = option == opt::SET_META_CONTEXT;
        if set {
            // The earlier selection is void, whether or not this option is valid.
            self.negotiated.base_allocation = None;
        }
        if self.negotiated.reply_format == ReplyFormat::Simple {
            let why = "structured replies or extended headers have to be negotiated first";
            return error(out, option, rep::ERR_INVALID, why);
        }
        let Some(queries) = MetaQueries::parse(data) else {
            return error(out, option, rep::ERR_INVALID, "the name or a query is malformed");
        };
        // A whole namespace can be listed but not selected.
        let matches = match set {
            true => queries.exact,
            false => queries.exact || queries.wildcard || queries.count == 0,
        };
        if matches {
            let id = if set { wire::BASE_ALLOCATION_ID } else { 0 };
            reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION]);
            if set {
                self.negotiated.base_allocation = Some(queries.export);
            }
        }
        reply(out, option, rep::ACK, &[]);
    }

    /// Adds an export to the answer to [`HandshakeAction::List`]. It leaves out an export whose
    /// name the protocol cannot carry. One reply takes at most 8 KiB and 24 bytes.
    pub fn list_export(&mut self, export: &ExportEntry, out: &mut Vec<u8>) {
        if strings::is_valid(&export.name) {
            let description = export.description.as_deref().map_or("", strings::cut);
            let length = (export.name.len() as u32).to_be_bytes();
            reply(out, opt::LIST, rep::SERVER, &[&length, export.name.as_bytes(), description.as_bytes()]);
            self.listing = self.listing.saturating_add(1);
        }
    }

    /// Ends the answer to [`HandshakeAction::List`].
    pub fn end_list(&mut self, out: &mut Vec<u8>) {
        self.listed = self.listed.max(std::mem::take(&mut self.listing));
        reply(out, opt::LIST, rep::ACK, &[]);
    }

    /// Answers [`HandshakeAction::List`] if the exports cannot be listed.
    pub fn cannot_list(&self, message: &str, out: &mut Vec<u8>) {
        error(out, opt::LIST, rep::ERR_PLATFORM, message);
    }

    /// Answers [`HandshakeAction::Open`] if the export cannot be opened, for whatever reason. It
    /// writes nothing if the option has no error reply ([`OpenRequest::cannot_be_refused`]).
    ///
    /// The error is ERR_UNKNOWN ("not available" in the specification), for which clients report a
    /// missing export. For ERR_PLATFORM they would report that the server does not support the
    /// option.
    pub fn refuse(&self, request: &OpenRequest, message: &str, out: &mut Vec<u8>) {
        if !request.cannot_be_refused() {
            error(out, request.option_number(), rep::ERR_UNKNOWN, message);
        }
    }

    /// Answers [`HandshakeAction::Open`] with the export. If this returns a session, the
    /// transmission begins.
    pub fn accept(&self, request: &OpenRequest, export: &Export, out: &mut Vec<u8>) -> Option<Session> {
        let flags = export.transmission_flags(self.negotiated.reply_format, self.context(request));
        let option = request.option_number();
        if request.option == OpenOption::ExportName {
            out.extend_from_slice(&export.size.to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
            if self.client_flags.unwrap_or(0) & wire::FLAG_NO_ZEROES == 0 {
                out.extend_from_slice(&[0; 124]);
            }
            return Some(self.session(request, export));
        }
        let kind = |kind: u16| kind.to_be_bytes();
        reply(out, option, rep::INFO, &[&kind(info::EXPORT), &export.size.to_be_bytes(), &flags.to_be_bytes()]);
        if let Some(name) = export.name.as_ref().filter(|name| request.wants_name && strings::is_valid(name)) {
            reply(out, option, rep::INFO, &[&kind(info::NAME), name.as_bytes()]);
        }
        if let Some(text) = export.description.as_ref().filter(|_| request.wants_description) {
            reply(out, option, rep::INFO, &[&kind(info::DESCRIPTION), strings::cut(text).as_bytes()]);
        }
        if let Some(sizes) = export.block_sizes.filter(|_| request.wants_block_size) {
            let [minimum, preferred, maximum] =
                [sizes.minimum, sizes.preferred, sizes.maximum].map(|size| size.to_be_bytes());
            reply(out, option, rep::INFO, &[&kind(info::BLOCK_SIZE), &minimum, &preferred, &maximum]);
        }
        reply(out, option, rep::ACK, &[]);
        (!request.only_info()).then(|| self.session(request, export))
    }

    /// The context of the export that a client opens. A selection is only valid for the export that
    /// it names.
    fn context(&self, request: &OpenRequest) -> MetaContext {
        match self.negotiated.base_allocation.as_ref() == Some(&request.name) {
            true => MetaContext::BaseAllocation,
            false => MetaContext::None,
        }
    }

    fn session(&self, request: &OpenRequest, export: &Export) -> Session {
        Session {
            size: export.size,
            can: export.can,
            reply_format: self.negotiated.reply_format,
            base_allocation: self.context(request) == MetaContext::BaseAllocation,
            // A client that did not ask for them does not know them.
            block_sizes: export.block_sizes.filter(|_| request.wants_block_size),
        }
    }
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
    reply(out, option, kind, &[strings::cut(message).as_bytes()]);
}
