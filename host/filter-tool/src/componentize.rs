//! Makes a component of a core module, in a child process.

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};

use rbdkit_plugin_api::own_program;

use crate::error::{Error, Result};

/// The hidden argument of the child that makes a component from a module.
const ARGUMENT: &str = "--rbdkit-componentize";

/// Its exit status if it has written to standard error why it refuses the module.
const REFUSED: i32 = 3;

/// The program calls this first. If [`componentize`] started it, it reads a module, writes a
/// component and returns the exit status.
pub fn serve_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    // The exit status is enough to report a panic.
    std::panic::set_hook(Box::new(|_| {}));
    let work = || -> Result<()> {
        let mut module = Vec::new();
        std::io::stdin().lock().read_to_end(&mut module)?;
        Ok(std::io::stdout().lock().write_all(&rbdkit_componentize::componentize(&module)?)?)
    };
    Some(work().map_or_else(
        |error| {
            let _ = write!(std::io::stderr(), "{}", error.with_causes());
            ExitCode::from(REFUSED as u8)
        },
        |()| ExitCode::SUCCESS,
    ))
}

/// Makes a component from a module, in a child process, because the encoder panics or overflows its
/// stack on some modules with wrong types.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let mut child = own_program()
        .map(Command::new)?
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { program: "this program once more".into(), source })?;
    if let Some(mut input) = child.stdin.take() {
        // The child reads all before it writes anything. A child that has ended already says why.
        let _ = input.write_all(module);
    }
    let output = child.wait_with_output()?;
    match output.status.code() {
        Some(0) => Ok(output.stdout),
        Some(REFUSED) => Err(Error::Refused(String::from_utf8_lossy(&output.stderr).into_owned())),
        _ => Err(Error::Damaged),
    }
}
