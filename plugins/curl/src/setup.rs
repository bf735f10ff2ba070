//! Sets the options of libcurl for the parameters and for each request.

use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

use curl::easy::{Easy2, List};
use rbdkit_plugin_api::ConfigError;

use crate::config::{Settings, is_https};
use crate::transfer::{Job, Task, Transfer};

/// The size of libcurl's receive buffer, in bytes: large, because answers are. Each running
/// transfer has one.
const RECEIVE_BUFFER: usize = 256 << 10;

/// How many redirects are followed: the default of newer versions of libcurl.
const MAX_REDIRECTS: u32 = 30;

/// `CURLOPT_TLS13_CIPHERS`, which the crate does not define.
const TLS13_CIPHERS: curl_sys::CURLoption = 10_276;

/// Checks that libcurl accepts the parameters, so that the user sees an error at the start.
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

/// A transfer with all options that are the same for every request.
pub(crate) fn handle(settings: &Settings) -> Result<Easy2<Transfer>, curl::Error> {
    let mut easy = Easy2::new(Transfer::default());
    easy.url(&settings.url)?;
    easy.buffer_size(RECEIVE_BUFFER)?;
    easy.follow_location(settings.followlocation)?;
    easy.max_redirections(MAX_REDIRECTS)?;
    connection(&mut easy, settings)?;
    identity(&mut easy, settings)?;
    tls(&mut easy, settings)?;
    raw::protocols(&easy, settings)?;
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
        // Waits for a connection that is being made, to use a stream of it, rather than making
        // another connection.
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

/// Sets the options of one request.
pub(crate) fn request(easy: &mut Easy2<Transfer>, job: &Job) -> Result<(), curl::Error> {
    let mut headers = list(&job.headers)?;
    // Resets the method of the last request.
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
            // Without this libcurl sends "Expect: 100-continue" and waits a second, because few
            // servers answer it.
            headers.append("Expect:")?;
        }
    }
    easy.http_headers(headers)?;
    if let Some(cookie) = &job.cookie {
        easy.cookie(cookie)?;
    }
    Ok(())
}

/// The offset of the last byte of a request. The gate has checked that it has at least one byte and
/// lies within 2^63.
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

/// The longest time that the driver sleeps if nothing wakes it.
pub(crate) const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Options that the crate `curl` does not offer.
mod raw {
    #![allow(unsafe_code, reason = "the crate curl does not offer these options of libcurl")]

    use super::*;

    fn result(code: curl_sys::CURLcode) -> Result<(), curl::Error> {
        if code == curl_sys::CURLE_OK { Ok(()) } else { Err(curl::Error::new(code)) }
    }

    /// Which protocols URLs and redirects may use. By default libcurl would follow a redirect to
    /// FTP.
    pub(super) fn protocols(easy: &Easy2<Transfer>, settings: &Settings) -> Result<(), curl::Error> {
        let mut mask: std::ffi::c_long = 0;
        if settings.allow_http {
            mask |= std::ffi::c_long::from(curl_sys::CURLPROTO_HTTP);
        }
        if settings.allow_https {
            mask |= std::ffi::c_long::from(curl_sys::CURLPROTO_HTTPS);
        }
        for option in [curl_sys::CURLOPT_PROTOCOLS, curl_sys::CURLOPT_REDIR_PROTOCOLS] {
            // SAFETY: the handle is alive as long as `easy`, which is borrowed, and both options
            // take a long by value.
            result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), option, mask) })?;
        }
        Ok(())
    }

    /// Removes the default certificate store.
    pub(super) fn no_cainfo(easy: &Easy2<Transfer>) -> Result<(), curl::Error> {
        let none = std::ptr::null::<std::ffi::c_char>();
        // SAFETY: the handle is alive as long as `easy`, which is borrowed; the option takes a
        // string, null for none.
        result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_CAINFO, none) })
    }

    pub(super) fn tls13_ciphers(easy: &Easy2<Transfer>, ciphers: &str) -> Result<(), curl::Error> {
        let text = CString::new(ciphers).map_err(|_| curl::Error::new(curl_sys::CURLE_BAD_FUNCTION_ARGUMENT))?;
        // SAFETY: the handle is alive as long as `easy`, which is borrowed; the option takes a
        // string that ends with a null byte and copies it before it returns.
        result(unsafe { curl_sys::curl_easy_setopt(easy.raw(), TLS13_CIPHERS, text.as_ptr()) })
    }
}
