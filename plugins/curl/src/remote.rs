//! Sends requests with their tokens, and remembers the size and version of the disk that a client
//! knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_launcher::Launcher;
use rbdkit_plugin_api::{Buffer, ConfigError, Done, Errno, Error, Result, Span, StopScope};
use tokio::sync::oneshot;

use crate::config::Settings;
use crate::driver::Driver;
use crate::head::{ContentRange, Head};
use crate::script::{self, Output, Script};
use crate::transfer::{Answer, Job, Task};

/// The disk as it was when a client opened it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Bytes.
    pub(crate) size: u64,
    /// The URL after redirects.
    url: Option<String>,
    etag: Option<String>,
    modified: Option<String>,
}

/// The server, for all clients.
pub(crate) struct Remote {
    driver: Driver,
    headers: Vec<String>,
    cookie: Option<String>,
    header_script: Option<Script>,
    cookie_script: Option<Script>,
    /// Starts both scripts.
    launcher: Arc<Launcher>,
    saves_cookies: bool,
    /// Whether this server has written. Its own writes change the version of the disk.
    has_written: AtomicBool,
}

/// The output of the scripts for one request.
struct Tokens {
    headers: Option<Output>,
    cookie: Option<Output>,
}

impl Remote {
    /// For these settings. Sends no request yet. `launcher` starts the scripts.
    ///
    /// # Errors
    /// The cookie jar cannot be written.
    pub(crate) fn new(settings: &Settings, launcher: Launcher) -> Result<Remote, ConfigError> {
        let launcher = Arc::new(launcher);
        let failed = |error: std::io::Error| ConfigError::new(format!("curl: {error}"));
        let script = |key, is_given: bool, which, renew| {
            is_given.then(|| Script::new(key, Arc::clone(&launcher), which, renew)).transpose().map_err(failed)
        };
        let renew = settings.header_script_renew;
        let header_script = script("header-script", settings.header_script.is_some(), script::HEADER_SCRIPT, renew)?;
        let renew = settings.cookie_script_renew;
        let cookie_script = script("cookie-script", settings.cookie_script.is_some(), script::COOKIE_SCRIPT, renew)?;
        Ok(Remote {
            driver: Driver::new(settings.clone())?,
            headers: settings.headers.clone(),
            cookie: settings.cookie.clone(),
            header_script,
            cookie_script,
            launcher,
            saves_cookies: settings.cookiejar.is_some(),
            has_written: AtomicBool::new(false),
        })
    }

    /// Moves the launcher of scripts, if there are any, into its own process.
    pub(crate) fn before_confinement(&self) -> std::io::Result<()> {
        match self.header_script.is_some() || self.cookie_script.is_some() {
            true => self.launcher.move_out().map(drop),
            false => Ok(()),
        }
    }

    /// Asks the server for the size and version of the disk, and whether it supports ranges. Sends
    /// HEAD first. If that does not tell everything (S3 refuses it for a signed URL, some servers
    /// leave out the size), sends a GET of one byte.
    pub(crate) async fn find(self: Arc<Remote>) -> Result<Disk> {
        let failed = |what: &str, error: &Error| {
            Error::new(error.errno(), format!("curl: {what}: {}", error.context().unwrap_or("it failed")))
        };
        let answer = self.ask(Task::Head).await?;
        answer.result.map_err(|error| failed("HEAD", &error))?;
        let head = &answer.head;
        if matches!(head.status, 200..=299)
            && !head.encoded
            && (head.accept_ranges || head.length == Some(0))
            && let Some(size) = head.length
        {
            return Disk::new(size, answer.url, &answer.head);
        }
        let answer = self.ask(Task::Probe).await?;
        let size = match (answer.head.status, answer.head.range) {
            (206, _) if answer.head.encoded => Err(answer.head.announces(0, 1, 1).err()),
            (206, Some(ContentRange { bytes: Some((0, 0)), total: Some(size) })) => Ok(size),
            (206, _) => Err(Some(Error::new(Errno::Eio, "the server does not say how large the disk is"))),
            (416, Some(ContentRange { bytes: None, total: Some(0) })) => Ok(0),
            (200, _) => Err(Some(Error::new(Errno::Eio, "the server does not support ranges"))),
            _ => Err(answer.result.err().or_else(|| Some(answer.head.refusal()))),
        };
        let size = size.map_err(|error| failed("GET of the first byte", &error.unwrap_or(Errno::Eio.into())))?;
        Disk::new(size, answer.url, &answer.head)
    }

    /// Reads into the buffer.
    pub(crate) async fn read(self: Arc<Remote>, disk: Arc<Disk>, buffer: Buffer, span: Span, offset: u64) -> Done {
        let task = Task::Read { buffer, span, offset, size: disk.size };
        let (buffer, result) = self.transfer(task).await;
        let result = result.and_then(|(url, head)| self.check_version(&disk, url, &head));
        (buffer, result.map_err(|error| context(&error, "GET", offset, span)))
    }

    /// Writes from the buffer.
    pub(crate) async fn write(self: Arc<Remote>, disk: Arc<Disk>, buffer: Buffer, span: Span, offset: u64) -> Done {
        self.has_written.store(true, Ordering::Release);
        let task = Task::Write { buffer, span, offset, size: disk.size };
        let (buffer, result) = self.transfer(task).await;
        (buffer, result.map(drop).map_err(|error| context(&error, "PUT", offset, span)))
    }

    /// The server stops: ends the requests that `scope` names, and the scripts, whose requests have
    /// not begun.
    pub(crate) fn stop(&self, scope: StopScope) {
        for script in self.header_script.iter().chain(&self.cookie_script) {
            script.stop();
        }
        self.driver.stop(scope);
    }

    /// Writes the cookie jar after a client has disconnected.
    pub(crate) async fn closed(&self) {
        if self.saves_cookies {
            self.driver.save_cookies().await;
        }
    }

    /// Checks that an answer is of the version of the disk that the client knows. Mirrors have
    /// versions of their own, so only answers from the same URL are compared.
    fn check_version(&self, disk: &Disk, url: Option<String>, head: &Head) -> Result<()> {
        if self.has_written.load(Ordering::Acquire) || url != disk.url {
            return Ok(());
        }
        let (before, now) = match (&disk.etag, &head.etag) {
            (Some(before), Some(now)) => (before, now),
            _ => match (&disk.modified, &head.modified) {
                (Some(before), Some(now)) => (before, now),
                _ => return Ok(()),
            },
        };
        match before == now {
            true => Ok(()),
            false => Err(Error::new(
                Errno::Eio,
                format!("the disk has changed at the server: it is {now}, it was {before} when the client connected"),
            )),
        }
    }

    async fn transfer(&self, task: Task) -> (Buffer, Result<(Option<String>, Head)>) {
        match self.ask(task).await {
            Ok(Answer { buffer, head, url, result }) => {
                (buffer.unwrap_or_else(|| Buffer::new(0)), result.map(|()| (url, head)))
            }
            Err(error) => (Buffer::new(0), Err(error)),
        }
    }

    /// Sends a request, and sends it again with new tokens if the server refuses those of the
    /// scripts.
    async fn ask(&self, task: Task) -> Result<Answer> {
        let tokens = self.tokens().await?;
        let again = task.again();
        let mut answer = self.once(task, &tokens).await?;
        let refused = matches!(answer.head.status, 401 | 403);
        if refused && (tokens.headers.is_some() || tokens.cookie.is_some()) {
            let tokens = self.newer(&tokens).await?;
            if let Some(task) = again.with(answer.buffer.take()) {
                return self.once(task, &tokens).await;
            }
        }
        Ok(answer)
    }

    async fn once(&self, task: Task, tokens: &Tokens) -> Result<Answer> {
        let (reply, answer) = oneshot::channel();
        let headers = match &tokens.headers {
            Some(output) => output.lines.to_vec(),
            None => self.headers.clone(),
        };
        let cookie = match &tokens.cookie {
            Some(output) => output.lines.first().cloned(),
            None => self.cookie.clone(),
        };
        self.driver.request(Job { task, headers, cookie, reply });
        answer.await.map_err(|_| Error::new(Errno::Eio, "curl: the request was given up"))
    }

    async fn tokens(&self) -> Result<Tokens> {
        let mut tokens = Tokens { headers: None, cookie: None };
        if let Some(script) = &self.header_script {
            tokens.headers = Some(script.output().await?);
        }
        if let Some(script) = &self.cookie_script {
            tokens.cookie = Some(script.output().await?);
        }
        Ok(tokens)
    }

    async fn newer(&self, refused: &Tokens) -> Result<Tokens> {
        let mut tokens = Tokens { headers: None, cookie: None };
        if let (Some(script), Some(output)) = (&self.header_script, &refused.headers) {
            tokens.headers = Some(script.newer(output).await?);
        }
        if let (Some(script), Some(output)) = (&self.cookie_script, &refused.cookie) {
            tokens.cookie = Some(script.newer(output).await?);
        }
        Ok(tokens)
    }
}

impl Disk {
    fn new(size: u64, url: Option<String>, head: &Head) -> Result<Disk> {
        if size > i64::MAX as u64 {
            return Err(Error::new(Errno::Eoverflow, format!("curl: the server says that the disk has {size} bytes")));
        }
        Ok(Disk { size, url, etag: head.etag.clone(), modified: head.modified.clone() })
    }
}

/// A task without its buffer, to send it again.
enum Again {
    Head,
    Probe,
    Read(Span, u64, u64),
    Write(Span, u64, u64),
}

impl Task {
    fn again(&self) -> Again {
        match self {
            Task::Head => Again::Head,
            Task::Probe => Again::Probe,
            Task::Read { span, offset, size, .. } => Again::Read(*span, *offset, *size),
            Task::Write { span, offset, size, .. } => Again::Write(*span, *offset, *size),
        }
    }
}

impl Again {
    fn with(self, buffer: Option<Buffer>) -> Option<Task> {
        Some(match self {
            Again::Head => Task::Head,
            Again::Probe => Task::Probe,
            Again::Read(span, offset, size) => Task::Read { buffer: buffer?, span, offset, size },
            Again::Write(span, offset, size) => Task::Write { buffer: buffer?, span, offset, size },
        })
    }
}

/// Adds which request it was to an error.
fn context(error: &Error, method: &str, offset: u64, span: Span) -> Error {
    let last = offset.saturating_add(span.len.into()).saturating_sub(1);
    let what = error.context().unwrap_or(error.errno().name());
    Error::new(error.errno(), format!("curl: {method} of bytes {offset}-{last}: {what}"))
}
