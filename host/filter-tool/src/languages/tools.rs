//! The tools that builds need: whether they are here, and how to install them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// Something that a build needs.
#[derive(Clone, Debug)]
pub struct Tool {
    pub name: &'static str,
    /// The command that installs it, on Debian or from the language's registry.
    pub install: &'static str,
    /// Its version or its path, or why it cannot be used.
    pub found: std::result::Result<String, String>,
}

impl Tool {
    /// A program in PATH, or at a path. Its version is the first line of what it prints with
    /// `arguments`.
    pub fn program(name: &'static str, program: &str, arguments: &[&str], install: &'static str) -> Tool {
        Tool { name, install, found: first_line(Command::new(program).args(arguments)) }
    }

    /// A file in one of these places.
    pub fn file(name: &'static str, places: impl IntoIterator<Item = PathBuf>, install: &'static str) -> Tool {
        let found = places.into_iter().find(|place| place.exists());
        Tool { name, install, found: found.map(|place| place.display().to_string()).ok_or_else(|| MISSING.to_owned()) }
    }

    /// Whether it can be used.
    pub fn is_here(&self) -> bool {
        self.found.is_ok()
    }
}

/// Why a tool that does not exist cannot be used.
const MISSING: &str = "not found";

/// One way to build filters in a language.
#[derive(Clone, Debug)]
pub struct Way {
    /// What the user sees: "clang", "zig cc".
    pub name: &'static str,
    pub tools: Vec<Tool>,
    /// How the main tool is run: a program and its first arguments.
    pub command: Vec<OsString>,
}

impl Way {
    /// Whether all of its tools are here.
    pub fn is_complete(&self) -> bool {
        self.tools.iter().all(Tool::is_here)
    }

    /// The main tool, to be run.
    pub fn run(&self) -> Command {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command.args(words);
        command
    }
}

/// The first of these ways whose tools are all here.
///
/// # Errors
/// Tools are missing: all of them, with the commands that install them.
pub fn first_complete(language: &'static str, ways: Vec<Way>) -> Result<Way> {
    if let Some(way) = ways.iter().find(|way| way.is_complete()) {
        return Ok(way.clone());
    }
    let mut missing = Vec::new();
    for (nth, way) in ways.iter().enumerate() {
        if nth > 0 {
            missing.push(format!("or build with {} instead:", way.name));
        }
        missing.extend(way.tools.iter().filter_map(|tool| {
            let why = tool.found.as_ref().err()?;
            Some(format!("  {} ({why}): {}", tool.name, tool.install))
        }));
    }
    Err(Error::MissingTools { language, missing })
}

/// The first line that a program prints.
fn first_line(command: &mut Command) -> std::result::Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => MISSING.to_owned(),
        _ => error.to_string(),
    })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(match text(&output.stderr) {
            line if line.is_empty() => output.status.to_string(),
            line => line,
        }),
    }
}

/// Where clang keeps the library for targets, in all of its versions that are installed.
pub fn below_llvm(rest: &str) -> Vec<PathBuf> {
    let directories = |place: &Path| {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let llvm = directories(Path::new("/usr/lib"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("llvm-")));
    llvm.flat_map(|llvm| directories(&llvm.join("lib/clang"))).map(|version| version.join(rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_or_fails_says_why() {
        let missing = Tool::program("x", "rbdkit-no-such-program", &[], "install it");
        assert_eq!(missing.found, Err("not found".to_owned()));
        let fails = Tool::program("sh", "sh", &["-c", "echo no >&2; exit 3"], "install it");
        assert_eq!(fails.found, Err("no".to_owned()));
        let here = Tool::program("sh", "sh", &["-c", "echo one; echo two"], "install it");
        assert_eq!(here.found, Ok("one".to_owned()));
    }

    #[test]
    fn all_missing_tools_of_all_ways_are_named() {
        let tool = |name, here: bool| Tool {
            name,
            install: "apt-get install it",
            found: if here { Ok("1".into()) } else { Err(MISSING.into()) },
        };
        let way = |name, tools| Way { name, tools, command: vec![name.into()] };
        let both = vec![
            way("first", vec![tool("a", true), tool("b", false), tool("c", false)]),
            way("second", vec![tool("d", false)]),
        ];
        let Err(Error::MissingTools { missing, .. }) = first_complete("l", both.clone()) else { panic!("complete") };
        let expected = [
            "  b (not found): apt-get install it",
            "  c (not found): apt-get install it",
            "or build with second instead:",
            "  d (not found): apt-get install it",
        ];
        assert_eq!(missing, expected);
        let one = vec![both[0].clone(), way("third", vec![tool("e", true)])];
        assert_eq!(first_complete("l", one).unwrap().name, "third");
    }
}
