//! Confinement: once the process has started, it gives up what serving does not need.
//!
//! # For operators
//!
//! Filters run in a sandbox. Confinement limits the damage if something breaks out of it, or out of
//! code that parses what a client or another server sends. A confined server can do little but
//! serve: it cannot open files other than those that it serves, start programs, connect to other
//! servers or gain privileges. It is on by default; `--no-confine` turns it off, and `-v` logs what
//! is in force.
//!
//! * **No new privileges**: a program with a set-user-id bit gains nothing.
//! * **Landlock**, if the kernel has it. Files: only those that the plugin named
//!   ([`AccessRights`]), the directory of scratch files, and the private directory of `--unix -`.
//!   TCP: only connections to the ports that the plugin named, and no new port to listen on. No
//!   sockets in the abstract name space.
//! * **seccomp**: only the system calls in [`system_calls`]. Every other call fails with EPERM, so
//!   a call that is missing from the list fails one request and not the server. The process can
//!   start threads but no programs. It can make local sockets (for the system log); other sockets
//!   only if the plugin needs the network.
//!
//! Files that were opened before stay open: listening sockets, the files of filters, the log.
//! Programs that were started before are not confined: the command of `--run`, and the helper that
//! starts a plugin's programs (`rbdkit_launcher`). An attacker in the server can make the helper
//! start the programs that the operator named, and no others.
//!
//! A server whose plugin does not say what it needs is not confined
//! ([`Plugin::access_rights`](rbdkit_plugin_api::Plugin::access_rights) is none). Such a plugin
//! starts programs itself, or does not declare what it needs.
//!
//! # Threads
//!
//! Landlock restricts the thread that calls it, and the threads that this thread starts later. So
//! every existing thread has to call it ([`threads`]). seccomp can restrict all threads at once.

mod error;
mod file_size;
mod landlock_rules;
mod needs;
mod seccomp_filter;
mod system_calls;
mod threads;

use rbdkit_plugin_api::AccessRights;

pub use file_size::survive_the_file_size_limit;
pub use needs::ConfinementNeeds;
pub use threads::confine_thread;

/// Confines the process. Call it on the main thread, within its runtime. Returns a line for the
/// log: what is in force, or why the process is not confined.
pub async fn confine_process(reach: std::io::Result<Option<AccessRights>>, needs: &ConfinementNeeds) -> String {
    let reach = &match reach {
        Ok(Some(reach)) => reach,
        Ok(None) => return "not confined: the plugin does not say what it reaches".into(),
        Err(why) => return format!("not confined: the plugin's programs cannot be started by a helper: {why}"),
    };
    let files = match landlock_rules::for_server(reach, needs) {
        Ok(rules) => threads::confine_all(rules).await,
        Err(why) => format!("no Landlock ({why})"),
    };
    let calls = match seccomp_filter::for_server(&reach.network, needs) {
        Ok(count) => format!("{count} system calls"),
        Err(why) => format!("no seccomp ({why})"),
    };
    format!("confined: no new privileges; {files}; {calls}")
}

/// Confines the child process that compiles filters: it can only compute and use its pipes.
pub fn confine_compiler() {
    if let Ok(rules) = landlock_rules::for_compiler() {
        let _ = landlock_rules::restrict_thread(rules);
    }
    // If either fails, the child's resource limits still hold.
    let _ = seccomp_filter::for_compiler();
}

/// Confines a child process as a server whose plugin reaches this. The process has one thread.
pub fn confine_child(reach: &AccessRights) {
    let needs = ConfinementNeeds::default();
    if let Ok(rules) = landlock_rules::for_server(reach, &needs) {
        let _ = landlock_rules::restrict_thread(rules);
    }
    // If either fails, the child's resource limits still hold.
    let _ = seccomp_filter::for_server(&reach.network, &needs);
}

#[cfg(test)]
mod tests;
