//! What the helper sends once the command has ended: whether the disk could be opened, the last
//! line that the command printed on standard error, and the open disk.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rbdkit_launcher::packet;
use rustix::io::Errno;

/// The longest line that is sent, in bytes.
pub(crate) const MAX_LINE: usize = 1024;

/// The answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) disk: Result<OwnedFd, Errno>,
    /// Empty: the command printed nothing.
    pub(crate) line: String,
}

impl Answer {
    /// Sends it. Does not wait.
    pub(crate) fn send(self, to: BorrowedFd<'_>) -> io::Result<()> {
        let code = self.disk.as_ref().map_or_else(|errno| errno.raw_os_error(), |_| 0);
        let mut bytes = code.to_be_bytes().to_vec();
        bytes.extend(self.line.bytes().take(MAX_LINE));
        let disk: Vec<BorrowedFd<'_>> = self.disk.iter().map(AsFd::as_fd).collect();
        packet::send(to, &bytes, &disk)
    }

    /// Receives it, once it is there.
    ///
    /// # Errors
    /// The helper has ended.
    pub(crate) fn receive(from: BorrowedFd<'_>) -> io::Result<Answer> {
        let mut bytes = [0; 4 + MAX_LINE];
        let (count, mut disk) = packet::receive(from, &mut bytes)?;
        let (code, line) = bytes[..count].split_first_chunk::<4>().ok_or(io::ErrorKind::UnexpectedEof)?;
        let disk = match (i32::from_be_bytes(*code), disk.pop()) {
            (0, Some(disk)) => Ok(disk),
            (0, None) => Err(Errno::IO),
            (code, _) => Err(Errno::from_raw_os_error(code)),
        };
        Ok(Answer { disk, line: String::from_utf8_lossy(line).into_owned() })
    }
}

/// The last line that is not blank.
pub(crate) fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_arrives_as_it_was_sent() {
        let (ours, theirs) = packet::pair().unwrap();
        let disk = rbdkit_assembled::temporary_file().unwrap();
        Answer { disk: Ok(disk.into()), line: String::new() }.send(theirs.as_fd()).unwrap();
        assert!(Answer::receive(ours.as_fd()).unwrap().disk.is_ok());
        Answer { disk: Err(Errno::NOENT), line: "mkfs: no".into() }.send(theirs.as_fd()).unwrap();
        let answer = Answer::receive(ours.as_fd()).unwrap();
        assert_eq!((answer.disk.unwrap_err(), &answer.line[..]), (Errno::NOENT, "mkfs: no"));
        drop(theirs);
        assert!(Answer::receive(ours.as_fd()).is_err());
    }

    #[test]
    fn the_last_line_says_most() {
        assert_eq!(last_line(b"mke2fs 1.47.0\nmke2fs: too small \n\n"), "mke2fs: too small");
        assert_eq!(last_line(b" \n"), "");
    }
}
