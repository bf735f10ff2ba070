//! Where clients come from: `-p`, `-i`, `-4`, `-6`, `-U`, `-s`, `--vsock` and socket activation.

use std::ffi::OsString;
use std::path::PathBuf;

use rbdkit_plugin_api::ConfigError;

use super::options::Options;
use super::values::{error, path, text, whole_number};

/// Where clients come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp {
        /// An address or a host name; none for all addresses.
        address: Option<String>,
        /// A number, or the name of a service.
        port: String,
        /// Which of the addresses.
        families: Families,
    },
    /// AF_VSOCK, at this port of the host.
    Vsock(u32),
    /// A Unix socket of this name.
    Unix(PathBuf),
    /// A Unix socket in a private directory.
    PrivateUnix,
    /// One client, on standard input and output.
    Single,
    /// This many listening sockets that the parent process passed on, from file descriptor 3 on
    /// (socket activation).
    Inherited(u32),
}

/// The kinds of TCP addresses to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Both,
    /// IPv4 alone (`-4`).
    Ipv4,
    /// IPv6 alone (`-6`).
    Ipv6,
}

/// The port that is registered for NBD.
const DEFAULT_PORT: u16 = 10809;

/// The environment variables of socket activation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// `LISTEN_PID`.
    pub pid: Option<OsString>,
    /// `LISTEN_FDS`.
    pub fds: Option<OsString>,
    /// This process.
    pub own_pid: u32,
}

impl Inherited {
    /// How many sockets are passed on to this process. None if the variables are not set, or are
    /// meant for another process.
    fn sockets(&self) -> Result<Option<u32>, ConfigError> {
        let (Some(pid), Some(fds)) = (&self.pid, &self.fds) else {
            return Ok(None);
        };
        if whole_number("LISTEN_PID", pid, u64::from(u32::MAX))? != u64::from(self.own_pid) {
            return Ok(None);
        }
        // nbdkit takes at most 16.
        match whole_number("LISTEN_FDS", fds, 16)? {
            0 => Err(error("LISTEN_FDS: socket activation with 0 sockets")),
            count => Ok(Some(count as u32)),
        }
    }
}

/// Decides where clients come from, by the options and the environment.
///
/// # Errors
/// One line that names the options that exclude one another, or the value that is wrong.
pub(super) fn listen(given: &Options, inherited: &Inherited) -> Result<Listen, ConfigError> {
    if let Some(count) = inherited.sockets()? {
        return match sockets_of_our_own(given).next() {
            Some(option) => Err(error(format!("{option} cannot be used with socket activation (LISTEN_FDS is set)"))),
            None => Ok(Listen::Inherited(count)),
        };
    }
    check_combination(given)?;
    match &given.unix {
        _ if given.single => Ok(Listen::Single),
        _ if given.vsock => vsock(given),
        Some(socket) if socket == "-" => Ok(Listen::PrivateUnix),
        Some(socket) => path("--unix", socket).map(Listen::Unix),
        // As in nbdkit since 1.36. Otherwise two commands at a time would need the same port, and
        // the disk would be on the network.
        None if given.run.is_some() && !asks_for_tcp(given) => Ok(Listen::PrivateUnix),
        None => tcp(given),
    }
}

/// Whether an option is given that only makes sense for TCP.
fn asks_for_tcp(given: &Options) -> bool {
    given.port.is_some() || given.ipaddr.is_some() || given.ipv4_only || given.ipv6_only
}

/// The given options that cannot be used with inherited sockets.
fn sockets_of_our_own(given: &Options) -> impl Iterator<Item = &'static str> {
    named([
        (given.ipaddr.is_some(), "-i"),
        (given.port.is_some(), "-p"),
        (given.run.is_some(), "--run"),
        (given.single, "-s"),
        (given.unix.is_some(), "-U"),
        (given.vsock, "--vsock"),
    ])
}

/// The names of the options that are given.
fn named<const N: usize>(options: [(bool, &'static str); N]) -> impl Iterator<Item = &'static str> {
    options.into_iter().filter_map(|(given, option)| given.then_some(option))
}

fn check_combination(given: &Options) -> Result<(), ConfigError> {
    let mut ways = named([
        // The port of --vsock is given by -p.
        (given.port.is_some() && !given.vsock, "-p"),
        (given.vsock && given.ipaddr.is_some(), "-i"),
        (given.single, "-s"),
        (given.unix.is_some(), "-U"),
        (given.vsock, "--vsock"),
        (given.single && given.run.is_some(), "--run"),
        (given.single && given.dump_plugin, "--dump-plugin"),
    ]);
    match (ways.next(), ways.next()) {
        (Some(first), Some(second)) => Err(error(format!("{first} and {second} cannot be used together"))),
        _ => Ok(()),
    }
}

fn vsock(given: &Options) -> Result<Listen, ConfigError> {
    let port = given
        .port
        .as_ref()
        .map_or(Ok(DEFAULT_PORT.into()), |port| whole_number("--port (with --vsock)", port, u64::from(u32::MAX)))?;
    Ok(Listen::Vsock(port as u32))
}

fn tcp(given: &Options) -> Result<Listen, ConfigError> {
    // Each of the options turns the other off.
    let families = match (given.ipv4_only, given.ipv6_only) {
        (true, _) => Families::Ipv4,
        (_, true) => Families::Ipv6,
        _ => Families::Both,
    };
    let address = given.ipaddr.as_ref().map(|address| text("--ipaddr", address)).transpose()?;
    let port = given.port.as_ref().map_or(Ok(DEFAULT_PORT.to_string()), |port| text("--port", port))?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_empty() || (is_number && port.parse::<u16>().is_err()) {
        return Err(error(format!("--port: '{port}' is not a port from 0 to 65535, nor the name of a service")));
    }
    Ok(Listen::Tcp { address, port, families })
}
