//! How each program is started for a case, and what the kernel tells of its process.
//!
//! All programs serve a Unix socket and use the page cache. qemu-nbd gets `--cache=writeback`,
//! which is its default and what the others do, and takes any number of clients. nbdkit keeps its
//! default of 16 threads.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbdkit_tests::{Launch, Server, tool};

use crate::cases::{Case, Plugin, Program, Stack};

/// Ticks of processor time in a second, as Linux reports it to programs on all its machines.
const TICKS: f64 = 100.0;

/// The paths of the programs.
pub struct Programs {
    pub rbdkit: PathBuf,
    pub before: Option<PathBuf>,
    pub nbdkit: PathBuf,
    pub qemu_nbd: PathBuf,
    pub bare: PathBuf,
}

impl Programs {
    /// Takes the paths from the environment, or the usual ones.
    pub fn find() -> Programs {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The program that is built together with this one.
        let bare = std::env::current_exe().map(|this| this.with_file_name("rbdkit-bare")).unwrap_or_default();
        Programs {
            rbdkit: rbdkit_tests::server::program(),
            before: path("BEFORE"),
            nbdkit: path("NBDKIT").unwrap_or_else(|| "nbdkit".into()),
            qemu_nbd: path("QEMU_NBD").unwrap_or_else(|| "qemu-nbd".into()),
            bare,
        }
    }

    /// The path of one program.
    pub fn path(&self, program: Program) -> &Path {
        match program {
            Program::Rbdkit => &self.rbdkit,
            Program::Before => self.before.as_deref().unwrap_or(&self.rbdkit),
            Program::Nbdkit => &self.nbdkit,
            Program::QemuThreads | Program::QemuUring => &self.qemu_nbd,
            Program::Bare => &self.bare,
        }
    }

    /// The versions of the programs and clients, or an error for each that cannot be run.
    pub fn versions(&self) -> Result<Vec<String>, String> {
        let programs = [&*self.rbdkit, &*self.nbdkit, &*self.qemu_nbd, Path::new("fio"), Path::new("nbdcopy")];
        let version = |program: &&Path| {
            let finished = tool(program.to_str().ok_or("a program's path is not UTF-8")?, ["--version"]);
            let text = finished.stdout.lines().next().unwrap_or_default().to_owned();
            match finished.code {
                // Without the distribution's number of the build.
                0 => Ok(text.split(" (").next().unwrap_or_default().to_owned()),
                _ => Err(format!("{} --version fails: {}", program.display(), finished.stderr)),
            }
        };
        programs.iter().map(version).collect()
    }
}

/// Starts a program for a case over this file, or with this size.
///
/// # Errors
/// What the program said when it did not start.
pub fn start(
    programs: &Programs,
    program: Program,
    case: &Case,
    (image, size): (&Path, u64),
    certificates: &Path,
) -> Result<Server, String> {
    let path = programs.path(program).to_owned();
    let launch = match program {
        Program::Rbdkit | Program::Before | Program::Nbdkit => {
            nbdkit_words(&plugin_word(programs, program, case.plugin)?, case, image, size)
        }
        Program::QemuThreads => qemu(&["--aio=threads"], image),
        Program::QemuUring => qemu(&["--aio=io_uring"], image),
        Program::Bare => Launch::new([size.to_string()]),
    };
    let launch = if case.stack == Stack::Tls { launch.args(tls(certificates)) } else { launch };
    let failed = |outcome: rbdkit_tests::Outcome| format!("it did not start ({}): {}", outcome.status, outcome.stderr);
    launch.program(path).try_start().map_err(failed)
}

/// The option for a server with TLS, whose certificates are in this directory.
fn tls(directory: &Path) -> [String; 2] {
    ["--tls=require".to_owned(), format!("--tls-certificates={}", directory.display())]
}

/// How the plugin is named on the command line of a program like nbdkit.
fn plugin_word(programs: &Programs, program: Program, plugin: Plugin) -> Result<OsString, String> {
    match (plugin, program) {
        (Plugin::NbdkitMemory, Program::Nbdkit) => Ok(Plugin::Memory.name().into()),
        (Plugin::NbdkitMemory, _) => Ok(plugin_directory(&programs.nbdkit)?.join("nbdkit-memory-plugin.so").into()),
        (Plugin::File | Plugin::Memory, _) => Ok(plugin.name().into()),
    }
}

/// Where nbdkit has its plugins.
fn plugin_directory(nbdkit: &Path) -> Result<PathBuf, String> {
    let config = tool(nbdkit.to_str().ok_or("nbdkit's path is not UTF-8")?, ["--dump-config"]);
    let line = config.stdout.lines().find_map(|line| line.strip_prefix("plugindir="));
    line.map(PathBuf::from).ok_or_else(|| "nbdkit --dump-config tells no plugindir".into())
}

fn nbdkit_words(plugin: &OsStr, case: &Case, image: &Path, size: u64) -> Launch {
    let filters = case.stack.filters();
    let launch = Launch::new(filters.iter().map(|name| format!("--filter={name}"))).arg(plugin);
    let launch = match case.plugin {
        Plugin::File => launch.path("file", image),
        Plugin::Memory | Plugin::NbdkitMemory => launch.arg(size.to_string()),
    };
    launch.args(case.stack.parameters())
}

fn qemu(options: &[&str], image: &Path) -> Launch {
    let common = ["--format=raw", "--cache=writeback", "--persistent", "--shared=0"];
    Launch::new(common).args(options).arg(image).socket_options(&["-k"], "--pid-file")
}

/// Seconds of processor time that a process has used.
///
/// # Errors
/// If there is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64, String> {
    stat(&pid.to_string()).map(|(own, _)| own)
}

/// Seconds of processor time that this process and the children it waited for have used.
///
/// # Errors
/// If the kernel does not tell.
pub fn cpu_seconds_here() -> Result<f64, String> {
    stat("self").map(|(own, children)| own + children)
}

fn stat(process: &str) -> Result<(f64, f64), String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).map_err(|error| error.to_string())?;
    parse_stat(&text).ok_or_else(|| format!("no processor time in {text}"))
}

/// The processor time of the process, and of its children that ended.
fn parse_stat(text: &str) -> Option<(f64, f64)> {
    // The name in parentheses may contain anything, even parentheses. The third field and the rest
    // follow it; fields 14 to 17 are needed.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let mut both = || Some((ticks()? + ticks()?) as f64 / TICKS);
    Some((both()?, both()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_the_processs_own_and_the_kernels_for_it() {
        let text =
            "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 100 0 0 0 150 250 7 9 20 0 3 0 100 1000 10 18446744073709551615";
        assert_eq!(parse_stat(text), Some((4.0, 0.16)));
        assert_eq!(parse_stat("4711 (short) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn this_process_has_a_processor_time() {
        assert!(cpu_seconds(std::process::id()).is_ok_and(|seconds| seconds >= 0.0));
        assert!(cpu_seconds(u32::MAX).is_err());
        assert!(cpu_seconds_here().is_ok_and(|seconds| seconds >= 0.0));
    }
}
