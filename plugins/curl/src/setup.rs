//! What libcurl is told of the parameters.

use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

use curl::easy::{Easy2, List};
use rbdkit_plugin_api::ConfigError;

use crate::config::{Settings, is_https};
use crate::transfer::{Job, Task, Transfer};

/// What libcurl reads from a connection at a time, in bytes: large, as our answers are; a transfer has one while it lasts.
const RECEIVE_BUFFER: usize = 256 << 10;

/// How many redirects are followed: what newer versions of libcurl do by default.
const MOST_REDIRECTS: u32 = 30;

/// `CURLOPT_TLS13_CIPHERS`, which the crate does not name.
const TLS13_CIPHERS: curl_sys::CURLoption = 10_276;

/// Sees whether libcurl can do what is asked for, so that the user learns of it at the start.
pub(crate) fn check(settings: &Settings) -> Result<(), ConfigError> {
    let version = curl::Version::get();
    if is_https(&settings.url) && version.ssl_version().is_none() {
        return Err(ConfigError::new(
            "curl: this libcurl has no TLS: build with the development files of the system's",
        ));
    }
    match handle(settings) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(ConfigError::new(format!("curl: libcurl {} refuses a parameter: {error}", version.version())))
        }
    }
}

/// A transfer with everything set that does not change from request to request.
pub(crate) fn handle(settings: &Settings) -> Result<Easy2<Transfer>, curl::Error> {
    let mut easy = Easy2::new(Transfer::default());
    easy.url(&settings.url)?;
    easy.buffer_size(RECEIVE_BUFFER)?;
    easy.follow_location(settings.followlocation)?;
    easy.max_redirections(MOST_REDIRECTS)?;
    connection(&mut easy, settings)?;
    identity(&mut easy, settings)?;
    tls(&mut easy, settings)?;
    raw::protocols(&easy, settings.allow_http, settings.allow_https)?;
    Ok(easy)
}

fn connection(easy: &mut Easy2<Transfer>, settings: &Settings) -> Result<(), curl::Error> {
    easy.ip_resolve(settings.ipresolve)?;
    easy.tcp_keepalive(settings.tcp_keepalive)?;
    easy.tcp_nodelay(settings.tcp_nodelay)?;
    if let Some(timeout) = settings.timeout {
        easy.timeout(timeout)?;
    }
    if let Some(version) = settings.http_version {
        easy.http_version(version)?;
    }
    if is_https(&settings.url) {
        // Rather a stream of a connection that is being made than another connection.
        easy.pipewait(true)?;
    }
    if let Some(path) = &settings.unix_socket_path {
        easy.unix_socket_path(Some(path))?;
    }
    if !settings.resolve.is_empty() {
        easy.resolve(list(&settings.resolve)?)?;
    }
    if let Some(proxy) = &settings.proxy {
        easy.proxy(proxy)?;
    }
    if let Some(user) = &settings.proxy_user {
        easy.proxy_username(user)?;
    }
    if let Some(password) = &settings.proxy_password {
        easy.proxy_password(password)?;
    }
    Ok(())
}

fn identity(easy: &mut Easy2<Transfer>, settings: &Settings) -> Result<(), curl::Error> {
    if let Some(user) = &settings.user {
        easy.username(user)?;
    }
    if let Some(password) = &settings.password {
        easy.password(password)?;
    }
    if let Some(name) = &settings.user_agent {
        easy.useragent(name)?;
    }
    if let Some(file) = &settings.cookiefile {
        easy.cookie_file(file)?;
    }
    Ok(())
}

fn tls(easy: &mut Easy2<Transfer>, settings: &Settings) -> Result<(), curl::Error> {
    match &settings.cainfo {
        Some(path) if path == Path::new("") => raw::no_cainfo(easy)?,
        Some(path) => easy.cainfo(path)?,
        None => {}
    }
    if let Some(path) = &settings.capath {
        easy.capath(path)?;
    }
    if !settings.sslverify {
        easy.ssl_verify_peer(false)?;
        easy.ssl_verify_host(false)?;
    }
    if let Some(version) = settings.ssl_version {
        easy.ssl_version(version)?;
    }
    if let Some(ciphers) = &settings.ssl_cipher_list {
        easy.ssl_cipher_list(ciphers)?;
    }
    if let Some(ciphers) = &settings.tls13_ciphers {
        raw::tls13_ciphers(easy, ciphers)?;
    }
    Ok(())
}

/// Sets what belongs to one request.
pub(crate) fn request(easy: &mut Easy2<Transfer>, job: &Job) -> Result<(), curl::Error> {
    let mut headers = list(&job.headers)?;
    // Undoes whatever the last request was.
    easy.get(true)?;
    match &job.task {
        Task::Head => easy.nobody(true)?,
        Task::Probe => headers.append("Range: bytes=0-0")?,
        Task::Read { span, offset, .. } => {
            headers.append(&format!("Range: bytes={offset}-{}", last(*offset, span.len)))?;
        }
        Task::Write { span, offset, size, .. } => {
            easy.upload(true)?;
            easy.in_filesize(span.len.into())?;
            headers.append(&format!("Content-Range: bytes {offset}-{}/{size}", last(*offset, span.len)))?;
            // Few servers answer it, and libcurl would wait a second for each that does not.
            headers.append("Expect:")?;
        }
    }
    easy.http_headers(headers)?;
    if let Some(cookie) = &job.cookie {
        easy.cookie(cookie)?;
    }
    Ok(())
}

/// The last byte of a request that the gate has checked: at least one byte, within 2^63.
fn last(offset: u64, length: u32) -> u64 {
    offset.saturating_add(length.into()).saturating_sub(1)
}

fn list(lines: &[String]) -> Result<List, curl::Error> {
    let mut list = List::new();
    for line in lines {
        list.append(line)?;
    }
    Ok(list)
}

/// How long the driver sleeps if nothing wakes it; only a bound.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Options that the crate does not offer.
mod raw {
    #![allow(unsafe_code)]

    use super::*;

    fn result(code: curl_sys::CURLcode) -> Result<(), curl::Error> {
        if code == curl_sys::CURLE_OK { Ok(()) } else { Err(curl::Error::new(code)) }
    }

    /// Which protocols the URL and redirects may have: by default libcurl would follow one to FTP.
    pub(super) fn protocols(easy: &Easy2<Transfer>, http: bool, https: bool) -> Result<(), curl::Error> {
        let mut mask: std::ffi::c_long = 0;
        if http {
            mask |= std::ffi::c_long::from(curl_sys::CURLPROTO_HTTP);
        }
        if https {
            mask |= std::ffi::c_long::from(curl_sys::CURLPROTO_HTTPS);
        }
        for option in [curl_sys::CURLOPT_PROTOCOLS, curl_sys::CURLOPT_REDIR_PROTOCOLS] {
            // SAFETY: the handle is alive as long as `easy`, which is borrowed, and both options take a long by value.
            result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), option, mask) })?;
        }
        Ok(())
    }

    /// No default certificate store.
    pub(super) fn no_cainfo(easy: &Easy2<Transfer>) -> Result<(), curl::Error> {
        let none = std::ptr::null::<std::ffi::c_char>();
        // SAFETY: the handle is alive as long as `easy`, which is borrowed; the option takes a string, null for none.
        result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_CAINFO, none) })
    }

    pub(super) fn tls13_ciphers(easy: &Easy2<Transfer>, ciphers: &str) -> Result<(), curl::Error> {
        let text = CString::new(ciphers).map_err(|_| curl::Error::new(curl_sys::CURLE_BAD_FUNCTION_ARGUMENT))?;
        // SAFETY: the handle is alive as long as `easy`, which is borrowed; the option takes a string that ends with a null byte
        // and copies it before it returns.
        result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), TLS13_CIPHERS, text.as_ptr()) })
    }
}
