//! NBD URIs: `nbd://HOST[:PORT][/EXPORT]` and `nbd+unix:///[EXPORT]?socket=PATH`, and the same with
//! `nbds` for TLS. What they say of TLS is read by [`crate::uri_tls`].

use std::path::PathBuf;

/// The server that a URI names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// The port that is registered for NBD.
pub(crate) const PORT: u16 = 10809;

/// What is wrong with a URI. The message completes `uri=...: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UriError {
    #[error("is not a URI: nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
    NotAUri,
    #[error("has no '//' after its first ':'")]
    NoSlashes,
    #[error("names an export that is not UTF-8 text")]
    ExportNotUtf8,
    #[error("names a host that is not UTF-8 text")]
    HostNotUtf8,
    #[error("has a host, which a Unix socket has not: nbd+unix:///EXPORT?socket=PATH")]
    HostOfUnixSocket,
    #[error("names no socket: nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    #[error("has '{0}', which is neither true nor false")]
    NotABool(String),
    #[error("names a user, a host or a file of TLS that is not UTF-8 text")]
    TlsNotUtf8,
    #[error("asks for vsock, which the nbd plugin does not have: use nbd:// or nbd+unix://")]
    Vsock,
    #[error("has the unknown scheme '{0}': use nbd:// or nbd+unix://")]
    UnknownScheme(String),
    #[error("has a '[' without a ']'")]
    UnclosedBracket,
    #[error("has something after the ']'")]
    AfterBracket,
    #[error("has an impossible port: it is a number from 1 to 65535")]
    ImpossiblePort,
    #[error("has a '%' that is not followed by two hexadecimal digits")]
    BadPercent,
}

/// Reads a URI: where it leads, and the export that it names.
pub(crate) fn parse(uri: &str) -> Result<(Place, String), UriError> {
    let (scheme, rest) = uri.split_once(':').ok_or(UriError::NotAUri)?;
    let rest = rest.strip_prefix("//").ok_or(UriError::NoSlashes)?;
    let rest = rest.split('#').next().unwrap_or_default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(path)?;
    let export = String::from_utf8(export).map_err(|_| UriError::ExportNotUtf8)?;
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    match scheme.to_ascii_lowercase().as_str() {
        "nbd" | "nbds" => Ok((tcp(host)?, export)),
        "nbd+unix" | "nbds+unix" if host.is_empty() => Ok((Place::Unix(socket(query)?), export)),
        "nbd+unix" | "nbds+unix" => Err(UriError::HostOfUnixSocket),
        "nbd+vsock" | "nbds+vsock" => Err(UriError::Vsock),
        scheme => Err(UriError::UnknownScheme(scheme.to_owned())),
    }
}

fn tcp(host: &str) -> Result<Place, UriError> {
    // An IPv6 address stands in brackets because it contains colons.
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(UriError::UnclosedBracket)?;
            (host, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or(UriError::AfterBracket)?)
        }
        None => host.split_once(':').unwrap_or((host, "")),
    };
    let port = match port {
        "" => PORT,
        port => port.parse().ok().filter(|port| *port > 0).ok_or(UriError::ImpossiblePort)?,
    };
    let host = String::from_utf8(decode(host)?).map_err(|_| UriError::HostNotUtf8)?;
    // Without a host it is this one, as in libnbd.
    Ok(Place::Tcp { host: if host.is_empty() { "localhost".to_owned() } else { host }, port })
}

fn socket(query: &str) -> Result<PathBuf, UriError> {
    use std::os::unix::ffi::OsStringExt;
    let value = query.split(['&', ';']).find_map(|pair| pair.strip_prefix("socket="));
    let path = decode(value.unwrap_or_default())?;
    match path.is_empty() {
        true => Err(UriError::NoSocket),
        false => Ok(PathBuf::from(std::ffi::OsString::from_vec(path))),
    }
}

/// Decodes percent-encoded text.
pub(crate) fn decode(text: &str) -> Result<Vec<u8>, UriError> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = rest.split_at_checked(2).and_then(|(digits, after)| {
            rest = after;
            digits.iter().all(u8::is_ascii_hexdigit).then(|| str::from_utf8(digits).ok())?
        });
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(value.ok_or(UriError::BadPercent)?);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> Result<(Place, String), UriError> {
        Ok((Place::Tcp { host: host.to_owned(), port }, export.to_owned()))
    }

    #[test]
    fn uris_are_read_as_libnbd_reads_them() {
        assert_eq!(parse("nbd://example.com"), tcp("example.com", 10809, ""));
        assert_eq!(parse("nbd://example.com:99/disk/a%20b"), tcp("example.com", 99, "disk/a b"));
        assert_eq!(parse("NBD://user@[::1]:7/"), tcp("::1", 7, ""));
        assert_eq!(parse("nbd:///x"), tcp("localhost", 10809, "x"));
        let unix = |path: &str, export: &str| Ok((Place::Unix(PathBuf::from(path)), export.to_owned()));
        assert_eq!(parse("nbd+unix:///?socket=/tmp/s"), unix("/tmp/s", ""));
        assert_eq!(parse("nbd+unix:///%2fe?a=b&socket=/tmp/a%26b"), unix("/tmp/a&b", "/e"));
        assert_eq!(parse("nbd+unix://?socket=s"), unix("s", ""));
        assert_eq!(parse("nbds://alice@example.com/x?tls-psk-file=/k"), tcp("example.com", 10809, "x"));
        assert_eq!(parse("nbds+unix://alice@/x?tls-psk-file=/k&socket=/s"), unix("/s", "x"));
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        for (uri, wrong) in [
            ("disk.img", "is not a URI"),
            ("nbd:host", "has no '//'"),
            ("nbds+vsock://2", "asks for vsock"),
            ("nbd+vsock://2", "asks for vsock"),
            ("http://host", "unknown scheme 'http'"),
            ("nbd+unix:///", "names no socket"),
            ("nbd+unix://host/?socket=/s", "has a host"),
            ("nbd://host:0", "impossible port"),
            ("nbd://host:65536", "impossible port"),
            ("nbd://[::1", "without a ']'"),
            ("nbd://[::1]x", "after the ']'"),
            ("nbd://h/%2", "two hexadecimal digits"),
            ("nbd://h/%+1", "two hexadecimal digits"),
            ("nbd://h/%ff", "not UTF-8"),
        ] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(wrong), "{uri}: {error}");
        }
    }
}
