//! The parameters, and what they mean together.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use curl::easy::{IpResolve, SslVersion};
use rbdkit_plugin_api::{ConfigError, Param, units};

use crate::address::Address;
use crate::line::Line;
use crate::redact;
use crate::scheme::{Protocols, Scheme};
use crate::secret::{self, Secret};

/// The parameters of the command line. [`crate::setup`] gives them to libcurl.
#[derive(Clone)]
pub(crate) struct Settings {
    /// `url=` as the user wrote it, which scripts get.
    pub(crate) url: String,
    /// What the URL means. There is one once the parameters are complete.
    pub(crate) address: Option<Arc<Address>>,
    /// `cainfo=`. An empty path: not even the system's file.
    pub(crate) cainfo: Option<PathBuf>,
    pub(crate) capath: Option<PathBuf>,
    /// An answer of another version of the disk is an error.
    pub(crate) check_changes: bool,
    /// Requests under way at once, at least 1.
    pub(crate) connections: usize,
    pub(crate) cookie: Option<Secret>,
    /// `cookiefile=`, or without it `cookiejar=`. An empty path: begin with no cookies.
    pub(crate) cookiefile: Option<PathBuf>,
    pub(crate) cookiejar: Option<PathBuf>,
    pub(crate) cookie_script: Option<OsString>,
    pub(crate) cookie_script_renew: Duration,
    pub(crate) followlocation: bool,
    pub(crate) headers: Vec<Line>,
    pub(crate) header_script: Option<OsString>,
    pub(crate) header_script_renew: Duration,
    pub(crate) http_version: Option<HttpVersion>,
    /// The name of a network interface, an address or a host to connect from.
    pub(crate) interface: Option<String>,
    pub(crate) ipresolve: IpResolve,
    /// Names of headers that other servers get too, in lower case.
    pub(crate) location_trusted: Vec<String>,
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    /// What the URL and redirects may use.
    pub(crate) protocols: Protocols,
    pub(crate) proxy: Option<String>,
    /// As `cainfo`, for a proxy.
    pub(crate) proxy_cainfo: Option<PathBuf>,
    pub(crate) proxy_capath: Option<PathBuf>,
    pub(crate) proxy_user: Option<Secret>,
    pub(crate) proxy_password: Option<Secret>,
    pub(crate) resolve: Vec<String>,
    pub(crate) sslverify: bool,
    pub(crate) ssl_cipher_list: Option<String>,
    pub(crate) tls13_ciphers: Option<String>,
    /// The lowest and the highest version.
    pub(crate) ssl_version: Option<(SslVersion, SslVersion)>,
    /// How long a request may go without progress.
    pub(crate) stall_timeout: Option<Duration>,
    pub(crate) tcp_keepalive: bool,
    pub(crate) tcp_nodelay: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) unix_socket_path: Option<PathBuf>,
    pub(crate) user_agent: Option<Secret>,
}

/// A version of HTTP, as libcurl numbers them (`CURL_HTTP_VERSION_`). The crate `curl` does not
/// have all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpVersion(pub(crate) i32);

/// The default of `stall-timeout=`. An attempt to connect may take as long.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(crate) struct Config {
    settings: Settings,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            url: String::new(),
            address: None,
            cainfo: None,
            capath: None,
            check_changes: true,
            connections: 16,
            cookie: None,
            cookiefile: None,
            cookiejar: None,
            cookie_script: None,
            cookie_script_renew: Duration::ZERO,
            followlocation: true,
            headers: Vec::new(),
            header_script: None,
            header_script_renew: Duration::ZERO,
            http_version: None,
            interface: None,
            ipresolve: IpResolve::Any,
            location_trusted: Vec::new(),
            user: None,
            password: None,
            protocols: Protocols::WEB,
            proxy: None,
            proxy_cainfo: None,
            proxy_capath: None,
            proxy_user: None,
            proxy_password: None,
            resolve: Vec::new(),
            sslverify: true,
            ssl_cipher_list: None,
            tls13_ciphers: None,
            ssl_version: None,
            stall_timeout: Some(STALL_TIMEOUT),
            tcp_keepalive: false,
            tcp_nodelay: true,
            timeout: None,
            unix_socket_path: None,
            user_agent: None,
        }
    }
}

/// The names that nbdkit knows, so that a list written for nbdkit is not refused.
const PROTOCOLS: &[&str] = &[
    "dict", "file", "ftp", "ftps", "gopher", "http", "https", "imap", "imaps", "ldap", "ldaps", "mqtt", "pop3",
    "pop3s", "rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtsp", "scp", "sftp", "smb", "smbs", "smtp",
    "smtps", "telnet", "tftp",
];

impl Config {
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        let settings = &mut self.settings;
        match param.key {
            "url" => {
                let (url, address) = url(param)?;
                settings.url = url;
                settings.address = Some(Arc::new(address));
            }
            "cainfo" if param.value.is_empty() => settings.cainfo = Some(PathBuf::new()),
            "cainfo" => settings.cainfo = Some(existing(param)?),
            "capath" => settings.capath = Some(existing(param)?),
            "check-changes" => settings.check_changes = param.bool()?,
            "connections" => {
                settings.connections = match number(param)? {
                    n @ 1..=1024 => n as usize,
                    _ => return Err(param.error("has to be from 1 to 1024")),
                }
            }
            "cookie" => settings.cookie = Some(printable(param, secret::read(param)?)?),
            "cookiefile" | "cookiejar" if param.value == "-" => {
                return Err(param.error("cookies cannot come from standard input: give a file"));
            }
            "cookiefile" if param.value.is_empty() => settings.cookiefile = Some(PathBuf::new()),
            "cookiefile" => settings.cookiefile = Some(absolute(param)?),
            "cookiejar" => settings.cookiejar = Some(absolute(param)?),
            "cookie-script" => settings.cookie_script = Some(param.value.to_os_string()),
            "cookie-script-renew" => settings.cookie_script_renew = Duration::from_secs(number(param)?.into()),
            "followlocation" => settings.followlocation = param.bool()?,
            "header" => settings.headers.push(header(param)?),
            "header-script" => settings.header_script = Some(param.value.to_os_string()),
            "header-script-renew" => settings.header_script_renew = Duration::from_secs(number(param)?.into()),
            "http-version" => settings.http_version = http_version(param)?,
            "interface" => settings.interface = Some(line(param)?),
            "ipresolve" => {
                settings.ipresolve = match param.text()? {
                    "any" | "whatever" => IpResolve::Any,
                    "v4" | "4" => IpResolve::V4,
                    "v6" | "6" => IpResolve::V6,
                    _ => return Err(param.error("is not one of any, v4, v6")),
                }
            }
            "location-trusted" => settings.location_trusted = names(param)?,
            "password" => settings.password = Some(secret::read(param)?),
            "protocols" => settings.protocols = protocols(param)?,
            "proxy" => settings.proxy = Some(proxy(param)?),
            "proxy-cainfo" if param.value.is_empty() => settings.proxy_cainfo = Some(PathBuf::new()),
            "proxy-cainfo" => settings.proxy_cainfo = Some(existing(param)?),
            "proxy-capath" => settings.proxy_capath = Some(existing(param)?),
            "proxy-password" => settings.proxy_password = Some(secret::read(param)?),
            "proxy-user" => settings.proxy_user = Some(bytes(param)?),
            "resolve" => settings.resolve.push(line(param)?),
            "sslverify" => settings.sslverify = param.bool()?,
            "ssl-cipher-list" => settings.ssl_cipher_list = Some(line(param)?),
            "tls13-ciphers" => settings.tls13_ciphers = Some(line(param)?),
            "ssl-version" => settings.ssl_version = ssl_version(param)?,
            "stall-timeout" => settings.stall_timeout = seconds(param)?,
            "tcp-keepalive" => settings.tcp_keepalive = param.bool()?,
            "tcp-nodelay" => settings.tcp_nodelay = param.bool()?,
            "timeout" => settings.timeout = seconds(param)?,
            "unix-socket-path" | "unix_socket_path" => settings.unix_socket_path = Some(absolute(param)?),
            "user" => settings.user = Some(bytes(param)?),
            "user-agent" | "useragent" => settings.user_agent = Some(bytes(param)?),
            _ => return Err(param.unknown("curl")),
        }
        Ok(())
    }

    /// Checks the parameters together.
    pub(crate) fn complete(&mut self) -> Result<(), ConfigError> {
        let settings = &mut self.settings;
        let wrong = |what: &str| Err(ConfigError::new(format!("curl: {what}")));
        let Some(address) = &settings.address else {
            return wrong("what to serve has to be given: [url=]URL");
        };
        if !settings.allows(address) {
            return wrong(&not_allowed(address.origin.scheme));
        }
        if let Some(path) = &address.path {
            // libcurl would wait for ever to open a pipe.
            let what = |error: &dyn std::fmt::Display| ConfigError::new(format!("url={}: {error}", address.file));
            let metadata = path.metadata().map_err(|error| what(&error))?;
            if !metadata.is_file() {
                return Err(what(&"is not a regular file"));
            }
        }
        if !address.origin.scheme.is_web()
            && settings.proxy.as_ref().is_some_and(|proxy| !proxy.is_empty() && !proxy.starts_with("socks"))
        {
            return wrong("ftp and ftps go only through a socks proxy");
        }
        if !settings.headers.is_empty() && settings.header_script.is_some() {
            return wrong("header= and header-script= cannot be used at the same time");
        }
        if settings.cookie.is_some() && settings.cookie_script.is_some() {
            return wrong("cookie= and cookie-script= cannot be used at the same time");
        }
        if !settings.header_script_renew.is_zero() && settings.header_script.is_none() {
            return wrong("header-script-renew= cannot be used without header-script=");
        }
        if !settings.cookie_script_renew.is_zero() && settings.cookie_script.is_none() {
            return wrong("cookie-script-renew= cannot be used without cookie-script=");
        }
        if settings.cookiefile.is_none() {
            settings.cookiefile.clone_from(&settings.cookiejar);
        }
        Ok(())
    }
}

/// The error about a protocol that the user has not allowed.
fn not_allowed(scheme: Scheme) -> String {
    let name = scheme.name();
    match scheme {
        Scheme::Http | Scheme::Https => "protocols= does not allow the protocol of url=".into(),
        Scheme::File => format!("{name} is served only with protocols={name} (the file plugin serves files better)"),
        Scheme::Ftp | Scheme::Ftps => format!("{name} is served only with protocols={name}"),
    }
}

impl Settings {
    /// Whether `protocols=` allows the protocol of this address.
    pub(crate) fn allows(&self, address: &Address) -> bool {
        self.protocols.allows(address.origin.scheme)
    }
}

/// The URL. The error shows it without its secrets.
fn url(param: Param<'_>) -> Result<(String, Address), ConfigError> {
    let text = param.value.to_str().ok_or_else(|| {
        ConfigError::new("url: is not UTF-8 text (in a URL other bytes are written %XX, two hexadecimal digits)")
    })?;
    if text.bytes().any(is_control) {
        return Err(ConfigError::new("url: contains control characters"));
    }
    match Address::parse(text.as_bytes()) {
        Ok(address) => Ok((text.to_string(), address)),
        Err(wrong) => Err(ConfigError::new(format!("url={}: {wrong}", redact::url(text)))),
    }
}

/// The proxy: libcurl's text for it. The error shows it without user and password.
fn proxy(param: Param<'_>) -> Result<String, ConfigError> {
    let wrong = |what: &str| ConfigError::new(format!("proxy={}: {what}", redact::url(&param.value.to_string_lossy())));
    let text = param.value.to_str().ok_or_else(|| wrong("is not UTF-8 text"))?;
    if text.bytes().any(is_control) {
        return Err(ConfigError::new("proxy: contains control characters"));
    }
    let scheme = text.split_once("://").map_or("http", |(scheme, _)| scheme).to_ascii_lowercase();
    match PROXY_SCHEMES.contains(&scheme.as_str()) {
        true => Ok(text.to_string()),
        false => Err(wrong(&format!("is not a proxy that libcurl has: {}", PROXY_SCHEMES.join(", ")))),
    }
}

/// The kinds of proxies that libcurl has.
const PROXY_SCHEMES: &[&str] = &["http", "https", "socks4", "socks4a", "socks5", "socks5h"];

fn is_control(byte: u8) -> bool {
    byte < b' ' && byte != b'\t' || byte == 0x7f
}

/// One line of text that is not a secret.
fn line(param: Param<'_>) -> Result<String, ConfigError> {
    let text = param.text()?;
    match text.bytes().any(is_control) {
        true => Err(ConfigError::new(format!("{}: contains control characters", param.key))),
        false => Ok(text.to_string()),
    }
}

/// One line of bytes, for a header.
fn bytes(param: Param<'_>) -> Result<Secret, ConfigError> {
    match Secret::new(param.value.as_bytes()) {
        Ok(secret) => printable(param, secret),
        Err(wrong) => Err(ConfigError::new(format!("{}: {wrong}", param.key))),
    }
}

/// Refuses control characters, which no header may contain.
fn printable(param: Param<'_>, secret: Secret) -> Result<Secret, ConfigError> {
    match secret.bytes().iter().copied().any(is_control) {
        true => Err(ConfigError::new(format!("{}: contains control characters", param.key))),
        false => Ok(secret),
    }
}

fn header(param: Param<'_>) -> Result<Line, ConfigError> {
    Line::new(bytes(param)?)
        .ok_or_else(|| ConfigError::new("header: is not 'Name: value', nor 'Name:' or 'Name;' without a value"))
}

/// A list of names of headers.
fn names(param: Param<'_>) -> Result<Vec<String>, ConfigError> {
    let names = param.text()?.split(',').map(|name| name.trim().to_ascii_lowercase());
    names
        .map(|name| match !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            true => Ok(name),
            false => Err(param.error("is not a list of names of headers, for example Cookie,Authorization,X-Token")),
        })
        .collect()
}

/// A number of seconds, where 0 means no limit.
fn seconds(param: Param<'_>) -> Result<Option<Duration>, ConfigError> {
    Ok(Some(number(param)?).filter(|n| *n > 0).map(|n| Duration::from_secs(n.into())))
}

fn number(param: Param<'_>) -> Result<u32, ConfigError> {
    units::parse_whole(param.text()?, u32::MAX.into()).map(|number| number as u32).map_err(|wrong| param.error(wrong))
}

/// Makes a name absolute, because the server changes its directory when it goes to the background.
fn absolute(param: Param<'_>) -> Result<PathBuf, ConfigError> {
    let path: &Path = param.path();
    std::path::absolute(path).map_err(|error| param.error(error))
}

fn existing(param: Param<'_>) -> Result<PathBuf, ConfigError> {
    param.path().canonicalize().map_err(|error| param.error(error))
}

fn protocols(param: Param<'_>) -> Result<Protocols, ConfigError> {
    let text = param.text()?;
    if text.is_empty() {
        return Err(param.error("an empty list of protocols is not allowed"));
    }
    let names: Vec<&str> = text.split(',').collect();
    match names.iter().find(|name| !PROTOCOLS.contains(name)) {
        Some(unknown) => {
            let known = Scheme::ALL.map(Scheme::name).join(", ");
            Err(param.error(format!("'{unknown}' is not the name of a protocol (of use here are {known})")))
        }
        None => Ok(Protocols::of(&names)),
    }
}

/// The words of `http-version=`.
const HTTP_VERSIONS: &[(&str, HttpVersion)] = &[
    ("1.0", HttpVersion(1)),
    ("1.1", HttpVersion(2)),
    ("2.0", HttpVersion(3)),
    ("2", HttpVersion(3)),
    ("2TLS", HttpVersion(4)),
    ("2-prior-knowledge", HttpVersion(5)),
    ("3", HttpVersion(30)),
    ("3only", HttpVersion(31)),
];

fn http_version(param: Param<'_>) -> Result<Option<HttpVersion>, ConfigError> {
    let text = param.text()?;
    if text == "none" {
        return Ok(None);
    }
    let known = HTTP_VERSIONS.iter().find(|(word, _)| *word == text);
    known
        .map(|(_, version)| Some(*version))
        .ok_or_else(|| param.error("is not one of none, 1.0, 1.1, 2.0, 2TLS, 2-prior-knowledge, 3, 3only"))
}

fn ssl_version(param: Param<'_>) -> Result<Option<(SslVersion, SslVersion)>, ConfigError> {
    let text = param.text()?;
    let (word, is_highest) = match text.strip_prefix("max-") {
        Some(word) => (word, true),
        None => (text, false),
    };
    let version = match word {
        "default" => SslVersion::Default,
        "tlsv1" if !is_highest => SslVersion::Tlsv1,
        "tlsv1.0" => SslVersion::Tlsv10,
        "tlsv1.1" => SslVersion::Tlsv11,
        "tlsv1.2" => SslVersion::Tlsv12,
        "tlsv1.3" => SslVersion::Tlsv13,
        "sslv2" | "sslv3" => return Err(param.error("is broken and no longer spoken: tlsv1.2 or tlsv1.3")),
        _ => {
            let versions = "default, tlsv1, tlsv1.0, tlsv1.1, tlsv1.2, tlsv1.3, nor max- and such a version";
            return Err(param.error(format_args!("is none of {versions}")));
        }
    };
    Ok(Some(if is_highest { (SslVersion::Default, version) } else { (version, SslVersion::Default) }))
}
