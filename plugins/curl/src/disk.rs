//! The disk as it was when a client opened it, and whether an answer is of that version.

use rbdkit_plugin_api::{Errno, Error, Result};

use crate::address::Address;
use crate::head::Head;
use crate::redact::shown;

/// The disk as it was when a client opened it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Bytes.
    pub(crate) size: u64,
    /// The server stores the disk encoded, and the encoded bytes are the disk's.
    pub(crate) stored_encoded: bool,
    /// The address after redirects, without the query.
    file: String,
    etag: Option<String>,
    modified: Option<String>,
}

impl Disk {
    /// The disk whose size is known, by an answer from this address.
    ///
    /// # Errors
    /// EOVERFLOW for a size that no disk can have.
    pub(crate) fn new(size: u64, address: &Address, head: &Head) -> Result<Disk> {
        if size > i64::MAX as u64 {
            return Err(Error::new(Errno::Eoverflow, format!("the server says that the disk has {size} bytes")));
        }
        Ok(Disk {
            size,
            stored_encoded: head.encoding.is_some(),
            file: address.file.clone(),
            etag: head.etag.clone(),
            modified: head.modified.clone(),
        })
    }

    /// Checks that an answer from this address is of this version of the disk. Mirrors have
    /// versions of their own, so only answers from the same address are compared. Its query does
    /// not count, because it may be a token that is new in each redirect.
    ///
    /// # Errors
    /// EIO with both versions.
    pub(crate) fn check_version(&self, address: &Address, head: &Head) -> Result<()> {
        if address.file != self.file {
            return Ok(());
        }
        let (what, before, now) = match (&self.etag, &head.etag) {
            (Some(before), Some(now)) => ("ETag", before, now),
            _ => match (&self.modified, &head.modified) {
                (Some(before), Some(now)) => ("Last-Modified", before, now),
                _ => return Ok(()),
            },
        };
        if opaque(before) == opaque(now) {
            return Ok(());
        }
        let text = format!(
            "the disk has changed at the server: its {what} is {}, it was {} when the client connected \
             (check-changes=false serves it all the same, for example from several servers behind one URL)",
            shown(now),
            shown(before),
        );
        Err(Error::new(Errno::Eio, text))
    }
}

/// What is compared of an entity tag. A weak tag (`W/"1"`) and a strong one (`"1"`) may name the
/// same version: some servers and proxies make a tag weak on the way (RFC 9110 8.8.3.2).
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[&str]) -> Head {
        let mut head = Head::default();
        head.line(b"HTTP/1.1 206 x\r\n");
        lines.iter().for_each(|line| head.line(line.as_bytes()));
        head
    }

    fn address(url: &str) -> Address {
        Address::parse(url.as_bytes()).unwrap()
    }

    #[test]
    fn versions_are_compared_weakly() {
        let old = "Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT";
        let new = "Last-Modified: Thu, 01 Jan 1970 00:00:01 GMT";
        for (before, now, is_same) in [
            (&["ETag: \"1\""][..], &["ETag: \"1\""][..], true),
            (&["ETag: \"1\""], &["ETag: W/\"1\""], true),
            (&["ETag: W/\"1\""], &["ETag: \"1\""], true),
            (&["ETag: W/\"1\""], &["ETag: W/\"1\""], true),
            (&["ETag: \"1\""], &["ETag: \"2\""], false),
            (&["ETag: W/\"1\""], &["ETag: W/\"2\""], false),
            (&["ETag: \"1\"", old], &["ETag: \"1\"", new], true),
            (&["ETag: \"1\"", old], &["ETag: \"2\"", old], false),
            (&["ETag: \"1\"", old], &[old], true),
            (&[old], &[old], true),
            (&[old], &[new], false),
            (&[old], &["ETag: \"1\""], true),
            (&[], &[new], true),
        ] {
            let disk = Disk::new(10, &address("http://h/x?token=1"), &head(before)).unwrap();
            let result = disk.check_version(&address("http://h/x?token=2"), &head(now));
            assert_eq!(result.is_ok(), is_same, "{before:?} {now:?}");
            if let Err(error) = result {
                assert!(error.to_string().contains("check-changes=false"), "{error}");
            }
            disk.check_version(&address("http://other/x"), &head(now)).unwrap();
        }
    }
}
