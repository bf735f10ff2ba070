//! The helper process, which starts programs.
//!
//! It is the same executable, started before the server is confined, with the words of its
//! launcher. Orders come over its socket. With each order comes the end of another socket, the
//! program's *leash*. Over the leash the helper sends the answer (an error, or descriptors), and at
//! last how the program ended; the server sends when to drop what was kept for the start. When the
//! leash is closed the helper ends the program, so a server that was killed leaves no programs
//! behind.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rbdkit_plugin_api::own_program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::packet;
use crate::program::{self, END_TIMEOUT, Program, word};
use crate::start::{Order, Start, Started};
use crate::variables::{self, MAX_ENCODED};

/// The argument before the launcher's name that makes the executable a helper.
const ARGUMENT: &str = "--rbdkit-launch";

/// The bytes of an order: which program, the number, and whether variables are on the leash.
const ORDER: usize = 10;

/// The most programs at a time. No plugin needs more than one for each connection, so a server that
/// asks for more is broken or taken over.
const MAX_PROGRAMS: usize = 1024;

/// The longest error message, in bytes.
const MAX_MESSAGE: usize = 4096;

/// How long the helper may take to answer an order. It needs a few milliseconds; a helper that was
/// stopped (SIGSTOP) does not answer.
const ANSWER_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Whether this executable can be its own helper: it has called [`serve_if_asked`].
static AVAILABLE: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_available() -> bool {
    AVAILABLE.load(Ordering::Acquire)
}

/// Runs the helper, if this process was started as one; the process ends with the returned status
/// then. A program calls this before anything else. `starts` are the start functions of its
/// launchers, by name.
pub fn serve_if_asked(starts: &[(&str, Start)]) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|word| word != ARGUMENT) {
        AVAILABLE.store(true, Ordering::Release);
        return None;
    }
    let name = args.next().unwrap_or_default();
    let start = starts.iter().find(|(known, _)| name == *known).map(|(_, start)| *start);
    match start.map(serve) {
        Some(Ok(())) => Some(ExitCode::SUCCESS),
        _ => Some(ExitCode::FAILURE),
    }
}

/// Starts the helper and returns the socket to it.
pub(crate) fn start(name: &str, words: &[OsString]) -> io::Result<OwnedFd> {
    let (ours, theirs) = packet::pair()?;
    let mut command = Command::new(own_program()?);
    command.arg0("rbdkit").arg(ARGUMENT).arg(name).stdin(Stdio::from(theirs));
    // Control-C must reach only the server, which ends its programs in order.
    command.process_group(0);
    // The helper ends when its socket is closed. Nobody waits for it: init reaps it after the
    // server's end.
    drop(command.spawn()?);
    drop(command);
    // Not on the command line, which every user can read: one of the words may be a password.
    let mut file = std::fs::File::from(memfd_create("words", MemfdFlags::CLOEXEC)?);
    for word in words {
        file.write_all(&(word.len() as u64).to_be_bytes())?;
        file.write_all(word.as_bytes())?;
    }
    file.rewind()?;
    packet::send(ours.as_fd(), &[0], &[file.as_fd()])?;
    Ok(ours)
}

/// Asks the helper to start a program.
pub(crate) fn order(control: BorrowedFd<'_>, what: &str, order: &Order) -> io::Result<(Vec<OwnedFd>, Program)> {
    let gone = |_| io::Error::other("the helper that starts it is gone");
    let (ours, theirs) = packet::pair()?;
    let mut bytes = [0; ORDER];
    bytes[0] = order.which;
    bytes[1..9].copy_from_slice(&order.number.to_be_bytes());
    if !order.variables.is_empty() {
        // Over the leash, because several long lists would not fit into the socket to the helper.
        bytes[9] = 1;
        packet::send(ours.as_fd(), &variables::encode(&order.variables), &[])?;
    }
    packet::send(control, &bytes, &[theirs.as_fd()]).map_err(gone)?;
    drop(theirs);
    if poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&ANSWER_TIMEOUT)) == Ok(0) {
        return Err(io::Error::other("the helper that starts it does not answer"));
    }
    let mut answer = [0; MAX_MESSAGE];
    let (count, ends) = packet::receive(ours.as_fd(), &mut answer)?;
    let (code, text) = answer[..count].split_first_chunk::<4>().ok_or_else(|| gone(io::Error::other("")))?;
    match i32::from_be_bytes(*code) {
        0 => Ok((ends, Program::leashed(ours, what))),
        number if number > 0 => Err(io::Error::from_raw_os_error(number)),
        _ => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
    }
}

fn serve(start: Start) -> io::Result<()> {
    // The programs must not inherit the socket as their standard input.
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let (_, mut file) = packet::receive(control.as_fd(), &mut [0])?;
    let file = file.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    let words: Arc<[OsString]> = words(std::fs::File::from(file))?.into();
    let running = Arc::new(AtomicUsize::new(0));
    let mut threads = Vec::new();
    loop {
        let mut bytes = [0; ORDER];
        let (count, mut leash) = packet::receive(control.as_fd(), &mut bytes)?;
        if count == 0 {
            break;
        }
        let ([which, number @ .., variables], Some(leash)) = (bytes, leash.pop()) else { continue };
        let order = Order { which, number: u64::from_be_bytes(number), variables: Vec::new() };
        let variables = if variables == 0 { Variables::None } else { Variables::OnLeash };
        threads.retain(|thread: &std::thread::JoinHandle<()>| !thread.is_finished());
        if running.load(Ordering::Relaxed) >= MAX_PROGRAMS {
            let _ = refuse(leash.as_fd(), &io::Error::other(format!("{MAX_PROGRAMS} programs are running already")));
            continue;
        }
        running.fetch_add(1, Ordering::Relaxed);
        let (words, running) = (Arc::clone(&words), Arc::clone(&running));
        threads.push(std::thread::Builder::new().spawn(move || {
            attend(start, &words, order, variables, &leash);
            running.fetch_sub(1, Ordering::Relaxed);
        })?);
    }
    // The server has closed their leashes, or is about to.
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

fn words(mut file: std::fs::File) -> io::Result<Vec<OsString>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    let mut words = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (word, after) = after.split_at_checked(length).ok_or(io::ErrorKind::InvalidData)?;
        words.push(OsString::from_vec(word.to_owned()));
        rest = after;
    }
    Ok(words)
}

/// Whether an order has variables.
#[derive(Clone, Copy)]
enum Variables {
    None,
    /// They are the first packet on the leash.
    OnLeash,
}

/// Serves one program from its start to its end. Errors are ignored: they mean that the server has
/// closed the leash.
fn attend(start: Start, words: &[OsString], mut order: Order, variables: Variables, leash: &OwnedFd) {
    let leash = leash.as_fd();
    let received = match variables {
        Variables::None => Ok(Vec::new()),
        Variables::OnLeash => receive_variables(leash),
    };
    let started = received.and_then(|variables| {
        order.variables = variables;
        start(words, &order)
    });
    match started {
        Ok(started) => {
            let status = follow(started, leash);
            let _ = status.and_then(|status| packet::send(leash, &status.into_raw().to_be_bytes(), &[]));
        }
        Err(error) => drop(refuse(leash, &error)),
    }
}

/// Receives an order's variables. The server sent them before the order, so this does not wait.
fn receive_variables(leash: BorrowedFd<'_>) -> io::Result<Vec<(String, String)>> {
    // One byte more than the longest list shows that a packet was cut.
    let mut bytes = vec![0; MAX_ENCODED + 1];
    let (count, _) = packet::receive(leash, &mut bytes)?;
    match count <= MAX_ENCODED {
        true => variables::decode(&bytes[..count]),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Answers an order with an error.
fn refuse(leash: BorrowedFd<'_>, error: &io::Error) -> io::Result<()> {
    let mut answer = error.raw_os_error().unwrap_or(-1).to_be_bytes().to_vec();
    answer.extend(OsStr::new(&error.to_string()).as_bytes().iter().take(MAX_MESSAGE - answer.len()));
    packet::send(leash, &answer, &[])
}

fn follow(started: Started, leash: BorrowedFd<'_>) -> io::Result<ExitStatus> {
    let Started { mut child, ends, mut keep } = started;
    let told = packet::send(leash, &0_i32.to_be_bytes(), &ends.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    // Only the server has the ends now.
    drop(ends);
    let what = "the program";
    let mut allowed = END_TIMEOUT;
    let (Ok(()), Ok(pidfd)) = (told, pidfd_open(Pid::from_child(&child), PidfdFlags::empty())) else {
        return program::end(&mut child, what, allowed);
    };
    loop {
        let mut both = [PollFd::new(&pidfd, PollFlags::IN), PollFd::from_borrowed_fd(leash, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return program::end(&mut child, what, allowed),
        }
        let [ended, spoken] = both.map(|end| !end.revents().is_empty());
        if ended {
            return child.wait();
        }
        if spoken {
            let mut bytes = [0; 5];
            match (packet::receive(leash, &mut bytes), bytes) {
                (Ok((5, _)), [word::ALLOW, milliseconds @ ..]) => {
                    allowed = Duration::from_millis(u32::from_be_bytes(milliseconds).into());
                }
                (Ok((1.., _)), [word::RELEASE, ..]) => drop(keep.take()),
                _ => return program::end(&mut child, what, allowed),
            }
        }
    }
}
