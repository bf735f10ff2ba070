//! The ssh plugin: a file on another host, over SFTP.
//!
//! The connection is made by the user's own `ssh` program, which is started for each client with the `sftp` subsystem; the SFTP protocol is
//! ours. So host keys, certificates, agents, hardware keys, jump hosts and `~/.ssh/config` mean here what they mean everywhere else on the
//! machine, and the cryptography is the one that the distribution keeps up to date; it also runs in a process of its own, beside
//! ours. What matters for speed is how SFTP is spoken: a request is cut into pieces, and the pieces of all requests are in flight together.
//!
//! | module | what it knows |
//! |---|---|
//! | [`config`], [`expand`], [`password`] | the parameters |
//! | [`launch`] | how `ssh` is started, and how it gets a password |
//! | [`said`] | what `ssh` says when it fails, in one line |
//! | [`wire`], [`table`], [`replies`], [`session`] | SFTP: requests in flight and their answers |
//! | [`device`] | the size of a block device |
//! | [`handle`] | what a client sees |
//!
//! What the server sends is checked as if it were hostile: the first violation ends the connection, and every request that is
//! in flight fails with EIO.
#![forbid(unsafe_code)]

mod config;
mod device;
mod expand;
mod explain;
mod handle;
mod launch;
mod open;
mod password;
mod replies;
mod session;
mod table;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_launcher::{Launcher, Start};
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, Errno, Error, Handle, OpenArgs, Param, Plugin, PluginInfo, Result,
    ThreadModel,
};

use config::{Config, Settings};
use handle::SshHandle;
use open::Access;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "ssh",
    longname: "rbdkit ssh plugin",
    description: "Serves a file on another host, over SSH",
    help: "host=HOST           (required) The host, or its name in ~/.ssh/config
[path=]PATH         (required) The file there; a relative path begins in the home directory
user=USER           The user there (default: as ssh has it)
port=PORT           The port, as a number or by the name of a service (default: as ssh has it)
password=PASSWORD   The password; - asks for it, +FILE reads it from a file, -FD from a descriptor
identity=FILENAME   A private key; may be repeated
known-hosts=FILE    The file of known host keys
verify-remote-host=BOOL Whether the host's key has to be a known one (default true)
config=FILENAME     The file to read in place of ~/.ssh/config; empty for none
compression=BOOL    Compress what is sent (default false)
timeout=SECONDS     How long connecting may take
create=BOOL         Create the file, empty, for the first client (default false)
create-size=SIZE    The size of the file that is created
create-mode=MODE    Its permissions, in octal (default 0600)",
    magic_config_key: Some("path"),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Ssh::default()),
};

/// Starts `ssh` for a server that may not.
pub const START: Start = launch::start;

#[derive(Default)]
struct Ssh {
    config: Config,
    settings: Option<Arc<Settings>>,
    launcher: Option<Launcher>,
    /// The file was created: later clients open what is there.
    created: AtomicBool,
    /// Held while the first client creates the file.
    creating: tokio::sync::Mutex<()>,
}

impl Ssh {
    async fn handle(&self, readonly: bool) -> Result<Arc<dyn Handle>> {
        let (Some(settings), Some(launcher)) = (&self.settings, &self.launcher) else {
            return Err(Error::new(Errno::Enxio, "ssh: used before it was configured"));
        };
        let _turn = match settings.create {
            Some(_) if !self.created.load(Ordering::Acquire) => Some(self.creating.lock().await),
            _ => None,
        };
        let access = match settings.create.filter(|_| !self.created.load(Ordering::Acquire)) {
            Some(create) => Access::Create(create),
            None if readonly => Access::ReadOnly,
            None => Access::ReadWrite,
        };
        let mut opened = open::open(launcher, settings, access).await?;
        opened.writable &= !readonly;
        self.created.store(true, Ordering::Release);
        Ok(Arc::new(SshHandle::new(opened)))
    }
}

impl Plugin for Ssh {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.config.set(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        let settings = self.config.settings()?;
        self.launcher = Some(Launcher::new(INFO.name, START, launch::words(&settings)));
        self.settings = Some(Arc::new(settings));
        Ok(())
    }

    fn before_confinement(&self) -> std::io::Result<()> {
        self.launcher.as_ref().map_or(Ok(false), Launcher::move_out).map(drop)
    }

    /// It is `ssh` that connects and reads, and the helper that starts it.
    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move { self.handle(args.readonly).await })
    }
}

#[cfg(test)]
mod tests;
