//! The call that a filter is serving. The imports find it in a variable of the thread.

use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;

use crate::{Errno, Extent};

use super::facts::ClientFacts;
use super::world::{Owner, World};

/// When an import may be used, as the contract calls the phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// C: describe, configure and thread-model.
    Configure,
    /// R: get-ready, after-fork and cleanup.
    Server,
    /// N: before a connection has opened an export.
    Names,
    /// O: open, prepare, finalize and close.
    Open,
    /// D: data requests.
    Data,
    /// E: events without a connection.
    Event,
}

/// One connection, in the filter's layer.
pub(super) struct ConnectionState {
    pub(super) id: u64,
    pub(super) exportname: String,
    pub(super) readonly: bool,
    pub(super) facts: Rc<ClientFacts>,
    /// What `open` returned.
    pub(super) handle: Cell<u64>,
    /// Whether next is open, and how.
    pub(super) next: Cell<Option<Access>>,
    pub(super) generation: Cell<u64>,
    /// The index of the instance that serves it, if one serves the whole connection.
    pub(super) instance: usize,
    /// The connection is opened again on a fresh instance, and next is open.
    pub(super) is_replayed: Cell<bool>,
}

/// How next was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

impl Access {
    pub(super) fn new(readonly: bool) -> Access {
        if readonly { Access::ReadOnly } else { Access::ReadWrite }
    }
}

/// A change of a map. It is published when the call succeeds.
pub(super) struct MapChange {
    pub(super) owner: Owner,
    pub(super) map: usize,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) states: u8,
    pub(super) to: u8,
}

/// One block that a failure sets back.
pub(super) struct Undo {
    pub(super) owner: Owner,
    pub(super) map: usize,
    pub(super) block: u64,
    pub(super) from: u8,
    pub(super) to: u8,
}

/// A call of one of the filter's exports.
pub(super) struct Call {
    world: Rc<RefCell<World>>,
    phase: Phase,
    connection: Option<Rc<ConnectionState>>,
    client: Rc<ClientFacts>,
    /// Buffer 0 is the payload.
    pub(super) buffers: Vec<Option<Vec<u8>>>,
    pub(super) locked: bool,
    pub(super) on_success: Vec<MapChange>,
    pub(super) undo: Vec<Undo>,
    /// What `next.extents-forward` appended, and whether its last extent runs on beyond its range.
    pub(super) appended: Vec<Extent>,
    pub(super) runs_on: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Call>> = const { RefCell::new(None) };
}

/// Removes the call from the thread's variable, also when the filter panics.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        CURRENT.take();
    }
}

impl Call {
    pub(super) fn new(world: &Rc<RefCell<World>>, phase: Phase, connection: Option<&Rc<ConnectionState>>) -> Call {
        Call {
            world: Rc::clone(world),
            phase,
            connection: connection.cloned(),
            client: connection.map_or_else(Rc::default, |connection| Rc::clone(&connection.facts)),
            buffers: vec![None],
            locked: false,
            on_success: Vec::new(),
            undo: Vec::new(),
            appended: Vec::new(),
            runs_on: false,
        }
    }

    /// The same call with this payload.
    pub(super) fn payload(mut self, bytes: Vec<u8>) -> Call {
        self.buffers[0] = Some(bytes);
        self
    }

    /// The same call for a client that has not connected.
    pub(super) fn of(mut self, client: Rc<ClientFacts>) -> Call {
        self.client = client;
        self
    }

    /// Runs an export of the filter. Returns its answer, and the call with what it left there.
    pub(super) fn run<R>(self, export: impl FnOnce() -> R) -> (R, Call) {
        let before = CURRENT.replace(Some(self));
        assert!(before.is_none(), "testing: a filter cannot use a simulated host within a call");
        let leave = Leave;
        let answer = export();
        let call = CURRENT.take().expect("the call is there until it ends");
        drop(leave);
        (answer, call)
    }

    /// Like [`Call::run`], for an answer that says whether the changes of maps count.
    pub(super) fn serve<T, E>(self, export: impl FnOnce() -> Result<T, E>) -> (Result<T, E>, Call) {
        let (result, mut call) = self.run(export);
        match &result {
            Ok(_) => call.publish(),
            Err(_) => call.take_back(),
        }
        (result, call)
    }

    pub(super) fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    pub(super) fn connection(&self) -> &Rc<ConnectionState> {
        self.connection.as_ref().expect("these phases have a connection")
    }

    pub(super) fn client(&self) -> &ClientFacts {
        &self.client
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn owner(&self, scope: crate::Scope) -> Owner {
        Owner::of(scope, self.connection_id().unwrap_or_default())
    }

    /// The number of the connection, if there is one.
    pub(super) fn connection_id(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.id)
    }

    pub(super) fn is_in(&self, phases: &[Phase]) -> bool {
        phases.contains(&self.phase)
    }

    /// How next was opened.
    pub(super) fn next(&self) -> Result<Access, Errno> {
        self.connection().next.get().ok_or(Errno::Enxio)
    }

    /// A part of a buffer. Panics if there is none.
    pub(super) fn part(&mut self, buf: u32, at: u32, length: u32) -> &mut [u8] {
        let Some(bytes) = self.buffers.get_mut(buf as usize).and_then(Option::as_mut) else {
            panic!("buffer: the call has no buffer {buf}");
        };
        let size = bytes.len();
        let end = u64::from(at) + u64::from(length);
        assert!(end <= size as u64, "buffer: {at}+{length} is outside of buffer {buf}, which has {size} bytes");
        &mut bytes[at as usize..end as usize]
    }

    /// Publishes the changes that count from now on.
    pub(super) fn publish(&mut self) {
        for change in std::mem::take(&mut self.on_success) {
            let mut world = self.world();
            let map = &mut world.state(change.owner).maps[change.map];
            for state in map.range(change.first, change.count) {
                if change.states >> *state & 1 == 1 {
                    *state = change.to;
                }
            }
        }
    }

    /// Takes back the changes of a call that failed.
    fn take_back(&mut self) {
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            let mut world = self.world();
            let state = &mut world.state(undo.owner).maps[undo.map].range(undo.block, 1)[0];
            if *state == undo.to {
                *state = undo.from;
            }
        }
    }
}

/// Calls `body` with the call being served. Panics if there is none, or if its phase is not one of
/// `phases`: such a use of the import traps in a component.
pub(super) fn with<R>(import: &str, phases: &[Phase], body: impl FnOnce(&mut Call) -> R) -> R {
    try_with(phases, body).unwrap_or_else(|phase| panic!("{import} cannot be used in the phase {phase:?}"))
}

/// Like [`with`], for an import that returns `Enxio` in another phase.
pub(super) fn attempt<T>(phases: &[Phase], body: impl FnOnce(&mut Call) -> Result<T, Errno>) -> Result<T, Errno> {
    try_with(phases, body).unwrap_or(Err(Errno::Enxio))
}

fn try_with<R>(phases: &[Phase], body: impl FnOnce(&mut Call) -> R) -> Result<R, Phase> {
    CURRENT.with_borrow_mut(|current| {
        let Some(call) = current else {
            panic!(
                "a function of the host was called outside of a request: natively there is only the simulated host, \
                 rbdkit_filter_sdk::testing::Host"
            );
        };
        if phases.contains(&call.phase) { Ok(body(call)) } else { Err(call.phase) }
    })
}

/// All phases.
pub(super) const ALL: [Phase; 6] =
    [Phase::Configure, Phase::Server, Phase::Names, Phase::Open, Phase::Data, Phase::Event];
/// O and D.
pub(super) const REQUESTS: [Phase; 2] = [Phase::Open, Phase::Data];
/// N, O and D.
pub(super) const CLIENTS: [Phase; 3] = [Phase::Names, Phase::Open, Phase::Data];
/// R, N, O, D and E.
pub(super) const RUNNING: [Phase; 5] = [Phase::Server, Phase::Names, Phase::Open, Phase::Data, Phase::Event];
