use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Launcher, Order, Started};

/// Runs the first word with the others.
fn start(words: &[OsString], order: Order) -> io::Result<Started> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env("number", order.number.to_string()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let ends = child.stdout.take().map(OwnedFd::from).into_iter().collect();
    Ok(Started { child, ends, keep: None })
}

const FIRST: Order = Order { which: 0, number: 7 };

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
