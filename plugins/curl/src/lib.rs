//! The curl plugin: serves what an HTTP or HTTPS server has under a URL.
//!
//! Each read is a GET with a range, each write a PUT with one. Many are under way at once, over connections that are kept (or streams of one
//! HTTP/2 connection), up to `connections=`, without a thread for each: one thread drives all of libcurl's transfers and lets it
//! write what arrives straight into the request's buffer.
//!
//! **Never wrong data.** What a server answers is believed only if it says that it is the range that was asked for, of a disk of the
//! size and version that the client was told of, and if it is complete. Everything else is EIO with a sentence that says what came instead.
//! What a server can send is bounded by what was asked for.
//!
//! It is libcurl, the system's, for the user's sake: it is what nbdkit's plugin is made of, so every parameter, cookie file, proxy variable and
//! certificate store means what it means there; and the distribution keeps it safe.
//!
//! | module | what it knows |
//! |---|---|
//! | [`config`] | the parameters |
//! | [`secret`] | passwords from files, descriptors and terminals |
//! | [`setup`] | what libcurl is told of the parameters |
//! | [`script`] | `header-script` and `cookie-script` |
//! | [`head`] | what the head of an answer says, and whether it is what was asked for |
//! | [`transfer`] | one request and what comes of it |
//! | [`jar`] | the file that cookies are written back to |
//! | [`access`] | the files and network ports that requests open |
//! | [`driver`] | the thread that drives all transfers |
//! | [`remote`] | requests with what they need (scripts, a second try), the disk's size and version |
//! | [`handle`] | one client's connection |
#![deny(unsafe_code)]

mod access;
mod config;
mod driver;
mod handle;
mod head;
mod jar;
mod remote;
mod script;
mod secret;
mod setup;
mod transfer;

use std::sync::Arc;

use rbdkit_launcher::{Launcher, Start};
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, Errno, Error, Handle, OpenArgs, Param, Plugin, PluginInfo, Result,
    ThreadModel,
};

use config::Config;
use handle::CurlHandle;
use remote::Remote;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "curl",
    longname: "rbdkit curl plugin",
    description: "Serves a disk image from an HTTP or HTTPS server",
    help: "[url=]URL           (required) The disk image, http:// or https://
cainfo=FILENAME     Certificates of the authorities to be trusted
capath=DIRECTORY    The same as a directory
connections=N       Requests under way at once (default: 16)
cookie=COOKIE       Cookies to send; also +FILENAME, -FD, -
cookiefile=[FILE]   Keep the server's cookies, beginning with those of the file
cookiejar=FILENAME  The same, and write them back
cookie-script=SCRIPT, cookie-script-renew=SECS  A script that prints cookies, run again after that time
followlocation=BOOL Follow redirects (default: true)
header=HEADER       A header line to send; may be repeated
header-script=SCRIPT, header-script-renew=SECS  A script that prints header lines, run again after that time
http-version=V      none, 1.0, 1.1, 2.0, 2TLS or 2-prior-knowledge
ipresolve=any|v4|v6 Which addresses of a name to use
password=PASSWORD   Of the user; also +FILENAME, -FD, -
protocols=P,P,...   Protocols to allow, of http and https
proxy=URL           Go through this proxy
proxy-password=PASSWORD, proxy-user=USER  What the proxy asks for
resolve=HOST:PORT:ADDRESS  Where a name leads; may be repeated
sslverify=BOOL      Check the server's certificate (default: true)
ssl-cipher-list=C:C:..., tls13-ciphers=C:C:...  Ciphers to allow
ssl-version=VERSION tlsv1, tlsv1.0, tlsv1.1, tlsv1.2 or tlsv1.3
tcp-keepalive=BOOL  Probe idle connections (default: false)
tcp-nodelay=BOOL    Send small packets at once (default: true)
timeout=SECS        For each request (default: 0, none)
unix-socket-path=PATH  Connect to this Unix socket
user=USER           Who to log in as
user-agent=NAME     What to say we are (default: nothing)",
    magic_config_key: Some("url"),
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Curl::default()),
};

/// Starts scripts for a server that may not.
pub const START: Start = script::start;

#[derive(Default)]
struct Curl {
    config: Config,
    remote: Option<Arc<Remote>>,
}

impl Plugin for Curl {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        self.config.set(param)
    }

    fn config_complete(&mut self) -> Result<(), ConfigError> {
        self.config.complete()?;
        setup::check(self.config.settings())
    }

    fn after_fork(&mut self) -> Result<(), ConfigError> {
        let settings = self.config.settings();
        let launcher = Launcher::new(INFO.name, START, script::words(settings));
        self.remote = Some(Arc::new(Remote::new(settings, launcher)?));
        Ok(())
    }

    fn before_confinement(&self) -> std::io::Result<()> {
        self.remote.as_ref().map_or(Ok(()), |remote| remote.before_confinement())
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(access::access_rights(self.config.settings()))
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let Some(remote) = &self.remote else {
                return Err(Error::new(Errno::Enxio, "curl: used before it was configured"));
            };
            let disk = Arc::clone(remote).find().await?;
            Ok(Arc::new(CurlHandle::new(Arc::clone(remote), disk, args.readonly)) as Arc<dyn Handle>)
        })
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        let version = curl::Version::get();
        let mut lines = vec![("curl_version".to_string(), version.version().to_string())];
        if let Some(ssl) = version.ssl_version() {
            lines.push(("curl_ssl_version".to_string(), ssl.to_string()));
        }
        lines.push(("curl_http2".to_string(), if version.feature_http2() { "yes" } else { "no" }.to_string()));
        lines
    }
}

#[cfg(test)]
mod tests;
