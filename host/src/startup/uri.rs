//! The NBD URI under which clients reach the server.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::listen::Reachable;

/// The URI of a server. None: only the caller knows where it listens.
pub fn of(reachable: &Reachable, exportname: &OsStr) -> Option<String> {
    match reachable {
        Reachable::Unix(socket) => Some(unix(socket, exportname)),
        Reachable::Tcp { host, port } => Some(tcp(host, *port, exportname)),
        Reachable::Vsock { port } => Some(vsock(*port, exportname)),
        Reachable::Unknown => None,
    }
}

/// The URI of a Unix socket.
fn unix(socket: &Path, exportname: &OsStr) -> String {
    let export = match exportname.is_empty() {
        true => String::new(),
        false => format!("/{}", escape(exportname)),
    };
    format!("nbd+unix://{export}?socket={}", escape(socket.as_os_str()))
}

/// The context id of the machine itself, for clients that run where the server does. In a virtual
/// machine the host's id is 2.
const LOCAL_CONTEXT: u32 = 1;

/// The URI of a vsock port.
fn vsock(port: u32, exportname: &OsStr) -> String {
    match exportname.is_empty() {
        true => format!("nbd+vsock://{LOCAL_CONTEXT}:{port}"),
        false => format!("nbd+vsock://{LOCAL_CONTEXT}:{port}/{}", escape(exportname)),
    }
}

/// The URI of a TCP port. `host` is a name or an address. An IPv6 address gets brackets.
fn tcp(host: &str, port: u16, exportname: &OsStr) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
    match exportname.is_empty() {
        true => format!("nbd://{host}:{port}"),
        false => format!("nbd://{host}:{port}/{}", escape(exportname)),
    }
}

/// Percent-encodes all bytes except those that are allowed unescaped both in a path and in a query.
pub(super) fn escape(text: &OsStr) -> String {
    let mut escaped = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte))
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_written_as_nbdkit_writes_them() {
        let os = OsStr::new;
        assert_eq!(unix(Path::new("/tmp/a b/s"), os("")), "nbd+unix://?socket=/tmp/a%20b/s");
        assert_eq!(unix(Path::new("/s"), os("a b/é?#%&")), "nbd+unix:///a%20b/%C3%A9%3F%23%25%26?socket=/s");
        assert_eq!(tcp("localhost", 10809, os("")), "nbd://localhost:10809");
        assert_eq!(tcp("localhost", 1, os("a:b")), "nbd://localhost:1/a%3Ab");
        assert_eq!(tcp("2001:db8::1", 1, os("")), "nbd://[2001:db8::1]:1");
    }
}
