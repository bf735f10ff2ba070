//! A guest's standard output and error (WASI), as lines of the filter's log.
//!
//! What a guest writes is cut into lines. Each line has the same limits as a line of `log`: rate,
//! length, escapes. An unfinished line is kept until the call ends, but no more of it than the log
//! would show.

use crate::connection::log::{GuestLog, Level};

/// The most bytes that are kept of a line, even if the operator allows longer lines.
const MAX_KEPT_BYTES: usize = 64 << 10;

/// The streams to which a guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleStream {
    /// Standard output: `printf`, `console.log`. Logged at level debug.
    Out,
    /// Standard error: a panic's message, a traceback. Logged at level warn.
    Err,
}

/// The unfinished lines of a call.
#[derive(Default)]
pub(crate) struct Console {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Console {
    /// Takes bytes that a guest writes, and logs the lines that end in them.
    pub(crate) fn write(&mut self, stream: ConsoleStream, mut bytes: &[u8], log: &GuestLog) {
        // One character more than is shown, so that the log sees that the line was cut.
        let most = log.longest().saturating_add(4).min(MAX_KEPT_BYTES);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(stream, &bytes[..end], most);
            self.end(stream, log);
            bytes = &bytes[end + 1..];
        }
        self.keep(stream, bytes, most);
    }

    /// The call ends: logs the unfinished lines.
    pub(crate) fn flush(&mut self, log: &GuestLog) {
        for stream in [ConsoleStream::Out, ConsoleStream::Err] {
            if !self.line(stream).is_empty() {
                self.end(stream, log);
            }
        }
    }

    fn line(&mut self, stream: ConsoleStream) -> &mut Vec<u8> {
        match stream {
            ConsoleStream::Out => &mut self.out,
            ConsoleStream::Err => &mut self.err,
        }
    }

    fn keep(&mut self, stream: ConsoleStream, bytes: &[u8], most: usize) {
        let line = self.line(stream);
        let room = most.saturating_sub(line.len());
        line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self, stream: ConsoleStream, log: &GuestLog) {
        let level = match stream {
            ConsoleStream::Out => Level::Debug,
            ConsoleStream::Err => Level::Warn,
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
            console.write(ConsoleStream::Err, b"\x1b[2J", &log);
        }
        assert_eq!(console.err, b"\x1b[2J\x1b[2J\x1b[2J\x1b["[..14]);
        console.write(ConsoleStream::Out, b"one", &log);
        assert_eq!((console.out.as_slice(), console.err.len()), (&b"one"[..], 14));
        console.write(ConsoleStream::Err, b"more\nnext", &log);
        assert_eq!(console.err, b"next");
        console.write(ConsoleStream::Err, &[b'\n'; 100], &log);
        assert!(console.err.is_empty());
        console.flush(&log);
        assert!(console.out.is_empty());
    }
}
