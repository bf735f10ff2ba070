//! The cookies that servers set (`cookiefile=`, `cookiejar=`).
//!
//! libcurl keeps them and knows which server gets which. All transfers share one set. A server can
//! set new ones with every answer, so after some `Set-Cookie` lines the set is measured. If it has
//! grown beyond what a browser has to keep, it is set back to what it was. So the cost of an answer
//! does not grow with the number of the answers before.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use curl::easy::Easy2;
use rbdkit_plugin_api::ConfigError;

use crate::raw::{self, Share, Text};
use crate::secret::Secret;

/// The most cookies that are kept beside those of the file. libcurl sends no more to one server.
/// RFC 6265 6.1 asks for 50 for each server.
const MAX_COOKIES: usize = 150;

/// The most bytes of those cookies: 50 of 4096 each (RFC 6265 6.1), and what else their lines have.
const MAX_BYTES: usize = 256 << 10;

/// The most cookies that a file may have: what RFC 6265 6.1 asks for in all.
const MAX_FILE_COOKIES: usize = 3000;

/// After this many `Set-Cookie` lines the set is measured.
const MEASURE_AFTER: u32 = 50;

/// This many `Set-Cookie` lines may come before the set is measured again. Then an answer with more
/// than [`FEW`] is an error.
pub(crate) const MAX_UNMEASURED: u32 = 500;

/// So many cookies an ordinary answer may set, however many answers come at the same time.
pub(crate) const FEW: u32 = 8;

/// The largest cookie file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How many `Set-Cookie` lines came since the set was measured. All transfers count together.
pub(crate) type Counter = Rc<Cell<u32>>;

/// The cookies of the file, as lines that libcurl takes. A file that does not exist has none, as
/// for nbdkit.
///
/// # Errors
/// One line: the file cannot be read, is too large, or has a line that could not stand in a header.
pub(crate) fn read(path: &Path) -> Result<Vec<Secret>, ConfigError> {
    if path == Path::new("") {
        return Ok(Vec::new());
    }
    let wrong = |what: String| ConfigError::new(format!("cookiefile={}: {what}", path.display()));
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error.to_string())),
        Ok(_) if bytes.len() as u64 > MAX_FILE => return Err(wrong(format!("is larger than {MAX_FILE} bytes"))),
        Ok(_) => {}
    }
    let mut cookies = Vec::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().any(|byte| *byte < b' ' && *byte != b'\t' || *byte == 0x7f) {
            return Err(wrong(format!("line {} contains control characters", number + 1)));
        }
        if is_cookie(line) {
            let line = Secret::new(line);
            cookies.push(line.map_err(|error| wrong(format!("line {} {error}", number + 1)))?);
        }
    }
    match cookies.len() > MAX_FILE_COOKIES {
        true => Err(wrong(format!("has more than {MAX_FILE_COOKIES} cookies"))),
        false => Ok(cookies),
    }
}

/// A line in Netscape's format or a header line. Comments are neither.
fn is_cookie(line: &[u8]) -> bool {
    let is_header = line.get(..11).is_some_and(|start| start.eq_ignore_ascii_case(b"set-cookie:"));
    let is_comment = line.starts_with(b"#") && !line.starts_with(b"#HttpOnly_");
    is_header || !is_comment && line.iter().filter(|byte| **byte == b'\t').count() >= 5
}

/// The set.
pub(crate) struct Cookies {
    share: Share,
    /// A transfer that never runs, to read and change the set.
    reader: Easy2<Reader>,
    set: Counter,
    /// The set when it was last measured.
    measured: Vec<CString>,
    max_cookies: usize,
    max_bytes: usize,
}

/// Handles nothing: its transfer never runs.
struct Reader;

impl curl::easy::Handler for Reader {}

impl Cookies {
    /// Begins with these lines. A line that names no server means `host`: libcurl would send it to
    /// every server that is asked.
    pub(crate) fn new(lines: &[Secret], host: &str, set: Counter) -> Result<Cookies, curl::Error> {
        let out_of_memory = || curl::Error::new(curl_sys::CURLE_OUT_OF_MEMORY);
        let share = Share::new().ok_or_else(out_of_memory)?;
        let reader = Easy2::new(Reader);
        share.attach(&reader)?;
        for line in lines {
            raw::set_text(&reader, Text::CookieList, Some(&of_some_host(line)))?;
        }
        let (max_cookies, max_bytes) = (MAX_COOKIES, MAX_BYTES);
        let mut cookies = Cookies { share, reader, set, measured: Vec::new(), max_cookies, max_bytes };
        cookies.measured = cookies.list()?.iter().filter_map(|line| of_host(line, host)).collect();
        cookies.max_cookies += cookies.measured.len();
        cookies.max_bytes += cookies.measured.iter().map(|line| line.as_bytes().len()).sum::<usize>();
        cookies.restore()?;
        Ok(cookies)
    }

    /// Lets a transfer send and set these cookies.
    pub(crate) fn attach<H>(&self, easy: &Easy2<H>) -> Result<(), curl::Error> {
        self.share.attach(easy)
    }

    /// Measures the set if so many cookies came that it may have grown too large. Returns whether
    /// it had.
    pub(crate) fn bound(&mut self) -> Result<bool, curl::Error> {
        if self.set.get() < MEASURE_AFTER {
            return Ok(false);
        }
        self.set.set(0);
        let list = self.list()?;
        if list.len() <= self.max_cookies && list.iter().map(Vec::len).sum::<usize>() <= self.max_bytes {
            self.measured = list.into_iter().filter_map(|line| CString::new(line).ok()).collect();
            return Ok(false);
        }
        self.restore()?;
        Ok(true)
    }

    /// All cookies, in the lines of a cookie file.
    pub(crate) fn list(&mut self) -> Result<Vec<Vec<u8>>, curl::Error> {
        Ok(self.reader.cookies()?.iter().map(<[u8]>::to_vec).collect())
    }

    fn restore(&mut self) -> Result<(), curl::Error> {
        raw::set_text(&self.reader, Text::CookieList, Some(c"ALL"))?;
        self.measured.iter().try_for_each(|line| raw::set_text(&self.reader, Text::CookieList, Some(line)))
    }
}

/// Stands for the host of cookies that name none. No host has this name (RFC 6761 6.4).
const NO_HOST: &str = "without-a-host.invalid";

/// A line of a cookie file that names a host.
fn of_some_host(line: &Secret) -> CString {
    let is_domain = |attribute: &[u8]| {
        let mut parts = attribute.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let value = parts.next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"domain") && !value.is_empty()
    };
    let bytes = line.bytes();
    let is_header = bytes.get(..11).is_some_and(|start| start.eq_ignore_ascii_case(b"set-cookie:"));
    if !is_header || bytes.split(|byte| *byte == b';').skip(1).any(is_domain) {
        return line.as_c_str().to_owned();
    }
    CString::new([bytes, b"; Domain=", NO_HOST.as_bytes()].concat()).unwrap_or_default()
}

/// A line of libcurl's list, with this host if it has the host [`NO_HOST`].
fn of_host(line: &[u8], host: &str) -> Option<CString> {
    let (mark, rest) = match line.strip_prefix(b"#HttpOnly_") {
        Some(rest) => (&b"#HttpOnly_"[..], rest),
        None => (&b""[..], line),
    };
    match rest.strip_prefix(format!(".{NO_HOST}\tTRUE\t").as_bytes()) {
        Some(rest) => CString::new([mark, host.as_bytes(), b"\tFALSE\t", rest].concat()).ok(),
        None => CString::new(line).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<Secret> {
        texts.iter().map(|text| Secret::new(text.as_bytes()).unwrap()).collect()
    }

    fn texts(cookies: &mut Cookies) -> Vec<String> {
        let mut texts: Vec<String> =
            cookies.list().unwrap().into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
        texts.sort();
        texts
    }

    #[test]
    fn a_cookie_without_a_server_belongs_to_the_first_one() {
        let from = lines(&[
            "Set-Cookie: a=1; domain=",
            "set-cookie: b=2; HttpOnly",
            "Set-Cookie: d=4; DOMAIN=d.example",
            "other.example\tFALSE\t/\tFALSE\t0\tc\t3",
        ]);
        let mut cookies = Cookies::new(&from, "host.example", Counter::default()).unwrap();
        assert_eq!(
            texts(&mut cookies),
            [
                "#HttpOnly_host.example\tFALSE\t/\tFALSE\t0\tb\t2",
                ".d.example\tTRUE\t/\tFALSE\t0\td\t4",
                "host.example\tFALSE\t/\tFALSE\t0\ta\t1",
                "other.example\tFALSE\t/\tFALSE\t0\tc\t3"
            ]
        );
    }

    #[test]
    fn a_set_that_grows_too_large_is_set_back() {
        let set = Counter::default();
        let mut cookies = Cookies::new(&lines(&["Set-Cookie: kept=1"]), "host", Rc::clone(&set)).unwrap();
        let add = |cookies: &Cookies, count: usize, length: usize, from: usize| {
            for n in from..from + count {
                let line = format!("host\tFALSE\t/\tFALSE\t0\tn{n}\t{}", "x".repeat(length));
                raw::set_text(&cookies.reader, Text::CookieList, Some(&CString::new(line).unwrap())).unwrap();
                set.set(set.get() + 1);
            }
        };
        add(&cookies, 49, 10, 0);
        assert!(!cookies.bound().unwrap());
        assert_eq!(cookies.list().unwrap().len(), 50);
        add(&cookies, 50, 10, 1000);
        assert!(!cookies.bound().unwrap());
        assert_eq!(cookies.list().unwrap().len(), 100);
        add(&cookies, 60, 10, 2000);
        assert!(cookies.bound().unwrap(), "too many");
        assert_eq!(cookies.list().unwrap().len(), 100);
        add(&cookies, 50, 3000, 3000);
        assert!(!cookies.bound().unwrap());
        set.set(MEASURE_AFTER);
        add(&cookies, 50, 4000, 3000);
        assert!(!cookies.bound().unwrap());
        add(&cookies, 100, 4000, 0);
        assert!(cookies.bound().unwrap(), "too large");
    }

    #[test]
    fn a_cookie_file_is_lines_that_may_stand_in_a_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jar");
        let read_text = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let good = b"# a comment\n\nALL\nset-cookie: a=1\r\n#HttpOnly_h\tFALSE\t/\tFALSE\t0\tb\t\xfc\n";
        assert_eq!(read_text(good).unwrap().len(), 2);
        for (text, error) in [
            (&b"a=1\nSet-Cookie: a=\0b"[..], "line 2 contains control characters"),
            (b"Set-Cookie: a=1\rX-Other: b\n", "line 1 contains control characters"),
        ] {
            let text = read_text(text).unwrap_err().to_string();
            assert_eq!(text, format!("cookiefile={}: {error}", path.display()));
        }
        let many = "Set-Cookie: a=1\n".repeat(MAX_FILE_COOKIES + 1);
        assert!(read_text(many.as_bytes()).unwrap_err().to_string().contains("more than 3000 cookies"));
        assert!(read_text(&vec![b'#'; 2 << 20]).unwrap_err().to_string().contains("larger than"));
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).unwrap().is_empty());
    }
}
