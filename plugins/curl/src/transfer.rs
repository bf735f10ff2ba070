//! One request and its result. libcurl calls this code in the driver's thread.

use curl::easy::{Handler, ReadError, SeekResult, WriteError};
use rbdkit_plugin_api::{Buffer, Errno, Error, Result, Span, StopScope, name_lookup_hint};
use tokio::sync::oneshot;

use crate::head::Head;

/// The longest head of an answer, in bytes, including those of redirects.
const MAX_HEAD: usize = 256 << 10;

/// How much of an error page is read, in bytes, so that its connection can be reused.
const MAX_PAGE: usize = 16 << 10;

/// What a request asks for.
pub(crate) enum Task {
    /// HEAD.
    Head,
    /// GET of the first byte, which tells whether ranges work and how large the disk is.
    Probe,
    /// GET of a range into the buffer.
    Read { buffer: Buffer, span: Span, offset: u64, size: u64 },
    /// PUT of a range from the buffer.
    Write { buffer: Buffer, span: Span, offset: u64, size: u64 },
}

impl Task {
    /// When the task is given up, if the server stops before it has ended.
    pub(crate) fn ends_with(&self) -> StopScope {
        match self {
            Task::Head | Task::Probe | Task::Read { .. } => StopScope::Reads,
            Task::Write { .. } => StopScope::Everything,
        }
    }
}

/// A request on its way to the driver.
pub(crate) struct Job {
    pub(crate) task: Task,
    /// Lines as `header=` has them.
    pub(crate) headers: Vec<String>,
    /// The cookie of `cookie=` or of its script.
    pub(crate) cookie: Option<String>,
    pub(crate) reply: oneshot::Sender<Answer>,
}

impl Job {
    /// Answers with an error.
    pub(crate) fn refuse(self, error: Error) {
        let buffer = match self.task {
            Task::Read { buffer, .. } | Task::Write { buffer, .. } => Some(buffer),
            Task::Head | Task::Probe => None,
        };
        // At the end of the server the sender may no longer exist.
        let _ = self.reply.send(Answer { buffer, head: Head::default(), url: None, result: Err(error) });
    }
}

/// The result of a request.
pub(crate) struct Answer {
    /// The buffer of a task that had one.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) head: Head,
    /// The URL after redirects.
    pub(crate) url: Option<String>,
    /// For [`Task::Head`] and [`Task::Probe`] any answer is a success. For the others only a
    /// complete transfer is.
    pub(crate) result: Result<()>,
}

/// The state of a request; between two requests there is no job.
#[derive(Default)]
pub(crate) struct Transfer {
    job: Option<Job>,
    head: Head,
    head_bytes: usize,
    /// Bytes of the disk that were received or sent.
    moved: u32,
    /// Bytes of error pages.
    page: usize,
    /// Why the plugin aborted the transfer.
    fault: Option<Error>,
}

impl Transfer {
    /// Begins a job.
    pub(crate) fn begin(&mut self, job: Job) {
        *self = Transfer { job: Some(job), ..Transfer::default() };
    }

    /// When its job is given up, if the server stops.
    pub(crate) fn ends_with(&self) -> StopScope {
        self.job.as_ref().map_or(StopScope::Reads, |job| job.task.ends_with())
    }

    /// Answers its job with an error. The transfer itself goes on until libcurl lets it go.
    pub(crate) fn give_up(&mut self, error: Error) {
        if let Some(job) = self.job.take() {
            job.refuse(error);
        }
    }

    /// Ends the request: `outcome` is libcurl's.
    pub(crate) fn end(&mut self, outcome: Result<(), curl::Error>, url: Option<String>) {
        let Some(job) = self.job.take() else { return };
        let result = match (self.fault.take(), outcome) {
            (Some(fault), _) => Err(fault),
            (None, Err(error)) => Err(explain(&error)),
            (None, Ok(())) => self.judge(&job.task),
        };
        let buffer = match job.task {
            Task::Read { buffer, .. } | Task::Write { buffer, .. } => Some(buffer),
            Task::Head | Task::Probe => None,
        };
        let head = std::mem::take(&mut self.head);
        // At the end of the server the sender may no longer exist.
        let _ = job.reply.send(Answer { buffer, head, url, result });
    }

    /// Checks that a transfer that libcurl completed is what was asked for.
    fn judge(&self, task: &Task) -> Result<()> {
        match task {
            Task::Head | Task::Probe => Ok(()),
            Task::Read { span, offset, size, .. } => {
                self.head.announces(*offset, span.len, *size)?;
                match self.moved == span.len {
                    true => Ok(()),
                    false => Err(Error::new(
                        Errno::Eio,
                        format!("the server sent {} bytes instead of {}", self.moved, span.len),
                    )),
                }
            }
            Task::Write { span, .. } => match self.head.status {
                200..=299 if self.moved == span.len => Ok(()),
                200..=299 => Err(Error::new(Errno::Eio, "the server answered before it had read all")),
                _ => Err(self.head.refusal()),
            },
        }
    }

    /// Discards a piece of an error page.
    fn discard(&mut self, data: &[u8]) -> Result<()> {
        self.page += data.len();
        match self.page > MAX_PAGE {
            true => Err(self.head.refusal()),
            false => Ok(()),
        }
    }

    fn receive(&mut self, data: &[u8]) -> Result<()> {
        let Some(Task::Read { buffer, span, offset, size }) = self.job.as_mut().map(|job| &mut job.task) else {
            return match self.head.status {
                // The single byte of a probe. More would be the whole disk, which is not read.
                206 if self.page + data.len() <= 1 => self.discard(data),
                200..=299 => Err(Error::new(Errno::Eio, "the server sends more than was asked for")),
                _ => self.discard(data),
            };
        };
        if !matches!(self.head.status, 200 | 206) {
            return self.discard(data);
        }
        if self.moved == 0 {
            self.head.announces(*offset, span.len, *size)?;
        }
        let left = (span.len - self.moved) as usize;
        if data.len() > left {
            return Err(Error::new(Errno::Eio, "the server sends more than was asked for"));
        }
        buffer.put(span.at + self.moved, data);
        self.moved += data.len() as u32;
        Ok(())
    }
}

impl Handler for Transfer {
    fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        match self.receive(data) {
            Ok(()) => Ok(data.len()),
            Err(fault) => {
                self.fault = Some(fault);
                // Fewer bytes than given abort the transfer. (libcurl never calls with no bytes.)
                Ok(0)
            }
        }
    }

    fn read(&mut self, data: &mut [u8]) -> Result<usize, ReadError> {
        let Some(Task::Write { buffer, span, .. }) = self.job.as_ref().map(|job| &job.task) else { return Ok(0) };
        let now = data.len().min((span.len - self.moved) as usize);
        data[..now].copy_from_slice(buffer.data(Span::new(span.at + self.moved, now as u32)));
        self.moved += now as u32;
        Ok(now)
    }

    /// For a body that has to be sent again, after a redirect or over another connection.
    fn seek(&mut self, whence: std::io::SeekFrom) -> SeekResult {
        match whence {
            std::io::SeekFrom::Start(0) => {
                self.moved = 0;
                SeekResult::Ok
            }
            _ => SeekResult::CantSeek,
        }
    }

    fn header(&mut self, line: &[u8]) -> bool {
        self.head_bytes = self.head_bytes.saturating_add(line.len());
        if self.head_bytes > MAX_HEAD {
            self.fault = Some(Error::new(Errno::Eio, "the head of the server's answer has no end"));
            return false;
        }
        // libcurl may repeat a request. The new answer has a new head, and its body begins again.
        if line.starts_with(b"HTTP/") && matches!(self.job.as_ref().map(|job| &job.task), Some(Task::Read { .. })) {
            self.moved = 0;
        }
        self.head.line(line);
        true
    }
}

/// libcurl's error message, with a hint where there is one.
fn explain(error: &curl::Error) -> Error {
    let errno = if error.is_operation_timedout() { Errno::Etimedout } else { Errno::Eio };
    let mut text = error.description().to_string();
    if let Some(extra) = error.extra_description().filter(|extra| *extra != text) {
        text = format!("{text}: {extra}");
    }
    if error.is_couldnt_resolve_host()
        && let Some(hint) = name_lookup_hint()
    {
        text = format!("{text} ({hint})");
    }
    if error.is_peer_failed_verification() || error.is_ssl_cacert() {
        text.push_str(" (cainfo= or capath= says whom to trust, sslverify=false trusts everybody)");
    }
    Error::new(errno, text)
}
