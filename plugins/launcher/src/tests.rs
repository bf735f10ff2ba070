use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::Abandoned;

use crate::{Finished, Launcher, Order, RunError, RunLimits, Started};

/// Runs the first word with the others.
fn start(words: &[OsString], order: &Order) -> io::Result<Started> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env("number", order.number.to_string()).envs(order.variables.clone());
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let ends = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let ends = ends.into_iter().flatten().collect();
    Ok(Started { child, ends, keep: None })
}

const FIRST: &Order = &Order { which: 0, number: 7, variables: Vec::new() };

fn launcher(words: &[&str]) -> Launcher {
    let launcher = Launcher::new("test", start, words.iter().map(OsString::from).collect());
    // The tests' program is none that could be its own helper. With one:
    // tests/tests/untrusted/confined.rs.
    assert!(!launcher.move_out().unwrap());
    launcher
}

#[test]
fn what_a_program_says_and_how_it_ends_is_told() {
    let (mut ends, program) = launcher(&["sh", "-c", "echo $number; exit 3"]).launch("it", FIRST).unwrap();
    let mut said = String::new();
    std::fs::File::from(ends.remove(0)).read_to_string(&mut said).unwrap();
    assert_eq!(said, "7\n");
    assert_eq!(program.wait().unwrap().code(), Some(3));
}

#[test]
fn a_program_ends_with_the_value() {
    let (mut ends, program) = launcher(&["sleep", "600"]).launch("it", FIRST).unwrap();
    drop(program);
    // It was the last who could write.
    assert_eq!(std::fs::File::from(ends.remove(0)).read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = launcher(&["/no/such/program"]).launch("it", FIRST).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn what_is_kept_goes_when_it_is_released() {
    struct Kept(Arc<AtomicBool>);
    impl Drop for Kept {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let gone = Arc::new(AtomicBool::new(false));
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    let program = crate::Program::of_child(child, Some(Box::new(Kept(Arc::clone(&gone)))), "it");
    assert!(!gone.load(Ordering::Acquire));
    program.release();
    assert!(gone.load(Ordering::Acquire));
}

/// Reads to the end: all who could write have gone.
fn until_gone(mut ends: Vec<OwnedFd>) {
    std::fs::File::from(ends.remove(0)).read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_program_and_its_children_that_ignore_sigterm_are_killed() {
    let hangs = "trap '' TERM; echo; sleep 600 & sleep 600";
    for drops in [false, true] {
        let (ends, program) = launcher(&["sh", "-c", hangs]).launch("it", FIRST).unwrap();
        // The line comes after the trap.
        let mut output = std::fs::File::from(ends[0].try_clone().unwrap());
        output.read_exact(&mut [0]).unwrap();
        let program = program.allow(Duration::from_millis(100));
        match drops {
            true => drop(program),
            false => assert_eq!(program.end().unwrap().signal(), Some(9)),
        }
        until_gone(ends);
    }
}

#[test]
fn dropping_a_program_does_not_wait_for_its_end() {
    let (ends, program) = launcher(&["sh", "-c", "trap '' TERM; echo; sleep 600"]).launch("it", FIRST).unwrap();
    std::fs::File::from(ends[0].try_clone().unwrap()).read_exact(&mut [0]).unwrap();
    let patience = Duration::from_secs(2);
    let began = Instant::now();
    drop(program.allow(patience));
    assert!(began.elapsed() < patience);
    until_gone(ends);
}

const LIMITS: RunLimits = RunLimits { output: 1000, time: Duration::from_secs(60) };

fn run(script: &str, limits: RunLimits) -> Result<Finished, RunError> {
    let (abandoned, _waiting) = Abandoned::new().unwrap();
    launcher(&["sh", "-c", script]).run("it", FIRST, limits, &abandoned)
}

#[test]
fn a_run_returns_both_outputs_and_the_status() {
    let Finished { status, output, errors } = run("echo a; echo b >&2; exit 5", LIMITS).unwrap();
    assert_eq!((status.code(), &output[..], &errors[..]), (Some(5), &b"a\n"[..], &b"b\n"[..]));
    // Only the beginning of standard error is kept, and the rest does not block the script.
    let finished = run("yes | head -c 1000000 >&2; echo a", LIMITS).unwrap();
    assert_eq!((finished.errors.len(), &finished.output[..]), (4096, &b"a\n"[..]));
}

#[test]
fn a_run_without_end_is_ended() {
    assert!(matches!(run("yes", LIMITS), Err(RunError::TooMuch)));
    assert!(matches!(run("trap '' PIPE TERM; yes", LIMITS), Err(RunError::TooMuch)));
    let short = RunLimits { time: Duration::from_millis(100), ..LIMITS };
    for hangs in ["sleep 600", "exec >&- 2>&-; trap '' TERM; sleep 600"] {
        assert!(matches!(run(hangs, short), Err(RunError::TooLong(_))), "{hangs}");
    }
}

#[test]
fn a_program_in_the_background_does_not_prolong_a_run() {
    let finished = run("sleep 600 & echo $! a", LIMITS).unwrap();
    let text = String::from_utf8(finished.output).unwrap();
    let (pid, rest) = text.split_once(' ').unwrap();
    assert_eq!((finished.status.code(), rest), (Some(0), "a\n"));
    let _ = Command::new("kill").arg(pid).status();
}

#[test]
fn a_run_that_nobody_waits_for_is_ended() {
    let (abandoned, waiting) = Abandoned::new().unwrap();
    let run = std::thread::spawn(move || launcher(&["sleep", "600"]).run("it", FIRST, LIMITS, &abandoned));
    drop(waiting);
    assert!(matches!(run.join().unwrap(), Err(RunError::Abandoned)));
}

#[test]
fn a_shell_command_gets_its_variables_and_no_standard_input() {
    let words = ["echo wrong", "echo \"$act: $offset\"; cat; exit 4"].map(OsString::from).to_vec();
    let launcher = Launcher::new(crate::SHELL.0, crate::SHELL.1, words);
    let (abandoned, _waiting) = Abandoned::new().unwrap();
    let value = "it's \"$(here)\"\n`x`";
    let variables = [("act", "Read"), ("offset", value)].map(|(name, value)| (name.into(), value.into())).to_vec();
    let order = Order { which: 0, number: 1, variables };
    let finished = launcher.run("it", &order, LIMITS, &abandoned).unwrap();
    assert_eq!(String::from_utf8(finished.output).unwrap(), format!("Read: {value}\n"));
    assert_eq!(finished.status.code(), Some(4));
    let unknown = Order { number: 2, ..Order::default() };
    assert!(matches!(launcher.run("it", &unknown, LIMITS, &abandoned), Err(RunError::Io(_))));
}
