//! The negotiation with the other server: fixed newstyle, and the two older styles.
//!
//! Everything that the server sends is checked before it is used: lengths before memory is
//! allocated, the option that a reply repeats, and the number of replies. The caller limits the
//! time.

use std::fmt;
use std::io;
use std::sync::Arc;

use rbdkit_plugin_api::text::is_hidden;
use rbdkit_plugin_api::{BlockSizes, Errno, Error, ExportEntry};

use crate::tls::Tls;
use crate::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, MAGIC, OLDSTYLE_MAGIC, REPLY_MAGIC, Reader, info, opt, rep,
};
use rbdkit_stream::{ConnectionError, Input, Socket};

/// The longest option reply, in bytes. The longest in the specification has two strings of 4096
/// bytes.
const MAX_REPLY: u32 = 64 << 10;

/// The most replies to one option other than LIST. The specification has four kinds of information.
const MAX_REPLIES: usize = 64;

/// The most bytes of all replies to one option other than LIST.
const MAX_ANSWER: usize = 64 << 10;

/// The most exports in a list, as in nbdkit.
const MAX_EXPORTS: usize = 10_000;

/// The most bytes in a list of exports: some 800 for each.
const MAX_LIST: usize = 8 << 20;

/// The longest string that the specification allows, in bytes.
const MAX_STRING: usize = 4096;

/// Why an export cannot be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The server does not answer, or not as an NBD server does. Another attempt may succeed.
    Connection(ConnectionError),
    /// The server refused. Another attempt would end in the same way.
    Refused(Errno, String),
}

impl OpenError {
    pub(crate) fn into_error(self, server: &impl fmt::Display) -> Error {
        match self {
            OpenError::Connection(broken) => Error::new(Errno::Eio, format!("nbd: {server}: {broken}")),
            OpenError::Refused(errno, why) => Error::new(errno, format!("nbd: {server}: {why}")),
        }
    }
}

impl From<ConnectionError> for OpenError {
    fn from(broken: ConnectionError) -> OpenError {
        OpenError::Connection(broken)
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> OpenError {
        OpenError::Connection(error.into())
    }
}

/// The encoding of requests and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Simple replies.
    Simple,
    /// Replies with data come in chunks.
    Structured,
    /// All replies come in chunks. Headers have 32 bytes, and lengths have 64 bits.
    Extended,
}

/// The result of the negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// Bytes, at most 2^63 - 1.
    pub(crate) size: u64,
    /// Transmission flags.
    pub(crate) flags: u16,
    /// The server's block sizes, checked.
    pub(crate) block_sizes: Option<BlockSizes>,
    pub(crate) description: Option<String>,
    pub(crate) format: Format,
    /// The id of `base:allocation`, if it was agreed upon.
    pub(crate) context: Option<u32>,
}

/// The style that the server announces first.
pub(crate) enum Greeting {
    Fixed,
    /// Newstyle with EXPORT_NAME as its only option.
    Newstyle,
    Oldstyle(Session),
}

/// A newstyle connection before the transmission phase.
pub(crate) struct Negotiation {
    pub(crate) socket: Arc<Socket>,
    pub(crate) input: Input,
    no_zeroes: bool,
}

pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

impl OptionReply {
    fn is_error(&self) -> bool {
        self.kind & rep::ERROR != 0
    }
}

/// Text from the server for a message: cut to 400 bytes, and without control characters.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    text.chars().map(|c| if is_hidden(c) { '?' } else { c }).collect()
}

fn refused(export: &str, reply: &OptionReply) -> OpenError {
    let (errno, why) = match reply.kind {
        rep::ERR_UNKNOWN => (Errno::Enoent, format!("it has no export \"{}\"", quoted(export.as_bytes()))),
        rep::ERR_TLS_REQD => (Errno::Eperm, "it requires TLS (tls=require)".to_owned()),
        rep::ERR_POLICY => (Errno::Eperm, "it refuses by policy".to_owned()),
        rep::ERR_SHUTDOWN => return ConnectionError::new("the server is shutting down").into(),
        rep::ERR_BLOCK_SIZE_REQD => (Errno::Einval, "it wants block sizes that were agreed upon".to_owned()),
        rep::ERR_EXT_HEADER_REQD => (Errno::Einval, "it requires extended headers".to_owned()),
        rep::ERR_INVALID => (Errno::Einval, "it calls the request invalid".to_owned()),
        rep::ERR_PLATFORM => (Errno::Eio, "it cannot do that on its platform".to_owned()),
        rep::ERR_UNSUP => (Errno::Enotsup, "it does not support the request".to_owned()),
        kind => (Errno::Eio, format!("it refuses with error {:#x}", kind & !rep::ERROR)),
    };
    match reply.data.is_empty() {
        true => OpenError::Refused(errno, why),
        false => OpenError::Refused(errno, format!("{why}: \"{}\"", quoted(&reply.data))),
    }
}

fn malformed(what: &str) -> OpenError {
    ConnectionError::new(format!("the server sent a malformed {what}")).into()
}

fn string(bytes: &[u8]) -> Option<String> {
    (bytes.len() <= MAX_STRING).then(|| std::str::from_utf8(bytes).ok().map(str::to_owned)).flatten()
}

impl Negotiation {
    /// Opens an export.
    pub(crate) async fn open(socket: Arc<Socket>, tls: &Tls, export: &str) -> Result<Session, OpenError> {
        let (mut negotiation, greeting) = Negotiation::greet(socket, tls).await?;
        let session = match greeting {
            Greeting::Oldstyle(session) => session,
            Greeting::Newstyle => negotiation.export_name(export, Format::Simple, None).await?,
            Greeting::Fixed => negotiation.fixed(export).await?,
        };
        negotiation.input.finish()?;
        if session.size > i64::MAX as u64 {
            return Err(OpenError::Refused(Errno::Eoverflow, format!("its size is {}: beyond 2^63 - 1", session.size)));
        }
        Ok(session)
    }

    /// The exports that the server shows. None if it is too old to show any.
    pub(crate) async fn list(socket: Arc<Socket>, tls: &Tls) -> Result<Option<Vec<ExportEntry>>, OpenError> {
        let (mut negotiation, greeting) = Negotiation::greet(socket, tls).await?;
        let Greeting::Fixed = greeting else {
            return Ok(None);
        };
        let exports = negotiation.list_option().await;
        negotiation.abort().await;
        exports
    }

    /// What the server calls its default export. None if it does not say.
    pub(crate) async fn default_name(socket: Arc<Socket>, tls: &Tls) -> Result<Option<String>, OpenError> {
        let (mut negotiation, greeting) = Negotiation::greet(socket, tls).await?;
        let Greeting::Fixed = greeting else {
            return Ok(None);
        };
        let (last, replies) = negotiation.ask(opt::INFO, &wanted("", &[info::NAME])).await?;
        negotiation.abort().await;
        if last.is_error() {
            return Ok(None);
        }
        Ok(replies.iter().find_map(|reply| {
            let mut reader = Reader(&reply.data);
            (reply.kind == rep::INFO && reader.u16() == Some(info::NAME)).then(|| string(reader.0)).flatten()
        }))
    }

    async fn greet(socket: Arc<Socket>, tls: &Tls) -> Result<(Negotiation, Greeting), OpenError> {
        let input = Input::new(Arc::clone(&socket));
        let mut negotiation = Negotiation { socket, input, no_zeroes: false };
        let greeting = negotiation.greeting().await?;
        negotiation.secure(&greeting, tls).await?;
        Ok((negotiation, greeting))
    }

    async fn greeting(&mut self) -> Result<Greeting, OpenError> {
        if u64::from_be_bytes(self.input.array().await?) != MAGIC {
            return Err(ConnectionError::new("this is not an NBD server: it does not begin with NBDMAGIC").into());
        }
        match u64::from_be_bytes(self.input.array().await?) {
            IHAVEOPT => {}
            OLDSTYLE_MAGIC => return Ok(Greeting::Oldstyle(self.oldstyle().await?)),
            magic => {
                return Err(ConnectionError::new(format!("the server has an unknown handshake ({magic:#018x})")).into());
            }
        }
        let offered = u16::from_be_bytes(self.input.array().await?);
        let taken = offered & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.no_zeroes = taken & FLAG_NO_ZEROES != 0;
        self.socket.send(&u32::from(taken).to_be_bytes(), &[]).await?;
        Ok(if taken & FLAG_FIXED_NEWSTYLE != 0 { Greeting::Fixed } else { Greeting::Newstyle })
    }

    async fn oldstyle(&mut self) -> Result<Session, OpenError> {
        let size = u64::from_be_bytes(self.input.array().await?);
        // The upper half are handshake flags, of which none is defined.
        let flags = u32::from_be_bytes(self.input.array().await?) as u16;
        self.input.skip(124).await?;
        Ok(Session { size, flags, block_sizes: None, description: None, format: Format::Simple, context: None })
    }

    async fn fixed(&mut self, export: &str) -> Result<Session, OpenError> {
        let format = self.format(export).await?;
        let context = if format == Format::Simple { None } else { self.allocation_context(export).await? };
        let wanted = wanted(export, &[info::DESCRIPTION, info::BLOCK_SIZE]);
        let (last, replies) = self.ask(opt::GO, &wanted).await?;
        match last.kind {
            rep::ACK => session(&replies, format, context),
            // EXPORT_NAME is not allowed with extended headers, whose server has to have GO.
            rep::ERR_UNSUP if format != Format::Extended => self.export_name(export, format, context).await,
            _ => Err(refused(export, &last)),
        }
    }

    /// The best format that the server has. A server that does not know extended headers says so
    /// and is asked for structured replies.
    async fn format(&mut self, export: &str) -> Result<Format, OpenError> {
        for (option, format) in [(opt::EXTENDED_HEADERS, Format::Extended), (opt::STRUCTURED_REPLY, Format::Structured)]
        {
            if self.accepted(export, option, &[]).await?.is_some() {
                return Ok(format);
            }
        }
        Ok(Format::Simple)
    }

    /// The id of `base:allocation`. None if the server has no such context for this export.
    async fn allocation_context(&mut self, export: &str) -> Result<Option<u32>, OpenError> {
        const NAME: &str = "base:allocation";
        let mut data = counted(export);
        data.extend_from_slice(&1_u32.to_be_bytes());
        data.extend_from_slice(&counted(NAME));
        let Some(replies) = self.accepted(export, opt::SET_META_CONTEXT, &data).await? else {
            return Ok(None);
        };
        let mut id = None;
        for reply in replies.iter().filter(|reply| reply.kind == rep::META_CONTEXT) {
            let mut reader = Reader(&reply.data);
            match reader.u32() {
                Some(number) if reader.0 == NAME.as_bytes() && id.is_none() => id = Some(number),
                _ => return Err(malformed("metadata context")),
            }
        }
        Ok(id)
    }

    async fn export_name(&mut self, export: &str, format: Format, context: Option<u32>) -> Result<Session, OpenError> {
        self.option(opt::EXPORT_NAME, export.as_bytes()).await?;
        let size: io::Result<[u8; 8]> = self.input.array().await;
        // A server has no other way to refuse a name that it does not know.
        let size = size.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => OpenError::Refused(
                Errno::Enoent,
                format!("it closed the connection when it was asked for export \"{}\"", quoted(export.as_bytes())),
            ),
            _ => error.into(),
        })?;
        let flags = u16::from_be_bytes(self.input.array().await?);
        if !self.no_zeroes {
            self.input.skip(124).await?;
        }
        let size = u64::from_be_bytes(size);
        Ok(Session { size, flags, block_sizes: None, description: None, format, context })
    }

    async fn list_option(&mut self) -> Result<Option<Vec<ExportEntry>>, OpenError> {
        self.option(opt::LIST, &[]).await?;
        let mut exports = Vec::new();
        let mut bytes = 0;
        loop {
            let reply = self.reply(opt::LIST).await?;
            match reply.kind {
                rep::ACK => return Ok(Some(exports)),
                rep::SERVER => {}
                rep::ERR_UNSUP | rep::ERR_POLICY => return Ok(None),
                _ if reply.is_error() => return Err(refused("", &reply)),
                _ => return Err(malformed("list of exports")),
            }
            bytes += reply.data.len();
            if exports.len() == MAX_EXPORTS || bytes > MAX_LIST {
                return Err(ConnectionError::new("the server has too many exports to list").into());
            }
            let mut reader = Reader(&reply.data);
            let name = reader.counted().ok_or_else(|| malformed("list of exports"))?;
            let name = string(name).ok_or_else(|| {
                let what = format!(
                    "it lists an export whose name is longer than {MAX_STRING} bytes or not UTF-8: \"{}\"",
                    quoted(name)
                );
                OpenError::Refused(Errno::Eio, what)
            })?;
            exports.push(ExportEntry { name, description: string(reader.0).filter(|text| !text.is_empty()) });
        }
    }

    async fn abort(&mut self) {
        // Some servers close at once, which an older specification allowed.
        if self.option(opt::ABORT, &[]).await.is_ok() {
            let _ = self.reply(opt::ABORT).await;
        }
    }

    pub(crate) async fn option(&self, option: u32, data: &[u8]) -> Result<(), OpenError> {
        let mut header = Vec::with_capacity(16);
        header.extend_from_slice(&IHAVEOPT.to_be_bytes());
        header.extend_from_slice(&option.to_be_bytes());
        header.extend_from_slice(&(data.len() as u32).to_be_bytes());
        Ok(self.socket.send(&header, data).await?)
    }

    pub(crate) async fn reply(&mut self, option: u32) -> Result<OptionReply, OpenError> {
        let magic = u64::from_be_bytes(self.input.array().await?);
        let echoed = u32::from_be_bytes(self.input.array().await?);
        let kind = u32::from_be_bytes(self.input.array().await?);
        let length = u32::from_be_bytes(self.input.array().await?);
        if magic != REPLY_MAGIC || echoed != option || length > MAX_REPLY {
            return Err(malformed("option reply"));
        }
        Ok(OptionReply { kind, data: self.input.vec(length as usize).await? })
    }

    /// Sends an option, and returns the last reply, which accepts or refuses, and the replies
    /// before it.
    async fn ask(&mut self, option: u32, data: &[u8]) -> Result<(OptionReply, Vec<OptionReply>), OpenError> {
        self.option(option, data).await?;
        let mut replies = Vec::new();
        let mut bytes = 0;
        loop {
            let reply = self.reply(option).await?;
            bytes += reply.data.len();
            if reply.kind == rep::ACK || reply.is_error() {
                return Ok((reply, replies));
            }
            if replies.len() == MAX_REPLIES || bytes > MAX_ANSWER {
                return Err(ConnectionError::new("the server does not come to an end with its option replies").into());
            }
            replies.push(reply);
        }
    }

    /// The replies to an optional option; none if the server refuses it.
    async fn accepted(
        &mut self,
        export: &str,
        option: u32,
        data: &[u8],
    ) -> Result<Option<Vec<OptionReply>>, OpenError> {
        let (last, replies) = self.ask(option, data).await?;
        match last.kind {
            rep::ACK => Ok(Some(replies)),
            rep::ERR_TLS_REQD | rep::ERR_SHUTDOWN => Err(refused(export, &last)),
            _ => Ok(None),
        }
    }
}

fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// The data of INFO and GO.
fn wanted(export: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = counted(export);
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend_from_slice(&info.to_be_bytes()));
    data
}

/// Reads the replies to GO.
fn session(replies: &[OptionReply], format: Format, context: Option<u32>) -> Result<Session, OpenError> {
    let (mut export, mut block_sizes, mut description) = (None, None, None);
    for reply in replies.iter().filter(|reply| reply.kind == rep::INFO) {
        let mut reader = Reader(&reply.data);
        match reader.u16().ok_or_else(|| malformed("piece of information"))? {
            info::EXPORT => export = Some(reader.u64().zip(reader.u16()).ok_or_else(|| malformed("export's size"))?),
            info::DESCRIPTION => description = string(reader.0).filter(|text| !text.is_empty()),
            info::BLOCK_SIZE => {
                let sizes = reader.u32().zip(reader.u32()).zip(reader.u32());
                let ((minimum, preferred), maximum) = sizes.ok_or_else(|| malformed("block size"))?;
                block_sizes = Some(BlockSizes { minimum, preferred, maximum }).filter(BlockSizes::is_valid);
                if block_sizes.is_none() {
                    tracing::warn!(
                        "nbd: the server announces impossible block sizes, which are ignored: minimum {minimum}, \
                            preferred {preferred}, maximum {maximum}"
                    );
                }
            }
            _ => {}
        }
    }
    let (size, flags) = export.ok_or_else(|| malformed("answer: the export's size is missing"))?;
    Ok(Session { size, flags, block_sizes, description, format, context })
}
