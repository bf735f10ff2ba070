//! The parameters, and the settings that follow from them.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rbdkit_plugin_api::{ConfigError, Param, units};

use crate::tls_parameters::{TlsMode, TlsParameters};
use crate::uri::{self, Place};
use crate::uri_tls;

/// The longest path of a Unix socket in bytes: 108 in the kernel's structure, less the zero at the
/// end.
const MAX_SOCKET: usize = 107;

/// The longest export name that the specification allows, in bytes.
const MAX_NAME: usize = 4096;

/// Where the other server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    /// A connected socket that was inherited.
    Descriptor(i32),
    /// A program that is started with a listening socket.
    Command {
        program: OsString,
        arguments: Vec<OsString>,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "server at {}", path.display()),
            Target::Tcp { host, port } if host.contains(':') => write!(f, "server at [{host}]:{port}"),
            Target::Tcp { host, port } => write!(f, "server at {host}:{port}"),
            Target::Descriptor(number) => write!(f, "server at descriptor {number}"),
            Target::Command { program, .. } => write!(f, "server '{}'", program.to_string_lossy()),
        }
    }
}

/// The parameters as they are given.
#[derive(Default)]
pub(crate) struct Config {
    uri: Option<(Place, String)>,
    socket: Option<PathBuf>,
    hostname: Option<String>,
    port: Option<u16>,
    descriptor: Option<i32>,
    command: Option<OsString>,
    arguments: Vec<OsString>,
    export: Option<String>,
    dynamic: bool,
    shared: Option<bool>,
    retry: u32,
    tls: TlsParameters,
    /// What the URI says of TLS.
    uri_tls: TlsParameters,
}

/// The settings that follow from all parameters together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) target: Target,
    /// The server's export that every client gets, unless `dynamic`.
    pub(crate) export: String,
    /// Each client gets the export that it asks for.
    pub(crate) dynamic: bool,
    /// All clients use one connection.
    pub(crate) shared: bool,
    /// Further attempts to connect, a second apart.
    pub(crate) retry: u32,
    pub(crate) tls: TlsParameters,
}

impl Config {
    pub(crate) fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "uri" => {
                let text = param.text()?;
                self.uri = Some(uri::parse(text).map_err(|wrong| param.error(wrong))?);
                self.uri_tls = uri_tls::parse(text).map_err(|wrong| param.error(wrong))?;
            }
            "socket" => self.socket = Some(socket(param)?),
            "hostname" if param.value.is_empty() => return Err(param.error("is not the name of a host")),
            "hostname" => self.hostname = Some(param.text()?.to_owned()),
            "port" => self.port = Some(port(param)?),
            "socket-fd" => self.descriptor = Some(descriptor(param)?),
            "command" if param.value.is_empty() => return Err(param.error("is not the name of a program")),
            "command" => self.command = Some(param.value.to_owned()),
            "arg" => self.arguments.push(param.value.to_owned()),
            "export" if param.value.len() > MAX_NAME => return Err(param.error("is longer than 4096 bytes")),
            "export" => self.export = Some(param.text()?.to_owned()),
            "dynamic-export" => self.dynamic = param.bool()?,
            "shared" => self.shared = Some(param.bool()?),
            "retry" => {
                let number = units::parse_whole(param.text()?, u32::MAX.into());
                self.retry = number.map_err(|_| param.error("is not a number of attempts"))? as u32;
            }
            "vsock" => return Err(param.error("the nbd plugin does not connect to vsock: use hostname= or socket=")),
            "tls" => self.tls.mode = Some(tls_mode(param)?),
            "tls-certificates" => self.tls.certificates = Some(file(param)?),
            "tls-psk" => self.tls.psk = Some(file(param)?),
            "tls-username" => self.tls.username = Some(param.text()?.to_owned()),
            "tls-hostname" => self.tls.hostname = Some(param.text()?.to_owned()),
            "tls-verify" | "tls-verify-peer" => self.tls.verify = Some(param.bool()?),
            _ => return Err(param.unknown("nbd")),
        }
        Ok(())
    }

    pub(crate) fn settings(&self) -> Result<Settings, ConfigError> {
        let (target, named) = self.target()?;
        let alone = matches!(target, Target::Descriptor(_) | Target::Command { .. });
        let shared = self.shared.unwrap_or(alone);
        let wrong = |what: &str| Err(ConfigError::new(format!("nbd: {what}")));
        if self.dynamic && self.export.is_some() {
            return wrong("dynamic-export=true and export= cannot be used at the same time");
        }
        if self.dynamic && shared {
            return wrong(
                "dynamic-export=true needs a connection for each client: it cannot be used with \
                    shared=true, socket-fd= or command=",
            );
        }
        if !shared && alone {
            return wrong("there is one connection only with socket-fd= or command=: shared=false cannot be used");
        }
        let export = match (&self.export, named.is_empty()) {
            (Some(export), false) if *export != named => {
                return wrong("the URI names another export than export=: leave out one of them");
            }
            (Some(export), _) => export.clone(),
            (None, _) => named,
        };
        if self.uri_tls.mode == Some(TlsMode::Require) && self.tls.mode == Some(TlsMode::Off) {
            return wrong("the URI asks for TLS and tls=off does not: leave out one of them");
        }
        let tls = TlsParameters { mode: self.uri_tls.mode.or(self.tls.mode), ..self.tls.clone() };
        let tls = tls.or(self.uri_tls.clone());
        Ok(Settings { target, export, dynamic: self.dynamic, shared, retry: self.retry, tls })
    }

    /// Where to connect, and the export that a URI names.
    fn target(&self) -> Result<(Target, String), ConfigError> {
        let given = [
            ("uri", self.uri.is_some()),
            ("socket", self.socket.is_some()),
            ("hostname", self.hostname.is_some()),
            ("socket-fd", self.descriptor.is_some()),
            ("command", self.command.is_some()),
        ];
        let given: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        let wrong = |what: String| Err(ConfigError::new(format!("nbd: {what}")));
        match given[..] {
            [] => {
                return wrong(
                    "the other server has to be given: [uri=]URI, socket=SOCKET, hostname=HOST, \
                socket-fd=NUMBER or command=PROGRAM"
                        .into(),
                );
            }
            [_] => {}
            [first, second, ..] => return wrong(format!("{first}= and {second}= cannot be used at the same time")),
        }
        if self.port.is_some() && self.hostname.is_none() {
            return wrong("port= can only be used with hostname=".into());
        }
        if !self.arguments.is_empty() && self.command.is_none() {
            return wrong("arg= can only be used with command=".into());
        }
        let none = String::new();
        Ok(match (&self.uri, &self.socket, &self.hostname, self.descriptor, &self.command) {
            (Some((Place::Tcp { host, port }, export)), ..) => {
                (Target::Tcp { host: host.clone(), port: *port }, export.clone())
            }
            (Some((Place::Unix(path), export)), ..) => (Target::Unix(absolute(path.clone())?), export.clone()),
            (_, Some(path), ..) => (Target::Unix(path.clone()), none),
            (_, _, Some(host), ..) => (Target::Tcp { host: host.clone(), port: self.port.unwrap_or(uri::PORT) }, none),
            (_, _, _, Some(number), _) => (Target::Descriptor(number), none),
            (.., command) => {
                let program = command.clone().unwrap_or_default();
                (Target::Command { program, arguments: self.arguments.clone() }, none)
            }
        })
    }
}

/// Makes the path absolute, because the server changes its directory when it goes to the
/// background.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    let path = std::path::absolute(&path)
        .map_err(|error| ConfigError::new(format!("nbd: socket {}: {error}", path.display())))?;
    match path.as_os_str().as_bytes().len() {
        0..=MAX_SOCKET => Ok(path),
        _ => Err(ConfigError::new(format!(
            "nbd: socket {}: is longer than {MAX_SOCKET} bytes, which is all that a socket's address has room for",
            path.display()
        ))),
    }
}

fn socket(param: Param<'_>) -> Result<PathBuf, ConfigError> {
    match param.value.is_empty() {
        true => Err(param.error("is not the path of a socket")),
        false => absolute(param.path().to_owned()),
    }
}

fn tls_mode(param: Param<'_>) -> Result<TlsMode, ConfigError> {
    match param.text()? {
        "require" => Ok(TlsMode::Require),
        text => match units::parse_bool(text) {
            Ok(true) => Ok(TlsMode::On),
            Ok(false) => Ok(TlsMode::Off),
            Err(_) => Err(param.error("is not one of off, on, require")),
        },
    }
}

/// The path of a file or directory that is read when the plugin is configured.
fn file(param: Param<'_>) -> Result<PathBuf, ConfigError> {
    match param.value.is_empty() {
        true => Err(param.error("is not a path")),
        false => Ok(param.path().to_owned()),
    }
}

fn descriptor(param: Param<'_>) -> Result<i32, ConfigError> {
    match units::parse_whole(param.text()?, i32::MAX as u64) {
        Ok(number) if number > 2 => Ok(number as i32),
        Ok(_) => Err(param.error("has to be greater than 2: 0 to 2 are standard input, output and error")),
        Err(_) => Err(param.error("is not the number of a descriptor")),
    }
}

/// A number, or the name of a service.
fn port(param: Param<'_>) -> Result<u16, ConfigError> {
    let text = param.text()?;
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        Err(_) if !text.is_empty() && !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            service(text).ok_or_else(|| param.error("is neither a port nor a service in /etc/services"))
        }
        _ => Err(param.error("is not a port from 1 to 65535")),
    }
}

fn service(name: &str) -> Option<u16> {
    let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
    let listed = services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (first, port) = (words.next()?, words.next()?.strip_suffix("/tcp")?);
        (first == name || words.any(|alias| alias == name)).then(|| port.parse().ok())?
    });
    listed.or((name == "nbd").then_some(uri::PORT))
}
