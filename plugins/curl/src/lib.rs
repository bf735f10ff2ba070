//! The curl plugin: serves what an HTTP or HTTPS server has under a URL, and on request what an FTP
//! server has or a file of this machine.
//!
//! Each read is a GET with a range, and each write a PUT with one. Up to `connections=` requests
//! are in flight at once, over connections that are kept (or over streams of one HTTP/2
//! connection). One thread drives all transfers of libcurl, which writes what arrives straight into
//! the request's buffer.
//!
//! **Never wrong data.** An answer is accepted only if it says that it is the range that was asked
//! for, of a disk of the size and version that the client knows, and if it is complete. Everything
//! else is EIO, with a sentence that says what came instead.
//!
//! **The web server is not trusted.** Secrets go only to the server of `url=`, not where it
//! redirects to, and stand in no message. Everything that a server can send for one request has a
//! bound, and a request can be dropped at any moment.
//!
//! The plugin uses the system's libcurl, because nbdkit's plugin does too. Every parameter, cookie
//! file, proxy variable and certificate store has the same meaning in both, and the distribution
//! keeps the library up to date.
//!
//! | module | subject |
//! |---|---|
//! | [`handle`] | one client's connection |
//! | [`find`] | the disk's size and version, when a client connects |
//! | [`remote`] | requests with tokens, a second attempt, redirects and parts |
//! | [`disk`] | the disk that a client knows, and whether it has changed |
//! | [`driver`] | the thread that drives all transfers |
//! | [`setup`] | the options of libcurl |
//! | [`transfer`] | one request and its result |
//! | [`times`] | how long requests took |
//! | [`head`] | the head of an answer, and whether it is the answer to the request |
//! | [`cookies`] | the cookies that servers set |
//! | [`jar`] | the file that cookies are written to |
//! | [`script`] | `header-script` and `cookie-script` |
//! | [`identity`] | what a request says about us, and to whom |
//! | [`line`] | header lines |
//! | [`access`] | the files and network ports that requests open |
//! | [`config`] | the parameters |
//! | [`address`] | URLs |
//! | [`scheme`] | the protocols of URLs |
//! | [`secret`] | bytes that nothing prints; passwords from files, descriptors and terminals |
//! | [`redact`] | URLs for messages, without their secrets |
//! | [`raw`] | what libcurl has and the crate `curl` has not |

mod access;
mod address;
mod config;
mod cookies;
mod disk;
mod driver;
mod find;
mod handle;
mod head;
mod identity;
mod jar;
mod line;
mod raw;
mod redact;
mod remote;
mod scheme;
mod script;
mod secret;
mod setup;
mod times;
mod transfer;

use std::sync::Arc;

use rbdkit_launcher::{Launcher, Start};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, Errno, Error, Handle, OpenArgs, Param, Plugin, PluginInfo, Result, StopScope,
    ThreadModel,
};

use config::Config;
use handle::CurlHandle;
use remote::Remote;
use scheme::Scheme;

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "curl",
    longname: "rbdkit curl plugin",
    description: "Serves a disk image from an HTTP or HTTPS server",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Curl::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::string("url")
            .placeholder("URL")
            .magic()
            .required()
            .secret()
            .help("The disk image, http:// or https://; with protocols= also ftp://, ftps:// and file://"),
        ParamSpec::path("cainfo")
            .placeholder("[FILENAME]")
            .help("File of the certificate authorities to trust; empty: no file"),
        ParamSpec::path("capath").placeholder("DIRECTORY").help("Directory of the certificate authorities to trust"),
        ParamSpec::bool("check-changes")
            .default_value("true")
            .help("A version of the disk that differs (ETag, Last-Modified) is an error"),
        ParamSpec::string("connections")
            .placeholder("N")
            .default_value("16")
            .help("Requests under way at once, 1 to 1024"),
        ParamSpec::bytes("cookie")
            .placeholder("COOKIES")
            .secret()
            .help("Cookies to send: NAME=VALUE; NAME=VALUE. Or +FILENAME, -FD, -"),
        ParamSpec::path("cookiefile")
            .placeholder("[FILENAME]")
            .help("Keep the server's cookies, beginning with those of the file"),
        ParamSpec::path("cookiejar").help("As cookiefile, and write the cookies back"),
        ParamSpec::bytes("cookie-script").secret().placeholder("SCRIPT").help("A shell script that prints cookies"),
        ParamSpec::string("cookie-script-renew")
            .placeholder("SECONDS")
            .default_value("0")
            .help("Run cookie-script again after this time; 0: never"),
        ParamSpec::bool("followlocation").default_value("true").help("Follow redirects"),
        ParamSpec::bytes("header").secret().placeholder("LINE").repeat().help("A header line to send"),
        ParamSpec::bytes("header-script")
            .secret()
            .placeholder("SCRIPT")
            .help("A shell script that prints header lines"),
        ParamSpec::string("header-script-renew")
            .placeholder("SECONDS")
            .default_value("0")
            .help("Run header-script again after this time; 0: never"),
        ParamSpec::string("http-version")
            .placeholder("VERSION")
            .help("none, 1.0, 1.1, 2.0, 2TLS, 2-prior-knowledge, 3 or 3only; without it, libcurl's choice"),
        ParamSpec::string("interface").placeholder("NAME").help("Connect from this network interface, address or host"),
        ParamSpec::string("ipresolve")
            .placeholder("any|v4|v6")
            .default_value("any")
            .help("Which addresses of a host name to use"),
        ParamSpec::string("location-trusted")
            .placeholder("NAME,...")
            .help("Header lines that also go to other servers after a redirect: Cookie,Authorization,X-Token"),
        ParamSpec::bytes("password")
            .placeholder("PASSWORD")
            .secret()
            .help("The password of the user. Or +FILENAME, -FD, -"),
        ParamSpec::string("protocols")
            .placeholder("P,P,...")
            .default_value("http,https")
            .help("Protocols that the URL and redirects may use"),
        ParamSpec::string("proxy").secret().placeholder("[URL]").help("Go through this proxy; empty: through none"),
        ParamSpec::path("proxy-cainfo").placeholder("[FILENAME]").help("As cainfo, for an https:// proxy"),
        ParamSpec::path("proxy-capath").placeholder("DIRECTORY").help("As capath, for an https:// proxy"),
        ParamSpec::bytes("proxy-user").secret().placeholder("USER").help("The user to log in to the proxy as"),
        ParamSpec::bytes("proxy-password")
            .placeholder("PASSWORD")
            .secret()
            .help("The password of that user. Or +FILENAME, -FD, -"),
        ParamSpec::string("resolve")
            .placeholder("HOST:PORT:ADDRESS")
            .repeat()
            .help("Use this address for that host and port"),
        ParamSpec::bool("sslverify").default_value("true").help("Check the server's certificate and its name"),
        ParamSpec::string("ssl-cipher-list").placeholder("C:C:...").help("Ciphers to allow up to TLS 1.2"),
        ParamSpec::string("tls13-ciphers").placeholder("C:C:...").help("Ciphers to allow in TLS 1.3"),
        ParamSpec::string("ssl-version")
            .placeholder("VERSION")
            .help("The lowest version: default, tlsv1, tlsv1.0, tlsv1.1, tlsv1.2 or tlsv1.3; with max-, the highest"),
        ParamSpec::string("stall-timeout")
            .placeholder("SECONDS")
            .default_value("300")
            .help("Give up a request that makes no progress for this time; 0: never"),
        ParamSpec::bool("tcp-keepalive").default_value("false").help("Probe idle connections"),
        ParamSpec::bool("tcp-nodelay").default_value("true").help("Send small packets at once"),
        ParamSpec::string("timeout")
            .placeholder("SECONDS")
            .default_value("0")
            .help("Give up a request after this time; 0: never"),
        ParamSpec::path("unix-socket-path")
            .placeholder("PATH")
            .alias("unix_socket_path")
            .help("Connect to this Unix socket"),
        ParamSpec::bytes("user").secret().placeholder("USER").help("The user to log in as"),
        ParamSpec::bytes("user-agent")
            .placeholder("NAME")
            .alias("useragent")
            .help("The User-Agent header; without it, none is sent"),
    ]
}

/// Starts scripts in the helper process of a confined server.
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
            let disk = find::find(remote).await?;
            // Only web servers can write a range.
            let readonly = args.readonly || !remote.scheme().is_web();
            Ok(Arc::new(CurlHandle::new(Arc::clone(remote), disk, readonly)) as Arc<dyn Handle>)
        })
    }

    fn cleanup(&self) {
        if let Some(remote) = &self.remote {
            remote.times().log();
        }
    }

    fn stop(&self, scope: StopScope) {
        if let Some(remote) = &self.remote {
            remote.stop(scope);
        }
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        vec!["load", "unload", "dump_plugin", "after_fork", "cleanup", "close", "can_write", "can_multi_conn", "pwrite"]
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        let version = curl::Version::get();
        let mut lines = vec![("curl_version".to_string(), version.version().to_string())];
        if let Some(ssl) = version.ssl_version() {
            lines.push(("curl_ssl_version".to_string(), ssl.to_string()));
        }
        let has = |name: &str| version.protocols().any(|known| known == name);
        for protocol in Scheme::ALL.map(Scheme::name).into_iter().filter(|name| has(name)) {
            lines.push((format!("curl_protocol_{protocol}"), "yes".to_string()));
        }
        lines.push(("curl_http2".to_string(), if version.feature_http2() { "yes" } else { "no" }.to_string()));
        lines
    }
}

#[cfg(test)]
mod tests;
