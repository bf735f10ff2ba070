//! Addresses: URLs, read by libcurl's own parser.
//!
//! What may be sent to a server depends on its scheme, host and port. Two parsers that disagree on
//! the host of a strange URL would send secrets to the wrong one, so only libcurl's parser is used.

use std::ffi::{CStr, CString, OsString, c_uint};
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::redact;
use crate::scheme::Scheme;
use crate::secret::Secret;

/// The longest URL, in bytes. A client's connection keeps one.
const MAX_URL: usize = 8 << 10;

/// A user and a password. Either may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
}

/// Whom a request talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    /// In lower case. Empty for a file.
    host: String,
    /// 0 for a file.
    pub(crate) port: u16,
}

/// A URL of a protocol that can be served.
#[derive(Clone)]
pub(crate) struct Address {
    /// Without user and password.
    url: CString,
    pub(crate) origin: Origin,
    /// The URL without its query, which names the file even if the query is a token that changes.
    pub(crate) file: String,
    /// The name of the file that a `file` URL means.
    pub(crate) path: Option<PathBuf>,
    /// The user and password of the URL.
    pub(crate) credentials: Option<Credentials>,
}

/// Why a URL is refused. The message contains no part of it that may be a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("is not a URL: http://HOST/PATH or https://HOST/PATH")]
    NotAUrl,
    #[error("names no host")]
    NoHost,
    #[error("for ssh use the ssh plugin")]
    Ssh,
    #[error("only http, https, ftp, ftps and file are served, not {0}")]
    Scheme(String),
    #[error("a redirect may lead only to http and https")]
    NotWeb,
    #[error("names another host: a file is this machine's, file:///PATH")]
    FileElsewhere,
    #[error("is longer than {MAX_URL} bytes")]
    TooLong,
    #[error("is not a URL: {0}")]
    Refused(String),
}

impl Address {
    /// Reads an absolute URL.
    pub(crate) fn parse(text: &[u8]) -> Result<Address, AddressError> {
        let lower = text.to_ascii_lowercase();
        let end = lower.windows(3).position(|window| window == b"://").ok_or(AddressError::NotAUrl)?;
        match check_scheme(&String::from_utf8_lossy(&lower[..end]))? {
            Scheme::File if lower.get(end + 3) != Some(&b'/') => return Err(AddressError::FileElsewhere),
            Scheme::File => {}
            _ if matches!(lower.get(end + 3), None | Some(b'/')) => return Err(AddressError::NoHost),
            _ => {}
        }
        let mut url = raw::Url::new().ok_or(AddressError::NotAUrl)?;
        url.set(text, 0)?;
        Address::of(&mut url)
    }

    /// The address that a `Location` at this address means, which may be relative.
    pub(crate) fn join(&self, location: &[u8]) -> Result<Address, AddressError> {
        let mut url = raw::Url::new().ok_or(AddressError::NotAUrl)?;
        url.set(self.url.as_bytes(), 0)?;
        // What libcurl allows in a redirect: spaces and bytes that should have been escaped.
        url.set(location, raw::URLENCODE | raw::ALLOW_SPACE | raw::NON_SUPPORT_SCHEME)?;
        match Address::of(&mut url)? {
            address if address.origin.scheme.is_web() => Ok(address),
            _ => Err(AddressError::NotWeb),
        }
    }

    fn of(url: &mut raw::Url) -> Result<Address, AddressError> {
        let text =
            |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap_or_default()).map_err(|_| AddressError::NotAUrl);
        let scheme = text(url.get(raw::SCHEME, 0)?)?.to_ascii_lowercase();
        let scheme = check_scheme(&scheme)?;
        let host = text(url.get(raw::HOST, 0)?)?.to_ascii_lowercase();
        if host.is_empty() && scheme != Scheme::File {
            return Err(AddressError::NoHost);
        }
        let path = match scheme {
            Scheme::File => url.get(raw::PATH, raw::URLDECODE)?.map(|path| PathBuf::from(OsString::from_vec(path))),
            _ => None,
        };
        let port = match scheme {
            Scheme::File => "0".into(),
            _ => text(url.get(raw::PORT, raw::DEFAULT_PORT)?)?,
        };
        let port = port.parse().map_err(|_| AddressError::Refused("its port is not a number up to 65535".into()))?;
        let secret = |bytes: Option<Vec<u8>>| {
            bytes
                .map(|bytes| Secret::new(&bytes))
                .transpose()
                .map_err(|_| AddressError::Refused("its user or password contains a line break or a null byte".into()))
        };
        let user = secret(url.get(raw::USER, raw::URLDECODE)?)?;
        let password = secret(url.get(raw::PASSWORD, raw::URLDECODE)?)?;
        url.clear(raw::USER);
        url.clear(raw::PASSWORD);
        url.clear(raw::FRAGMENT);
        let whole = url.get(raw::WHOLE, 0)?.ok_or(AddressError::NotAUrl)?;
        if whole.len() > MAX_URL {
            return Err(AddressError::TooLong);
        }
        let file = whole.split(|byte| *byte == b'?').next().unwrap_or_default();
        let file = String::from_utf8_lossy(file).into_owned();
        let url = CString::new(whole).map_err(|_| AddressError::NotAUrl)?;
        let credentials = (user.is_some() || password.is_some()).then_some(Credentials { user, password });
        Ok(Address { url, origin: Origin { scheme, host, port }, file, path, credentials })
    }

    /// The URL that libcurl gets: without user and password.
    pub(crate) fn url(&self) -> &CStr {
        &self.url
    }

    /// The host, in lower case.
    pub(crate) fn host(&self) -> &str {
        &self.origin.host
    }
}

/// Prints no secret.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::url(&self.file))
    }
}

/// Other protocols have a plugin of their own or cannot read ranges.
fn check_scheme(scheme: &str) -> Result<Scheme, AddressError> {
    if let Some(known) = Scheme::parse(scheme) {
        return Ok(known);
    }
    match scheme {
        "sftp" | "scp" => Err(AddressError::Ssh),
        _ if scheme.len() <= 20
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) =>
        {
            Err(AddressError::Scheme(scheme.into()))
        }
        _ => Err(AddressError::NotAUrl),
    }
}

/// libcurl's URL parser, which the crates `curl` and `curl-sys` do not offer.
mod raw {
    #![allow(unsafe_code, reason = "the crate curl does not offer libcurl's URL parser")]

    use std::ffi::{c_char, c_int, c_void};

    use super::*;

    #[repr(C)]
    struct Handle {
        _private: [u8; 0],
    }

    unsafe extern "C" {
        fn curl_url() -> *mut Handle;
        fn curl_url_cleanup(handle: *mut Handle);
        fn curl_url_set(handle: *mut Handle, part: c_int, content: *const c_char, flags: c_uint) -> c_int;
        fn curl_url_get(handle: *const Handle, part: c_int, content: *mut *mut c_char, flags: c_uint) -> c_int;
    }

    /// `CURLUPART_URL` and the parts, as `curl/urlapi.h` numbers them.
    pub(super) const WHOLE: c_int = 0;
    pub(super) const SCHEME: c_int = 1;
    pub(super) const USER: c_int = 2;
    pub(super) const PASSWORD: c_int = 3;
    pub(super) const HOST: c_int = 5;
    pub(super) const PORT: c_int = 6;
    pub(super) const PATH: c_int = 7;
    pub(super) const FRAGMENT: c_int = 9;

    /// `CURLU_` flags.
    pub(super) const DEFAULT_PORT: c_uint = 1 << 0;
    pub(super) const NON_SUPPORT_SCHEME: c_uint = 1 << 3;
    pub(super) const URLDECODE: c_uint = 1 << 6;
    pub(super) const URLENCODE: c_uint = 1 << 7;
    pub(super) const ALLOW_SPACE: c_uint = 1 << 11;

    /// A URL in its parts.
    pub(super) struct Url(*mut Handle);

    impl Url {
        /// None if there is no memory.
        pub(super) fn new() -> Option<Url> {
            // SAFETY: the function has no conditions; it returns null if there is no memory.
            let handle = unsafe { curl_url() };
            (!handle.is_null()).then_some(Url(handle))
        }

        /// Sets the whole URL. A relative one is resolved against the URL that was set before.
        pub(super) fn set(&mut self, text: &[u8], flags: c_uint) -> Result<(), AddressError> {
            let text = CString::new(text).map_err(|_| AddressError::NotAUrl)?;
            // SAFETY: the handle is valid until `self` is dropped, and the function copies the
            // text, which ends with a null byte.
            match unsafe { curl_url_set(self.0, WHOLE, text.as_ptr(), flags) } {
                0 => Ok(()),
                // The numbers of `CURLUcode`, which are fixed.
                4 => Err(AddressError::Refused("its port is not a number up to 65535".into())),
                14 | 21 => Err(AddressError::NoHost),
                code => Err(AddressError::Refused(format!("libcurl refuses it ({code})"))),
            }
        }

        /// Removes a part.
        pub(super) fn clear(&mut self, part: c_int) {
            // SAFETY: the handle is valid until `self` is dropped; null removes the part.
            let _ = unsafe { curl_url_set(self.0, part, std::ptr::null(), 0) };
        }

        /// A part; none if the URL does not have it.
        pub(super) fn get(&self, part: c_int, flags: c_uint) -> Result<Option<Vec<u8>>, AddressError> {
            let mut text = std::ptr::null_mut();
            // SAFETY: the handle is valid until `self` is dropped, and `text` is a place for one
            // pointer.
            let code = unsafe { curl_url_get(self.0, part, &raw mut text, flags) };
            match code {
                0 if !text.is_null() => {}
                // The numbers of `CURLUcode` that mean: there is no such part.
                0 | 10..=18 => return Ok(None),
                _ => return Err(AddressError::Refused("it has an escape that stands for a control character".into())),
            }
            // SAFETY: without an error the pointer is to a string that ends with a null byte and
            // that belongs to the caller.
            let bytes = unsafe { CStr::from_ptr(text) }.to_bytes().to_vec();
            // SAFETY: the string came from libcurl and is not used afterwards.
            unsafe { curl_sys::curl_free(text.cast::<c_void>()) };
            Ok(Some(bytes))
        }
    }

    impl Drop for Url {
        fn drop(&mut self) {
            // SAFETY: the handle is valid and is not used afterwards.
            unsafe { curl_url_cleanup(self.0) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Address {
        Address::parse(url.as_bytes()).unwrap()
    }

    #[test]
    fn an_address_is_what_libcurl_reads() {
        for (url, https, host, port) in [
            ("http://host/disk:7", false, "host", 80),
            ("HTTPS://Host", true, "host", 443),
            ("https://me:secret@host:8443/disk", true, "host", 8443),
            ("http://[::1]/disk", false, "[::1]", 80),
            ("http://[::1]:81?x", false, "[::1]", 81),
            ("http://host:/disk", false, "host", 80),
        ] {
            let address = parse(url);
            let scheme = if https { Scheme::Https } else { Scheme::Http };
            assert_eq!(address.origin, Origin { scheme, host: host.into(), port }, "{url}");
        }
        for url in ["http://host:70000/disk", "http://host:8%30/disk", "http:///x", "http://", "http://h\r\nx/", "x"] {
            assert!(Address::parse(url.as_bytes()).is_err(), "{url}");
        }
    }

    #[test]
    fn a_file_has_a_path_and_no_host() {
        let file = parse("file:///var/lib/a%20disk");
        assert_eq!(file.path.as_deref(), Some(std::path::Path::new("/var/lib/a disk")));
        assert_eq!(file.origin, Origin { scheme: Scheme::File, host: String::new(), port: 0 });
        assert_eq!(parse("ftps://host/disk").origin.port, 990);
        for url in ["file://host/x", "file://x", "file:", "file:///%00"] {
            assert!(Address::parse(url.as_bytes()).is_err(), "{url}");
        }
    }

    #[test]
    fn user_and_password_are_taken_out_of_a_url() {
        let address = parse("https://m%65:p%40ss%ff@host/disk?token=1#part");
        assert_eq!(address.url().to_bytes(), b"https://host/disk?token=1");
        assert_eq!(address.file, "https://host/disk");
        let credentials = address.credentials.as_ref().unwrap();
        assert_eq!(credentials.user.as_ref().unwrap().bytes(), b"me");
        assert_eq!(credentials.password.as_ref().unwrap().bytes(), b"p@ss\xff");
        assert!(parse("http://host/").credentials.is_none());
        assert!(Address::parse(b"http://a%0d%0ab:c@host/").is_err());
        assert_eq!(format!("{address:?}"), "https://host/disk");
    }

    #[test]
    fn a_location_is_resolved_and_need_not_be_escaped() {
        let from = parse("http://me:p@host:81/a/b?x=1");
        for (location, url) in [
            ("/c", "http://host:81/c"),
            ("c?y=2", "http://host:81/a/c?y=2"),
            ("//other/d", "http://other/d"),
            ("https://third/e f", "https://third/e%20f"),
            ("HTTP://x:y@fourth:82/", "http://fourth:82/"),
        ] {
            assert_eq!(from.join(location.as_bytes()).unwrap().url().to_str().unwrap().to_lowercase(), url);
        }
        for location in ["ftp://other/x", "file:///etc/passwd", "http://h:99999/", "gopher://x/"] {
            assert!(from.join(location.as_bytes()).is_err(), "{location}");
        }
        assert!(from.join(&[b'a'; MAX_URL]).is_err());
    }
}
