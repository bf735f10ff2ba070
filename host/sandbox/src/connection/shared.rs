//! What all instances and all connections of one filter share.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};

use rbdkit_plugin_api::{Flag, ThreadModel};
use tokio::sync::{Notify, Semaphore};

use super::alarms::AlarmClock;
use super::arrivals::Arrivals;
use super::background::BackgroundAccount;
use super::commands::Commands;
use super::counters::Counters;
use super::gate::Gate;
use super::limits::{FilterLimits, MAX_DETACHED_OPERATIONS};
use super::log::{Faults, GuestLog};
use super::on_fault::OnFault;
use super::powers::{GrantedPowers, Powers};
use super::profile::Profile;
use super::pulse::Pulse;
use super::scripts::Scripts;
use super::trace::Trace;
use super::tracker::TaskTracker;
use crate::state::{FilterState, ParamFiles, Quota, Totals};

/// What all filters of the server share.
pub(crate) struct HostShared {
    pub(crate) pulse: Arc<Pulse>,
    /// Memory of the instances of all filters.
    pub(crate) memory: Arc<Quota>,
    pub(crate) on_fault: OnFault,
    /// What ends the server (`server.shutdown`).
    pub(crate) shutdown: Option<Arc<Notify>>,
    /// What guests do is recorded here.
    pub(crate) trace: Option<Arc<Trace>>,
    /// Where guests are is sampled here.
    pub(crate) profile: Option<Arc<Profile>>,
    pub(crate) reuse: Reuse,
}

/// Whether an instance serves more than one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// It does, until its memory has grown much.
    #[default]
    Instances,
    /// It does not, if the host may replace it: the filter's thread model is parallel, or its
    /// recovery is stateless or replay. For tests of such a filter.
    Nothing,
}

/// What a component is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Only to describe itself.
    Describe,
    /// To serve requests.
    Serve,
}

/// One filter at one position in the chain.
pub(crate) struct FilterShared {
    pub(crate) name: String,
    pub(crate) purpose: Purpose,
    pub(crate) limits: FilterLimits,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) log: GuestLog,
    pub(crate) faults: Faults,
    pub(crate) background: BackgroundAccount,
    pub(crate) state: Arc<FilterState>,
    /// What the guest counts.
    pub(crate) totals: Totals,
    pub(crate) files: Arc<ParamFiles>,
    /// The shell commands that parameters name.
    pub(crate) scripts: Arc<Scripts>,
    /// Bytes of what calls allocate in the host: buffers, copies of payloads that a guest changes,
    /// lists of extents, and what detached operations keep.
    pub(crate) buffers: Arc<Quota>,
    /// Bytes of memory that deriving keys takes (Argon2).
    pub(crate) key_memory: Arc<Quota>,
    /// Held by what derives a key: one at a time.
    pub(crate) deriving: Arc<Semaphore>,
    /// How many detached operations there are, and their limit.
    pub(crate) detached_operations: Arc<Quota>,
    /// Tasks that outlive their connection.
    pub(crate) detached_tasks: Arc<TaskTracker>,
    /// The server stops: guests no longer wait.
    pub(crate) stopping: Flag,
    /// Memory of the instances of all filters.
    pub(crate) memory_all: Arc<Quota>,
    pub(crate) on_fault: OnFault,
    /// What ends the server.
    pub(crate) shutdown: Option<Arc<Notify>>,
    pub(crate) powers: GrantedPowers,
    /// The alarms of the scope `server`.
    pub(crate) alarms: AlarmClock,
    pub(crate) arrivals: Arc<Arrivals>,
    /// What clients of the control sockets have sent.
    pub(crate) commands: Arc<Commands>,
    /// Holds the requests before the layer, if the filter imports `gate`.
    pub(crate) gate: Arc<Gate>,
    /// The task that calls events was started.
    pub(crate) events_started: AtomicBool,
    pub(crate) trace: Option<Arc<Trace>>,
    pub(crate) profile: Option<Arc<Profile>>,
    pub(crate) reuse: Reuse,
    /// The strictest thread model of the layers below, known from get-ready on.
    pub(crate) model_below: OnceLock<ThreadModel>,
    /// Connections that are open in this layer.
    pub(crate) connections: Arc<AtomicU32>,
}

/// What a file that is kept may have beyond the size of the export, for a header and an index: a
/// 64th of the size, and this.
const STORAGE_HEADER_BYTES: u64 = 16 << 20;

impl FilterShared {
    /// An export of `size` bytes was opened: files that are kept may have that size and an index.
    /// Does nothing if the operator has set a limit.
    pub(crate) fn size_storage(&self, size: u64) {
        if self.limits.storage.is_none() {
            self.files.raise_storage_limit(size.saturating_add(size / 64).saturating_add(STORAGE_HEADER_BYTES));
        }
    }

    pub(crate) fn new(
        name: &str,
        purpose: Purpose,
        limits: FilterLimits,
        files: ParamFiles,
        powers: Powers,
        host: &HostShared,
    ) -> Arc<FilterShared> {
        if let Some(size) = limits.storage {
            files.raise_storage_limit(size);
        }
        Arc::new(FilterShared {
            scripts: Scripts::new(files.commands(), &limits),
            totals: Totals::default(),
            name: name.to_string(),
            purpose,
            log: GuestLog::new(name, limits.log_lines, limits.log_line as usize),
            state: FilterState::new(limits.for_state()),
            buffers: Arc::new(Quota::new(limits.buffers_total)),
            key_memory: Arc::new(Quota::new(limits.key_memory)),
            deriving: Arc::new(Semaphore::new(1)),
            detached_operations: Arc::new(Quota::new(MAX_DETACHED_OPERATIONS)),
            detached_tasks: Arc::default(),
            stopping: Flag::default(),
            memory_all: Arc::clone(&host.memory),
            on_fault: host.on_fault.clone(),
            shutdown: host.shutdown.clone(),
            powers: GrantedPowers::new(powers),
            alarms: AlarmClock::default(),
            arrivals: Arc::default(),
            commands: Arc::default(),
            gate: Arc::default(),
            events_started: AtomicBool::new(false),
            trace: host.trace.clone(),
            profile: host.profile.clone(),
            reuse: host.reuse,
            limits,
            pulse: Arc::clone(&host.pulse),
            counters: Arc::default(),
            faults: Faults::default(),
            background: BackgroundAccount::default(),
            files: Arc::new(files),
            model_below: OnceLock::new(),
            connections: Arc::default(),
        })
    }
}
