//! Reads the head of an answer, and checks that it is the answer to the request.

use rbdkit_plugin_api::{Errno, Error, Result};

use crate::redact::shown;

/// The longest value of a header field that is kept, in bytes. A longer version of the disk counts
/// as none, and a longer location leads nowhere.
const MAX_VALUE: usize = 8 << 10;

/// The longest version that is kept for each client, in bytes.
const MAX_VERSION: usize = 1 << 10;

/// The relevant header fields. A new status line (an interim answer or the answer of a proxy)
/// resets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// 0 before the first status line.
    pub(crate) status: u16,
    /// `Content-Length`.
    pub(crate) length: Option<u64>,
    pub(crate) range: ContentRange,
    /// The content type is `multipart/byteranges`: several ranges.
    is_multipart: bool,
    /// `Content-Encoding`, if it changes the bytes.
    pub(crate) encoding: Option<String>,
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<String>,
    pub(crate) location: Option<Vec<u8>>,
    retry_after: Option<String>,
}

/// `Content-Range`: `bytes FIRST-LAST/TOTAL`, where FIRST-LAST or TOTAL may be `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContentRange {
    #[default]
    Absent,
    /// A value that does not say which bytes come.
    Unreadable(String),
    Stated {
        /// First and last byte.
        bytes: Option<(u64, u64)>,
        total: Option<u64>,
    },
}

impl ContentRange {
    /// Reads the value. Servers also write `bytes=0-9/10`, leave out the unit or the total, and add
    /// spaces. A number that is too large becomes the largest, so that it differs from every right
    /// one.
    fn parse(text: &str) -> Option<ContentRange> {
        let text = text.trim();
        let rest = match text.get(..5) {
            Some(unit) if unit.eq_ignore_ascii_case("bytes") => text[5..].trim_start_matches([' ', '\t', '=', ':']),
            _ => text,
        };
        let (bytes, total) = match rest.split_once('/') {
            Some((bytes, total)) => (bytes.trim(), total.trim()),
            None => (rest, "*"),
        };
        let total = if total == "*" { None } else { Some(decimal(total)?) };
        let bytes = match bytes {
            "*" => None,
            _ => {
                let (first, last) = bytes.split_once('-')?;
                Some((decimal(first)?, decimal(last)?))
            }
        };
        match (bytes, total) {
            (None, None) => None,
            _ => Some(ContentRange::Stated { bytes, total }),
        }
    }

    /// The size of the disk, if the value says it.
    pub(crate) fn total(&self) -> Option<u64> {
        match self {
            ContentRange::Stated { total, .. } => *total,
            ContentRange::Absent | ContentRange::Unreadable(_) => None,
        }
    }
}

/// A number of digits only; `parse` alone would accept a sign.
fn decimal(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// A part of the disk that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    /// At least 1.
    pub(crate) length: u32,
    /// The size of the disk that the client knows.
    pub(crate) size: u64,
    /// The server stores the disk encoded (a `.gz` file), and the encoded bytes are the disk's.
    pub(crate) stored_encoded: bool,
}

impl Part {
    /// The last byte.
    pub(crate) fn last(&self) -> u64 {
        self.offset.saturating_add(self.length.into()).saturating_sub(1)
    }
}

impl Head {
    /// Reads one line of the head.
    pub(crate) fn line(&mut self, line: &[u8]) {
        if line.starts_with(b"HTTP/") {
            let status = line.split(|byte| *byte == b' ').nth(1).map(String::from_utf8_lossy);
            let status = status.and_then(|word| word.trim().parse().ok());
            *self = Head { status: status.unwrap_or(0), ..Head::default() };
            return;
        }
        let Some(end) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..end], line[end + 1..].trim_ascii());
        if value.len() > MAX_VALUE {
            return;
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let text = || String::from_utf8_lossy(value);
        let version = || (!value.is_empty() && value.len() <= MAX_VERSION).then(|| text().into_owned());
        if is("content-length") {
            self.length = decimal(&text());
        } else if is("content-range") {
            self.range = ContentRange::parse(&text()).unwrap_or_else(|| ContentRange::Unreadable(shown(&text())));
        } else if is("content-type") {
            self.is_multipart =
                value.get(..20).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/byteranges"));
        } else if is("content-encoding") {
            self.encoding = encoding(&text()).or(self.encoding.take());
        } else if is("etag") {
            self.etag = version();
        } else if is("last-modified") {
            self.modified = version();
        } else if is("location") {
            self.location = Some(value.to_vec());
        } else if is("retry-after") {
            self.retry_after = Some(shown(&text()));
        }
    }

    /// How many bytes of the part come, from its beginning. A server may send fewer than it was
    /// asked for (RFC 9110 15.3.7).
    ///
    /// # Errors
    /// EIO with what comes instead.
    pub(crate) fn part(&self, part: &Part) -> Result<u32> {
        let eio = |what: String| Err(Error::new(Errno::Eio, what));
        let is_whole = part.offset == 0 && u64::from(part.length) == part.size;
        match self.status {
            206 => {}
            200 if is_whole => {}
            200 => return eio("the server does not support ranges: it answers with the whole disk".into()),
            _ => return Err(self.refusal()),
        }
        if self.is_multipart {
            return eio("the server sends several ranges (multipart/byteranges), not the one it was asked for".into());
        }
        if let Some(total) = self.range.total().filter(|total| self.status == 206 && *total != part.size) {
            let size = part.size;
            return eio(format!("the disk has changed at the server: its size is {total}, it was {size}"));
        }
        let length = match &self.range {
            _ if self.status == 200 => part.length,
            ContentRange::Stated { bytes: Some((first, last)), .. } => {
                if *first != part.offset || last < first || *last > part.last() {
                    return eio(format!("the server sends bytes {first}-{last} instead of those that were asked for"));
                }
                // At most the length of the part.
                (last - first) as u32 + 1
            }
            // The right length shows that the server has read the range, and sends this one.
            _ if self.length == Some(part.length.into()) => part.length,
            ContentRange::Absent => {
                return eio("the server sends a part without saying which (no Content-Range)".into());
            }
            ContentRange::Unreadable(value) => {
                return eio(format!("the server sends a part without saying which (Content-Range is '{value}')"));
            }
            ContentRange::Stated { bytes: None, .. } => {
                return eio("the server sends a part without saying which (Content-Range has only the size)".into());
            }
        };
        self.check_encoding(part, length)?;
        match self.length.filter(|announced| *announced != u64::from(length)) {
            Some(announced) => eio(format!("the server announces {announced} bytes instead of {length}")),
            None => Ok(length),
        }
    }

    /// Checks that the part is the first byte of the disk, whatever its size.
    ///
    /// # Errors
    /// EIO with what comes instead.
    pub(crate) fn first_byte(&self) -> Result<()> {
        let size = self.range.total().unwrap_or(u64::MAX);
        self.part(&Part { offset: 0, length: 1, size, stored_encoded: true }).map(drop)
    }

    /// Checks that the bytes are the disk's. A server may store a compressed disk and call that its
    /// encoding. Then it says so always, and all lengths are those of the stored bytes.
    fn check_encoding(&self, part: &Part, length: u32) -> Result<()> {
        let Some(encoding) = &self.encoding else { return Ok(()) };
        let says_all = self.length == Some(length.into()) && (self.status == 200 || self.range.total().is_some());
        match part.stored_encoded && says_all {
            true => Ok(()),
            false => {
                Err(Error::new(Errno::Eio, format!("the server sends the disk encoded (Content-Encoding: {encoding})")))
            }
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
        let mut text = format!("the server answers {}{hint}", self.status);
        if let Some(when) = &self.retry_after {
            text.push_str(&format!(" (Retry-After: {when})"));
        }
        Error::new(Errno::Eio, text)
    }
}

/// The codings that change the bytes. `aws-chunked` describes how an object was uploaded to S3,
/// which stores the word and sends it with every answer.
fn encoding(value: &str) -> Option<String> {
    let codings = value.split(',').map(str::trim);
    let changing = codings.filter(|coding| {
        !["", "identity", "none", "aws-chunked"].iter().any(|harmless| coding.eq_ignore_ascii_case(harmless))
    });
    let changing: Vec<&str> = changing.collect();
    (!changing.is_empty()).then(|| shown(&changing.join(", ")))
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

    /// Ten bytes at 10 of 100.
    const PART: Part = Part { offset: 10, length: 10, size: 100, stored_encoded: false };

    const WHOLE: Part = Part { offset: 0, length: 100, size: 100, stored_encoded: false };

    #[test]
    fn the_last_answer_counts() {
        let head = head(&[
            "HTTP/1.1 103 Early Hints",
            "Content-Length: 7",
            "ETag: \"a\"",
            "",
            "HTTP/2 206",
            "content-range: bytes 10-19/100",
            "CONTENT-LENGTH: 10",
        ]);
        assert_eq!(head.etag, None);
        assert_eq!(head.part(&PART).unwrap(), 10);
    }

    #[test]
    fn anything_but_the_range_that_was_asked_for_is_an_error() {
        for (lines, error) in [
            (&["Content-Range: bytes 0-9/100"][..], "the server sends bytes 0-9 instead"),
            (&["Content-Range: bytes 0-9/100", "Content-Length: 10"], "the server sends bytes 0-9 instead"),
            (&["Content-Range: bytes=0-9/100", "Content-Length: 10"], "the server sends bytes 0-9 instead"),
            (&["Content-Range: 0-9", "Content-Length: 10"], "the server sends bytes 0-9 instead"),
            (&["Content-Range: bytes 10-20/100"], "the server sends bytes 10-20 instead"),
            (&["Content-Range: bytes 11-19/100"], "the server sends bytes 11-19 instead"),
            (&["Content-Range: bytes 19-10/100"], "the server sends bytes 19-10 instead"),
            (&["Content-Range: bytes 10-19/101"], "its size is 101, it was 100"),
            (&["Content-Range: bytes 10-99999999999999999999/100", "Content-Length: 10"], "instead of those"),
            (
                &["Content-Range: bytes 10-19/99999999999999999999", "Content-Length: 10"],
                "its size is 18446744073709551615",
            ),
            (&["Content-Range: bytes 0-18446744073709551615/*"], "instead of those"),
            (&["Content-Range: bytes +10-19/100"], "Content-Range is 'bytes +10-19/100'"),
            (&["Content-Range: x\u{1b}[2Jy", "Content-Length: 9"], "Content-Range is 'x\\u{1b}[2Jy'"),
            (&["Content-Range: bytes */100"], "Content-Range has only the size"),
            (&["Content-Range: bytes 10-19/100", "Content-Length: 9"], "announces 9 bytes instead of 10"),
            (&["Content-Range: bytes 10-15/100", "Content-Length: 10"], "announces 10 bytes instead of 6"),
            (&["Content-Length: 9"], "no Content-Range"),
            (&[], "no Content-Range"),
            (&["Content-Type: Multipart/ByteRanges; boundary=x", "Content-Length: 10"], "several ranges"),
            (&["Content-Range: bytes 10-19/100", "Content-Encoding: gzip"], "encoded (Content-Encoding: gzip)"),
            (&["Content-Range: bytes 10-19/100", "Content-Encoding: aws-chunked,br"], "encoded (Content-Encoding: br)"),
            (&["Content-Length: 10", "Content-Encoding: zstd"], "encoded (Content-Encoding: zstd)"),
        ] {
            let lines: Vec<&str> = ["HTTP/1.1 206 x"].iter().chain(lines).copied().collect();
            let text = head(&lines).part(&PART).unwrap_err().to_string();
            assert!(text.contains(error), "{lines:?}: {text}");
        }
        for (line, error) in [
            ("HTTP/1.1 200 OK", "does not support ranges"),
            ("HTTP/1.1 416 x", "has changed"),
            ("HTTP/1.1 503 x", "too busy"),
            ("nonsense", "not HTTP"),
        ] {
            let text = head(&[line, "Content-Length: 100"]).part(&PART).unwrap_err().to_string();
            assert!(text.contains(error), "{line}: {text}");
        }
        let busy = head(&["HTTP/1.1 429 x", "Retry-After: 17"]).part(&PART).unwrap_err().to_string();
        assert_eq!(busy, "the server answers 429: it is too busy (Retry-After: 17) (EIO)");
    }

    #[test]
    fn a_range_may_be_written_as_servers_write_it() {
        for (lines, length) in [
            (&["Content-Range: bytes 10-19/100"][..], 10),
            (&["content-range:BYTES 10-19/*"], 10),
            (&["Content-Range:   bytes  10 - 19 / 100  "], 10),
            (&["Content-Range: bytes=10-19/100"], 10),
            (&["Content-Range: 10-19/100"], 10),
            (&["Content-Range: bytes 10-19"], 10),
            (&["Content-Range: bytes 10-10/100", "Content-Length: 1"], 1),
            (&["Content-Range: nonsense", "Content-Length: 10"], 10),
            (&["Content-Range: bytes */100", "Content-Length: 10"], 10),
            (&["Content-Length: 10"], 10),
            (&["Content-Range: bytes 10-19/100", "Content-Encoding:"], 10),
            (&["Content-Range: bytes 10-19/100", "Content-Encoding: Identity, AWS-chunked"], 10),
        ] {
            let lines: Vec<&str> = ["HTTP/1.1 206 x"].iter().chain(lines).copied().collect();
            assert_eq!(head(&lines).part(&PART).unwrap(), length, "{lines:?}");
        }
    }

    #[test]
    fn a_disk_that_is_stored_encoded_is_served_as_it_is_stored() {
        let stored = Part { stored_encoded: true, ..PART };
        let right =
            ["HTTP/1.1 206 x", "Content-Encoding: gzip", "Content-Range: bytes 10-19/100", "Content-Length: 10"];
        assert_eq!(head(&right).part(&stored).unwrap(), 10);
        head(&right).part(&PART).unwrap_err();
        for lines in [
            // Compressed on the way, in pieces whose number is not known before.
            &["Content-Range: bytes 10-19/100"][..],
            &["Content-Range: bytes 10-19/100", "Content-Length: 33"],
            &["Content-Range: bytes 10-19/*", "Content-Length: 10"],
            &["Content-Length: 10"],
        ] {
            let lines: Vec<&str> = right[..2].iter().chain(lines).copied().collect();
            head(&lines).part(&stored).unwrap_err();
        }
    }

    #[test]
    fn the_whole_disk_may_come_without_a_range() {
        assert_eq!(head(&["HTTP/1.1 200 OK", "Content-Length: 100"]).part(&WHOLE).unwrap(), 100);
        assert_eq!(head(&["HTTP/1.1 200 OK"]).part(&WHOLE).unwrap(), 100);
        head(&["HTTP/1.1 200 OK", "Content-Length: 101"]).part(&WHOLE).unwrap_err();
        head(&["HTTP/1.1 200 OK", "Content-Length: 100", "Content-Encoding: gzip"]).part(&WHOLE).unwrap_err();
    }

    #[test]
    fn what_is_kept_of_a_head_is_bounded() {
        let long = format!("ETag: \"{}\"", "x".repeat(MAX_VERSION));
        assert_eq!(head(&["HTTP/1.1 206 x", &long]).etag, None);
        let long = format!("Location: {}", "x".repeat(MAX_VALUE + 1));
        assert_eq!(head(&["HTTP/1.1 302 x", &long]).location, None);
    }
}
