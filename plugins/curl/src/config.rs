//! The parameters, and what they mean together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use curl::easy::{HttpVersion, IpResolve, SslVersion};
use rbdkit_plugin_api::{ConfigError, Param, units};

use crate::secret;

/// The parameters of the command line. [`crate::setup`] gives them to libcurl.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) url: String,
    /// `cainfo=`. An empty path: not even the system's file.
    pub(crate) cainfo: Option<PathBuf>,
    pub(crate) capath: Option<PathBuf>,
    /// Requests under way at once, at least 1.
    pub(crate) connections: usize,
    pub(crate) cookie: Option<String>,
    /// `cookiefile=`, or without it `cookiejar=`. An empty path: begin with no cookies.
    pub(crate) cookiefile: Option<PathBuf>,
    pub(crate) cookiejar: Option<PathBuf>,
    pub(crate) cookie_script: Option<String>,
    pub(crate) cookie_script_renew: Duration,
    pub(crate) followlocation: bool,
    pub(crate) headers: Vec<String>,
    pub(crate) header_script: Option<String>,
    pub(crate) header_script_renew: Duration,
    pub(crate) http_version: Option<HttpVersion>,
    pub(crate) ipresolve: IpResolve,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// `protocols=`: the URL and redirects may use http.
    pub(crate) allow_http: bool,
    /// The same for https.
    pub(crate) allow_https: bool,
    pub(crate) proxy: Option<String>,
    pub(crate) proxy_user: Option<String>,
    pub(crate) proxy_password: Option<String>,
    pub(crate) resolve: Vec<String>,
    pub(crate) sslverify: bool,
    pub(crate) ssl_cipher_list: Option<String>,
    pub(crate) tls13_ciphers: Option<String>,
    pub(crate) ssl_version: Option<SslVersion>,
    pub(crate) tcp_keepalive: bool,
    pub(crate) tcp_nodelay: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) unix_socket_path: Option<PathBuf>,
    pub(crate) user_agent: Option<String>,
}

#[derive(Default)]
pub(crate) struct Config {
    settings: Settings,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            url: String::new(),
            cainfo: None,
            capath: None,
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
            ipresolve: IpResolve::Any,
            user: None,
            password: None,
            allow_http: true,
            allow_https: true,
            proxy: None,
            proxy_user: None,
            proxy_password: None,
            resolve: Vec::new(),
            sslverify: true,
            ssl_cipher_list: None,
            tls13_ciphers: None,
            ssl_version: None,
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
            "url" => settings.url = url(param)?,
            "cainfo" if param.value.is_empty() => settings.cainfo = Some(PathBuf::new()),
            "cainfo" => settings.cainfo = Some(existing(param)?),
            "capath" => settings.capath = Some(existing(param)?),
            "connections" => {
                settings.connections = match number(param)? {
                    n @ 1..=1024 => n as usize,
                    _ => return Err(param.error("has to be from 1 to 1024")),
                }
            }
            "cookie" => settings.cookie = Some(secret::read(param)?),
            "cookiefile" if param.value.is_empty() => settings.cookiefile = Some(PathBuf::new()),
            "cookiefile" => settings.cookiefile = Some(absolute(param)?),
            "cookiejar" => settings.cookiejar = Some(absolute(param)?),
            "cookie-script" => settings.cookie_script = Some(param.text()?.to_string()),
            "cookie-script-renew" => settings.cookie_script_renew = Duration::from_secs(number(param)?.into()),
            "followlocation" => settings.followlocation = param.bool()?,
            "header" => settings.headers.push(line(param)?),
            "header-script" => settings.header_script = Some(param.text()?.to_string()),
            "header-script-renew" => settings.header_script_renew = Duration::from_secs(number(param)?.into()),
            "http-version" => settings.http_version = http_version(param)?,
            "ipresolve" => {
                settings.ipresolve = match param.text()? {
                    "any" | "whatever" => IpResolve::Any,
                    "v4" | "4" => IpResolve::V4,
                    "v6" | "6" => IpResolve::V6,
                    _ => return Err(param.error("is not one of any, v4, v6")),
                }
            }
            "password" => settings.password = Some(secret::read(param)?),
            "protocols" => (settings.allow_http, settings.allow_https) = protocols(param)?,
            "proxy" => settings.proxy = Some(line(param)?),
            "proxy-password" => settings.proxy_password = Some(secret::read(param)?),
            "proxy-user" => settings.proxy_user = Some(line(param)?),
            "resolve" => settings.resolve.push(line(param)?),
            "sslverify" => settings.sslverify = param.bool()?,
            "ssl-cipher-list" => settings.ssl_cipher_list = Some(line(param)?),
            "tls13-ciphers" => settings.tls13_ciphers = Some(line(param)?),
            "ssl-version" => settings.ssl_version = ssl_version(param)?,
            "tcp-keepalive" => settings.tcp_keepalive = param.bool()?,
            "tcp-nodelay" => settings.tcp_nodelay = param.bool()?,
            "timeout" => {
                settings.timeout = Some(number(param)?).filter(|n| *n > 0).map(|n| Duration::from_secs(n.into()))
            }
            "unix-socket-path" | "unix_socket_path" => settings.unix_socket_path = Some(absolute(param)?),
            "user" => settings.user = Some(line(param)?),
            "user-agent" | "useragent" => settings.user_agent = Some(line(param)?),
            _ => return Err(param.unknown("curl")),
        }
        Ok(())
    }

    /// Checks the parameters together.
    pub(crate) fn complete(&mut self) -> Result<(), ConfigError> {
        let settings = &mut self.settings;
        let wrong = |what: &str| Err(ConfigError::new(format!("curl: {what}")));
        if settings.url.is_empty() {
            return wrong("what to serve has to be given: [url=]URL");
        }
        let allowed = if is_https(&settings.url) { settings.allow_https } else { settings.allow_http };
        if !allowed {
            return wrong("protocols= does not allow the protocol of url=");
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

/// Whether a URL that [`url`] accepted uses HTTPS.
pub(crate) fn is_https(url: &str) -> bool {
    url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// The URL. Only http and https: other protocols have a plugin of their own or cannot read ranges.
fn url(param: Param<'_>) -> Result<String, ConfigError> {
    let text = line(param)?;
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(param.error("is not a URL: http://HOST/PATH or https://HOST/PATH"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" if rest.is_empty() || rest.starts_with('/') => Err(param.error("names no host")),
        "http" | "https" => Ok(text),
        "file" => Err(param.error("only http and https are served: for a file use the file plugin")),
        "sftp" | "scp" => Err(param.error("only http and https are served: for ssh use the ssh plugin")),
        _ => Err(param.error(format!("only http and https are served, not {scheme}"))),
    }
}

/// One line of text, for a header or a URL.
fn line(param: Param<'_>) -> Result<String, ConfigError> {
    let text = param.text()?;
    match text.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
        true => Err(ConfigError::new(format!("{}: contains control characters", param.key))),
        false => Ok(text.to_string()),
    }
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

fn protocols(param: Param<'_>) -> Result<(bool, bool), ConfigError> {
    let text = param.text()?;
    if text.is_empty() {
        return Err(param.error("an empty list of protocols is not allowed"));
    }
    if let Some(unknown) = text.split(',').find(|name| !PROTOCOLS.contains(name)) {
        return Err(param.error(format!("'{unknown}' is not the name of a protocol (of use here are http and https)")));
    }
    let has = |name| text.split(',').any(|word| word == name);
    Ok((has("http"), has("https")))
}

fn http_version(param: Param<'_>) -> Result<Option<HttpVersion>, ConfigError> {
    Ok(Some(match param.text()? {
        "none" => return Ok(None),
        "1.0" => HttpVersion::V10,
        "1.1" => HttpVersion::V11,
        "2.0" | "2" => HttpVersion::V2,
        "2TLS" => HttpVersion::V2TLS,
        "2-prior-knowledge" => HttpVersion::V2PriorKnowledge,
        _ => return Err(param.error("is not one of none, 1.0, 1.1, 2.0, 2TLS, 2-prior-knowledge")),
    }))
}

fn ssl_version(param: Param<'_>) -> Result<Option<SslVersion>, ConfigError> {
    Ok(Some(match param.text()? {
        "tlsv1" => SslVersion::Tlsv1,
        "tlsv1.0" => SslVersion::Tlsv10,
        "tlsv1.1" => SslVersion::Tlsv11,
        "tlsv1.2" => SslVersion::Tlsv12,
        "tlsv1.3" => SslVersion::Tlsv13,
        "sslv2" | "sslv3" => return Err(param.error("is broken and no longer spoken: tlsv1.2 or tlsv1.3")),
        _ => return Err(param.error("is not one of tlsv1, tlsv1.0, tlsv1.1, tlsv1.2, tlsv1.3")),
    }))
}
