//! What the simulated server holds: the disk below, the log, the files, the filter's state.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::host::client::Ending;
use crate::{Errno, Scope};

use super::disk::Disk;
use super::recorded_below::RecordedBelow;
use super::shared_state::SharedState;

/// What owns a piece of the filter's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Connection(u64),
    /// All names are one disk.
    Export,
    Server,
}

/// A sum that is taken back when the connection closes.
pub(super) struct UntilClose {
    pub(super) connection: u64,
    pub(super) owner: Owner,
    pub(super) slot: usize,
    pub(super) delta: i64,
}

pub(super) struct World {
    pub(super) disk: Disk,
    /// The operations whose next call fails, in the order in which they were named.
    pub(super) faults: Vec<(&'static str, Errno)>,
    pub(super) log: Vec<String>,
    pub(super) calls: Vec<String>,
    /// Nanoseconds since the server started.
    pub(super) time: u64,
    /// The state of the generator of random numbers.
    pub(super) random: u64,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The disks beside the one below, by what a parameter says.
    pub(super) disks: BTreeMap<String, Disk>,
    /// Those of them that the filter has used.
    pub(super) open_disks: HashSet<String>,
    /// What the shell commands of parameters answer: exit status and output.
    pub(super) scripts: BTreeMap<String, (i32, Vec<u8>)>,
    pub(super) counters: BTreeMap<u64, u64>,
    /// The parameters of the kinds that name a file or a command, and their paths, commands or
    /// booleans; and the secrets.
    pub(super) paths: Vec<(String, String)>,
    /// How many bytes each scratch file, and each file that is kept, may take.
    pub(super) quota: u64,
    pub(super) states: HashMap<Owner, SharedState>,
    pub(super) until_close: Vec<UntilClose>,
    pub(super) connections: u32,
    /// The number of the last connection.
    pub(super) last_connection: u64,
    /// The filter exports `on-alarm`.
    pub(super) hears_alarms: bool,
    /// When alarms sound, in nanoseconds since the server started.
    pub(super) alarms: HashMap<(Owner, u32), u64>,
    /// The kinds of parameters by their names.
    pub(super) kinds: HashMap<String, String>,
    /// The parameters, with their occurrence, whose descriptors are closed or processes ended.
    pub(super) ended: HashSet<(String, u32)>,
    /// The filter may ask the server to end, and disconnect clients.
    pub(super) may_use_powers: bool,
    pub(super) shutdown_asked: bool,
    pub(super) gate_is_closed: bool,
    /// The connections that the filter has disconnected.
    pub(super) disconnected: HashMap<u64, Ending>,
    /// What a record says of the layer below, while it runs.
    pub(super) recorded: Option<RecordedBelow>,
}

/// What is at a watched place. Files have contents if those count.
pub(super) type Seen = Option<Vec<u8>>;

/// What can be made to fail.
pub(super) const OPERATIONS: [&str; 23] = [
    "open",
    "block-size",
    "pread",
    "pwrite",
    "flush",
    "trim",
    "zero",
    "cache",
    "extents",
    "disk-open",
    "disk-pread",
    "disk-extents",
    "disk-cache",
    "alloc",
    "scratch-pread",
    "scratch-pwrite",
    "sleep",
    "storage-pread",
    "storage-pwrite",
    "storage-flush",
    "sync",
    "script",
    "gate-close",
];

impl World {
    pub(super) fn new(disk: Disk) -> World {
        World {
            disk,
            faults: Vec::new(),
            log: Vec::new(),
            calls: Vec::new(),
            time: 0,
            random: 1,
            files: BTreeMap::new(),
            disks: BTreeMap::new(),
            open_disks: HashSet::new(),
            scripts: BTreeMap::new(),
            counters: BTreeMap::new(),
            paths: Vec::new(),
            quota: 1 << 40,
            states: HashMap::new(),
            until_close: Vec::new(),
            connections: 0,
            last_connection: 0,
            hears_alarms: false,
            alarms: HashMap::new(),
            kinds: HashMap::new(),
            ended: HashSet::new(),
            may_use_powers: true,
            shutdown_asked: false,
            gate_is_closed: false,
            disconnected: HashMap::new(),
            recorded: None,
        }
    }

    /// The error that this call of an operation was told to fail with.
    pub(super) fn fault(&mut self, operation: &str) -> Result<(), Errno> {
        match self.faults.iter().position(|(name, _)| *name == operation) {
            Some(n) => Err(self.faults.remove(n).1),
            None => Ok(()),
        }
    }

    /// The bytes of the disk that a call reads.
    pub(super) fn read(&mut self, offset: u64, length: u64) -> Result<&[u8], Errno> {
        let bytes = self.disk.range(offset, length)?;
        self.recorded.iter_mut().for_each(|below| below.reads(offset, length));
        Ok(bytes)
    }

    /// The bytes of the disk that a call changes.
    pub(super) fn change(&mut self, offset: u64, length: u64) -> Result<&mut [u8], Errno> {
        let bytes = self.disk.range(offset, length)?;
        self.recorded.iter_mut().for_each(|below| below.changes(offset, length));
        Ok(bytes)
    }

    /// Whether a parameter names disks.
    pub(super) fn is_disk(&self, param: &str) -> bool {
        self.kinds.get(param).is_some_and(|kind| kind == "disk")
    }

    /// Whether the `nth` value of a parameter holds, as `files.holds` tells.
    pub(super) fn holds(&self, param: &str, nth: u32) -> bool {
        self.seen(param, nth).is_some()
    }

    fn seen(&self, param: &str, nth: u32) -> Seen {
        let (_, path) = self.paths.iter().filter(|(name, _)| name == param).nth(nth as usize)?;
        match self.kinds.get(param).map_or("", String::as_str) {
            "descriptor" | "process" => (!self.ended.contains(&(param.to_string(), nth))).then(Vec::new),
            "path-now" => self.files.get(path).cloned(),
            _ => (path == "true" || self.files.contains_key(path)).then(Vec::new),
        }
    }

    /// What can be watched: the parameter, its occurrence, what is there, and whether it holds.
    pub(super) fn watched(&self) -> Vec<(String, u32, Seen, bool)> {
        let mut all: Vec<(String, u32, Seen, bool)> = Vec::new();
        for (name, _) in &self.paths {
            let kind = self.kinds.get(name).map_or("", String::as_str);
            if matches!(kind, "watch" | "bool-or-watch" | "path-now" | "descriptor" | "process") {
                let nth = all.iter().filter(|(known, ..)| known == name).count() as u32;
                let seen = self.seen(name, nth);
                let holds = seen.is_some();
                all.push((name.clone(), nth, seen, holds));
            }
        }
        all
    }

    pub(super) fn state(&mut self, owner: Owner) -> &mut SharedState {
        self.states.entry(owner).or_default()
    }

    /// Adds to word a of a slot, with wrapping, and returns the sum.
    pub(super) fn add(&mut self, owner: Owner, slot: usize, delta: i64) -> u64 {
        let words = &mut self.state(owner).slots[slot];
        words.a = words.a.wrapping_add_signed(delta);
        words.version += 1;
        words.a
    }

    /// Forgets what belonged to a connection.
    pub(super) fn close(&mut self, connection: u64) {
        let (closing, rest) =
            std::mem::take(&mut self.until_close).into_iter().partition(|sum| sum.connection == connection);
        self.until_close = rest;
        let closing: Vec<UntilClose> = closing;
        for sum in closing {
            self.add(sum.owner, sum.slot, sum.delta.wrapping_neg());
        }
        self.states.remove(&Owner::Connection(connection));
        self.alarms.retain(|(owner, _), _| *owner != Owner::Connection(connection));
        self.connections -= 1;
    }
}

impl Owner {
    pub(super) fn of(scope: Scope, connection: u64) -> Owner {
        match scope {
            Scope::Connection => Owner::Connection(connection),
            Scope::Exportname => Owner::Export,
            Scope::Server => Owner::Server,
        }
    }
}
