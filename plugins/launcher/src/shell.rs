//! Runs shell commands that the operator gave inline.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::start::{Order, Start, Started};

/// The name and the start function of a launcher whose words are shell commands. The number of the
/// order is the command's place among the words. The ends are its standard output and standard
/// error. Its environment is that of the process which starts it, and the order's variables.
pub const SHELL: (&str, Start) = ("shell", start);

fn start(words: &[OsString], order: &Order) -> io::Result<Started> {
    let which = usize::try_from(order.number).unwrap_or(usize::MAX);
    let script = words.get(which).ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = shell();
    command.envs(order.variables.iter().map(|(name, value)| (name, value)));
    start_shell(command, script)
}

/// `/bin/sh`, which will run the script that [`start_shell`] gives it.
pub fn shell() -> Command {
    Command::new("/bin/sh")
}

/// Starts a script in a shell of [`shell`]. The ends are its standard output and standard error.
///
/// # Errors
/// Those of the system.
pub fn start_shell(mut command: Command, script: &OsString) -> io::Result<Started> {
    // The script may hold a secret, and every user can read command lines. So the shell gets it
    // over standard input. The script itself has none.
    command.arg("-c").arg("eval \"exec </dev/null\n$(cat)\"");
    // The script and the programs that it starts are ended together.
    command.process_group(0);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the shell has ended already, its status says so.
        let _ = stdin.write_all(script.as_bytes());
    }
    let ends = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let ends = ends.into_iter().flatten().collect();
    Ok(Started { child, ends, keep: None })
}
