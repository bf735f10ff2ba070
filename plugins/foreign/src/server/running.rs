//! A plugin's process that is ready: its connections, its messages and its end.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use rbdkit_launcher::{Program, packet};
use rbdkit_plugin_api::{Client, Ending, Errno, Error, Result, StopScope, lock};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::unix::AsyncFd;

use tokio::sync::Notify;

use super::channel::{Channel, Why};
use super::handle::Session;
use super::watched::watched;
use crate::peer::Peer;
use crate::wire::{Fields, MAX_PACKET, Packet, kind, shown};

/// How long after the socket was closed the process may take to end, before its end is reported
/// without a status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Running {
    name: &'static str,
    control: OwnedFd,
    state: Mutex<RunningState>,
    ended: Condvar,
    /// Notified when the plugin asks the server to end.
    shutdown: Arc<Notify>,
}

#[derive(Default)]
struct RunningState {
    connections: HashMap<u64, Listed>,
    /// The number of the next connection: messages of the process have it.
    next: u64,
    has_ended: bool,
    /// The server ends, so the process may end without a message.
    is_ending: bool,
    /// What the server has stopped.
    stopped: Option<StopScope>,
}

struct Listed {
    channel: Weak<Channel>,
    client: Weak<Client>,
}

impl Running {
    /// Takes over a process, and starts the tasks that listen to it. Needs a tokio runtime.
    pub(crate) fn new(
        name: &'static str,
        control: OwnedFd,
        program: Program,
        shutdown: Arc<Notify>,
    ) -> io::Result<Arc<Running>> {
        fcntl_setfl(&control, fcntl_getfl(&control)? | OFlags::NONBLOCK)?;
        let listened = watched(control.try_clone()?)?;
        let (state, ended) = (Mutex::default(), Condvar::new());
        let running = Arc::new(Running { name, control, state, ended, shutdown });
        tokio::spawn(Running::listen(Arc::clone(&running), listened));
        let waiting = Arc::clone(&running);
        tokio::task::spawn_blocking(move || {
            let how = program.wait().map_or_else(|error| error.to_string(), described);
            waiting.end(&how);
        });
        Ok(running)
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.state).has_ended
    }

    /// Begins a conversation about a client.
    ///
    /// # Errors
    /// The process has ended, or there are no descriptors.
    pub(crate) fn connect(&self, client: &Arc<Client>) -> Result<Session> {
        let session = Session::new(Channel::new()?);
        let channel = session.channel();
        let id = {
            let mut state = lock(&self.state);
            if state.has_ended {
                return Err(Why::Ended.into());
            }
            if let Some(scope) = state.stopped {
                channel.stop(Why::Stopped(scope));
            }
            state.connections.retain(|_, connection| connection.channel.strong_count() > 0);
            state.next += 1;
            let id = state.next;
            let connection = Listed { channel: Arc::downgrade(channel), client: Arc::downgrade(client) };
            state.connections.insert(id, connection);
            id
        };
        let packet = Peer::of(client).write(Packet::new(kind::CHANNEL).number(id));
        packet::send(self.control.as_fd(), packet.bytes(), &channel.descriptors()).map_err(|error| {
            channel.stop(Why::Ended);
            Error::new(Errno::Eio, format!("{}: the plugin's process does not listen: {error}", self.name))
        })?;
        Ok(session)
    }

    /// Requests of all connections end.
    pub(crate) fn stop(&self, scope: StopScope) {
        let mut state = lock(&self.state);
        state.stopped = state.stopped.max(Some(scope));
        let channels: Vec<_> = state.connections.values().filter_map(|one| one.channel.upgrade()).collect();
        drop(state);
        channels.iter().for_each(|channel| channel.stop(Why::Stopped(scope)));
    }

    /// Lets the plugin clean up, and waits until its process has ended, or `patience` is over.
    pub(crate) fn clean_up(&self, patience: Duration) {
        lock(&self.state).is_ending = true;
        let _ = packet::send(self.control.as_fd(), Packet::new(kind::CLEANUP).bytes(), &[]);
        let state = lock(&self.state);
        drop(self.ended.wait_timeout_while(state, patience, |state| !state.has_ended));
    }

    /// The process has ended.
    fn end(&self, how: &str) {
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.has_ended, true) {
            return;
        }
        let channels: Vec<_> = state.connections.values().filter_map(|one| one.channel.upgrade()).collect();
        if !state.is_ending {
            tracing::error!("{}: the plugin's process {how}; the next connection starts it anew", self.name);
        }
        drop(state);
        channels.iter().for_each(|channel| channel.stop(Why::Ended));
        self.ended.notify_all();
    }

    async fn listen(running: Arc<Running>, control: AsyncFd<OwnedFd>) {
        let mut bytes = vec![0; MAX_PACKET];
        loop {
            let Ok(mut ready) = control.readable().await else { return };
            match packet::receive(control.get_ref().as_fd(), &mut bytes) {
                Ok((1.., _)) if running.take(&bytes).is_some() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                _ => break,
            }
        }
        tokio::time::sleep(STATUS_TIMEOUT).await;
        running.end("has closed its socket");
    }

    /// Takes a packet. None: it makes no sense.
    fn take(&self, bytes: &[u8]) -> Option<()> {
        let mut fields = Fields::new(bytes);
        match fields.byte()? {
            which @ (kind::ERROR | kind::DEBUG) => {
                let (connection, text) = (fields.number()?, shown(fields.text()?));
                self.log(which, connection, &text);
            }
            kind::SHUTDOWN => self.shutdown.notify_one(),
            kind::DISCONNECT => {
                let (id, force) = (fields.number()?, fields.byte()? != 0);
                let client = lock(&self.state).connections.get(&id).and_then(|one| one.client.upgrade());
                if let Some(client) = client {
                    client.end(if force { Ending::AtOnce } else { Ending::AfterAnswers });
                }
            }
            kind::DONE => {}
            _ => return None,
        }
        Some(())
    }

    /// Logs a message of the plugin, which may have several connections.
    fn log(&self, which: u8, connection: u64, text: &str) {
        let client = lock(&self.state).connections.get(&connection).and_then(|one| one.client.upgrade());
        let about = client.map_or(String::new(), |client| format!("[{}]", client.id));
        match which {
            kind::ERROR => tracing::error!("{}{about}: {text}", self.name),
            _ => tracing::debug!("{}{about}: {text}", self.name),
        }
    }
}

/// How a process ended, as the rest of a sentence.
pub(crate) fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}{}", name_of(signal)),
        (None, None) => "ended".into(),
    }
}

/// The usual reasons, in brackets.
fn name_of(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => " (abort)",
        libc::SIGBUS => " (bus error)",
        libc::SIGFPE => " (arithmetic error)",
        libc::SIGILL => " (illegal instruction)",
        libc::SIGKILL => " (kill)",
        libc::SIGSEGV => " (segmentation fault)",
        libc::SIGTERM => " (termination)",
        _ => "",
    }
}
