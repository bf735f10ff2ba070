//! One call of a guest: its request and everything that belongs to this call alone.
//!
//! [`Call`] is filled when a call begins and emptied when it ends, however it ends. So the next
//! request sees nothing of this one: no buffers, lock, held-back changes or connection. Dropping a
//! call before its end drops them too, which releases the lock and undoes the changes.

use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::{Need, NextLayer};
use rbdkit_plugin_api::{Buffer, Client, Errno, Error, Span};

use super::buffers::{Access, CallBuffers};
use super::console::Console;
use super::extents::ExtentsAnswer;
use crate::connection::charge::Charge;
use crate::connection::conn::Connection;
use crate::connection::next::Next;
use crate::connection::shared::FilterShared;
use crate::connection::waiting::WaitPolicy;
use crate::state::{Changes, HeldLock};

/// When a function may be used, as the contract names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase(u8);

impl Phase {
    /// describe, configure.
    pub(crate) const CONFIGURE: Phase = Phase(1);
    /// get-ready, after-fork, cleanup.
    pub(crate) const READY: Phase = Phase(2);
    /// preconnect, list-exports, default-export.
    pub(crate) const BEFORE: Phase = Phase(4);
    /// open, prepare, finalize, close, and the questions after open.
    pub(crate) const OPEN: Phase = Phase(8);
    /// Requests.
    pub(crate) const DATA: Phase = Phase(16);
    /// Events that belong to no connection.
    pub(crate) const EVENT: Phase = Phase(32);

    pub(crate) const fn or(self, other: Phase) -> Phase {
        Phase(self.0 | other.0)
    }

    pub(super) fn is_in(self, others: Phase) -> bool {
        self.0 & others.0 != 0
    }
}

/// The part of its connection's life that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// It opens the connection or serves a request.
    Ordinary,
    /// It replays the open of a connection on a fresh instance. The connection is open already, so
    /// opening next does nothing.
    Replay,
    /// Finalize or close: it waits until it is done, even if the client has gone.
    Ending,
}

/// Whether a call that belongs to no connection may be ended by dropping its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceState {
    /// Another instance can take its place.
    Replaceable,
    /// The instance's memory holds state.
    Needed,
}

/// What a call begins with.
pub(crate) struct Setup {
    pub(crate) phase: Phase,
    pub(crate) kind: CallKind,
    /// For `mapping.extents`: the offset and the length of its request.
    pub(crate) extents_of: Option<(u64, u64)>,
    /// The layers below, for a call that belongs to no connection.
    pub(crate) below: Option<NextLayer>,
    /// For a call that belongs to no connection.
    pub(crate) instance: InstanceState,
}

impl Setup {
    pub(crate) fn new(phase: Phase) -> Setup {
        Setup { phase, kind: CallKind::Ordinary, extents_of: None, below: None, instance: InstanceState::Needed }
    }
}

/// The call being served.
pub(crate) struct Call {
    pub(crate) phase: Phase,
    pub(crate) kind: CallKind,
    pub(crate) conn: Option<Arc<Connection>>,
    /// The layer below that the call began with, even if the connection has another one by now.
    /// None if the connection's layer below cannot be replaced.
    pub(crate) next: Option<Arc<Next>>,
    /// The layers below, for a call that belongs to no connection.
    pub(crate) below: Option<NextLayer>,
    instance: InstanceState,
    /// How long finalize or close has slept in all, including the sleep that is under way.
    pub(super) slept: Duration,
    /// How long it has derived keys.
    pub(super) derived: Duration,
    pub(crate) extents: Option<ExtentsAnswer>,
    /// Dropped before the lock: a call that is dropped undoes its changes while it still holds the
    /// lock.
    pub(crate) changes: Changes,
    pub(crate) lock: Option<HeldLock>,
    pub(super) last_error: Option<Error>,
    /// Unfinished lines of the guest on standard output and error.
    pub(crate) console: Console,
    pub(crate) buffers: CallBuffers,
    shared: Arc<FilterShared>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.console.flush(&self.shared.log);
    }
}

impl Call {
    pub(crate) fn new(shared: Arc<FilterShared>) -> Call {
        Call {
            phase: Phase::CONFIGURE,
            kind: CallKind::Ordinary,
            conn: None,
            next: None,
            below: None,
            instance: InstanceState::Needed,
            slept: Duration::ZERO,
            derived: Duration::ZERO,
            extents: None,
            lock: None,
            changes: Changes::default(),
            last_error: None,
            console: Console::default(),
            buffers: CallBuffers::new(Arc::clone(&shared)),
            shared,
        }
    }

    /// A call without a payload begins.
    pub(crate) fn begin(&mut self, setup: Setup, conn: Option<&Arc<Connection>>) {
        self.phase = setup.phase;
        self.kind = setup.kind;
        self.conn = conn.cloned();
        self.next = conn.and_then(|conn| conn.replaceable_next());
        self.below = setup.below;
        self.instance = setup.instance;
        self.slept = Duration::ZERO;
        self.derived = Duration::ZERO;
        self.extents = setup
            .extents_of
            .map(|(offset, length)| ExtentsAnswer::new(offset, length, Charge::taken_over(&self.shared.buffers, 0)));
    }

    /// [`Call::begin`] for a read or a write of a connection. The rest is as [`Call::end`] left it.
    pub(super) fn begin_transfer(&mut self, conn: &Arc<Connection>, buffer: Buffer, span: Span, access: Access) {
        self.phase = Phase::DATA;
        self.kind = CallKind::Ordinary;
        self.next = conn.replaceable_next();
        self.conn = Some(Arc::clone(conn));
        self.buffers.install(buffer, span, access);
    }

    /// A call is over: empties everything.
    pub(crate) fn end(&mut self) {
        self.below = None;
        self.extents = None;
        self.end_transfer();
    }

    /// [`Call::end`] for a call that [`Call::begin_transfer`] began. Returns the payload. Changes
    /// were settled before; the lock is released here.
    pub(super) fn end_transfer(&mut self) -> Option<Buffer> {
        let buffer = self.buffers.clear();
        self.lock = None;
        self.phase = Phase::CONFIGURE;
        self.conn = None;
        self.next = None;
        self.last_error = None;
        self.console.flush(&self.shared.log);
        buffer
    }

    /// How long it waits for locks, sleep and the layers below.
    pub(super) fn wait_policy(&self) -> WaitPolicy {
        match self.kind {
            CallKind::Ending => WaitPolicy::UntilDone,
            CallKind::Ordinary | CallKind::Replay => WaitPolicy::inherited(),
        }
    }

    /// What it needs the layers below for, if it waits until they are done.
    pub(super) fn needs_next_for(&self) -> Need {
        if self.kind == CallKind::Ending { Need::End } else { Need::Instance }
    }

    /// The client that it is for.
    pub(super) fn client(&self) -> Option<&Arc<Client>> {
        let of_conn = self.conn.as_ref().map(|conn| conn.client());
        of_conn.or_else(|| self.below.as_ref().map(|below| below.client()))
    }

    /// Whether it may be ended when its client has gone: its answer is not needed, and its instance
    /// holds no state.
    pub(super) fn may_end(&self) -> bool {
        let replaceable = || match &self.conn {
            Some(conn) => !conn.needs_its_instance(),
            None => self.instance == InstanceState::Replaceable,
        };
        let of_a_client = self.phase.is_in(Phase::DATA.or(Phase::OPEN).or(Phase::BEFORE));
        of_a_client
            && self.kind == CallKind::Ordinary
            && replaceable()
            && self.wait_policy() == WaitPolicy::WhileClientIsThere
    }

    /// The layer below.
    pub(crate) fn next(&self) -> Option<&Arc<Next>> {
        self.next.as_ref().or_else(|| self.conn.as_ref()?.lasting_next())
    }

    /// The error of the layer below, with its text, if the guest now passes on its errno.
    pub(super) fn words_for(&mut self, errno: Errno) -> Option<Error> {
        self.last_error.take().filter(|known| known.errno() == errno)
    }
}
