//! The ssh plugin: serves a file on another host, over SFTP.
//!
//! The plugin starts the user's own `ssh` program for each client, with the `sftp` subsystem, and
//! speaks SFTP with the server itself. So host keys, certificates, agents, hardware keys, jump
//! hosts and `~/.ssh/config` work as everywhere else on the machine. The cryptography is that of
//! the distribution, and runs in a process of its own. The plugin is fast because it cuts requests
//! into pieces and has the pieces of all requests in flight together.
//!
//! | module | subject |
//! |---|---|
//! | [`config`], [`expand`], [`password`] | the parameters |
//! | [`launch`] | starting `ssh`, and giving it a password |
//! | [`explain`] | the error messages of `ssh`, in one line |
//! | [`wire`], [`table`], [`replies`], [`session`] | SFTP: requests in flight and their answers |
//! | [`device`] | the size of a block device |
//! | [`open`] | connecting and opening the file |
//! | [`handle`] | what a client sees |
//!
//! Everything that the server sends is checked as if it were hostile. The first violation ends the
//! connection, and every request in flight fails with EIO.
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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rbdkit_launcher::{Launcher, Start};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, Errno, Error, Flag, Handle, OpenArgs, Param, Plugin, PluginInfo, Result,
    StopScope, ThreadModel, lock,
};

use config::{Config, Settings};
use handle::SshHandle;
use open::Access;
use session::Session;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "ssh",
    longname: "rbdkit ssh plugin",
    description: "Serves a file on another host, over SSH",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Ssh::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::string("host").placeholder("HOST").required().help("The host, or its name in ~/.ssh/config"),
        ParamSpec::path("path")
            .placeholder("PATH")
            .magic()
            .required()
            .help("The file there; a relative path begins in the home directory"),
        ParamSpec::string("user").placeholder("USER").help("The user there; without it, the one that ssh chooses"),
        ParamSpec::string("port")
            .placeholder("PORT")
            .help("The port, a number or the name of a service; without it, the one that ssh chooses"),
        ParamSpec::bytes("password")
            .placeholder("PASSWORD")
            .secret()
            .help("The password; - asks for it, +FILE reads it from a file, -FD from a descriptor"),
        ParamSpec::string("identity").placeholder("FILENAME").repeat().help("A private key to try first"),
        ParamSpec::string("known-hosts").placeholder("FILENAME").help("The file of known host keys"),
        ParamSpec::bool("verify-remote-host").default_value("true").help("Refuse a host whose key is not known"),
        ParamSpec::string("config")
            .placeholder("[FILENAME]")
            .help("Read this file instead of ~/.ssh/config; empty: read none"),
        ParamSpec::bool("compression").default_value("false").help("Compress what is sent"),
        ParamSpec::string("timeout").placeholder("SECONDS").help("Give up connecting after this time"),
        ParamSpec::bool("create")
            .default_value("false")
            .help("Create the file when the first client connects; what it held is lost"),
        ParamSpec::size("create-size").help("With create: the size of the file"),
        ParamSpec::string("create-mode")
            .placeholder("MODE")
            .default_value("0600")
            .help("With create: its permissions, in octal"),
    ]
}

/// Starts `ssh` in the helper process of a confined server.
pub const START: Start = launch::start;

#[derive(Default)]
struct Ssh {
    config: Config,
    settings: Option<Arc<Settings>>,
    launcher: Option<Arc<Launcher>>,
    /// Whether the file was created. Later clients open it.
    created: AtomicBool,
    /// Held while the first client creates the file.
    creating: tokio::sync::Mutex<()>,
    /// The sessions of clients, for the server's end.
    sessions: Mutex<Vec<Weak<Session>>>,
    /// The server stops: nobody waits for a session any more.
    stops: Flag,
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
        let mut opened = tokio::select! {
            biased;
            () = self.stops.wait() => return Err(Error::new(Errno::Eshutdown, "ssh: the connection was given up")),
            opened = open::open(launcher, settings, access) => opened?,
        };
        let mut sessions = lock(&self.sessions);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(&opened.session));
        drop(sessions);
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
        self.launcher = Some(Arc::new(Launcher::new(INFO.name, START, launch::words(&settings))));
        self.settings = Some(Arc::new(settings));
        Ok(())
    }

    fn before_confinement(&self) -> std::io::Result<()> {
        self.launcher.as_ref().map_or(Ok(false), |launcher| launcher.move_out()).map(drop)
    }

    /// The server itself opens nothing: `ssh` connects and reads, and the helper starts `ssh`.
    fn optional_functions(&self) -> Vec<&'static str> {
        vec!["unload", "close", "can_write", "can_flush", "can_fua", "can_multi_conn", "pwrite", "flush"]
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn stop(&self, scope: StopScope) {
        self.stops.set();
        lock(&self.sessions).iter().filter_map(Weak::upgrade).for_each(|session| session.stop(scope));
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move { self.handle(args.readonly).await })
    }
}

#[cfg(test)]
mod tests;
