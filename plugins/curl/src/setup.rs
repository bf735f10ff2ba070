//! Sets the options of libcurl for the parameters and for each request.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use curl::easy::{Easy2, List};
use rbdkit_plugin_api::ConfigError;

use crate::config::Settings;
use crate::cookies::{Cookies, Counter};
use crate::identity::Said;
use crate::raw::{self, HeaderList, Text};
use crate::redact;
use crate::scheme::Scheme;
use crate::transfer::{Job, Kept, Task, Transfer};

/// The size of libcurl's receive buffer, in bytes: large, because answers are. Each running
/// transfer has one.
const RECEIVE_BUFFER: usize = 256 << 10;

/// A request makes progress as long as this many bytes of bodies move each second.
const PROGRESS: u32 = 1;

/// Checks that libcurl accepts the parameters, so that the user sees an error at the start.
pub(crate) fn check(settings: &Settings) -> Result<(), ConfigError> {
    let version = curl::Version::get();
    let scheme = settings.address.as_ref().map(|address| address.origin.scheme);
    if scheme.is_some_and(Scheme::is_encrypted) && version.ssl_version().is_none() {
        return Err(ConfigError::new(
            "curl: this libcurl has no TLS: build with the development files of the system's",
        ));
    }
    if let Some(scheme) = scheme
        && !version.protocols().any(|known| known == scheme.name())
    {
        let (version, name) = (version.version(), scheme.name());
        return Err(ConfigError::new(format!("curl: libcurl {version} was built without {name}")));
    }
    match handle(settings, Counter::default()) {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = redact::message(&error.to_string());
            Err(ConfigError::new(format!("curl: libcurl {} refuses a parameter: {error}", version.version())))
        }
    }
}

/// A transfer with all options that are the same for every request. It counts the cookies that are
/// set in `set_cookies`.
pub(crate) fn handle(settings: &Settings, set_cookies: Counter) -> Result<Easy2<Transfer>, curl::Error> {
    let mut easy = Easy2::new(Transfer::new(Kept { set_cookies, ..Kept::default() }));
    easy.buffer_size(RECEIVE_BUFFER)?;
    // The plugin follows redirects itself, because libcurl would send header lines and cookies
    // wherever they lead.
    easy.follow_location(false)?;
    connection(&mut easy, settings)?;
    tls(&mut easy, settings)?;
    raw::protocols(&easy, settings)?;
    raw::leave_lookups(&easy);
    Ok(easy)
}

fn connection(easy: &mut Easy2<Transfer>, settings: &Settings) -> Result<(), curl::Error> {
    easy.ip_resolve(settings.ipresolve)?;
    easy.tcp_keepalive(settings.tcp_keepalive)?;
    easy.tcp_nodelay(settings.tcp_nodelay)?;
    if let Some(timeout) = settings.stall_timeout {
        easy.low_speed_limit(PROGRESS)?;
        easy.low_speed_time(timeout)?;
    }
    if let Some(version) = settings.http_version {
        raw::http_version(easy, version)?;
    }
    let scheme = settings.address.as_ref().map(|address| address.origin.scheme);
    if scheme == Some(Scheme::Https) {
        // Waits for a connection that is being made, to use a stream of it, rather than making
        // another connection.
        easy.pipewait(true)?;
    }
    if let Some(interface) = &settings.interface {
        easy.interface(interface)?;
    }
    if let Some(path) = &settings.unix_socket_path {
        easy.unix_socket_path(Some(path))?;
    }
    if !settings.resolve.is_empty() {
        let mut list = List::new();
        settings.resolve.iter().try_for_each(|line| list.append(line))?;
        easy.resolve(list)?;
    }
    match &settings.proxy {
        Some(proxy) => easy.proxy(proxy)?,
        // Through a web proxy the answers would be a web server's, and an error page would be data.
        None if scheme.is_some_and(|scheme| !scheme.is_web()) => easy.proxy("")?,
        None => {}
    }
    if let Some(user) = &settings.proxy_user {
        raw::set_text(easy, Text::ProxyUser, Some(user.as_c_str()))?;
    }
    if let Some(password) = &settings.proxy_password {
        raw::set_text(easy, Text::ProxyPassword, Some(password.as_c_str()))?;
    }
    if let Some(name) = &settings.user_agent {
        raw::set_text(easy, Text::UserAgent, Some(name.as_c_str()))?;
    }
    Ok(())
}

fn tls(easy: &mut Easy2<Transfer>, settings: &Settings) -> Result<(), curl::Error> {
    match &settings.cainfo {
        Some(path) if path == Path::new("") => raw::set_text(easy, Text::Cainfo, None)?,
        Some(path) => easy.cainfo(path)?,
        None => {}
    }
    if let Some(path) = &settings.capath {
        easy.capath(path)?;
    }
    match &settings.proxy_cainfo {
        Some(path) if path == Path::new("") => raw::set_text(easy, Text::ProxyCainfo, None)?,
        Some(path) => {
            let path = CString::new(path.as_os_str().as_bytes())?;
            raw::set_text(easy, Text::ProxyCainfo, Some(&path))?;
        }
        None => {}
    }
    if let Some(path) = &settings.proxy_capath {
        easy.proxy_capath(path)?;
    }
    if !settings.sslverify {
        easy.ssl_verify_peer(false)?;
        easy.ssl_verify_host(false)?;
    }
    if let Some((lowest, highest)) = settings.ssl_version {
        easy.ssl_min_max_version(lowest, highest)?;
    }
    if let Some(ciphers) = &settings.ssl_cipher_list {
        easy.ssl_cipher_list(ciphers)?;
    }
    if let Some(ciphers) = &settings.tls13_ciphers {
        let ciphers = CString::new(ciphers.as_str())?;
        raw::set_text(easy, Text::Tls13Ciphers, Some(&ciphers))?;
    }
    Ok(())
}

/// Sets the options of one request.
pub(crate) fn request(easy: &mut Easy2<Transfer>, job: &Job, cookies: Option<&Cookies>) -> Result<(), curl::Error> {
    let is_web = job.address.origin.scheme.is_web();
    let mut headers = if is_web { HeaderList::of(&job.said.headers)? } else { HeaderList::default() };
    // Resets the method of the last request.
    easy.get(true)?;
    match job.task {
        Task::Probe => headers.append(c"Range: bytes=0-0")?,
        Task::Head => {
            easy.nobody(true)?;
            raw::set_text(easy, Text::Range, None)?;
        }
        Task::Whole => {}
        Task::Read(_, part) if !is_web => {
            let range = CString::new(format!("{}-{}", part.offset, part.last()))?;
            raw::set_text(easy, Text::Range, Some(&range))?;
        }
        Task::Read(_, part) => {
            headers.append(&CString::new(format!("Range: bytes={}-{}", part.offset, part.last()))?)?;
        }
        Task::Write(span, part) => {
            easy.upload(true)?;
            easy.in_filesize(span.len.into())?;
            let range = format!("Content-Range: bytes {}-{}/{}", part.offset, part.last(), part.size);
            headers.append(&CString::new(range)?)?;
            // Without this libcurl sends "Expect: 100-continue" and waits a second, because few
            // servers answer it.
            headers.append(c"Expect:")?;
        }
    }
    // Some servers send a body after HEAD, which would be taken for the next answer.
    easy.forbid_reuse(job.task == Task::Head)?;
    easy.timeout(job.timeout.unwrap_or(Duration::ZERO))?;
    raw::set_headers(easy, headers, |transfer| &mut transfer.kept.headers)?;
    address(easy, job)?;
    identity(easy, &job.said, cookies)
}

/// Sets where the request goes, unless the last one went there too.
fn address(easy: &mut Easy2<Transfer>, job: &Job) -> Result<(), curl::Error> {
    let kept = &easy.get_ref().kept;
    if kept.address.as_ref().is_some_and(|address| Arc::ptr_eq(address, &job.address)) {
        return Ok(());
    }
    easy.get_mut().kept.address = None;
    raw::set_text(easy, Text::Url, Some(job.address.url()))?;
    easy.get_mut().kept.address = Some(Arc::clone(&job.address));
    Ok(())
}

/// Sets what the request says about us, unless the last one said the same.
fn identity(easy: &mut Easy2<Transfer>, said: &Said, cookies: Option<&Cookies>) -> Result<(), curl::Error> {
    if easy.get_ref().kept.said.as_ref().is_some_and(|last| last.is_same(said)) {
        return Ok(());
    }
    easy.get_mut().kept.said = None;
    let credentials = said.credentials.as_deref();
    let user = credentials.and_then(|credentials| credentials.user.as_ref());
    let password = credentials.and_then(|credentials| credentials.password.as_ref());
    raw::set_text(easy, Text::User, user.map(|user| user.as_c_str()))?;
    raw::set_text(easy, Text::Password, password.map(|password| password.as_c_str()))?;
    raw::set_text(easy, Text::Cookie, said.cookie.as_ref().map(|cookie| cookie.as_c_str()))?;
    match cookies.filter(|_| said.kept_cookies) {
        Some(cookies) => cookies.attach(easy)?,
        None => raw::detach(easy)?,
    }
    easy.get_mut().kept.said = Some(said.clone());
    Ok(())
}

/// How long the driver sleeps while a request that nobody waits for looks up a name.
pub(crate) const LOOKUP_SLEEP: Duration = Duration::from_millis(200);

/// The longest time that the driver sleeps if nothing wakes it.
pub(crate) const MAX_SLEEP: Duration = Duration::from_secs(60);
