//! The parameters, and the settings that follow from them.

use std::ffi::OsString;
use std::path::PathBuf;

use rbdkit_plugin_api::{ConfigError, Param, units};

use crate::expand::{self, Names};
use crate::password::{self, Password};

/// The file that `create` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    /// Bytes.
    pub(crate) size: u64,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// The parameters as they are given.
#[derive(Default)]
pub(crate) struct Config {
    host: Option<String>,
    path: Option<OsString>,
    user: Option<String>,
    port: Option<String>,
    password: Option<Password>,
    identities: Vec<String>,
    known_hosts: Option<String>,
    any_host_key: bool,
    config: Option<String>,
    compression: bool,
    timeout: Option<u32>,
    create: bool,
    create_size: Option<u64>,
    create_mode: Option<u32>,
}

/// The settings that follow from all parameters together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) path: OsString,
    pub(crate) user: Option<String>,
    pub(crate) port: Option<String>,
    pub(crate) password: Option<Password>,
    pub(crate) identities: Vec<PathBuf>,
    pub(crate) known_hosts: Option<PathBuf>,
    /// `verify-remote-host=false`.
    pub(crate) any_host_key: bool,
    /// The file to read instead of the user's; `none` for no file.
    pub(crate) config: Option<PathBuf>,
    pub(crate) compression: bool,
    /// Seconds.
    pub(crate) timeout: Option<u32>,
    pub(crate) create: Option<Create>,
}

impl Config {
    pub(crate) fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "host" => self.host = Some(host(param)?),
            "path" if param.value.is_empty() => return Err(param.error("is not the name of a file")),
            "path" => self.path = Some(param.value.to_owned()),
            "user" => self.user = Some(word(param)?),
            "port" => self.port = Some(port(param)?),
            "password" => self.password = Some(password::read(param)?),
            "identity" => self.identities.push(text(param)?),
            "known-hosts" => self.known_hosts = Some(text(param)?),
            "verify-remote-host" => self.any_host_key = !param.bool()?,
            "config" => self.config = Some(param.text()?.to_owned()),
            "compression" => self.compression = param.bool()?,
            "timeout" => {
                let seconds = units::parse_whole(param.text()?, i32::MAX as u64).ok().filter(|seconds| *seconds > 0);
                self.timeout = Some(seconds.ok_or_else(|| param.error("is not a number of seconds"))? as u32);
            }
            "create" => self.create = param.bool()?,
            "create-size" => self.create_size = Some(param.size()?),
            "create-mode" => self.create_mode = Some(mode(param)?),
            _ => return Err(param.unknown("ssh")),
        }
        Ok(())
    }

    pub(crate) fn settings(&self) -> Result<Settings, ConfigError> {
        let missing = |what: &str| ConfigError::new(format!("ssh: {what} has to be given"));
        let host = self.host.clone().ok_or_else(|| missing("the host (host=HOST)"))?;
        let path = self.path.clone().ok_or_else(|| missing("the file on the host ([path=]PATH)"))?;
        let create = match (self.create, self.create_size) {
            (true, None) => return Err(missing("the size of the file that create=true makes (create-size=SIZE)")),
            (true, Some(size)) => Some(Create { size, mode: self.create_mode.unwrap_or(0o600) }),
            (false, _) => None,
        };
        let names = Names::new(&host, self.user.as_deref(), self.port.as_deref());
        let file = |key: &str, text: &String| expand::path(key, text, &names);
        let identity = |text: &String| {
            let path = file("identity", text)?;
            let there = path.metadata().map_err(|error| ConfigError::new(format!("identity={text}: {error}")));
            there.map(|_| path)
        };
        Ok(Settings {
            path,
            user: self.user.clone(),
            port: self.port.clone(),
            password: self.password.clone(),
            identities: self.identities.iter().map(identity).collect::<Result<_, _>>()?,
            known_hosts: self.known_hosts.as_ref().map(|text| file("known-hosts", text)).transpose()?,
            any_host_key: self.any_host_key,
            config: match self.config.as_deref() {
                Some("") => Some(PathBuf::from("none")),
                Some(text) => Some(file("config", &text.to_owned())?),
                None => None,
            },
            compression: self.compression,
            timeout: self.timeout,
            create,
            host,
        })
    }
}

/// A name that `ssh` takes as an argument, and cannot take for an option.
fn word(param: Param<'_>) -> Result<String, ConfigError> {
    let text = param.text()?;
    match text.is_empty() || text.starts_with('-') || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        true => Err(param.error("is not a name")),
        false => Ok(text.to_owned()),
    }
}

/// A host. `ssh` takes a user before it, and somebody may write a password there, which is neither
/// shown nor passed on.
fn host(param: Param<'_>) -> Result<String, ConfigError> {
    match param.value.to_string_lossy().rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            Err(ConfigError::new("host: has a user and a password: use user= and password=+FILE"))
        }
        _ => word(param),
    }
}

fn text(param: Param<'_>) -> Result<String, ConfigError> {
    match param.text()? {
        "" => Err(param.error("is not the name of a file")),
        // The name is quoted in an option of ssh.
        text if text.contains(|c: char| c.is_control() || c == '"') => {
            Err(param.error("has a character that ssh does not take in the name of a file"))
        }
        text => Ok(text.to_owned()),
    }
}

fn port(param: Param<'_>) -> Result<String, ConfigError> {
    let text = param.text()?;
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port.to_string()),
        Err(_) if !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            service(text).ok_or_else(|| param.error("is neither a port nor a service in /etc/services"))
        }
        _ => Err(param.error("is not a port from 1 to 65535")),
    }
}

fn service(name: &str) -> Option<String> {
    let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
    let listed = services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (first, port) = (words.next()?, words.next()?.strip_suffix("/tcp")?);
        (first == name || words.any(|alias| alias == name)).then(|| port.to_owned())
    });
    listed.or((name == "ssh").then(|| "22".to_owned()))
}

fn mode(param: Param<'_>) -> Result<u32, ConfigError> {
    let text = param.text()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    digits
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| param.error("is not a file mode: octal, from 0 to 0777"))
}
