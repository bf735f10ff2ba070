//! The two traits: [`Plugin`] for the whole server, [`Handle`] for one connection to one layer.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::access::AccessRights;
use crate::buffer::Buffer;
use crate::client::Client;
use crate::disk::{Disk, DiskId};
use crate::error::{ConfigError, Errno, Result};
use crate::extents::Extents;
use crate::op::{BoxFuture, Done, Op};
use crate::schema::ParamSpec;
use crate::secrets;
use crate::span::Span;
use crate::types::{BlockSizes, Capabilities, ExportEntry, Flags, RangeCommand, ThreadModel};
use crate::units;

/// nbdkit's optional functions that the equivalents of a writable disk have
/// ([`Plugin::optional_functions`]).
pub const DISK_FUNCTIONS: [&str; 13] = [
    "can_trim",
    "can_zero",
    "can_fast_zero",
    "can_extents",
    "can_fua",
    "can_multi_conn",
    "can_cache",
    "pwrite",
    "flush",
    "trim",
    "zero",
    "extents",
    "cache",
];

/// The arguments with which a connection opens a layer.
#[derive(Clone, Debug)]
pub struct OpenArgs {
    /// The layer above will not write (option `-r`, or that layer's decision).
    pub readonly: bool,
    /// The canonical name at this layer: not the empty name if the layer's default export has
    /// another name.
    pub exportname: String,
    /// The client of the connection.
    pub client: Arc<Client>,
}

/// One layer's state for one connection: what the layer above calls.
///
/// Operations run concurrently on one handle unless the layer's thread model says otherwise. The
/// gate in front of the layer has checked the arguments: `offset + length` lies within the size
/// (but it need not be aligned to the block sizes), lengths are not 0, `span` lies within the
/// buffer, a flag is only set if its capability was offered, and nothing writes to a read-only
/// handle. The payload of a write is data ([`Buffer::data`] works).
///
/// Lifecycle: (operations), finalize, close. After `close` nothing is called.
pub trait Handle: Send + Sync + 'static {
    /// The size in bytes, at most 2^63 - 1.
    fn get_size(&self) -> Op<Result<u64>>;

    /// The block sizes; none if the layer has no constraints. Asked once at most, when a client or
    /// a layer asks for them. An error counts as none.
    ///
    /// A client that asked for them keeps to them. Others need not: the host passes a request on
    /// that is not aligned or too long, and a layer that cannot serve it answers EINVAL.
    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        Op::Ready(Ok(None))
    }

    /// A description of the export for people. Asked when a client asks for it. An error counts as
    /// none.
    fn export_description(&self) -> Op<Result<Option<String>>> {
        Op::Ready(Ok(None))
    }

    /// Which disk this handle serves. Asked at most once, and only if a filter above keeps state
    /// for each disk. By default the name decides, and a name that is not listed is the default
    /// export. So a plugin with one disk, which lists only that, needs nothing here. A plugin that
    /// knows better says so: it compares the files that two names lead to, or has no list.
    ///
    /// # Errors
    /// It cannot be found out. The connection is then not opened.
    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(async { Ok(Disk::ByListedName(DiskId::DEFAULT)) })
    }

    /// What this handle can do. Asked once when it is opened, before the first operation.
    fn can(&self) -> Op<Result<Capabilities>>;

    /// Whether every call returns soon, however long the request is, because long requests are
    /// spliced ([`Buffer::splice_from`]) or sent to a thread. For other layers the server runs long
    /// requests on any idle thread. A hint, asked once when the handle is opened.
    fn is_prompt(&self) -> bool {
        false
    }

    /// Whether the gate may drop the future of a read, extents or cache operation when the client
    /// has gone. Then the layer must free the operation's buffer soon, because its bytes are given
    /// back to the server's budget with the future. A layer that cannot, such as one whose thread
    /// is blocked in a system call, is waited for. Asked once when the handle is opened.
    ///
    /// The futures of [`Plugin::open`] and [`Plugin::list_exports`] are always dropped, some time
    /// after the client has gone.
    fn drops_reads(&self) -> bool {
        false
    }

    /// The most bytes of one write, if this layer does not zero and zeroes are written instead. The
    /// layer's block sizes limit it further. 1 MiB by default: at this size the cost of a write is
    /// small compared with its I/O. More is right for a layer with a high cost for each write.
    fn zero_step(&self) -> u32 {
        1 << 20
    }

    /// Whether this layer takes requests of 4 GiB and more, up to 2^63 - 1 bytes, which clients
    /// with extended headers send. Then it answers them at once, or ends them when the client has
    /// gone. Otherwise the gate cuts them into pieces of at most 2 GiB, and asks for the extents of
    /// the first piece alone.
    fn takes_long(&self, command: RangeCommand) -> bool {
        let _ = command;
        false
    }

    /// Reads `span.len` bytes at `offset` into `span` of the buffer.
    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done>;

    /// Writes `span` of the buffer at `offset`. With `flags.fua`: durable when it is answered.
    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let _ = (span, offset, flags);
        Op::Ready((buffer, Err(Errno::Erofs.into())))
    }

    /// Makes every write that was answered before this call durable.
    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Err(Errno::Einval.into()))
    }

    /// Discards the bytes, whose content is undefined afterwards.
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let _ = (offset, length, flags);
        Op::Ready(Err(Errno::Einval.into()))
    }

    /// Makes the bytes read as zero. ENOTSUP without `flags.fast_zero` makes the gate write zeroes
    /// instead.
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let _ = (offset, length, flags);
        Op::Ready(Err(Errno::Enotsup.into()))
    }

    /// Prefetches the bytes. A hint: success does not mean that anything was done.
    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        let _ = (offset, length);
        Op::Ready(Ok(()))
    }

    /// The extents of the range: at least one, the first at `offset`. They may end before the range
    /// does. The last one should run on beyond the range as far as the layer knows without more
    /// work, so that the client has to ask less often.
    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        let _ = flags;
        Op::Ready(Ok(Extents::all_data(offset, length)))
    }

    /// The last chance to call the next layer: the client has disconnected. Called once, after the
    /// last operation has ended.
    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Ends the handle. Called once, after finalize.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A plugin: the part of it that all connections share.
///
/// Lifecycle: `set_shutdown`, `config` for each parameter, `config_complete`, `get_ready` (still in
/// the foreground, before listening), `after_fork`, `begin_serving`, then for each connection
/// `preconnect`, `list_exports` or `default_export`, `open`; at the end `cleanup`.
pub trait Plugin: Send + Sync + 'static {
    /// Gets what is notified to end the server. Called once, before the configuration, and not for
    /// a plugin that is only asked what it is (`--help`, `--dump-plugin`).
    fn set_shutdown(&mut self, shutdown: Arc<Notify>) {
        let _ = shutdown;
    }

    /// Takes one `key=value`. The server has checked it against [`PluginInfo::params`]: the key is
    /// declared (or the plugin takes other keys), and the value is of the declared kind.
    ///
    /// # Errors
    /// One line that names the parameter. For a key that the plugin does not know:
    /// [`Param::unknown`].
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError>;

    /// Checks that all required parameters were given.
    fn config_complete(&mut self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// After `config_complete`.
    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }

    /// Allocates what all connections share. The server is still in the foreground, so an error is
    /// shown to the user.
    fn get_ready(&mut self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Called in the process that serves. A plugin may start threads from here on.
    fn after_fork(&mut self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The last step before the first client: called within the runtime, after the change to the
    /// server's user. A plugin may start tasks from here on.
    fn begin_serving(&self) -> BoxFuture<'_, Result<(), ConfigError>> {
        Box::pin(async { Ok(()) })
    }

    /// A client has connected and has not negotiated yet. An error drops the connection.
    fn preconnect<'a>(&'a self, client: &'a Arc<Client>, readonly: bool) -> BoxFuture<'a, Result<()>> {
        let _ = (client, readonly);
        Box::pin(async { Ok(()) })
    }

    /// The exports to list. None: the default export alone, which is what a plugin without a list
    /// has. The host then asks for its name, once a connection, and lists nothing if that fails.
    fn list_exports<'a>(
        &'a self,
        client: &'a Arc<Client>,
        readonly: bool,
    ) -> BoxFuture<'a, Result<Option<Vec<ExportEntry>>>> {
        let _ = (client, readonly);
        Box::pin(async { Ok(None) })
    }

    /// The export that the empty name means. By default the empty name itself. Asked once for each
    /// connection, when something needs it.
    fn default_export<'a>(&'a self, client: &'a Arc<Client>, readonly: bool) -> BoxFuture<'a, Result<String>> {
        let _ = (client, readonly);
        Box::pin(async { Ok(String::new()) })
    }

    /// A client opens an export. ENOENT for a name that does not exist.
    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>>;

    /// Called before the server gives up every right except the [`Plugin::access_rights`], after
    /// the change to the server's user. A plugin that starts programs later starts its helper
    /// process here. Not called for a server that is not to be confined.
    ///
    /// # Errors
    /// The plugin cannot prepare; then the server is not confined.
    fn before_confinement(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// What the plugin opens from now on; the server gives up everything else. Called after
    /// `before_confinement`. None: the server must not be confined, because the plugin starts
    /// programs or does not declare what it needs.
    fn access_rights(&self) -> Option<AccessRights> {
        None
    }

    /// nbdkit's optional functions that this plugin has an equivalent of, by nbdkit's names.
    /// Scripts look for lines such as `has_can_trim=1` in `--dump-plugin`. The program itself adds
    /// the functions that every plugin has, such as `open` and `pread`.
    fn optional_functions(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Lines `key=value` that `--dump-plugin` adds.
    fn dump_plugin(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The server stops, and operations of the kind that `scope` names have not ended in time. They
    /// should end now with ESHUTDOWN, and so should later ones; programs that run for them are
    /// killed. Called from any thread, possibly several times. It must not block.
    fn stop(&self, scope: StopScope) {
        let _ = scope;
    }

    /// Called at the end of the server, when all connections are closed. It may block. The server
    /// does not wait for it longer than a few seconds.
    fn cleanup(&self) {}
}

/// The operations that [`Plugin::stop`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopScope {
    /// All but writes, zeroes, trims and flushes: ending them loses nothing.
    Reads,
    /// All.
    Everything,
}

/// What is known of a plugin before it is created.
#[derive(Clone, Copy)]
pub struct PluginInfo {
    /// The name on the command line.
    pub name: &'static str,
    /// For people.
    pub longname: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// The parameters it takes, in the order of `--help`.
    pub params: fn() -> Vec<ParamSpec>,
    /// The help on keys that it takes without declaring them. None: it takes no such keys.
    pub other_keys: Option<OtherKeys>,
    /// The strictest thread model that it can have, for `--dump-plugin`.
    pub max_thread_model: ThreadModel,
    /// Creates a plugin that is not configured.
    pub make: fn() -> Box<dyn Plugin>,
}

impl PluginInfo {
    /// The key of a word without a key (nbdkit's magic config key).
    pub fn magic_config_key(&self) -> Option<String> {
        (self.params)().into_iter().find(|spec| spec.magic).map(|spec| spec.name)
    }
}

/// The help on keys that a plugin takes without declaring them.
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

    /// An error about this parameter's value: `wrong` is the rest of "key=value: ...". The user and
    /// password of a URL are not shown. Not for the value of a secret.
    pub fn error(&self, wrong: impl std::fmt::Display) -> ConfigError {
        let value = secrets::without_userinfo(&self.value.to_string_lossy());
        ConfigError::new(format!("{}={value}: {wrong}", self.key))
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

    /// The error for a value that is not one of the parameter's words.
    pub fn not_one_of(&self, choices: &[&str]) -> ConfigError {
        self.error(format_args!("is not one of {}", choices.join(", ")))
    }

    /// A truth value as nbdkit writes it: `true`, `off`, `1` ([`units::parse_bool`]).
    pub fn bool(&self) -> Result<bool, ConfigError> {
        units::parse_bool(self.text()?).map_err(|wrong| self.error(wrong))
    }
}
