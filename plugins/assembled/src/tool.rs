//! Programs that a plugin runs while the server starts, before it gives up the right to start any.
//!
//! They belong to the server's process group, so Control-C ends both. What they print on standard
//! error is for the user.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rbdkit_plugin_api::ConfigError;

/// Where the programs of the administrator are, which are not on the path of every user.
const SYSTEM_PROGRAMS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// `$PATH`, and after it the directories of the administrator's programs.
pub fn with_system_programs() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let mut all: Vec<PathBuf> = std::env::split_paths(&path).collect();
    all.extend(SYSTEM_PROGRAMS.iter().map(PathBuf::from).filter(|place| !path_has(&path, place)));
    std::env::join_paths(all).unwrap_or(path)
}

fn path_has(path: &OsStr, place: &PathBuf) -> bool {
    std::env::split_paths(path).any(|known| known == *place)
}

/// The first of these programs that is on the path.
pub fn find_tool<'a>(names: &[&'a str]) -> Option<&'a str> {
    let path = with_system_programs();
    let exists = |name: &&&str| std::env::split_paths(&path).any(|place| place.join(name).is_file());
    names.iter().find(exists).copied()
}

/// Runs a program to its end and returns what it printed. The plugin `plugin` needs it, messages
/// call it `name`, and Debian has it in `package`. Standard output is read unless the command says
/// otherwise.
///
/// # Errors
/// One line: it cannot be started, or it failed.
pub fn run_tool(plugin: &str, package: &str, name: &str, command: &mut Command) -> Result<Vec<u8>, ConfigError> {
    command.env("PATH", with_system_programs()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let error = |what: String| Err(ConfigError::new(format!("{plugin}: {name} {what}")));
    match command.output() {
        Ok(Output { status, stdout, .. }) if status.success() => Ok(stdout),
        // A shell's status for a program that it does not find.
        Ok(Output { status, .. }) if status.code() == Some(127) => error(missing(package)),
        Ok(Output { status, .. }) => error(format!("failed: {status}")),
        Err(not_found) if not_found.kind() == ErrorKind::NotFound => error(missing(package)),
        Err(other) => error(format!("cannot be started: {other}")),
    }
}

fn missing(package: &str) -> String {
    format!("is needed, and it is not there (Debian has it in the package {package})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_or_is_missing_is_one_line() {
        assert_eq!(run_tool("x", "y", "echo", Command::new("echo").arg("a b")).unwrap(), b"a b\n");
        let error = |name: &str| run_tool("iso", "genisoimage", name, &mut Command::new(name)).unwrap_err().to_string();
        assert_eq!(error("false"), "iso: false failed: exit status: 1");
        assert_eq!(
            error("no-such-program"),
            "iso: no-such-program is needed, and it is not there (Debian has it in the package genisoimage)"
        );
    }

    #[test]
    fn programs_of_the_administrator_are_found() {
        assert!(path_has(&with_system_programs(), &"/usr/sbin".into()));
        assert_eq!(find_tool(&["no-such-program", "sh", "ls"]), Some("sh"));
        assert_eq!(find_tool(&["no-such-program"]), None);
    }
}
