//! Sends requests: with the tokens of the scripts, a second time if the server refuses those, and
//! along redirects. Reads what a server sends in several parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rbdkit_launcher::Launcher;
use rbdkit_plugin_api::{Buffer, ConfigError, Done, Errno, Error, Result, Span, StopScope};

use crate::address::Address;
use crate::config::Settings;
use crate::disk::Disk;
use crate::driver::Driver;
use crate::head::{Head, Part};
use crate::identity::{Identity, Printed};
use crate::redact;
use crate::scheme::Scheme;
use crate::script::{self, Output, Script};
use crate::times::Times;
use crate::transfer::{Answer, Job, MAX_HEAD, Task};

/// How many redirects are followed: the default of newer versions of libcurl.
const MAX_REDIRECTS: usize = 30;

/// A server may send fewer bytes than it was asked for. A read asks for the rest until it has asked
/// this often, and once more for each [`SMALL_PART`] bytes.
const MIN_PARTS: u32 = 16;

/// The average size of the parts that a server may send, in bytes.
const SMALL_PART: u32 = 512;

/// The server, for all clients.
pub(crate) struct Remote {
    driver: Driver,
    settings: Settings,
    identity: Identity,
    header_script: Option<Script>,
    cookie_script: Option<Script>,
    /// Starts both scripts.
    launcher: Arc<Launcher>,
    /// Whether this server has written. Its own writes change the version of the disk.
    has_written: AtomicBool,
}

/// The output of the scripts for one request.
struct Tokens {
    headers: Option<Output>,
    cookie: Option<Output>,
}

impl Tokens {
    fn printed(&self) -> Printed {
        Printed {
            headers: self.headers.as_ref().map(|output| Arc::clone(&output.headers)),
            cookie: self.cookie.as_ref().and_then(|output| output.cookie.clone()),
        }
    }

    fn are_any(&self) -> bool {
        self.headers.is_some() || self.cookie.is_some()
    }
}

/// An answer after all redirects.
pub(crate) struct Found {
    pub(crate) head: Head,
    /// Where it came from.
    pub(crate) address: Arc<Address>,
    /// See [`Answer::result`].
    pub(crate) result: Result<u32>,
}

impl Remote {
    /// For these settings. Sends no request yet. `launcher` starts the scripts.
    ///
    /// # Errors
    /// The cookies cannot be read or written.
    pub(crate) fn new(settings: &Settings, launcher: Launcher) -> Result<Remote, ConfigError> {
        let first = settings.address.clone().ok_or_else(|| ConfigError::new("curl: url= is missing"))?;
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
            settings: settings.clone(),
            identity: Identity::new(settings, first),
            header_script,
            cookie_script,
            launcher,
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

    /// The protocol of the URL.
    pub(crate) fn scheme(&self) -> Scheme {
        self.identity.first().origin.scheme
    }

    /// Reads into the buffer.
    pub(crate) async fn read(self: Arc<Remote>, disk: Arc<Disk>, buffer: Buffer, span: Span, offset: u64) -> Done {
        let mut buffer = Some(buffer);
        let result = self.read_parts(&disk, &mut buffer, span, offset).await;
        (buffer.unwrap_or_else(|| Buffer::new(0)), result.map_err(|error| context(&error, "GET", offset, span)))
    }

    async fn read_parts(&self, disk: &Disk, buffer: &mut Option<Buffer>, span: Span, offset: u64) -> Result<()> {
        let mut budget = self.settings.timeout;
        let mut done = 0;
        for _ in 0..MIN_PARTS + span.len / SMALL_PART {
            let rest = Span::new(span.at + done, span.len - done);
            let part = Part {
                offset: offset + u64::from(done),
                length: rest.len,
                size: disk.size,
                stored_encoded: disk.stored_encoded,
            };
            let found = self.ask(Task::Read(rest, part), buffer, &mut budget).await?;
            let length = found.result?;
            if self.settings.check_changes && !self.has_written.load(Ordering::Acquire) {
                disk.check_version(&found.address, &found.head)?;
            }
            done += length;
            if done >= span.len {
                return Ok(());
            }
        }
        Err(Error::new(Errno::Eio, format!("the server sends it in too small parts: {done} bytes of {}", span.len)))
    }

    /// Writes from the buffer.
    pub(crate) async fn write(self: Arc<Remote>, disk: Arc<Disk>, buffer: Buffer, span: Span, offset: u64) -> Done {
        self.has_written.store(true, Ordering::Release);
        let part = Part { offset, length: span.len, size: disk.size, stored_encoded: disk.stored_encoded };
        let mut buffer = Some(buffer);
        let found = self.ask(Task::Write(span, part), &mut buffer, &mut self.settings.timeout.clone()).await;
        let result = found.and_then(|found| found.result).map(drop);
        (buffer.unwrap_or_else(|| Buffer::new(0)), result.map_err(|error| context(&error, "PUT", offset, span)))
    }

    /// Sends a request that has no buffer.
    pub(crate) async fn look(&self, task: Task) -> Result<Found> {
        self.ask(task, &mut None, &mut self.settings.timeout.clone()).await
    }

    /// The server stops: ends the requests that `scope` names, and the scripts, whose requests have
    /// not begun.
    pub(crate) fn stop(&self, scope: StopScope) {
        for script in self.header_script.iter().chain(&self.cookie_script) {
            script.stop();
        }
        self.driver.stop(scope);
    }

    /// How long the requests have taken so far.
    pub(crate) fn times(&self) -> &Times {
        self.driver.times()
    }

    /// Writes the cookie jar after a client has disconnected.
    pub(crate) async fn closed(&self) {
        if self.settings.cookiejar.is_some() {
            self.driver.save_cookies().await;
        }
    }

    /// Sends a request, and sends it again with new tokens if the server refuses those of the
    /// scripts. `budget` is how long its transfers may take.
    async fn ask(&self, task: Task, buffer: &mut Option<Buffer>, budget: &mut Option<Duration>) -> Result<Found> {
        let tokens = self.tokens().await?;
        let found = self.follow(task, buffer, &tokens.printed(), budget).await?;
        if matches!(found.head.status, 401 | 403) && tokens.are_any() {
            let Some(tokens) = self.newer(&tokens).await? else { return Ok(found) };
            return self.follow(task, buffer, &tokens.printed(), budget).await;
        }
        Ok(found)
    }

    /// Sends a request, and sends it on to where redirects lead.
    async fn follow(
        &self,
        task: Task,
        buffer: &mut Option<Buffer>,
        printed: &Printed,
        budget: &mut Option<Duration>,
    ) -> Result<Found> {
        let mut address = Arc::clone(self.identity.first());
        let mut max_head = MAX_HEAD;
        for _ in 0..=MAX_REDIRECTS {
            if budget.is_some_and(|left| left < Duration::from_millis(1)) {
                return Err(Error::new(Errno::Etimedout, "the request takes longer than timeout= allows"));
            }
            let (reply, answer) = Driver::reply();
            let job = Job {
                task,
                buffer: buffer.take(),
                said: self.identity.to(&address, printed),
                address: Arc::clone(&address),
                timeout: *budget,
                max_head,
                reply,
            };
            let answer = self.driver.answer(job, answer).await;
            let answer = answer.ok_or_else(|| Error::new(Errno::Eio, "the request was given up"))?;
            let Answer { buffer: given_back, head, head_bytes, took, result } = answer;
            *buffer = given_back;
            max_head = max_head.saturating_sub(head_bytes);
            *budget = budget.map(|left| left.saturating_sub(took));
            match redirect(task, &head).filter(|_| self.settings.followlocation) {
                Some(location) => address = Arc::new(self.next(&address, location)?),
                None => return Ok(Found { head, address, result }),
            }
        }
        Err(Error::new(Errno::Eio, format!("the server redirects more than {MAX_REDIRECTS} times")))
    }

    /// The address that a redirect leads to.
    fn next(&self, address: &Address, location: &[u8]) -> Result<Address> {
        let refused = |why: String| {
            let to = redact::url(&String::from_utf8_lossy(location));
            Error::new(Errno::Eio, format!("the server redirects to {to}: {why}"))
        };
        let next = address.join(location).map_err(|error| refused(error.to_string()))?;
        match self.settings.allows(&next) {
            true => Ok(next),
            false => Err(refused("protocols= does not allow this protocol".into())),
        }
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

    /// Tokens that are newer than the refused ones. None if there are none now.
    async fn newer(&self, refused: &Tokens) -> Result<Option<Tokens>> {
        let mut tokens = Tokens { headers: None, cookie: None };
        if let (Some(script), Some(output)) = (&self.header_script, &refused.headers) {
            tokens.headers = script.newer(output).await?;
        }
        if let (Some(script), Some(output)) = (&self.cookie_script, &refused.cookie) {
            tokens.cookie = script.newer(output).await?;
        }
        let is_complete = tokens.headers.is_some() == refused.headers.is_some()
            && tokens.cookie.is_some() == refused.cookie.is_some();
        Ok(is_complete.then_some(tokens))
    }
}

/// Where an answer redirects this request to. 303 says that a PUT is done and that something else
/// tells its result, which does not show that the disk was written.
fn redirect(task: Task, head: &Head) -> Option<&[u8]> {
    match (head.status, task) {
        (303, Task::Write(..)) => None,
        (301 | 302 | 303 | 307 | 308, _) => head.location.as_deref(),
        _ => None,
    }
}

/// Adds which request it was to an error.
fn context(error: &Error, method: &str, offset: u64, span: Span) -> Error {
    let last = offset.saturating_add(span.len.into()).saturating_sub(1);
    let what = error.context().unwrap_or(error.errno().name());
    Error::new(error.errno(), format!("curl: {method} of bytes {offset}-{last}: {what}"))
}
