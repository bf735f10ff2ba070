//! [`Url`]: an address on the web, as strict as a client may be that only talks to registries.

use std::fmt;

use crate::reference::is_host;

/// The longest address that is accepted, in bytes. Storage services sign the addresses that a
/// registry redirects to; they have one or two KiB.
const MAX_URL: usize = 16 << 10;

/// An address: `http` or `https`, a host with perhaps a port, and a path with perhaps a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) https: bool,
    /// The host, and the port if there is one.
    pub(crate) host: String,
    /// The path and the query, from the slash on.
    pub(crate) path: String,
}

impl Url {
    /// Where a server leads from this address. The answer is a whole address, or a path on the same
    /// server.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(crate) fn lead(&self, to: &str) -> Result<Url, &'static str> {
        let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>');
        if to.len() > MAX_URL || !to.bytes().all(good) {
            return Err("which is not an address");
        }
        let to = to.split('#').next().unwrap_or_default();
        if to.starts_with('/') && !to.starts_with("//") {
            return Ok(Url { path: to.to_owned(), ..self.clone() });
        }
        let (scheme, rest) = to.split_once("://").ok_or("which is not an address")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("which is neither https nor http"),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        if !is_host(host) {
            return Err("which is not an address");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Url { https, host: host.to_ascii_lowercase(), path })
    }

    /// Whether both are on the same server.
    pub(crate) fn is_with(&self, other: &Url) -> bool {
        self.https == other.https && self.host == other.host
    }

    /// The address without its path: where messages say that something is. Queries have tokens.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.host)
    }

    /// The address with this parameter in the query.
    pub(crate) fn with(&self, key: &str, value: &str) -> Url {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        let mut path = format!("{}{mark}{key}=", self.path);
        for byte in value.bytes() {
            match byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                true => path.push(char::from(byte)),
                false => path.push_str(&format!("%{byte:02X}")),
            }
        }
        Url { path, ..self.clone() }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_leads_is_read_strictly() {
        let from = Url { https: true, host: "h:1".into(), path: "/v2/".into() };
        let to = |text: &str| from.lead(text).map(|url| url.to_string());
        assert_eq!(to("/x?y=z"), Ok("https://h:1/x?y=z".into()));
        assert_eq!(to("http://Other/x"), Ok("http://other/x".into()));
        assert_eq!(to("HTTPS://o?q#f"), Ok("https://o/?q".into()));
        let other = "which is neither https nor http";
        for (text, why) in [
            ("file:///etc/passwd", other),
            ("gopher://h/x", other),
            ("x", "which is not an address"),
            ("//h/x", "which is not an address"),
            ("http://me:secret@h/x", "which is not an address"),
            ("http://h\\@o/x", "which is not an address"),
            ("http://h /x", "which is not an address"),
            ("http://h\r\nx: y/", "which is not an address"),
            ("http:///x", "which is not an address"),
        ] {
            assert_eq!(to(text), Err(why), "{text}");
        }
        assert!(to(&format!("/{}", "x".repeat(MAX_URL))).is_err());
    }

    #[test]
    fn a_parameter_is_escaped() {
        let url = Url { https: false, host: "h".into(), path: "/t".into() };
        assert_eq!(url.with("a", "b c&d").with("e", "f").path, "/t?a=b%20c%26d&e=f");
    }
}
