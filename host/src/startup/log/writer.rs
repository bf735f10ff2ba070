//! Writes lines to standard error, or to the file of `--log`, without ever blocking the thread that
//! logs.
//!
//! Standard error may be a pipe that nobody reads, or a terminal that was stopped with Ctrl-S. A
//! write to it then blocks. So lines go into a queue, and one thread writes them. A line that finds
//! the queue full is dropped and counted, and a later line reports the count.
//!
//! The descriptor cannot be made non-blocking instead: it belongs to the caller's shell as well,
//! and the flag would apply to the shell's own output.
//!
//! Until [`start`] the process has a single thread, which still has to fork. Until then lines are
//! written directly.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::lock;

use super::file;

/// The most bytes of lines in the queue: a burst of 10,000 lines of 100 bytes.
const MAX_QUEUED: usize = 1 << 20;

/// The most bytes in one write. A pipe takes a write of this size (PIPE_BUF) as a whole, so lines
/// of several processes do not mix.
const MAX_WRITE: usize = 4096;

static WRITER: Writer = Writer { queue: Mutex::new(Queue::new(MAX_QUEUED)), changed: Condvar::new() };

/// Where a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    StandardError,
    /// The file of `--log`.
    LogFile,
}

struct Writer {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Lines that wait to be written.
struct Queue {
    lines: VecDeque<(Target, Vec<u8>)>,
    /// The sum of the lines' lengths.
    bytes: usize,
    max_bytes: usize,
    /// Lines that found the queue full and that no line has reported yet.
    dropped: u64,
    has_thread: bool,
    /// The thread is in the middle of a write.
    is_writing: bool,
}

impl Queue {
    const fn new(max_bytes: usize) -> Queue {
        Queue { lines: VecDeque::new(), bytes: 0, max_bytes, dropped: 0, has_thread: false, is_writing: false }
    }

    /// Appends a line, or counts it if there is no room.
    fn push(&mut self, target: Target, line: Vec<u8>) {
        if self.bytes + line.len() > self.max_bytes {
            self.dropped += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back((target, line));
    }

    /// The next lines of one target, as many as fit into one write. After the last line, the report
    /// on the lines that were dropped.
    fn next(&mut self, program: &str) -> Option<(Target, Vec<u8>)> {
        let mut next = Vec::new();
        let mut to = Target::StandardError;
        while let Some((target, line)) = self.lines.front()
            && (next.is_empty() || (*target == to && next.len() + line.len() <= MAX_WRITE))
        {
            to = *target;
            next.extend_from_slice(line);
            self.bytes -= line.len();
            self.lines.pop_front();
        }
        if next.is_empty() && self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            next = format!("{program}: warning: {dropped} messages were dropped: standard error was not read\n").into();
        }
        (!next.is_empty()).then_some((to, next))
    }
}

/// Starts the thread. From now on [`write()`] does not block. If the system has no thread left,
/// lines are written directly as before.
pub fn start(program: &'static str) {
    let run = move || {
        loop {
            let (target, next) = next_lines(program);
            rbdkit_confine::confine_thread();
            write_all(target, &next);
        }
    };
    let started = std::thread::Builder::new().name("rbdkit-log".into()).stack_size(64 << 10).spawn(run);
    lock(&WRITER.queue).has_thread = started.is_ok();
}

fn next_lines(program: &str) -> (Target, Vec<u8>) {
    let mut queue = lock(&WRITER.queue);
    queue.is_writing = false;
    loop {
        if let Some(next) = queue.next(program) {
            queue.is_writing = true;
            return next;
        }
        WRITER.changed.notify_all();
        queue = WRITER.changed.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

/// Writes a line, which ends in a newline character.
pub fn write(target: Target, line: Vec<u8>) {
    let mut queue = lock(&WRITER.queue);
    if !queue.has_thread {
        drop(queue);
        return write_all(target, &line);
    }
    queue.push(target, line);
    drop(queue);
    WRITER.changed.notify_all();
}

/// Waits until everything is written, but not longer than `patience`.
pub fn flush(patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut queue = lock(&WRITER.queue);
    while queue.has_thread && (queue.is_writing || !queue.lines.is_empty() || queue.dropped > 0) {
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { return };
        queue = WRITER.changed.wait_timeout(queue, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
    }
}

/// Writes to the descriptor itself. The standard library's stream has a lock, which would block
/// every other user of that stream while this write blocks. A failure cannot be reported anywhere.
fn write_all(target: Target, mut bytes: &[u8]) {
    let fd = match (target, file::opened()) {
        (Target::LogFile, Some(file)) => file.as_fd(),
        _ => rustix::stdio::stderr(),
    };
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_writable(fd),
            Err(_) => return,
        }
    }
}

/// Another process has made the descriptor non-blocking.
fn wait_writable(fd: BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, poll};
    // If it fails, the next write fails as well or succeeds.
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_lines_and_reports_how_many() {
        let mut queue = Queue::new(10_000);
        for _ in 0..1000 {
            queue.push(Target::StandardError, vec![b'x'; 100]);
        }
        assert_eq!((queue.lines.len(), queue.bytes, queue.dropped), (100, 10_000, 900));
        let mut written = 0;
        while let Some((_, next)) = queue.next("rbdkit") {
            assert!(next.len() <= MAX_WRITE);
            written += next.len();
            if next.starts_with(b"rbdkit: ") {
                assert_eq!(next, b"rbdkit: warning: 900 messages were dropped: standard error was not read\n");
                written -= next.len();
            }
        }
        assert_eq!((written, queue.bytes, queue.dropped), (10_000, 0, 0));
    }

    #[test]
    fn a_line_longer_than_one_write_is_written_by_itself() {
        let mut queue = Queue::new(10_000);
        queue.push(Target::StandardError, vec![b'x'; 5000]);
        queue.push(Target::StandardError, vec![b'y'; 10]);
        assert_eq!(queue.next("").map(|(_, lines)| lines.len()), Some(5000));
        assert_eq!(queue.next("").map(|(_, lines)| lines.len()), Some(10));
        assert_eq!(queue.next(""), None);
    }

    #[test]
    fn lines_of_two_targets_keep_their_order_and_do_not_mix() {
        let mut queue = Queue::new(10_000);
        for (target, line) in [(Target::LogFile, "a"), (Target::LogFile, "b"), (Target::StandardError, "c")] {
            queue.push(target, line.into());
        }
        assert_eq!(queue.next(""), Some((Target::LogFile, b"ab".to_vec())));
        assert_eq!(queue.next(""), Some((Target::StandardError, b"c".to_vec())));
        assert_eq!(queue.next(""), None);
    }
}
