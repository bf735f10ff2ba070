//! From the command line to a serving process and its end.
//!
//! The steps, in order:
//!
//! 1. The command line becomes a plan. An action that only prints (help, versions) prints and ends.
//! 2. Unless the process stays in the foreground it forks, before any thread exists. The child goes
//!    on. The parent waits until the child is ready or ends ([`background`]).
//! 3. Filters are loaded, parameters distributed, plugin and filters configured ([`layers`]).
//! 4. Sockets are bound ([`listen`]). From here on a failure removes the files that were created.
//! 5. User and group change, the pid file is written, the command of `--run` starts, and the parent
//!    is told that the server is ready ([`start`]).
//! 6. With `--reload` the helper that compiles starts ([`compile_helper`]). The process gives up
//!    what serving does not need ([`rbdkit_confine`]).
//! 7. Clients are served until a signal or the end of the command. Then the server finishes the
//!    requests in flight ([`watch`]).
//!
//! A failure in 1 to 5 gives one line on standard error and exit status 1, and leaves no files.
//!
//! Where this differs from nbdkit, and why:
//!
//! * nbdkit's caller does not learn of failures after the fork. Here the caller waits until the
//!   whole start has succeeded, including the pid file.
//! * nbdkit leaves the socket of a failed start behind. Here it is removed. A server that ran
//!   leaves socket and pid file, as nbdkit's do.
//! * nbdkit ignores signals while the command of `--run` runs. Here SIGTERM and SIGHUP are passed
//!   on to the command. If the command does not end, the server ends without it.
//! * nbdkit kills the server when the command ends. Here the server finishes its requests, so that
//!   a cache filter writes back.
//! * nbdkit waits as long as a request takes. Here the server ends within 5 s of a signal, or of
//!   the command's end, unless the plugin writes.
//! * A second signal ends the server at once (exit status 128 and the signal's number). nbdkit does
//!   not have this.

mod background;
mod captive;
mod compile_helper;
mod filters;
mod identity;
mod layers;
mod leftovers;
mod listen;
mod log;
mod pidfile;
mod plugin_program;
mod print;
mod process;
mod pulled;
mod record;
mod reload;
mod selinux;
mod serving;
mod signals;
mod start;
mod tls;
mod uri;
mod watch;

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use rbdkit_plugin_api::ConfigError;
use rustix::fs::Mode;

use crate::cli::{self, Action, Inherited, LogTo, program_name};
use crate::registry;
use background::Split;
use start::Start;

/// Runs the program to its end.
pub fn main() -> ExitCode {
    let helper = registry::serve_foreign_plugin_if_asked()
        .or_else(rbdkit_sandbox::serve_if_asked)
        .or_else(rbdkit_oci::serve_if_asked)
        .or_else(|| rbdkit_launcher::serve_if_asked(registry::STARTS))
        .or_else(|| rbdkit_launcher::serve_opener_if_asked(&[registry::OPENS, &[tls::OPEN]].concat()))
        .or_else(compile_helper::serve_if_asked);
    if let Some(status) = helper {
        return status;
    }
    rbdkit_confine::survive_the_file_size_limit();
    let parent = rustix::process::getppid();
    let mut args = std::env::args_os();
    let program = program_name(args.next().as_deref());
    let args: Vec<OsString> = args.collect();
    let plan = match cli::parse(args.clone(), inherited_variables(), &read_parameters) {
        Ok(plan) => plan,
        Err(error) => return fail(program, &LogTo::Default, &error),
    };
    if let Err(error) = plugin_program::start_if_program(&plan, &args) {
        return fail(program, &LogTo::Default, &error);
    }
    // As in nbdkit, so that the files of layers and the socket do not depend on the caller's mask.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let prefix = match log::init(program, &plan) {
        Ok(prefix) => prefix,
        Err(error) => return fail(program, &LogTo::Default, &error),
    };
    let log = &plan.log.clone();
    if plan.action != Action::Serve {
        return print::print(program, &plan).map_or_else(|error| fail(prefix, log, &error), |()| ExitCode::SUCCESS);
    }
    let inherited = match listen::inherit(&plan.listen) {
        Ok(listeners) => listeners,
        Err(error) => return fail(prefix, log, &error),
    };
    if !inherited.is_empty() {
        // The sockets belong to this process. The programs that it starts must not use them.
        process::forget_variables(&["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]);
    }
    let word = match plan.foreground {
        true => None,
        false => match background::split() {
            Ok(Split::Serve(word)) => Some(word),
            Ok(Split::Exit(code)) => return code,
            Err(error) => return fail(prefix, log, &ConfigError::new(format!("cannot fork: {error}"))),
        },
    };
    let code = match start::serve(Start { program: prefix, plan, parent, word, inherited }) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(prefix, log, &error),
    };
    log::flush(log::LAST_MESSAGES);
    code
}

/// Reads the environment variables of socket activation.
fn inherited_variables() -> Inherited {
    Inherited { pid: std::env::var_os("LISTEN_PID"), fds: std::env::var_os("LISTEN_FDS"), own_pid: std::process::id() }
}

/// Reads a file of `@FILE`.
fn read_parameters(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(cli::MAX_PARAMETER_BYTES as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

fn fail(program: &str, log: &LogTo, error: &ConfigError) -> ExitCode {
    log::fatal(program, log, error);
    ExitCode::FAILURE
}
