//! Runs the tools of a build.

use std::process::{Command, Stdio};

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

/// Runs a program to its end and returns what it prints. The user sees its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let program = name(command);
    match command.stderr(Stdio::inherit()).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
        Ok(output) => Err(Error::Failed { program, how: output.status.to_string() }),
        Err(source) => Err(Error::Start { program, source }),
    }
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
