//! [`Reference`]: the name of a component in a registry.

use std::fmt;
use std::net::IpAddr;

use rbdkit_plugin_api::text::quoted;

use crate::digest::Digest;
use crate::error::Error;

/// What a reference begins with.
pub const SCHEME: &str = "oci://";

/// The longest name, in bytes: the limit of the OCI distribution specification for host and name.
const MAX_NAME: usize = 255;

/// The longest tag, in bytes, of the same specification.
const MAX_TAG: usize = 128;

/// `oci://host[:port]/name[:tag][@sha256:HEX]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The registry's host, and its port if one was given.
    pub host: String,
    /// The name within the registry, for example `team/filter`.
    pub name: String,
    /// The tag.
    pub tag: Option<String>,
    /// The digest of the manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Whether a text is meant as a reference and not as a file.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads a reference. It has a tag, a digest or both.
    ///
    /// # Errors
    /// One line that says which part is wrong.
    pub fn parse(text: &str) -> Result<Reference, Error> {
        let wrong = |why: &str| Error::Reference(format!("{} {why}", quoted(&without_password(text))));
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("does not begin with oci://"))?;
        let (host, rest) = rest.split_once('/').ok_or_else(|| wrong("names no component: oci://host/name:tag"))?;
        if host.contains('@') {
            return Err(wrong("has a user in front of the host: credentials come from docker's config.json"));
        }
        if !is_host(host) {
            return Err(wrong("does not begin with a host and perhaps a port: oci://host[:port]/name:tag"));
        }
        let (rest, digest) = match rest.split_once('@') {
            None => (rest, None),
            Some((rest, digest)) => {
                let digest = Digest::parse(digest);
                (rest, Some(digest.ok_or_else(|| wrong("has no SHA-256 digest after @: sha256: and 64 digits"))?))
            }
        };
        let (name, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((_, tag)) if !is_tag(tag) => {
                return Err(wrong("has a tag that is not made of 1 to 128 letters, digits, '_', '.' and '-'"));
            }
            Some((name, tag)) => (name, Some(tag.to_owned())),
        };
        if !is_name(name) {
            return Err(wrong(
                "has a name that is not made of lower-case letters, digits and single '.', '_', '-', '/'",
            ));
        }
        if host.len() + name.len() > MAX_NAME {
            return Err(wrong("is longer than 255 characters"));
        }
        if tag.is_none() && digest.is_none() {
            return Err(wrong("has neither a tag nor a digest: oci://host/name:tag, or @sha256:HEX"));
        }
        Ok(Reference { host: host.to_ascii_lowercase(), name: name.to_owned(), tag, digest })
    }

    /// The same component, pinned to this digest.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// Host and name: what a signature says of the component.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}/{}", self.host, self.name)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// The text without what may be a password in front of the host.
fn without_password(text: &str) -> String {
    let rest = text.strip_prefix(SCHEME).unwrap_or(text);
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((user, _)) => text.replacen(user, "***", 1),
        None => text.to_owned(),
    }
}

/// The host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

/// Whether a host, perhaps with a port, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether the text is a host name or an address, perhaps with a port. Nothing that separates the
/// parts of an address on the web can be in it.
pub(crate) fn is_host(text: &str) -> bool {
    let name = without_port(text);
    let port = text.strip_prefix(name).unwrap_or_default();
    let port_is_good = port.is_empty() || port[1..].parse::<u16>().is_ok_and(|port| port != 0);
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
    let name_is_good = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => is_address(address),
        None => {
            let good = |label: &str| {
                let ends = !label.starts_with('-') && !label.ends_with('-');
                !label.is_empty() && ends && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            name.split('.').all(good)
        }
    };
    port_is_good && !port.starts_with(":+") && name_is_good
}

fn is_tag(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=MAX_TAG).contains(&text.len()) && text.bytes().all(good) && !text.starts_with(['.', '-'])
}

/// Lower-case letters and digits with separators between them: `.`, `_`, `__` or any number of `-`.
fn is_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = |part: &str| {
        let runs = part.split(|character: char| character.is_ascii() && is_word(character as u8));
        runs.into_iter().all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
    };
    let part = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().last()];
        ends.into_iter().all(|end| end.is_some_and(is_word)) && separators(part)
    };
    text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn a_reference_is_shown_as_it_was_given() {
        for text in [
            "oci://ghcr.io/team/filter:1.0",
            "oci://localhost:5000/x:latest",
            "oci://[::1]:5000/a__b/c---d.e_f:_1",
            &format!("oci://h.example/x@{DIGEST}"),
            &format!("oci://h.example/x:1@{DIGEST}"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_part_that_is_wrong_is_named() {
        for (text, why) in [
            ("x", "does not begin with oci://"),
            ("oci://host", "names no component"),
            ("oci:///x:1", "does not begin with a host"),
            ("oci://-a/x:1", "does not begin with a host"),
            ("oci://h:0/x:1", "does not begin with a host"),
            ("oci://h:+1/x:1", "does not begin with a host"),
            ("oci://h:99999/x:1", "does not begin with a host"),
            ("oci://h\\@evil/x:1", "has a user"),
            ("oci://h?a/x:1", "does not begin with a host"),
            ("oci://h/x", "neither a tag nor a digest"),
            ("oci://h/X:1", "has a name"),
            ("oci://h/a//b:1", "has a name"),
            ("oci://h/a/../b:1", "has a name"),
            ("oci://h/a..b:1", "has a name"),
            ("oci://h/a_-b:1", "has a name"),
            ("oci://h/é:1", "has a name"),
            ("oci://h/x:", "has a tag"),
            ("oci://h/x:-1", "has a tag"),
            ("oci://h/x:a/b", "has a tag"),
            ("oci://h/x@sha256:12", "has no SHA-256 digest"),
            ("oci://h/x@sha512:12", "has no SHA-256 digest"),
            (&format!("oci://h/{}:1", "x".repeat(300)), "is longer than 255"),
            ("oci://h/x\n:1", "has a name"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_a_reference_is_refused_and_not_shown() {
        let error = Reference::parse("oci://me:GEHEIM@h/x:1").unwrap_err().to_string();
        assert!(error.contains("'oci://***@h/x:1' has a user") && !error.contains("GEHEIM"), "{error}");
    }

    #[test]
    fn this_machine_is_known() {
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.example", "128.0.0.1", "h", "[::2]:1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
