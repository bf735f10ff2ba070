//! The two traits: [`Plugin`] for the whole server, [`Handle`] for one connection to one layer.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::access::AccessRights;
use crate::buffer::Buffer;
use crate::error::{ConfigError, Errno, Result};
use crate::extents::Extents;
use crate::op::{BoxFuture, Done, Op};
use crate::schema::ParamSpec;
use crate::span::Span;
use crate::types::{BlockSizes, Capabilities, ExportEntry, Flags, ThreadModel};
use crate::units;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// TCP over IPv4 or IPv6.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix,
    /// AF_VSOCK.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// Standard input and output, or not to be found out.
    Unknown,
}

/// One client connection, shared by all layers' handles for it.
#[derive(Debug)]
pub struct Client {
    /// Never reused while the server runs.
    pub id: u64,
    /// The other end.
    pub peer: Peer,
    /// Process, user and group id where the kernel tells (Unix sockets).
    pub credentials: Option<(i64, i64, i64)>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    gone: Flag,
    unwanted: Flag,
}

/// Something that happens once and can be waited for.
#[derive(Debug, Default)]
struct Flag {
    raised: AtomicBool,
    told: Notify,
}

impl Flag {
    fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    async fn raised(&self) {
        loop {
            let told = self.told.notified();
            let mut told = std::pin::pin!(told);
            // In the line before it is looked, so that nothing is missed in between.
            told.as_mut().enable();
            if self.is_raised() {
                return;
            }
            told.await;
        }
    }
}

impl Client {
    /// A client that is connected.
    pub fn new(id: u64, peer: Peer, credentials: Option<(i64, i64, i64)>, tls: bool) -> Client {
        Client { id, peer, credentials, tls, gone: Flag::default(), unwanted: Flag::default() }
    }

    /// Says that the client has disconnected or the server stops: what waits for its sake may give up.
    pub fn set_gone(&self) {
        self.gone.raise();
    }

    /// Whether [`Client::set_gone`] was called.
    pub fn is_gone(&self) -> bool {
        self.gone.is_raised()
    }

    /// Returns once [`Client::set_gone`] was called.
    pub async fn until_gone(&self) {
        self.gone.raised().await;
    }

    /// A layer wants the server to close this connection: what it would answer from now on is of no use to anybody.
    pub fn disconnect(&self) {
        self.unwanted.raise();
    }

    /// Whether [`Client::disconnect`] was called.
    pub fn is_disconnect_requested(&self) -> bool {
        self.unwanted.is_raised()
    }

    /// Returns once [`Client::disconnect`] was called: the server reads no more requests of this client, lets those under way end, and closes.
    pub async fn until_disconnect_requested(&self) {
        self.unwanted.raised().await;
    }
}

/// What a layer is told when a connection opens it.
#[derive(Clone, Debug)]
pub struct OpenArgs {
    /// The server promises not to write (option `-r`, or the layer above asks for it).
    pub readonly: bool,
    /// The canonical name at this layer: never the empty name if the layer has a default export of another name.
    pub exportname: String,
    /// Whose connection it is.
    pub client: Arc<Client>,
}

/// One layer's state for one connection: what the layer above calls.
///
/// Operations run concurrently on one handle unless the layer's thread model says otherwise. The gate has checked ranges, flags
/// and read-only before it calls: `offset + length` lies within the size, lengths are not 0, `span` lies within the buffer
/// and a flag is only set if its capability was offered. A payload arrives as data ([`Buffer::data`] works).
///
/// Lifecycle: (operations), finalize, close. After `close` nothing is called.
pub trait Handle: Send + Sync + 'static {
    /// The size in bytes, at most 2^63 - 1.
    fn get_size(&self) -> Op<Result<u64>>;

    /// The block sizes, if there is anything to say.
    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        Op::Ready(Ok(None))
    }

    /// A description of the export for people.
    fn export_description(&self) -> Op<Result<Option<String>>> {
        Op::Ready(Ok(None))
    }

    /// What this handle can do. Asked once when it is opened, before the first operation.
    fn can(&self) -> Op<Result<Capabilities>>;

    /// Whether a call returns soon however long the request is: long requests are spliced ([`Buffer::splice_from`]) or sent to a thread. If not,
    /// long requests are called on whichever thread is idle. Asked once when it is opened; a hint.
    fn is_prompt(&self) -> bool {
        false
    }

    /// Reads `span.len` bytes at `offset` into `span` of the buffer.
    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done>;

    /// Writes `span` of the buffer at `offset`. With `flags.fua`: durable when it is answered.
    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let _ = (span, offset, flags);
        Op::Ready((buffer, Err(Errno::Erofs.into())))
    }

    /// Makes every write that was answered before it durable.
    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Err(Errno::Einval.into()))
    }

    /// Discards: the bytes may read as anything afterwards.
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let _ = (offset, length, flags);
        Op::Ready(Err(Errno::Einval.into()))
    }

    /// Makes the bytes read as zero. ENOTSUP without `flags.fast_zero` makes the gate write zeroes instead.
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let _ = (offset, length, flags);
        Op::Ready(Err(Errno::Enotsup.into()))
    }

    /// Brings the bytes nearer. Advisory: success says nothing of what was done.
    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        let _ = (offset, length);
        Op::Ready(Ok(()))
    }

    /// What is known of the range: at least one extent, the first at `offset`; it may end early or late.
    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        let _ = flags;
        Op::Ready(Ok(Extents::all_data(offset, length)))
    }

    /// The last chance to work with next: the client has disconnected. Called once, after the last operation has ended.
    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Ends the handle. Called once, after finalize.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A plugin: everything that is not of one connection.
///
/// Lifecycle: `config` for each parameter, `config_complete`, `get_ready` (still in the foreground, before listening), `after_fork`,
/// then for each connection `preconnect`, `list_exports` or `default_export`, `open`; at the end `cleanup`.
pub trait Plugin: Send + Sync + 'static {
    /// Takes one `key=value`. The server has checked it against [`PluginInfo::params`]: the key is
    /// declared (or the plugin takes other keys), and the value is of the declared kind.
    ///
    /// # Errors
    /// One line that names the parameter. For a key that the plugin does not know: [`Param::unknown`].
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError>;

    /// Checks that what is needed was given.
    fn config_complete(&mut self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// After `config_complete`.
    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }

    /// Allocates what all connections share. The last call whose error ends the start with a message to the user.
    fn get_ready(&mut self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// In the process that serves; threads may be started from here on.
    fn after_fork(&mut self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// A client has connected, nothing has been negotiated. An error drops the connection.
    fn preconnect(&self, readonly: bool) -> BoxFuture<'_, Result<()>> {
        let _ = readonly;
        Box::pin(async { Ok(()) })
    }

    /// The exports to be shown. By default the one default export.
    fn list_exports(&self, readonly: bool, tls: bool) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            let name = self.default_export(readonly, tls).await?;
            Ok(vec![ExportEntry { name, description: None }])
        })
    }

    /// What the empty export name stands for. By default itself.
    fn default_export(&self, readonly: bool, tls: bool) -> BoxFuture<'_, Result<String>> {
        let _ = (readonly, tls);
        Box::pin(async { Ok(String::new()) })
    }

    /// A client opens an export. ENOENT for a name that does not exist.
    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>>;

    /// Called before the server gives up every right but the [`Plugin::access_rights`], already as the user that serves. A plugin that
    /// starts programs later moves their start into another process here. Not called for a server that is not to be confined.
    ///
    /// # Errors
    /// The plugin cannot prepare; the server is not confined then.
    fn before_confinement(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// What the plugin opens outside of the process from now on; the server gives up everything else. Called after
    /// `before_confinement`. None: the server must not be confined, because the plugin starts programs, or because nothing is known.
    fn access_rights(&self) -> Option<AccessRights> {
        None
    }

    /// Lines `key=value` that `--dump-plugin` adds.
    fn dump_plugin(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The server ends; all connections are closed.
    fn cleanup(&self) {}
}

/// What is known of a plugin before it is made.
#[derive(Clone, Copy)]
pub struct PluginInfo {
    /// What the command line says.
    pub name: &'static str,
    /// For people.
    pub longname: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// The parameters it takes, in the order of `--help`.
    pub params: fn() -> Vec<ParamSpec>,
    /// How help shows that it takes keys it does not declare. None: it takes no others.
    pub other_keys: Option<OtherKeys>,
    /// The strictest thread model that it can have, for `--dump-plugin`.
    pub max_thread_model: ThreadModel,
    /// Makes one, not configured.
    pub make: fn() -> Box<dyn Plugin>,
}

impl PluginInfo {
    /// The key that a word without one stands for (nbdkit's magic config key).
    pub fn magic_config_key(&self) -> Option<String> {
        (self.params)().into_iter().find(|spec| spec.magic).map(|spec| spec.name)
    }
}

/// A plugin takes keys that it does not declare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherKeys {
    /// What stands for them in `--help`: `KEY=VALUE`.
    pub form: &'static str,
    /// One sentence without a full stop.
    pub help: &'static str,
}

/// One `key=value` of the command line, on its way to a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Param<'a> {
    /// ASCII letters, digits, `.`, `_` and `-`.
    pub key: &'a str,
    /// As the user wrote it.
    pub value: &'a OsStr,
}

impl<'a> Param<'a> {
    /// The error for a key that the plugin does not have.
    pub fn unknown(&self, plugin: &str) -> ConfigError {
        ConfigError::new(format!(
            "{plugin}: unknown parameter '{}' (rbdkit {plugin} --help lists those it has)",
            self.key
        ))
    }

    /// An error about this parameter's value: `wrong` is the rest of "key=value: ...".
    pub fn error(&self, wrong: impl std::fmt::Display) -> ConfigError {
        ConfigError::new(format!("{}={}: {wrong}", self.key, self.value.to_string_lossy()))
    }

    /// The value as text.
    pub fn text(&self) -> Result<&'a str, ConfigError> {
        self.value.to_str().ok_or_else(|| self.error("is not UTF-8 text"))
    }

    /// The value as a path.
    pub fn path(&self) -> &'a Path {
        Path::new(self.value)
    }

    /// A size as nbdkit writes it: `512`, `1M`, `2G` ([`units::parse_size`]).
    pub fn size(&self) -> Result<u64, ConfigError> {
        units::parse_size(self.text()?).map_err(|wrong| self.error(wrong))
    }

    /// The error for a value that is none of the words that the parameter takes.
    pub fn not_one_of(&self, choices: &[&str]) -> ConfigError {
        self.error(format_args!("is not one of {}", choices.join(", ")))
    }

    /// A truth value as nbdkit writes it: `true`, `off`, `1` ([`units::parse_bool`]).
    pub fn bool(&self) -> Result<bool, ConfigError> {
        units::parse_bool(self.text()?).map_err(|wrong| self.error(wrong))
    }
}
