//! Admits clients by their address, process, user or group.

mod address;
mod rules;

use client::Peer;
use rbdkit_filter_sdk::prelude::*;
use rules::{Certificate, Refusal, Rules, Source, Verdict};

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

/// The client's certificate, once it has had the time to show one.
fn certificate() -> Certificate {
    match (client::tls_subject(), client::tls_issuer()) {
        (Ok(subject), Ok(issuer)) => Certificate::Names { subject, issuer },
        _ => Certificate::None,
    }
}

impl Ip {
    /// Refuses the client, or lets it in, at least until it has shown its certificate.
    fn admit(&self, certificate: &Certificate) -> Result<(), Errno> {
        if self.rules.let_everybody_in() {
            return Ok(());
        }
        let source = source();
        let refused = |why: &str| {
            error!("a client was refused, because {why}: {}{}", shown(&source), named(certificate));
            Err(Errno::Eperm)
        };
        match self.rules.check(&source, certificate) {
            Verdict::LetIn => debug!("a client is let in: {}{}", shown(&source), named(certificate)),
            Verdict::NotYet => debug!("it depends on the certificate of a client: {}", shown(&source)),
            Verdict::Refused(Refusal::Denied) => return refused("deny matches it"),
            Verdict::Refused(Refusal::Unknown) => return refused("deny cannot tell whether it matches"),
        }
        Ok(())
    }

    /// The same once TLS has begun, if it had to be waited for.
    fn admit_named(&self) -> Result<(), Errno> {
        if self.rules.ask_for_certificates() { self.admit(&certificate()) } else { Ok(()) }
    }
}

impl Filter for Ip {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("ip", env!("CARGO_PKG_VERSION"), "admits clients by their address, process, user or group")
            .help(
                "An entry is all, anyipv4, anyipv6, anyunix, anyvsock, an IP address (10.0.0.0/8), pid:N, uid:N, \
                 gid:N, vsock-cid:N, vsock-port:N, security:CONTEXT, or dn:NAME or issuer-dn:NAME of a TLS \
                 certificate. allow comes first, then deny; the rest is let in.",
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
        self.admit(&Certificate::NotYet)?;
        next_open::preconnect(readonly)
    }
}

impl Names for Ip {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        self.admit_named()?;
        next_open::list_exports(readonly)
    }
}

impl Connection for Ip {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, replayed: bool) -> Result<u64, Errno> {
        if !replayed {
            self.admit_named()?;
        }
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
}

/// The certificate for the log, as the end of a line.
fn named(certificate: &Certificate) -> String {
    match certificate {
        Certificate::NotYet => String::new(),
        Certificate::None => ", without a certificate".to_string(),
        Certificate::Names { subject, issuer } => format!(", certificate {subject}, issued by {issuer}"),
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

rbdkit_filter_sdk::export!(Ip: admission, names, connection);

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
