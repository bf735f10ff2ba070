//! The protocols of URLs.

/// A protocol that a URL may name. All can read a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
    /// A file of this machine.
    File,
    Ftp,
    /// FTP over TLS.
    Ftps,
}

impl Scheme {
    pub(crate) const ALL: [Scheme; 5] = [Scheme::Http, Scheme::Https, Scheme::File, Scheme::Ftp, Scheme::Ftps];

    /// By its name in lower case.
    pub(crate) fn parse(name: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|scheme| scheme.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::File => "file",
            Scheme::Ftp => "ftp",
            Scheme::Ftps => "ftps",
        }
    }

    /// Whether it is a protocol of web servers: its answers have a head, it may redirect, and it
    /// can write.
    pub(crate) fn is_web(self) -> bool {
        matches!(self, Scheme::Http | Scheme::Https)
    }

    /// Whether it needs TLS.
    pub(crate) fn is_encrypted(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Ftps)
    }
}

/// What `protocols=` allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocols([bool; Scheme::ALL.len()]);

impl Protocols {
    /// The default.
    pub(crate) const WEB: Protocols = Protocols([true, true, false, false, false]);

    /// Those of a list of names, of which some may be of other protocols.
    pub(crate) fn of(names: &[&str]) -> Protocols {
        Protocols(Scheme::ALL.map(|scheme| names.contains(&scheme.name())))
    }

    pub(crate) fn allows(self, scheme: Scheme) -> bool {
        Scheme::ALL.iter().zip(self.0).any(|(known, allowed)| *known == scheme && allowed)
    }
}
