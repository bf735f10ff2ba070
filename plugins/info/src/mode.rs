//! What the disk tells.

use std::net::SocketAddr;

use rbdkit_plugin_api::base64;
use rbdkit_plugin_api::{Errno, Error, Peer, Result};

/// The parameter `mode=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    ExportName,
    Base64ExportName,
    Address,
    Time,
    Uptime,
    ConnTime,
    Version,
}

/// What a connection is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Bytes(Vec<u8>),
    /// The time of day.
    Time,
    /// The time since the server started.
    SinceStart,
    /// The time since the connection was opened.
    SinceOpen,
}

impl Mode {
    /// The names, in the order of the modes.
    pub(crate) const NAMES: [&str; 7] =
        ["exportname", "base64exportname", "address", "time", "uptime", "conntime", "version"];

    const ALL: [Mode; 7] = [
        Mode::ExportName,
        Mode::Base64ExportName,
        Mode::Address,
        Mode::Time,
        Mode::Uptime,
        Mode::ConnTime,
        Mode::Version,
    ];

    /// Reads a name in any case, with or without the hyphens between its words.
    pub(crate) fn parse(text: &str) -> Option<Mode> {
        let text = match text.to_ascii_lowercase().as_str() {
            "export-name" => "exportname".to_owned(),
            "base64-export-name" => "base64exportname".to_owned(),
            other => other.to_owned(),
        };
        Mode::NAMES.iter().position(|name| *name == text).map(|place| Mode::ALL[place])
    }

    /// What a client with this export name and this address is told.
    ///
    /// # Errors
    /// EINVAL: the export name is not base64.
    pub(crate) fn told(self, exportname: &str, peer: &Peer) -> Result<Told> {
        Ok(match self {
            Mode::ExportName => Told::Bytes(exportname.into()),
            Mode::Base64ExportName => {
                let wrong = |error| Error::new(Errno::Einval, format!("info: the export name {error}"));
                Told::Bytes(base64::decode(exportname.as_bytes()).map_err(wrong)?)
            }
            Mode::Address => Told::Bytes(address(peer).into_bytes()),
            Mode::Time => Told::Time,
            Mode::Uptime => Told::SinceStart,
            Mode::ConnTime => Told::SinceOpen,
            Mode::Version => Told::Bytes(env!("CARGO_PKG_VERSION").into()),
        })
    }
}

/// The address of a client. The name of a Unix socket is not told, because it is a path of the
/// server's.
fn address(peer: &Peer) -> String {
    match peer {
        Peer::Ip(SocketAddr::V4(address)) => address.to_string(),
        // Without the scope, which is a number of the server's.
        Peer::Ip(SocketAddr::V6(address)) => format!("[{}]:{}", address.ip(), address.port()),
        Peer::Unix => "unix".to_owned(),
        Peer::Vsock { .. } | Peer::Unknown => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(mode: Mode, exportname: &str, peer: &Peer) -> Vec<u8> {
        match mode.told(exportname, peer) {
            Ok(Told::Bytes(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_mode_has_its_name() {
        for (mode, name) in Mode::ALL.into_iter().zip(Mode::NAMES) {
            assert_eq!(Mode::parse(name), Some(mode));
            assert_eq!(Mode::parse(&name.to_uppercase()), Some(mode));
        }
        assert_eq!(Mode::parse("export-name"), Some(Mode::ExportName));
        assert_eq!(Mode::parse("base64-export-name"), Some(Mode::Base64ExportName));
        assert_eq!(Mode::parse(""), None);
    }

    #[test]
    fn the_export_name_comes_back() {
        assert_eq!(bytes(Mode::ExportName, "hällo", &Peer::Unix), "hällo".as_bytes());
        assert_eq!(bytes(Mode::Base64ExportName, "aGVsbG8AAQ==", &Peer::Unix), b"hello\0\x01");
        assert_eq!(bytes(Mode::Base64ExportName, "", &Peer::Unix), b"");
        let error = Mode::Base64ExportName.told("a*", &Peer::Unix).unwrap_err();
        assert_eq!(error.errno(), Errno::Einval);
    }

    #[test]
    fn an_address_is_written_as_usual_and_a_socket_has_none() {
        let ip = |text: &str| bytes(Mode::Address, "", &Peer::Ip(text.parse().unwrap()));
        assert_eq!(ip("127.0.0.1:1234"), b"127.0.0.1:1234");
        assert_eq!(ip("[fe80::1%3]:80"), b"[fe80::1]:80");
        assert_eq!(bytes(Mode::Address, "", &Peer::Unix), b"unix");
        assert_eq!(bytes(Mode::Address, "", &Peer::Vsock { cid: 2, port: 3 }), b"");
    }
}
