//! One request and its result. libcurl calls this code in the driver's thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use curl::easy::{Handler, ReadError, SeekResult, WriteError};
use rbdkit_plugin_api::{Buffer, Errno, Error, Result, Span, StopScope, name_lookup_hint};
use tokio::sync::oneshot;

use crate::address::Address;
use crate::cookies::{self, Counter};
use crate::head::{Head, Part};
use crate::identity::Said;
use crate::raw::HeaderList;
use crate::redact;

/// The most bytes of the heads of all answers to a request, those of redirects included.
pub(crate) const MAX_HEAD: usize = 256 << 10;

/// The most lines of one answer's head.
const MAX_LINES: usize = 2000;

/// How much of an error page is read, in bytes, so that its connection can be reused.
const MAX_PAGE: usize = 16 << 10;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// GET of the first byte, which tells whether ranges work and how large the disk is.
    Probe,
    /// HEAD.
    Head,
    /// GET of all, which is aborted after the head.
    Whole,
    /// GET of a part into this span of the buffer.
    Read(Span, Part),
    /// PUT of a part from this span of the buffer.
    Write(Span, Part),
}

impl Task {
    /// When the task is given up, if the server stops before it has ended.
    pub(crate) fn ends_with(&self) -> StopScope {
        match self {
            Task::Probe | Task::Head | Task::Whole | Task::Read(..) => StopScope::Reads,
            Task::Write(..) => StopScope::Everything,
        }
    }
}

/// A request on its way to the driver.
pub(crate) struct Job {
    pub(crate) task: Task,
    /// The buffer of a read or a write.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) address: Arc<Address>,
    pub(crate) said: Said,
    /// How long the transfer may take.
    pub(crate) timeout: Option<Duration>,
    /// How many bytes the head may have.
    pub(crate) max_head: usize,
    pub(crate) reply: oneshot::Sender<Answer>,
}

impl Job {
    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Answers with an error.
    pub(crate) fn refuse(self, error: Error) {
        let (head, took) = (Head::default(), Duration::ZERO);
        // At the end of the server the sender may no longer exist.
        let _ = self.reply.send(Answer { buffer: self.buffer, head, head_bytes: 0, took, result: Err(error) });
    }
}

/// The result of a request.
pub(crate) struct Answer {
    /// The buffer of a task that had one.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) head: Head,
    /// The bytes of the head.
    pub(crate) head_bytes: usize,
    /// How long the transfer took.
    pub(crate) took: Duration,
    /// The bytes of the disk that were received or sent. For a probe and its like any answer is a
    /// success. For the others only a complete transfer is.
    pub(crate) result: Result<u32>,
}

/// What stays set in a transfer of libcurl from one request to the next.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) headers: HeaderList,
    pub(crate) address: Option<Arc<Address>>,
    pub(crate) said: Option<Said>,
    /// How many cookies were set since the driver measured them.
    pub(crate) set_cookies: Counter,
}

/// The state of a request; between two requests there is no job.
pub(crate) struct Transfer {
    pub(crate) kept: Kept,
    job: Option<Job>,
    began: Instant,
    head: Head,
    head_bytes: usize,
    head_lines: usize,
    /// `Set-Cookie` lines of the answer.
    set_cookies: u32,
    /// Bytes of the disk that were received or sent.
    moved: u32,
    /// Bytes of other bodies.
    page: usize,
    /// Why the plugin aborted the transfer.
    fault: Option<Error>,
}

impl Transfer {
    /// Without a job.
    pub(crate) fn new(kept: Kept) -> Transfer {
        Transfer {
            kept,
            job: None,
            began: Instant::now(),
            head: Head::default(),
            head_bytes: 0,
            head_lines: 0,
            set_cookies: 0,
            moved: 0,
            page: 0,
            fault: None,
        }
    }

    /// Begins a job.
    pub(crate) fn begin(&mut self, job: Job) {
        self.job = Some(job);
        self.began = Instant::now();
        self.head = Head::default();
        self.head_bytes = 0;
        self.head_lines = 0;
        self.set_cookies = 0;
        self.moved = 0;
        self.page = 0;
        self.fault = None;
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

    /// Ends the request: `outcome` is libcurl's, and `length` what libcurl says that the whole file
    /// has, for servers whose answers have no head.
    pub(crate) fn end(&mut self, outcome: Result<(), curl::Error>, length: Option<u64>) {
        let Some(job) = self.job.take() else { return };
        if !job.address.origin.scheme.is_web() {
            self.head.length = length;
        }
        let result = match (self.fault.take(), outcome) {
            (Some(fault), _) => Err(fault),
            (None, Err(error)) => Err(explain(&error)),
            (None, Ok(())) => self.judge(&job),
        };
        let head = std::mem::take(&mut self.head);
        let answer =
            Answer { buffer: job.buffer, head, head_bytes: self.head_bytes, took: self.began.elapsed(), result };
        // The sender may have given the request up.
        let _ = job.reply.send(answer);
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.job.as_ref().is_some_and(Job::is_abandoned)
    }

    /// Drops the buffer of a job that nobody waits for.
    pub(crate) fn drop_buffer(&mut self) {
        if let Some(job) = &mut self.job {
            job.buffer = None;
        }
    }

    /// Drops the job with its buffer.
    pub(crate) fn forget(&mut self) {
        self.job = None;
    }

    /// Checks that a transfer that libcurl completed is what was asked for.
    fn judge(&self, job: &Job) -> Result<u32> {
        let eio = |what: String| Err(Error::new(Errno::Eio, what));
        match job.task {
            Task::Probe | Task::Head | Task::Whole => Ok(0),
            Task::Read(_, part) => match self.expected(job, &part)? {
                length if self.moved == length => Ok(length),
                length => eio(format!("the server sent {} bytes instead of {length}", self.moved)),
            },
            Task::Write(span, _) => match self.head.status {
                200..=299 if self.moved == span.len => Ok(span.len),
                200..=299 => eio("the server answered before it had read all".into()),
                _ => Err(self.head.refusal()),
            },
        }
    }

    /// How many bytes the answer to a read has, as its head says. Without a head it has to be all
    /// that was asked for: libcurl asks for a range and fails if the server cannot send it.
    fn expected(&self, job: &Job, part: &Part) -> Result<u32> {
        if job.address.origin.scheme.is_web() { self.head.part(part) } else { Ok(part.length) }
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
        let more = || Error::new(Errno::Eio, "the server sends more than was asked for");
        let Some(job) = &self.job else { return Err(more()) };
        let is_web = job.address.origin.scheme.is_web();
        let expected = match job.task {
            Task::Read(_, part) if !is_web || matches!(self.head.status, 200 | 206) => self.expected(job, &part)?,
            _ => 0,
        };
        let Some(job) = &mut self.job else { return Err(more()) };
        // An answer without a head has what was asked for, or libcurl fails.
        let status = if is_web { self.head.status } else { 200 };
        match (job.task, status, &mut job.buffer) {
            (Task::Read(span, _), 200 | 206, Some(buffer)) => {
                let length = expected;
                if data.len() > (length - self.moved.min(length)) as usize {
                    return Err(more());
                }
                buffer.put(span.at + self.moved, data);
                self.moved += data.len() as u32;
                Ok(())
            }
            // The single byte of a probe. More would be the whole disk, which is not read.
            (Task::Probe, 206, _) => {
                self.head.first_byte()?;
                if self.page + data.len() > 1 { Err(more()) } else { self.discard(data) }
            }
            // libcurl writes a head of its own making as if it were data.
            (Task::Head, _, _) if !is_web => self.discard(data),
            (Task::Probe | Task::Head | Task::Whole, 200..=299, _) => Err(more()),
            _ => self.discard(data),
        }
    }

    /// Takes a line of the head.
    fn take_line(&mut self, line: &[u8]) -> Result<()> {
        let Some(job) = &self.job else { return Ok(()) };
        if job.is_abandoned() {
            return Err(Error::new(Errno::Eio, "nobody waits for the answer any more"));
        }
        self.head_bytes = self.head_bytes.saturating_add(line.len());
        self.head_lines += 1;
        if self.head_bytes > job.max_head || self.head_lines > MAX_LINES {
            let limit = format!("{} KiB or {MAX_LINES} lines", MAX_HEAD >> 10);
            return Err(Error::new(Errno::Eio, format!("the head of the server's answer is longer than {limit}")));
        }
        if line.get(..11).is_some_and(|start| start.eq_ignore_ascii_case(b"set-cookie:")) {
            let set = &self.kept.set_cookies;
            set.set(set.get().saturating_add(1));
            self.set_cookies += 1;
            if set.get() > cookies::MAX_UNMEASURED && self.set_cookies > cookies::FEW {
                return Err(Error::new(Errno::Eio, "the server sets too many cookies at once"));
            }
        }
        // Lines after a body are trailers. They must not change what was said of the body.
        let received = if matches!(job.task, Task::Write(..)) { 0 } else { self.moved };
        // What another server says is no head, even if it looks like one.
        if received == 0 && self.page == 0 && job.address.origin.scheme.is_web() {
            self.head.line(line);
        }
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
        let Some(Job { task: Task::Write(span, _), buffer: Some(buffer), .. }) = &self.job else {
            return Err(ReadError::Abort);
        };
        let now = data.len().min((span.len - self.moved) as usize);
        data[..now].copy_from_slice(buffer.data(Span::new(span.at + self.moved, now as u32)));
        self.moved += now as u32;
        Ok(now)
    }

    /// For a body that has to be sent again over another connection.
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
        match self.take_line(line) {
            Ok(()) => true,
            Err(fault) => {
                self.fault = Some(fault);
                false
            }
        }
    }
}

/// libcurl's error message, with a hint where there is one.
fn explain(error: &curl::Error) -> Error {
    let errno = if error.is_operation_timedout() { Errno::Etimedout } else { Errno::Eio };
    if error.is_out_of_memory() {
        let what = "the head of the server's answer has a line that is too long for libcurl, or there is no memory";
        return Error::new(errno, what);
    }
    let mut text = error.description().to_string();
    if let Some(extra) = error.extra_description().filter(|extra| *extra != text) {
        text = format!("{text}: {}", redact::message(extra));
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
