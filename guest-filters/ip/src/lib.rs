//! Admits clients by their address, process, user or group.

mod address;
mod rules;

use client::Peer;
use rbdkit_filter_sdk::prelude::*;
use rules::{Refusal, Rules, Source};

params! {
    /// The parameters.
    pub struct Settings {
        /// Clients that are let in: a list with commas.
        allow: Vec<String>,
        /// Clients that are refused unless allow lets them in: a list with commas.
        deny: Vec<String>,
    }
}

/// The filter.
pub struct Ip {
    rules: Rules,
}

/// Who the client is.
fn source() -> Source {
    match client::peer_name() {
        Peer::Ip(inet) => address::from_bytes(&inet.address).map_or(Source::Unknown, Source::Ip),
        Peer::Unix => {
            Source::Unix { credentials: client::peer_credentials().ok(), security: client::security_context().ok() }
        }
        Peer::Vsock(vsock) => Source::Vsock { cid: vsock.cid, port: vsock.port },
        Peer::Unknown => Source::Unknown,
    }
}

impl Filter for Ip {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("ip", env!("CARGO_PKG_VERSION"), "admits clients by their address, process, user or group")
            .help(
                "An entry is all, anyipv4, anyipv6, anyunix, anyvsock, an IP address (10.0.0.0/8), pid:N, uid:N, \
                 gid:N, vsock-cid:N, vsock-port:N or security:CONTEXT. allow comes first, then deny; the rest is let \
                 in.",
            )
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Ip { rules: Rules::parse(&settings.allow, &settings.deny)? })
    }
}

impl Admission for Ip {
    fn preconnect(&self, readonly: bool) -> Result<(), Errno> {
        if !self.rules.let_everybody_in() {
            let source = source();
            let refused = |why: &str| {
                error!("a client was refused, because {why}: {}", shown(&source));
                Err(Errno::Eperm)
            };
            match self.rules.check(&source) {
                Ok(()) => debug!("a client is let in: {}", shown(&source)),
                Err(Refusal::Denied) => return refused("deny matches it"),
                Err(Refusal::Unknown) => return refused("deny cannot tell whether it matches"),
            }
        }
        next_open::preconnect(readonly)
    }
}

/// The client for the log.
fn shown(source: &Source) -> String {
    match source {
        Source::Ip(address) => address.to_string(),
        Source::Unix { credentials, security } => {
            let mut text = match credentials {
                Some((process, user, group)) => format!("process {process}, user {user}, group {group}"),
                None => "a Unix socket's, without credentials".to_string(),
            };
            if let Some(context) = security {
                text = format!("{text}, security context {context}");
            }
            text
        }
        Source::Vsock { cid, port } => format!("vsock cid {cid}, port {port}"),
        Source::Unknown => "without an address".to_string(),
    }
}

rbdkit_filter_sdk::export!(Ip: admission);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_client_is_let_in_or_refused_before_anything_is_opened() {
        let pid = std::process::id();
        let host = Host::new(Disk::pattern(512)).serve::<Ip>(&[&format!("allow=pid:{pid}"), "deny=all"]).unwrap();
        assert!(host.connect().is_ok());
        host.take_calls();
        let host = Host::new(Disk::pattern(512)).serve::<Ip>(&["allow=anyipv4", "allow=::1", "deny=all"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eperm));
        let expected = format!("error: a client was refused, because deny matches it: process {pid}, user 0, group 0");
        assert_eq!((host.take_log(), host.take_calls()), (vec![expected], vec![]));
    }

    #[test]
    fn without_rules_everybody_is_let_in_and_a_wrong_rule_names_its_parameter() {
        let host = Host::new(Disk::pattern(512)).serve::<Ip>(&["deny="]).unwrap();
        assert!(host.connect().is_ok());
        let wrong = Host::new(Disk::pattern(512)).serve::<Ip>(&["deny=1.2.3.4/33"]).err();
        let expected = "ip: deny=1.2.3.4/33: the prefix length '33' is not from 1 to 32";
        assert_eq!(wrong.as_deref(), Some(expected));
    }
}
