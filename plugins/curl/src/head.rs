//! Reads the head of an answer, and checks that it is the answer to the request.

use rbdkit_plugin_api::{Errno, Error, Result};

/// The relevant header fields. A new status line (after a redirect, an interim answer or the answer
/// of a proxy) resets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// 0 before the first status line.
    pub(crate) status: u16,
    pub(crate) length: Option<u64>,
    /// `Content-Range`, if it could be read.
    pub(crate) range: Option<ContentRange>,
    pub(crate) accept_ranges: bool,
    /// `Content-Encoding` other than identity: the bytes would not be the disk's.
    pub(crate) encoded: bool,
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<String>,
}

/// `bytes FIRST-LAST/TOTAL`, where FIRST-LAST or TOTAL may be `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// First and last byte.
    pub(crate) bytes: Option<(u64, u64)>,
    pub(crate) total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<ContentRange> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (bytes, total) = rest.trim().split_once('/')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let bytes = match bytes {
            "*" => None,
            _ => {
                let (first, last) = bytes.split_once('-')?;
                Some((decimal(first)?, decimal(last)?))
            }
        };
        Some(ContentRange { bytes, total: if total == "*" { None } else { Some(decimal(total)?) } })
    }
}

/// A number of digits only; `parse` alone would accept a sign.
fn decimal(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl Head {
    /// Reads one line of the head.
    pub(crate) fn line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        if line.starts_with("HTTP/") {
            let status = line.split(' ').nth(1).and_then(|word| word.trim().parse().ok());
            *self = Head { status: status.unwrap_or(0), ..Head::default() };
            return;
        }
        let Some((name, value)) = line.split_once(':') else { return };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => self.length = decimal(value),
            "content-range" => self.range = ContentRange::parse(value),
            "accept-ranges" => {
                self.accept_ranges = value.split(',').any(|unit| unit.trim().eq_ignore_ascii_case("bytes"))
            }
            "content-encoding" => self.encoded = !value.eq_ignore_ascii_case("identity"),
            "etag" => self.etag = Some(value.to_string()),
            "last-modified" => self.modified = Some(value.to_string()),
            _ => {}
        }
    }

    /// Checks that the head announces exactly `length` bytes at `offset` of a disk of `size` bytes.
    ///
    /// # Errors
    /// EIO with what it announces instead.
    pub(crate) fn announces(&self, offset: u64, length: u32, size: u64) -> Result<()> {
        let eio = |what: String| Err(Error::new(Errno::Eio, what));
        let whole = offset == 0 && u64::from(length) == size;
        match self.status {
            200 | 206 if self.encoded => return eio("the server sends the disk encoded (Content-Encoding)".into()),
            206 => {}
            200 if whole && self.length.is_none_or(|announced| announced == size) => return Ok(()),
            200 => return eio("the server does not support ranges: it answers with the whole disk".into()),
            _ => return Err(self.refusal()),
        }
        let Some(ContentRange { bytes: Some((first, last)), total }) = self.range else {
            return eio("the server sends a part without saying which (no Content-Range)".into());
        };
        if let Some(total) = total.filter(|total| *total != size) {
            return eio(format!("the disk has changed at the server: its size is {total}, it was {size}"));
        }
        if first != offset || last.checked_sub(first).and_then(|n| n.checked_add(1)) != Some(length.into()) {
            return eio(format!("the server sends bytes {first}-{last} instead of those that were asked for"));
        }
        match self.length {
            Some(announced) if announced != u64::from(length) => {
                eio(format!("the server announces {announced} bytes instead of {length}"))
            }
            _ => Ok(()),
        }
    }

    /// The error for a status other than success.
    pub(crate) fn refusal(&self) -> Error {
        let hint = match self.status {
            0 => return Error::new(Errno::Eio, "the server's answer is not HTTP"),
            401 => ": it wants a user and password, or a cookie that has not expired",
            403 => ": it does not allow this",
            404 | 410 => ": there is no such disk",
            407 => ": the proxy wants a user and password",
            412 | 416 => ": the disk has changed at the server",
            301..=308 => ": a redirect that is not followed",
            429 | 503 => ": it is too busy",
            _ => "",
        };
        Error::new(Errno::Eio, format!("the server answers {}{hint}", self.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[&str]) -> Head {
        let mut head = Head::default();
        for line in lines {
            head.line(format!("{line}\r\n").as_bytes());
        }
        head
    }

    #[test]
    fn the_last_answer_counts() {
        let head = head(&[
            "HTTP/1.1 302 Found",
            "Content-Length: 7",
            "ETag: \"a\"",
            "",
            "HTTP/2 206",
            "content-range: bytes 10-19/100",
            "CONTENT-LENGTH: 10",
        ]);
        assert_eq!(head.etag, None);
        head.announces(10, 10, 100).unwrap();
    }

    #[test]
    fn anything_but_the_range_that_was_asked_for_is_an_error() {
        for (lines, error) in [
            (&["HTTP/1.1 206 x", "Content-Range: bytes 0-9/100"][..], "the server sends bytes 0-9 instead"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes 10-18/100"], "the server sends bytes 10-18 instead"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes 19-10/100"], "the server sends bytes 19-10 instead"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes 10-19/101"], "its size is 101, it was 100"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes +10-19/100"], "no Content-Range"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes */100"], "no Content-Range"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes 0-18446744073709551615/*"], "instead of those"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes 10-19/100", "Content-Length: 9"], "announces 9 bytes"),
            (&["HTTP/1.1 206 x", "Content-Type: multipart/byteranges"], "no Content-Range"),
            (&["HTTP/1.1 206 x", "Content-Range: bytes 10-19/100", "Content-Encoding: gzip"], "encoded"),
            (&["HTTP/1.1 200 OK", "Content-Length: 100"], "does not support ranges"),
            (&["HTTP/1.1 416 x"], "has changed"),
            (&["HTTP/1.1 503 x"], "too busy"),
            (&["nonsense"], "not HTTP"),
        ] {
            let text = head(lines).announces(10, 10, 100).unwrap_err().to_string();
            assert!(text.contains(error), "{lines:?}: {text}");
        }
    }

    #[test]
    fn the_whole_disk_may_come_without_a_range() {
        head(&["HTTP/1.1 200 OK", "Content-Length: 100"]).announces(0, 100, 100).unwrap();
        head(&["HTTP/1.1 200 OK"]).announces(0, 100, 100).unwrap();
        head(&["HTTP/1.1 200 OK", "Content-Length: 101"]).announces(0, 100, 100).unwrap_err();
    }
}
