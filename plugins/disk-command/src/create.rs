//! Runs the command in the helper process, and waits for it in the server.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use rbdkit_launcher::{Launcher, Order, Started, packet, shell, start_shell};
use rbdkit_plugin_api::{Abandoned, Errno, Error, Result, lock};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno as Raw, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::answer::{Answer, MAX_LINE, last_line};
use crate::script::{SUCCESS, script};

/// How long the command may take to end after SIGTERM, if its client has left or the server stops.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a finished disk goes.
#[derive(Clone, Debug)]
pub enum Created {
    /// Nowhere: it has no name any more, and goes when the server closes it.
    Unnamed,
    /// To this path, unless something is there already; then that is the disk.
    Named(PathBuf),
}

/// Starts the command that makes a disk: what a [`rbdkit_launcher::Start`] does. `words` are those
/// of [`crate::CommandConfig::words`]. The disk is made in a private directory in `parent`, where
/// it is called `name`. The end is a socket for the answer that [`create`] waits for.
///
/// # Errors
/// Those of the system.
pub fn begin(words: &[OsString], parent: &Path, name: &OsStr, created: Created) -> io::Result<Started> {
    let directory = tempfile::Builder::new()
        .prefix(".rbdkit-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", parent.display())))?;
    let disk = directory.path().join(name);
    let Started { child, ends, .. } = start_shell(shell(), &script(words, &disk)?)?;
    // The script discards its standard output.
    let errors = ends.into_iter().nth(1).ok_or(ErrorKind::BrokenPipe)?;
    ioctl_fionbio(&errors, true)?;
    let (ours, theirs) = packet::pair()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let watch = Watch { process, errors: File::from(errors), disk, directory, created };
    let (watching, watched) = mpsc::channel::<()>();
    std::thread::Builder::new().spawn(move || {
        // An error means that the server has ended.
        let _ = watch.answer().send(theirs.as_fd());
        drop(watching);
    })?;
    // The helper must not end before the directory is removed.
    Ok(Started { child, ends: vec![ours], keep: Some(Box::new(Wait(Mutex::new(watched)))) })
}

/// Waits for the thread that removes the directory when it is dropped. The command has ended by
/// then, so that takes some milliseconds. Without a helper it may still run, and is killed only
/// afterwards.
struct Wait(Mutex<mpsc::Receiver<()>>);

impl Drop for Wait {
    fn drop(&mut self) {
        let _ = lock(&self.0).recv_timeout(END_TIMEOUT);
    }
}

/// Waits for the end of the command, and opens the disk.
struct Watch {
    process: OwnedFd,
    errors: File,
    disk: PathBuf,
    directory: TempDir,
    created: Created,
}

impl Watch {
    fn answer(mut self) -> Answer {
        let mut said = Vec::new();
        let mut errors_open = true;
        loop {
            let mut wanted = vec![PollFd::new(&self.process, PollFlags::IN)];
            wanted.extend(errors_open.then(|| PollFd::new(&self.errors, PollFlags::IN)));
            match poll(&mut wanted, None) {
                Ok(_) | Err(Raw::INTR) => {}
                Err(errno) => return Answer { disk: Err(errno), line: String::new() },
            }
            let ended = !wanted[0].revents().is_empty();
            drop(wanted);
            errors_open = errors_open && self.read_errors(&mut said);
            if ended {
                break;
            }
        }
        let disk = self.open();
        drop(self.directory);
        Answer { disk, line: last_line(&said) }
    }

    /// Reads some of what the command printed on standard error, and keeps the end of it. Returns
    /// false at the end.
    fn read_errors(&mut self, said: &mut Vec<u8>) -> bool {
        let mut bytes = [0; 4096];
        // More than a pipe holds. A program in the background may print without end.
        for _ in 0..32 {
            match self.errors.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => {
                    said.extend(&bytes[..count]);
                    said.drain(..said.len().saturating_sub(MAX_LINE));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// Opens the disk at its place, if the command succeeded.
    fn open(&self) -> Result<OwnedFd, Raw> {
        if !self.directory.path().join(SUCCESS).exists() {
            return Err(Raw::CANCELED);
        }
        match &self.created {
            Created::Unnamed => open_disk(&self.disk),
            Created::Named(path) => {
                let placed = rustix::fs::renameat_with(CWD, &self.disk, CWD, path, rustix::fs::RenameFlags::NOREPLACE);
                match placed {
                    Ok(()) | Err(Raw::EXIST) => open_disk(path),
                    Err(errno) => Err(errno),
                }
            }
        }
    }
}

/// Opens a disk for reading and writing, or for reading if it may not be written. It may be a
/// symbolic link: the command decides.
fn open_disk(path: &Path) -> Result<OwnedFd, Raw> {
    // A named pipe must not hold the helper.
    let open = |access| {
        let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(CWD, path, flags | access, Mode::empty())
    };
    match open(OFlags::RDWR) {
        Err(Raw::ACCESS | Raw::PERM | Raw::ROFS) => open(OFlags::RDONLY),
        opened => opened,
    }
}

/// Lets the launcher's helper make a disk, for the plugin of this name. Blocks until it is made.
///
/// # Errors
/// The command failed or made no disk; or nobody waits any more, and it was ended.
pub fn create(plugin: &str, launcher: &Launcher, order: &Order, abandoned: &Abandoned) -> Result<OwnedFd> {
    let failed = |what: String| Error::new(Errno::Eio, format!("{plugin}: {what}"));
    let launched = launcher.launch(&format!("{plugin}: the command"), order);
    let (mut ends, program) = launched.map_err(|error| failed(format!("the command cannot be started: {error}")))?;
    let program = program.allow(END_TIMEOUT);
    let answer = ends.pop().ok_or_else(|| failed("the command has no answer".to_owned()))?;
    loop {
        let mut wanted = [PollFd::new(&answer, PollFlags::IN), PollFd::new(abandoned, PollFlags::IN)];
        match poll(&mut wanted, None) {
            Ok(_) | Err(Raw::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let [answered, left] = wanted.map(|one| !one.revents().is_empty());
        if answered {
            break;
        }
        if left {
            // Dropping the program ends it.
            return Err(Error::new(Errno::Eshutdown, format!("{plugin}: the command was ended: nobody waits for it")));
        }
    }
    let Answer { disk, line } = Answer::receive(answer.as_fd())?;
    let status = program.wait()?;
    if !status.success() {
        let colon = if line.is_empty() { "" } else { ": " };
        return Err(failed(format!("the command {}{colon}{line}", how_it_ended(status))));
    }
    disk.map_err(|errno| failed(format!("the command made no disk: {errno}")))
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the disks of a test are made: the only word in front of the others.
    fn start(words: &[OsString], order: &Order) -> io::Result<Started> {
        let parent = PathBuf::from(&words[0]);
        let created = if order.which == 0 { Created::Unnamed } else { Created::Named(parent.join("disk")) };
        begin(&words[1..], &parent, "disk".as_ref(), created)
    }

    struct Bench {
        parent: TempDir,
    }

    impl Bench {
        fn run(&self, command: &str, which: u8) -> Result<OwnedFd> {
            let (abandoned, _waiting) = Abandoned::new()?;
            self.run_until(command, which, &abandoned)
        }

        fn run_until(&self, command: &str, which: u8, abandoned: &Abandoned) -> Result<OwnedFd> {
            let words = [self.parent.path().as_os_str(), "4096".as_ref(), command.as_ref()].map(OsString::from);
            let launcher = Launcher::new("test", start, words.into());
            create("test", &launcher, &Order { which, ..Order::default() }, abandoned)
        }

        /// What is left in the directory.
        fn left(&self) -> Vec<OsString> {
            let entries = std::fs::read_dir(self.parent.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        }
    }

    fn bench() -> Bench {
        Bench { parent: tempfile::tempdir().unwrap() }
    }

    #[test]
    fn a_disk_without_a_name_is_open_and_leaves_nothing() {
        let bench = bench();
        let disk = bench.run(r#"truncate -s "$size" "$disk""#, 0).unwrap();
        assert_eq!(rustix::fs::fstat(&disk).unwrap().st_size, 4096);
        assert_eq!(rustix::fs::fstat(&disk).unwrap().st_nlink, 0);
        assert_eq!(bench.left(), Vec::<OsString>::new());
    }

    #[test]
    fn a_disk_with_a_name_is_there_at_once_and_whole_and_is_never_replaced() {
        let bench = bench();
        bench.run(r#"echo first >"$disk""#, 1).unwrap();
        assert_eq!(bench.left(), ["disk"]);
        bench.run(r#"echo second >"$disk""#, 1).unwrap();
        assert_eq!(bench.left(), ["disk"]);
        assert_eq!(std::fs::read(bench.parent.path().join("disk")).unwrap(), b"first\n");
    }

    #[test]
    fn a_command_that_fails_is_explained_and_leaves_nothing() {
        let bench = bench();
        for (command, expected) in [
            (
                "echo a >\"$disk\"; echo usage >&2; echo it broke >&2; exit 3",
                "the command exited with code 3: it broke",
            ),
            ("exit 1", "the command exited with code 1"),
            ("kill -9 $$", "the command was killed by signal 9"),
            ("true", "the command made no disk: No such file or directory (os error 2)"),
        ] {
            for which in [0, 1] {
                let error = bench.run(command, which).unwrap_err();
                assert_eq!(error.context(), Some(&format!("test: {expected}")[..]));
                assert_eq!(error.errno(), Errno::Eio);
                assert_eq!(bench.left(), Vec::<OsString>::new(), "{command}");
            }
        }
    }

    #[test]
    fn what_a_command_prints_without_end_is_read_and_dropped() {
        let error = bench().run("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo at last >&2; exit 1", 0);
        assert!(error.unwrap_err().context().unwrap().ends_with(": at last"));
    }

    #[test]
    fn a_command_that_nobody_waits_for_is_ended() {
        let bench = bench();
        let (abandoned, waiting) = Abandoned::new().unwrap();
        drop(waiting);
        let error = bench.run_until("trap '' TERM; while :; do sleep 1; done", 0, &abandoned).unwrap_err();
        assert_eq!(error.errno(), Errno::Eshutdown);
        // The thread that ends it removes the directory at last.
        while !bench.left().is_empty() {
            std::thread::yield_now();
        }
    }
}
