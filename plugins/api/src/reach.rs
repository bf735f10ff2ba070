//! What a plugin opens while it serves, so that the server can give up everything else.

use std::path::PathBuf;

/// What a plugin opens while it serves. What it has open already it keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Files, and directories with all that is in them, that it reads. What is not there is left out.
    pub read: Vec<PathBuf>,
    /// Those that it reads and writes. Nothing is made or removed there.
    pub write: Vec<PathBuf>,
    /// Whom it connects to, by anything else than a Unix socket with a name in the file system: that needs nothing.
    pub network: Network,
}

/// Whom a plugin connects to over IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Nobody.
    #[default]
    Nobody,
    /// These TCP ports, of any host. What looking up names needs is to be among them ([`DNS`]).
    Ports(Vec<u16>),
    /// Anybody.
    Anybody,
}

/// The port of name servers: over TCP for long answers. (UDP is not held back.)
pub const DNS: u16 = 53;

impl Reach {
    /// One that reads what looking up names needs.
    ///
    /// The C library has modules for it, which it loads when they are first needed, and reads its configuration anew when that changes. A file that is
    /// replaced is another file for the kernel, so all of `/etc` may be read; but not by root, who would find secrets there: for root it is those
    /// files that are there now.
    pub fn to_names(self) -> Reach {
        let libraries = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib"];
        // Where the system's resolver keeps what /etc/resolv.conf links to; tables of the name services' caches.
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
        self.and(&libraries).and(&elsewhere).configuration(&files)
    }

    /// One that reads what checking certificates needs: the system's, and the TLS library's configuration.
    pub fn to_certificates(self) -> Reach {
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
        self.and(&elsewhere).configuration(&files)
    }

    /// One that reads these as well.
    pub fn and(mut self, paths: &[&str]) -> Reach {
        self.read.extend(paths.iter().map(PathBuf::from));
        self
    }

    /// Files of `/etc`; see [`Reach::to_names`].
    fn configuration(self, files: &[&str]) -> Reach {
        match rustix::process::geteuid().is_root() {
            true => self.and(files),
            false => self.and(&["/etc"]),
        }
    }
}

/// What to tell whoever cannot find a host any more because of the wall: see [`Reach::to_names`].
pub fn hint_about_names() -> Option<&'static str> {
    let refused =
        std::fs::File::open("/etc/resolv.conf").is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    refused.then_some(
        "/etc/resolv.conf was replaced, and a server that runs as root may not read the new one: start it anew, or with --user or --no-confine",
    )
}
