//! The plugin's process: loads the plugin, does what the server asks for, and ends with the server.
//!
//! The process is the same program, started again with [`ARGUMENT`] and the plugin's file. Its
//! standard input is the control socket. The main thread makes all calls that nbdkit makes on its
//! main thread. Each connection has threads of its own.
//!
//! A plugin may start its program anew with another environment and one more argument
//! (nbdkit-vddk-plugin does, for `LD_LIBRARY_PATH`). The control socket stays open then, its number
//! is in the environment, and the new program begins the conversation again.
#![allow(unsafe_code, reason = "signals, users and descriptors of a process with one thread")]

mod abi;
mod connection;
mod connection_functions;
mod context;
mod dump_functions;
mod extents;
mod functions;
mod list_functions;
mod parse;
mod plugin;
mod sentinel;
mod server_link;
mod sockaddr;

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use rbdkit_launcher::packet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::{Gid, Uid};

use crate::memory::Memory;
use crate::peer::Peer;
use crate::wire::{Fields, MAX_PACKET, Packet, kind};
use connection::Connection;
use context::Context;
use plugin::Plugin;
use server_link as link;

/// The argument before the plugin's file that makes the program a plugin's process.
pub(crate) const ARGUMENT: &str = "--rbdkit-plugin";

/// The variable with the number of the control socket, for a plugin that starts its program anew.
const CONTROL_VARIABLE: &str = "RBDKIT_PLUGIN_CONTROL";

/// Runs the plugin, if this process was started for it; the process ends with the returned status
/// then. A program calls this before anything else, while it has one thread.
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    functions::keep();
    // What `ps` shows.
    let _ = rustix::thread::set_name(c"rbdkit-plugin");
    let file = args.next().unwrap_or_default();
    Some(match serve(&file, args.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn serve(file: &OsStr, further: Vec<OsString>) -> std::io::Result<()> {
    let (control, is_again) = take_control()?;
    // nbdkit's plugins see this mask.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    ignore_signals();
    link::set_control(control);
    let control = link::control().ok_or(std::io::ErrorKind::NotFound)?;
    if is_again {
        Packet::new(kind::AGAIN).send(control)?;
    }
    end_with_server(control)?;
    let mut state = MainThread {
        file: file.to_os_string(),
        further,
        plugin: None,
        threads: 1,
        is_configured: false,
        is_in_background: false,
    };
    let mut bytes = vec![0; MAX_PACKET];
    loop {
        let (count, fds) = packet::receive(control, &mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        let which = bytes[0];
        state.take(which, Fields::new(&bytes[1..count]), fds)?;
        if which == kind::CLEANUP {
            return Ok(());
        }
    }
}

/// The control socket, and whether the plugin has started its program anew.
fn take_control() -> std::io::Result<(OwnedFd, bool)> {
    let number = std::env::var(CONTROL_VARIABLE).ok().and_then(|number| number.parse::<i32>().ok());
    if let Some(number) = number.filter(|number| *number > 2) {
        // SAFETY: the first program has set the variable and left the socket open for this one.
        return Ok((unsafe { OwnedFd::from_raw_fd(number) }, true));
    }
    let control = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    // A program that the plugin starts in place of this one goes on with it.
    fcntl_setfd(&control, FdFlags::empty())?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    #[expect(clippy::disallowed_methods, reason = "a program that the plugin starts in its place has to find it")]
    // SAFETY: the process has one thread.
    unsafe {
        std::env::set_var(CONTROL_VARIABLE, control.as_raw_fd().to_string())
    };
    Ok((control, false))
}

/// The server is told of control-C, and of the signals that a service manager sends to all
/// processes. It ends the plugin in order, and the process ends with it in any case. Programs that
/// the plugin starts have the usual handling.
fn ignore_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    // Rust's own handlers look for overflows of the stack, and let a signal that was sent pass.
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: it is the handling that every program begins with.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(signal, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Ends the process when the server has closed its end of the socket, whatever the plugin does.
fn end_with_server(control: BorrowedFd<'static>) -> std::io::Result<()> {
    let wait = move || loop {
        match poll(&mut [PollFd::from_borrowed_fd(control, PollFlags::empty())], None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            // SAFETY: it only ends the process.
            _ => unsafe { libc::_exit(0) },
        }
    };
    std::thread::Builder::new().name("end".into()).spawn(wait).map(drop)
}

/// What the main thread knows.
struct MainThread {
    file: OsString,
    /// Arguments that the plugin has added when it started its program anew: `key=value`.
    further: Vec<OsString>,
    plugin: Option<&'static Plugin>,
    /// The most threads of a connection.
    threads: u32,
    is_configured: bool,
    /// Whether the server goes into the background.
    is_in_background: bool,
}

impl MainThread {
    /// Does what a packet says, and answers.
    fn take(&mut self, which: u8, mut fields: Fields<'_>, fds: Vec<OwnedFd>) -> std::io::Result<()> {
        let wrong = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        if which == kind::INIT {
            return self.load(fields, fds).ok_or_else(wrong);
        }
        let plugin = self.plugin.ok_or_else(wrong)?;
        let result = match which {
            kind::CONFIG if !self.is_configured => {
                let (key, value) = (fields.text().ok_or_else(wrong)?, fields.text().ok_or_else(wrong)?);
                plugin.config(key, value)
            }
            kind::CONFIG_COMPLETE if !self.is_configured => match self.configure_further(plugin) {
                0 => plugin.config_complete(),
                failed => failed,
            },
            kind::THREAD_MODEL => {
                let model = plugin.thread_model();
                if !Plugin::is_parallel(model) {
                    self.threads = 1;
                }
                model
            }
            kind::GET_READY => {
                self.is_configured = true;
                let result = plugin.get_ready();
                link::set_stdio_safe(false);
                result
            }
            kind::AFTER_FORK => {
                become_user(fields)?;
                if self.is_in_background {
                    leave_terminal()?;
                }
                self.no_more_programs()?;
                plugin.after_fork()
            }
            kind::DUMP => {
                dump(plugin)?;
                0
            }
            kind::CHANNEL => {
                self.connect(plugin, fields, fds).ok_or_else(wrong)?;
                return Ok(());
            }
            kind::CLEANUP => {
                plugin.cleanup();
                plugin.unload();
                0
            }
            _ => return Err(wrong()),
        };
        link::send(&Packet::new(kind::DONE).signed(result).text(b"the plugin does not say why"));
        Ok(())
    }

    fn load(&mut self, mut fields: Fields<'_>, fds: Vec<OwnedFd>) -> Option<()> {
        link::set_verbose(fields.byte()? != 0);
        link::set_stdio_safe(fields.byte()? != 0);
        self.is_in_background = fields.byte()? != 0;
        self.threads = fields.number()? as u32;
        if let Some(input) = fds.first() {
            rustix::stdio::dup2_stdin(input).ok()?;
        }
        let mut flags = Vec::new();
        while let Some(name) = fields.text() {
            flags.push((text(name), text(fields.text()?), fields.signed()? as i32));
        }
        match plugin::load(&self.file, &flags) {
            Ok((plugin, hello)) => {
                self.plugin = Some(Box::leak(Box::new(plugin)));
                link::send(&hello.packet());
            }
            Err(wrong) => link::send(&Packet::new(kind::DONE).signed(-1).text(wrong.as_bytes())),
        }
        Some(())
    }

    /// The parameters that the plugin has added to its own command line.
    fn configure_further(&self, plugin: &Plugin) -> i64 {
        for word in &self.further {
            let bytes = word.as_bytes();
            let (key, value) = match bytes.iter().position(|byte| *byte == b'=') {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (bytes, &b""[..]),
            };
            let result = plugin.config(key, value);
            if result < 0 {
                return result;
            }
        }
        0
    }

    /// From here on the plugin cannot start its program anew, and programs that it starts do not
    /// get the socket.
    fn no_more_programs(&self) -> std::io::Result<()> {
        // SAFETY: nbdkit's plugins do not start threads before `after_fork`, and the thread that
        // waits for the server's end does not read the environment.
        unsafe { std::env::remove_var(CONTROL_VARIABLE) };
        let control = link::control().ok_or(std::io::ErrorKind::NotFound)?;
        Ok(fcntl_setfd(control, fcntl_getfd(control)? | FdFlags::CLOEXEC)?)
    }

    fn connect(&self, plugin: &'static Plugin, mut fields: Fields<'_>, fds: Vec<OwnedFd>) -> Option<()> {
        let (id, peer) = (fields.number()?, Peer::read(&mut fields)?);
        let mut fds = fds.into_iter();
        let (memory, signal) = (fds.next()?, fds.next()?);
        let started = Memory::map(memory)
            .and_then(|memory| Connection::start(memory, signal, plugin, Context::new(id, peer), self.threads));
        if let Err(error) = started {
            connection::refuse(&error);
        }
        Some(())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Leaves the standard streams, so that a shell which reads them does not wait for this process.
fn leave_terminal() -> std::io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if !link::is_verbose() {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}

/// Becomes the user and the group that the server has become, if they are others.
fn become_user(mut fields: Fields<'_>) -> std::io::Result<()> {
    let mut number = || fields.number().map(|number| number as u32);
    let wrong = std::io::ErrorKind::InvalidData;
    let (user, group) = (number().ok_or(wrong)?, number().ok_or(wrong)?);
    let groups: Vec<libc::gid_t> = std::iter::from_fn(number).collect();
    let is_other =
        rustix::process::geteuid() != Uid::from_raw(user) || rustix::process::getegid() != Gid::from_raw(group);
    if is_other {
        // The C library changes all threads, the group first, because the right to do so goes with
        // the user.
        // SAFETY: the list has so many elements; the others take numbers.
        let results =
            unsafe { [libc::setgroups(groups.len(), groups.as_ptr()), libc::setgid(group), libc::setuid(user)] };
        if results.iter().any(|result| *result != 0) {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends what the plugin prints about itself.
fn dump(plugin: &Plugin) -> std::io::Result<()> {
    let memory = rustix::fs::memfd_create("dump", rustix::fs::MemfdFlags::CLOEXEC)?;
    let before = fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(memory.as_fd())?;
    plugin.dump_plugin();
    // SAFETY: it writes what the C library still holds.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    rustix::stdio::dup2_stdout(&before)?;
    let (mut file, mut text) = (std::fs::File::from(memory), Vec::new());
    file.rewind()?;
    file.read_to_end(&mut text)?;
    for part in text.chunks(MAX_PACKET / 2) {
        link::send(&Packet::new(kind::TEXT).text(part));
    }
    Ok(())
}
