//! Runs the tools of a build.

use std::process::Command;

use crate::error::{Error, Result};

/// Runs a program to its end. The user sees its output.
pub fn run(command: &mut Command) -> Result<()> {
    let program = name(command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Failed { program, how: status.to_string() }),
        Err(source) => Err(Error::Start { program, source }),
    }
}

/// Runs a program to its end and returns what it prints.
pub fn output(command: &mut Command) -> Result<String> {
    let program = name(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    match command.output() {
        Ok(output) if output.status.success() => Ok(text(&output.stdout)),
        Ok(output) => Err(Error::Failed { program, how: text(&output.stderr) }),
        Err(source) => Err(Error::Start { program, source }),
    }
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
