//! What a plugin opens while it serves, so that the server can give up everything else.

use std::path::PathBuf;

/// The files and network ports that a plugin opens while it serves. Files that are open already
/// stay open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRights {
    /// Files that it reads, and directories with everything in them. A path that does not exist is
    /// left out.
    pub read: Vec<PathBuf>,
    /// Files and directories that it reads and writes. It creates and removes nothing there.
    pub write: Vec<PathBuf>,
    /// Directories from which it removes files.
    pub remove: Vec<PathBuf>,
    /// What it connects to, apart from Unix sockets with a name in the file system: those need no
    /// right.
    pub network: Network,
}

/// What a plugin connects to over IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Nothing.
    #[default]
    None,
    /// These TCP ports of any host. A plugin that looks up names adds [`DNS_PORT`].
    Ports(Vec<u16>),
    /// Any port of any host.
    Any,
}

/// The TCP port of name servers, which long answers need. (UDP is not restricted.)
pub const DNS_PORT: u16 = 53;

impl AccessRights {
    /// What two plugins open.
    #[must_use]
    pub fn and(mut self, other: AccessRights) -> AccessRights {
        self.read.extend(other.read);
        self.write.extend(other.write);
        self.remove.extend(other.remove);
        self.network = match (self.network, other.network) {
            (Network::Any, _) | (_, Network::Any) => Network::Any,
            (Network::None, network) | (network, Network::None) => network,
            (Network::Ports(mut ports), Network::Ports(others)) => {
                ports.extend(others);
                Network::Ports(ports)
            }
        };
        self
    }

    /// Adds the files that looking up names needs.
    ///
    /// The C library loads modules when they are first needed, and reads its configuration again
    /// when that has changed. A file that is replaced is a different file for the kernel, so all of
    /// `/etc` may be read. A server that runs as root may read only the configuration files that
    /// exist now, because `/etc` contains secrets that root could read.
    pub fn with_name_lookup(self) -> AccessRights {
        let libraries = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib"];
        // The files that /etc/resolv.conf may link to, and the caches of name services.
        let elsewhere = [
            "/etc/resolvconf",
            "/run/systemd/resolve",
            "/run/systemd/machines",
            "/run/NetworkManager/resolv.conf",
            "/run/resolvconf",
            "/run/connman/resolv.conf",
            "/var/lib/sss/mc",
            "/var/lib/misc",
        ];
        let files = [
            "/etc/gai.conf",
            "/etc/host.conf",
            "/etc/hosts",
            "/etc/ld.so.cache",
            "/etc/nsswitch.conf",
            "/etc/protocols",
            "/etc/resolv.conf",
            "/etc/services",
        ];
        self.with_read(&libraries).with_read(&elsewhere).with_configuration(&files)
    }

    /// Adds the files that checking certificates needs: the system's certificates and the TLS
    /// library's configuration.
    pub fn with_certificates(self) -> AccessRights {
        let files = [
            "/etc/ca-certificates",
            "/etc/crypto-policies",
            "/etc/pki/ca-trust",
            "/etc/pki/tls/cert.pem",
            "/etc/pki/tls/certs",
            "/etc/pki/tls/openssl.cnf",
            "/etc/ssl/cert.pem",
            "/etc/ssl/certs",
            "/etc/ssl/openssl.cnf",
        ];
        let elsewhere = ["/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki"];
        self.with_read(&elsewhere).with_configuration(&files)
    }

    /// Adds files to read.
    pub fn with_read(mut self, paths: &[&str]) -> AccessRights {
        self.read.extend(paths.iter().map(PathBuf::from));
        self
    }

    /// Adds files of `/etc`; see [`AccessRights::with_name_lookup`].
    fn with_configuration(self, files: &[&str]) -> AccessRights {
        match rustix::process::geteuid().is_root() {
            true => self.with_read(files),
            false => self.with_read(&["/etc"]),
        }
    }
}

/// What to add to the error of a failed name lookup, if confinement is its cause: see
/// [`AccessRights::with_name_lookup`].
pub fn name_lookup_hint() -> Option<&'static str> {
    let refused =
        std::fs::File::open("/etc/resolv.conf").is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    refused.then_some(
        "/etc/resolv.conf was replaced, and a server that runs as root may not read the new one: start it \
            anew, or with --user or --no-confine",
    )
}
