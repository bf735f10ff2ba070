//! Standard output and error: lines for the filter's log.
//!
//! What a guest writes is cut into lines; each goes through the same gate as those of `log`: rate, length, escapes. What has no end
//! yet is kept until the call ends, and not more of it than a line may show.

use crate::connection::log::{GuestLog, Level};

/// The most bytes that are kept of a line, however long the operator lets lines be.
const KEPT: usize = 64 << 10;

/// Where a guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Chatter: `printf`, `console.log`.
    Out,
    /// Complaints: a panic's message, a traceback.
    Err,
}

/// The lines that a call has begun and not ended.
#[derive(Default)]
pub(crate) struct Console {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Console {
    /// Takes what a guest writes, and logs the lines in it.
    pub(crate) fn write(&mut self, stream: Stream, mut bytes: &[u8], log: &GuestLog) {
        // A character more than is shown: it is how the log knows that there was more.
        let most = log.longest().saturating_add(4).min(KEPT);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(stream, &bytes[..end], most);
            self.end(stream, log);
            bytes = &bytes[end + 1..];
        }
        self.keep(stream, bytes, most);
    }

    /// The call ends: what was begun is said as it is.
    pub(crate) fn flush(&mut self, log: &GuestLog) {
        for stream in [Stream::Out, Stream::Err] {
            if !self.line(stream).is_empty() {
                self.end(stream, log);
            }
        }
    }

    fn line(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        }
    }

    fn keep(&mut self, stream: Stream, bytes: &[u8], most: usize) {
        let line = self.line(stream);
        let room = most.saturating_sub(line.len());
        line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self, stream: Stream, log: &GuestLog) {
        let level = match stream {
            Stream::Out => Level::Debug,
            Stream::Err => Level::Warn,
        };
        let line = self.line(stream);
        log.write(level, &String::from_utf8_lossy(line));
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_end_is_kept_only_as_far_as_it_would_be_shown() {
        let log = GuestLog::new("f", 1, 10);
        let mut console = Console::default();
        for _ in 0..1000 {
            console.write(Stream::Err, b"\x1b[2J", &log);
        }
        assert_eq!(console.err, b"\x1b[2J\x1b[2J\x1b[2J\x1b["[..14]);
        console.write(Stream::Out, b"one", &log);
        assert_eq!((console.out.as_slice(), console.err.len()), (&b"one"[..], 14));
        console.write(Stream::Err, b"more\nnext", &log);
        assert_eq!(console.err, b"next");
        console.write(Stream::Err, &[b'\n'; 100], &log);
        assert!(console.err.is_empty());
        console.flush(&log);
        assert!(console.out.is_empty());
    }
}
