//! Options of libcurl that the crate `curl` does not offer, or offers only for UTF-8 text.
#![allow(unsafe_code, reason = "the crate curl does not offer these options of libcurl")]

use std::ffi::{CStr, c_char, c_int, c_long};
use std::ptr;

use curl::easy::Easy2;

use crate::config::{HttpVersion, Settings};
use crate::line::Line;
use crate::scheme::Scheme;

/// `CURLOPT_TLS13_CIPHERS`, which `curl-sys` does not define.
const TLS13_CIPHERS: curl_sys::CURLoption = 10_276;

/// `CURLOPT_QUICK_EXIT`, which `curl-sys` does not define.
const QUICK_EXIT: curl_sys::CURLoption = 322;

/// `CURLPROTO_FTP` and `CURLPROTO_FTPS`, which `curl-sys` does not define.
const PROTOCOL_FTP: c_int = 1 << 2;
const PROTOCOL_FTPS: c_int = 1 << 3;

/// `CURLINFO_CONTENT_LENGTH_DOWNLOAD_T`, which `curl-sys` does not define.
const CONTENT_LENGTH_DOWNLOAD: curl_sys::CURLINFO = 0x60_0000 + 15;

fn result(code: curl_sys::CURLcode) -> Result<(), curl::Error> {
    if code == curl_sys::CURLE_OK { Ok(()) } else { Err(curl::Error::new(code)) }
}

fn set_long<H>(easy: &Easy2<H>, option: curl_sys::CURLoption, value: c_long) -> Result<(), curl::Error> {
    // SAFETY: the handle is alive as long as `easy`, which is borrowed. The callers pass options
    // that take a long by value.
    result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), option, value) })
}

/// An option that takes text, of which libcurl makes a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Text {
    Url,
    /// `FIRST-LAST`: the bytes to read of a server that is no web server.
    Range,
    User,
    Password,
    ProxyUser,
    ProxyPassword,
    UserAgent,
    Cookie,
    Cainfo,
    ProxyCainfo,
    Tls13Ciphers,
    /// Reads cookies from the file. Empty: only keeps those that servers set. None: keeps none.
    CookieFile,
    /// Adds a cookie, or `ALL` removes all.
    CookieList,
}

impl Text {
    fn option(self) -> curl_sys::CURLoption {
        match self {
            Text::Url => curl_sys::CURLOPT_URL,
            Text::Range => curl_sys::CURLOPT_RANGE,
            Text::User => curl_sys::CURLOPT_USERNAME,
            Text::Password => curl_sys::CURLOPT_PASSWORD,
            Text::ProxyUser => curl_sys::CURLOPT_PROXYUSERNAME,
            Text::ProxyPassword => curl_sys::CURLOPT_PROXYPASSWORD,
            Text::UserAgent => curl_sys::CURLOPT_USERAGENT,
            Text::Cookie => curl_sys::CURLOPT_COOKIE,
            Text::Cainfo => curl_sys::CURLOPT_CAINFO,
            Text::ProxyCainfo => curl_sys::CURLOPT_PROXY_CAINFO,
            Text::Tls13Ciphers => TLS13_CIPHERS,
            Text::CookieFile => curl_sys::CURLOPT_COOKIEFILE,
            Text::CookieList => curl_sys::CURLOPT_COOKIELIST,
        }
    }
}

/// Sets an option to this text, or with none to nothing.
pub(crate) fn set_text<H>(easy: &Easy2<H>, which: Text, text: Option<&CStr>) -> Result<(), curl::Error> {
    let text = text.map_or(ptr::null::<c_char>(), CStr::as_ptr);
    // SAFETY: the handle is alive as long as `easy`, which is borrowed. The option takes a string
    // that ends with a null byte, or null, and copies it before it returns.
    result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), which.option(), text) })
}

/// Sets the version of HTTP. libcurl refuses one that it was not built with.
pub(crate) fn http_version<H>(easy: &Easy2<H>, version: HttpVersion) -> Result<(), curl::Error> {
    set_long(easy, curl_sys::CURLOPT_HTTP_VERSION, version.0.into())
}

/// Which protocols URLs may use.
pub(crate) fn protocols<H>(easy: &Easy2<H>, settings: &Settings) -> Result<(), curl::Error> {
    let allowed = Scheme::ALL.into_iter().filter(|scheme| settings.protocols.allows(*scheme));
    let mask = allowed.fold(0, |mask, scheme| {
        mask | match scheme {
            Scheme::Http => curl_sys::CURLPROTO_HTTP,
            Scheme::Https => curl_sys::CURLPROTO_HTTPS,
            Scheme::File => curl_sys::CURLPROTO_FILE,
            Scheme::Ftp => PROTOCOL_FTP,
            Scheme::Ftps => PROTOCOL_FTPS,
        }
    });
    set_long(easy, curl_sys::CURLOPT_PROTOCOLS, c_long::from(mask))
}

/// A request that is dropped while libcurl's thread looks up a name does not wait for that thread.
/// libcurl has the option since 7.87; an older one waits.
pub(crate) fn leave_lookups<H>(easy: &Easy2<H>) {
    let _ = set_long(easy, QUICK_EXIT, 1);
}

/// What libcurl says of the length of the file that the last transfer was about.
pub(crate) fn content_length<H>(easy: &Easy2<H>) -> Option<u64> {
    let mut length: curl_sys::curl_off_t = -1;
    // SAFETY: the handle is alive as long as `easy`, which is borrowed. The information is a
    // `curl_off_t`, for which `length` is a place.
    let code = unsafe { curl_sys::curl_easy_getinfo(easy.raw(), CONTENT_LENGTH_DOWNLOAD, &raw mut length) };
    u64::try_from(length).ok().filter(|_| code == curl_sys::CURLE_OK)
}

/// The header lines of a request, which libcurl reads until the transfer has ended.
pub(crate) struct HeaderList(*mut curl_sys::curl_slist);

impl Default for HeaderList {
    fn default() -> HeaderList {
        HeaderList(ptr::null_mut())
    }
}

impl HeaderList {
    /// These lines.
    pub(crate) fn of(lines: &[Line]) -> Result<HeaderList, curl::Error> {
        let mut list = HeaderList::default();
        lines.iter().try_for_each(|line| list.append(line.text().as_c_str()))?;
        Ok(list)
    }

    /// Adds a copy of a line.
    pub(crate) fn append(&mut self, line: &CStr) -> Result<(), curl::Error> {
        // SAFETY: the list is null or came from this function, and the line ends with a null byte
        // and is copied. On an error the old list stays valid.
        let longer = unsafe { curl_sys::curl_slist_append(self.0, line.as_ptr()) };
        if longer.is_null() {
            return Err(curl::Error::new(curl_sys::CURLE_OUT_OF_MEMORY));
        }
        self.0 = longer;
        Ok(())
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: the list is null or came from `curl_slist_append`, and is not used afterwards:
        // see `set_headers`.
        unsafe { curl_sys::curl_slist_free_all(self.0) }
    }
}

/// Sets the header lines of the next transfer. `keep` puts the list where it lives as long as the
/// handler of `easy`, or until the next call of this function, and drops the list before.
pub(crate) fn set_headers<H>(
    easy: &mut Easy2<H>,
    list: HeaderList,
    place: impl FnOnce(&mut H) -> &mut HeaderList,
) -> Result<(), curl::Error> {
    let raw = list.0;
    // SAFETY: the handle is alive as long as `easy`, which is borrowed. The list lives in the
    // handler of `easy`, which is dropped after the handle of libcurl, and is only replaced here,
    // together with the option, while no transfer runs (`easy` is borrowed mutably).
    result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_HTTPHEADER, raw) })?;
    *place(easy.get_mut()) = list;
    Ok(())
}

/// Cookies that several transfers of one thread have in common.
pub(crate) struct Share(*mut curl_sys::CURLSH);

impl Share {
    /// None if there is no memory.
    pub(crate) fn new() -> Option<Share> {
        // SAFETY: the function has no conditions; it returns null if there is no memory.
        let share = unsafe { curl_sys::curl_share_init() };
        if share.is_null() {
            return None;
        }
        let share = Share(share);
        // SAFETY: the share is valid until it is dropped; the option takes a number. No lock
        // functions are needed, because the type is not `Send`: one thread has all transfers.
        let code =
            unsafe { curl_sys::curl_share_setopt(share.0, curl_sys::CURLSHOPT_SHARE, curl_sys::CURL_LOCK_DATA_COOKIE) };
        (code == curl_sys::CURLSHE_OK).then_some(share)
    }

    /// Lets a transfer send these cookies and keep those that servers set.
    pub(crate) fn attach<H>(&self, easy: &Easy2<H>) -> Result<(), curl::Error> {
        // SAFETY: both handles are alive. libcurl counts the transfers that use a share, and does
        // not free the share before the last of them (see `drop`).
        result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_SHARE, self.0) })?;
        set_text(easy, Text::CookieFile, Some(c""))
    }
}

/// Lets a transfer neither send nor keep cookies.
pub(crate) fn detach<H>(easy: &Easy2<H>) -> Result<(), curl::Error> {
    let none = ptr::null_mut::<curl_sys::CURLSH>();
    // SAFETY: the handle is alive as long as `easy`, which is borrowed; null means no share.
    result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_SHARE, none) })?;
    set_text(easy, Text::CookieFile, None)
}

impl Drop for Share {
    fn drop(&mut self) {
        // SAFETY: the share is valid and is not used afterwards. If a transfer still uses it,
        // libcurl refuses and the share is never freed.
        let _ = unsafe { curl_sys::curl_share_cleanup(self.0) };
    }
}
