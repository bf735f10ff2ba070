//! The nbd plugin: serves what another NBD server serves.
//!
//! The plugin is fast because it passes each request on at once, with as many in flight on one
//! connection as clients have. A payload goes between the socket and the request's own buffer
//! without a copy. The plugin does not trust the other server: it checks everything that the server
//! sends. The first violation ends the connection, and every request in flight fails with EIO.
//!
//! | module | subject |
//! |---|---|
//! | [`config`], [`uri`], [`uri_tls`] | the parameters |
//! | [`connect`] | reaching the server: TCP, Unix, an inherited socket, a program that is started |
//! | [`handshake`], [`start_tls`] | the negotiation |
//! | [`tls_parameters`], [`tls`] | encryption: certificates and keys |
//! | [`connection`], [`table`], [`wire`] | requests in flight |
//! | [`ranges`], [`replies`] | their answers |
//! | [`handle`] | what a client sees |
//! | [`upstream`] | which connection a client gets: its own, or the shared one |

#![forbid(unsafe_code)]

mod config;
mod connect;
mod connection;
mod handle;
mod handshake;
mod ranges;
mod replies;
mod start_tls;
mod table;
mod tls;
mod tls_parameters;
mod upstream;
mod uri;
mod uri_tls;
mod wire;

use std::sync::Arc;

use rbdkit_launcher::{Launcher, Start};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, Client, ConfigError, DISK_FUNCTIONS, Errno, Error, ExportEntry, Handle, OpenArgs, Param,
    Plugin, PluginInfo, Result, StopScope, ThreadModel,
};

use config::Config;
use tls::Tls;
use upstream::Upstream;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "nbd",
    longname: "rbdkit nbd plugin",
    description: "Serves what another NBD server serves",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Nbd::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::string("uri")
            .placeholder("URI")
            .magic()
            .help("The server: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds requires TLS"),
        ParamSpec::path("socket").placeholder("SOCKET").help("The Unix socket of the server"),
        ParamSpec::string("hostname").placeholder("HOST").help("The host of the server"),
        ParamSpec::string("port")
            .placeholder("PORT")
            .default_value("10809")
            .help("With hostname: the port of the server"),
        ParamSpec::string("socket-fd")
            .placeholder("NUMBER")
            .help("An inherited descriptor of a socket that is connected to the server"),
        ParamSpec::bytes("command")
            .placeholder("PROGRAM")
            .help("Start this server, which takes its socket by systemd socket activation"),
        ParamSpec::bytes("arg").placeholder("ARGUMENT").repeat().help("With command: an argument of the program"),
        ParamSpec::string("export")
            .placeholder("NAME")
            .help("The export of the server; without it, its default export"),
        ParamSpec::bool("dynamic-export").default_value("false").help("Each client gets the export that it asks for"),
        ParamSpec::bool("shared").default_value("false").help("All clients use one connection to the server"),
        ParamSpec::string("retry")
            .placeholder("COUNT")
            .default_value("0")
            .help("Try to connect this many times more, a second apart"),
        ParamSpec::hidden("vsock"),
        ParamSpec::string("tls")
            .placeholder("MODE")
            .help("off: do not encrypt the connection; on: encrypt it if the server can; require"),
        ParamSpec::path("tls-certificates").placeholder("DIR").help("The directory of X.509 certificates"),
        ParamSpec::bool("tls-verify")
            .alias("tls-verify-peer")
            .default_value("true")
            .help("Refuse a server whose certificate is not its own"),
        ParamSpec::string("tls-hostname")
            .placeholder("NAME")
            .help("The name in the server's certificate; by default that of the host"),
        ParamSpec::path("tls-psk").placeholder("FILE").help("The file of pre-shared keys, instead of certificates"),
        ParamSpec::string("tls-username")
            .placeholder("NAME")
            .help("The user whose pre-shared key is used; by default the one who runs the program"),
    ]
}

/// Starts the program of `command=` in the helper process of a confined server.
pub const START: Start = connect::start;

#[derive(Default)]
struct Nbd {
    config: Config,
    upstream: Option<Upstream>,
}

impl Nbd {
    fn upstream(&self) -> Result<&Upstream> {
        self.upstream.as_ref().ok_or_else(|| Error::new(Errno::Enxio, "nbd: used before it was configured"))
    }
}

impl Plugin for Nbd {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.config.set(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        let settings = self.config.settings()?;
        let tls = Tls::new(&settings)?;
        let launcher = connect::words(&settings.target).map(|words| Launcher::new(INFO.name, START, words));
        self.upstream = Some(Upstream::new(settings, tls, launcher));
        Ok(())
    }

    fn after_fork(&mut self) -> Result<(), ConfigError> {
        match &self.upstream {
            Some(upstream) => upstream.prepare(),
            None => Ok(()),
        }
    }

    fn access_rights(&self) -> Option<AccessRights> {
        self.upstream.as_ref().map(Upstream::access_rights)
    }

    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        Box::pin(async { self.upstream()?.list().await })
    }

    fn default_export(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<String>> {
        Box::pin(async { Ok(self.upstream()?.default_export().await) })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move { self.upstream()?.open(&args.exportname, args.client).await })
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        let own = [
            "unload",
            "dump_plugin",
            "after_fork",
            "cleanup",
            "list_exports",
            "default_export",
            "close",
            "export_description",
            "block_size",
            "can_write",
            "can_flush",
            "is_rotational",
        ];
        [&own[..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        // Scripts ask nbdkit's plugin for these features of its library, libnbd.
        [("libnbd_tls", "1"), ("libnbd_uri", "1"), ("libnbd_vsock", "0"), ("libnbd_dynamic_list", "1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    fn stop(&self, scope: StopScope) {
        if let Some(upstream) = &self.upstream {
            upstream.stop(scope);
        }
    }

    fn cleanup(&self) {
        if let Some(upstream) = &self.upstream {
            upstream.end();
        }
    }
}

#[cfg(test)]
mod tests;
