//! The programs that run, so that they can be killed when the server stops.

use std::collections::BTreeMap;
use std::process::Child;
use std::sync::{Mutex, MutexGuard};

use rbdkit_plugin_api::{StopScope, lock};
use rustix::process::{Pid, RawPid, Signal, kill_process, kill_process_group};

/// The programs that run, and whether the server stops.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    stopped: Option<StopScope>,
    programs: BTreeMap<RawPid, Program>,
}

/// A program that nobody has waited for, so its id is its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) pid: Pid,
    /// Whether it and the programs that it starts are a process group of their own.
    pub(crate) leads_group: bool,
    /// The stop that ends it.
    pub(crate) scope: StopScope,
}

impl Program {
    /// Kills it and the programs that it has started.
    pub(crate) fn kill(self) {
        // It may have ended already.
        let _ = match self.leads_group {
            true => kill_process_group(self.pid, Signal::KILL),
            false => kill_process(self.pid, Signal::KILL),
        };
    }
}

impl Running {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Kills the programs that a stop of this scope ends. No others of that scope start after it.
    pub(crate) fn stop(&self, scope: StopScope) {
        let mut state = self.state();
        state.stopped = state.stopped.max(Some(scope));
        state.programs.values().filter(|program| program.scope <= scope).for_each(|program| program.kill());
    }

    /// Lets programs start again: the last one of a server that has stopped.
    pub(crate) fn resume(&self) {
        self.state().stopped = None;
    }

    /// Whether programs of this scope may not run any more.
    pub(crate) fn is_stopped(&self, scope: StopScope) -> bool {
        self.state().stopped >= Some(scope)
    }

    /// Adds a program. Drop the value before the program is waited for.
    pub(crate) fn enter(&self, child: &Child, leads_group: bool, scope: StopScope) -> Entered<'_> {
        let program = Program { pid: Pid::from_child(child), leads_group, scope };
        let mut state = self.state();
        if state.stopped >= Some(scope) {
            program.kill();
        }
        state.programs.insert(program.pid.as_raw_pid(), program);
        Entered { running: self, program }
    }
}

/// A program that is among those that run.
pub(crate) struct Entered<'a> {
    running: &'a Running,
    pub(crate) program: Program,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.running.state().programs.remove(&self.program.pid.as_raw_pid());
    }
}
