//! A host in memory that serves the requests of several clients in every order.
//!
//! Each client is a thread, but only one runs at a time: whenever a request uses the host, a seeded choice says who goes on, so that requests
//! interleave at every step, and a seed repeats a run. Long transfers are done in pieces with others in between. Next fails, scratch fills
//! up, and requests trap, as often as the settings say.
//!
//! A model knows for each byte which values a client may read: the last value that was written, or those of writes that ran at the same
//! time (in any order), and for a write that failed both its value and the one before, until somebody has read one of them. The same holds
//! for what has to be durable after a flush.
#![allow(missing_docs)] // For tests; the names say it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::{Extent, Fault, Host, Mode, PAYLOAD, Words, Zeroing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimError {
    Io,
    Full,
    NoMemory,
    NotSupported,
    /// A second lock in one call.
    Deadlock,
    Trapped,
}

impl Fault for SimError {
    const NOT_SUPPORTED: SimError = SimError::NotSupported;
    fn is_full(self) -> bool {
        self == SimError::Full
    }
}

/// xorshift64*.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.draw() >> 11) % n
    }
    /// True in `n` of 1000.
    pub fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub seed: u64,
    /// Blocks have 2^`bits` bytes.
    pub bits: u32,
    pub size: u64,
    pub clients: usize,
    pub requests: usize,
    /// The most blocks in scratch.
    pub quota: u64,
    /// In 1000 uses of next.
    pub next_fails: u64,
    /// In 1000 writes to scratch, besides the quota.
    pub scratch_full: u64,
    /// In 1000 requests for a buffer.
    pub no_memory: u64,
    /// In 10000 steps.
    pub traps: u64,
    /// The longest request to next.
    pub next_max: u32,
    pub writes: Writes,
    /// Next's flush covers what other connections wrote.
    pub multi_conn: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Nothing may reach next.
    Kept,
    /// What was flushed must be durable in next.
    Durable,
    /// Nothing is promised.
    Unsafe,
}

#[derive(Clone, Copy, Debug)]
pub enum Request {
    Read { offset: u64, length: u32 },
    Write { offset: u64, length: u32, fua: bool },
    Zero { offset: u64, length: u64, how: Zeroing },
    Trim { offset: u64, length: u64, fua: bool },
    Extents { offset: u64, length: u64, one: bool },
    Cache { offset: u64, length: u64 },
    Flush,
}

/// What is tested: serves one request with the host.
pub trait Subject: Sync {
    fn serve(&self, host: &Call<'_>, request: Request) -> Result<Vec<Extent>, SimError>;
    /// Serves what comes after the last request.
    fn finalize(&self, _host: &Call<'_>) -> Result<(), SimError> {
        Ok(())
    }
}

/// A set of byte values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Values([u64; 4]);

impl Values {
    fn one(value: u8) -> Values {
        let mut set = Values::default();
        set.add(value);
        set
    }
    fn add(&mut self, value: u8) {
        self.0[usize::from(value >> 6)] |= 1 << (value & 63);
    }
    fn merge(&mut self, other: Values) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a |= b;
        }
    }
    fn has(&self, value: u8) -> bool {
        self.0[usize::from(value >> 6)] >> (value & 63) & 1 == 1
    }
}

/// A request that is being served, for the model.
struct Active {
    id: u64,
    /// When it began.
    since: u64,
    offset: usize,
    end: usize,
    /// Of a request that changes bytes.
    writes: Option<fn(u64, usize) -> u8>,
    /// For each byte: what was or is being written at the same time; for readers, with what was there before.
    seen: Vec<Values>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready,
    Waiting,
    Done,
}

struct Lock {
    client: usize,
    lo: u64,
    hi: u64,
    mode: Mode,
    granted: bool,
}

struct World {
    rng: Rng,
    turn: usize,
    status: Vec<Status>,
    locks: Vec<Lock>,
    maps: [Vec<u8>; 8],
    slots: [Words; 16],
    scratch: Vec<u8>,
    allocated: Vec<bool>,
    next: Vec<u8>,
    durable: Vec<u8>,
    /// How many bytes of next have been changed, and for each byte of `durable` when it got there.
    changes: u64,
    durable_since: Vec<u64>,
    /// What each client changed since its last flush: when, where and to what.
    volatile: Vec<Vec<(u64, usize, u8)>>,
    buffers: Vec<Vec<Option<Vec<u8>>>>,
    /// What each byte may be now.
    possible: Vec<Values>,
    /// Which of these a client has read since: it must not become another without a write.
    read: Vec<Option<u8>>,
    /// Counts the beginnings and ends of requests, and when a write to each byte ended last.
    time: u64,
    written: Vec<u64>,
    active: Vec<Active>,
    issued: u64,
    failure: Option<String>,
    /// Nobody can go on.
    stuck: bool,
    stats: Stats,
}

/// What happened, so that a test can say that it did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub served: u64,
    pub failed: u64,
    /// Of those that failed: fast zeroes that would have been slow.
    pub refused: u64,
    pub traps: u64,
    pub full: u64,
    pub waits: u64,
    pub next_reads: u64,
    pub next_writes: u64,
    pub next_caches: u64,
    /// The most blocks that were in scratch at once.
    pub peak: u64,
}

struct Trap;

/// The simulation.
pub struct Simulation {
    settings: Settings,
    world: Mutex<World>,
    wake: Vec<Condvar>,
}

/// One client's view: the host of its present request.
pub struct Call<'s> {
    simulation: &'s Simulation,
    client: usize,
}

fn data(id: u64, position: usize) -> u8 {
    ((id.wrapping_mul(31) + position as u64 * 7) % 255 + 1) as u8
}

fn zeroes(_id: u64, _position: usize) -> u8 {
    0
}

impl World {
    /// Says whose turn it is. False if nobody can go on.
    fn choose(&mut self) -> bool {
        let ready = self.status.iter().filter(|status| **status == Status::Ready).count() as u64;
        if ready == 0 {
            return self.status.iter().all(|status| *status == Status::Done);
        }
        // Sometimes one goes on for a while: other orders, and a switch of threads is what takes the time here.
        if self.status[self.turn] == Status::Ready && self.rng.permille(600) {
            return true;
        }
        let nth = self.rng.below(ready) as usize;
        let of = |(client, status): (usize, &Status)| (*status == Status::Ready).then_some(client);
        self.turn = self.status.iter().enumerate().filter_map(of).nth(nth).unwrap_or(0);
        true
    }

    fn grant(&mut self) {
        for n in 0..self.locks.len() {
            let (before, rest) = self.locks.split_at(n);
            let lock = &rest[0];
            let conflict = |other: &Lock| {
                other.lo < lock.hi
                    && lock.lo < other.hi
                    && (other.mode == Mode::Exclusive || lock.mode == Mode::Exclusive)
            };
            if !lock.granted && !before.iter().any(conflict) {
                let client = lock.client;
                self.locks[n].granted = true;
                self.status[client] = Status::Ready;
            }
        }
    }

    fn release(&mut self, client: usize) {
        self.locks.retain(|lock| lock.client != client);
        self.grant();
    }

    /// `reads`: it looks at what is there, not at what is durable.
    fn begin(&mut self, offset: usize, end: usize, writes: Option<fn(u64, usize) -> u8>, reads: bool) -> u64 {
        self.issued += 1;
        self.time += 1;
        let id = self.issued;
        let mut seen = vec![Values::default(); end - offset];
        for (n, set) in seen.iter_mut().enumerate() {
            if writes.is_none() {
                match self.read[offset + n] {
                    Some(value) if reads => set.add(value),
                    _ => set.merge(self.possible[offset + n]),
                }
            }
        }
        for other in &mut self.active {
            for position in other.offset.max(offset)..other.end.min(end) {
                if let Some(value) = writes {
                    other.seen[position - other.offset].add(value(id, position));
                }
                if let Some(value) = other.writes {
                    seen[position - offset].add(value(other.id, position));
                }
            }
        }
        self.active.push(Active { id, since: self.time, offset, end, writes, seen });
        id
    }

    /// `certain`: it has been done; otherwise it may or may not have been, in part or as a whole.
    fn end(&mut self, id: u64, certain: bool) -> Active {
        let n = self.active.iter().position(|active| active.id == id).expect("it was begun");
        let active = self.active.swap_remove(n);
        self.time += 1;
        if let Some(value) = active.writes {
            for position in active.offset..active.end {
                let mut values = active.seen[position - active.offset];
                values.add(value(id, position));
                if !certain {
                    values.merge(self.possible[position]);
                }
                self.possible[position] = values;
                self.read[position] = None;
                self.written[position] = self.time;
            }
        }
        active
    }

    /// A client has read this; from now on it is that, unless somebody was writing.
    fn pin(&mut self, reader: &Active, position: usize, value: u8) {
        let writes = |other: &Active| other.writes.is_some() && (other.offset..other.end).contains(&position);
        if self.written[position] < reader.since && !self.active.iter().any(writes) {
            self.read[position] = Some(value);
        }
    }
}

impl Simulation {
    pub fn new(settings: Settings) -> Simulation {
        let size = settings.size as usize;
        let blocks = settings.size.div_ceil(1 << settings.bits) as usize;
        // Some of next is zero, so that there are holes to tell.
        let next: Vec<u8> = (0..size).map(|n| if n / 40 % 3 == 1 { 0 } else { data(0, n) }).collect();
        let clients = settings.clients;
        let world = World {
            rng: Rng::new(settings.seed),
            turn: 0,
            status: vec![Status::Ready; clients],
            locks: Vec::new(),
            maps: std::array::from_fn(|_| vec![0; blocks]),
            slots: Default::default(),
            scratch: vec![0; blocks << settings.bits],
            allocated: vec![false; blocks],
            durable: next.clone(),
            changes: 0,
            durable_since: vec![0; size],
            volatile: vec![Vec::new(); clients],
            possible: next.iter().map(|value| Values::one(*value)).collect(),
            read: vec![None; size],
            time: 0,
            written: vec![0; size],
            next,
            buffers: vec![Vec::new(); clients],
            active: Vec::new(),
            issued: 0,
            failure: None,
            stuck: false,
            stats: Stats::default(),
        };
        let wake = (0..clients).map(|_| Condvar::new()).collect();
        Simulation { settings, world: Mutex::new(world), wake }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs all clients to their end. `choose` makes a client's requests.
    ///
    /// # Panics
    /// If a client reads what it may not, or nobody can go on; the message has the seed.
    pub fn run(&self, subject: &dyn Subject, choose: fn(&mut Rng, &Settings) -> Request) -> Stats {
        std::thread::scope(|scope| {
            for client in 0..self.settings.clients {
                scope.spawn(move || self.client(client, subject, choose));
            }
        });
        let world = self.world();
        if let Some(failure) = &world.failure {
            panic!("seed {}: {failure}", self.settings.seed);
        }
        assert!(world.locks.is_empty());
        world.stats
    }

    fn client(&self, client: usize, subject: &dyn Subject, choose: fn(&mut Rng, &Settings) -> Request) {
        let mut rng = Rng::new(self.settings.seed.wrapping_mul(1000) + client as u64 + 1);
        let call = Call { simulation: self, client };
        drop(call.wait_for_turn(self.world()));
        for _ in 0..self.settings.requests {
            if self.world().failure.is_some() {
                break;
            }
            self.request(&call, subject, choose(&mut rng, &self.settings));
        }
        let mut world = self.world();
        world.status[client] = Status::Done;
        self.next_turn(&mut world);
    }

    fn next_turn(&self, world: &mut World) {
        if world.choose() {
            self.wake[world.turn].notify_one();
        } else {
            eprintln!("seed {}: deadlock", self.settings.seed);
            world.stuck = true;
            self.wake.iter().for_each(Condvar::notify_one);
        }
    }

    fn request(&self, call: &Call<'_>, subject: &dyn Subject, request: Request) {
        type Value = fn(u64, usize) -> u8;
        let whole = (0, self.settings.size as usize);
        let range = |offset: u64, length: u64| (offset as usize, (offset + length) as usize);
        let ((from, to), writes, must_be_durable): (_, Option<Value>, bool) = match request {
            Request::Read { offset, length } => (range(offset, length.into()), None, false),
            Request::Write { offset, length, fua } => (range(offset, length.into()), Some(data), fua),
            Request::Zero { offset, length, how } => (range(offset, length), Some(zeroes), how.fua),
            Request::Trim { offset, length, .. } => (range(offset, length), Some(zeroes), false),
            Request::Extents { offset, length, .. } => (range(offset, length), None, false),
            Request::Cache { .. } => ((0, 0), None, false),
            Request::Flush => (whole, None, true),
        };
        let mut world = self.world();
        let id = world.begin(from, to, writes, !must_be_durable);
        // What a request leaves unfilled must not look right by chance.
        let mut payload =
            vec![0xee; if matches!(request, Request::Read { .. } | Request::Write { .. }) { to - from } else { 0 }];
        if let Request::Write { .. } = request {
            payload.iter_mut().enumerate().for_each(|(n, byte)| *byte = data(id, from + n));
        }
        world.buffers[call.client] = vec![Some(payload)];
        drop(world);

        let served = catch_unwind(AssertUnwindSafe(|| subject.serve(call, request)));
        let mut world = self.world();
        let result = match served {
            Ok(result) => result,
            Err(payload) if payload.is::<Trap>() => Err(SimError::Trapped),
            Err(_) => {
                world.failure = Some(format!("{request:?} panicked"));
                Err(SimError::Trapped)
            }
        };
        world.release(call.client);
        // The answer to a request may be late, and others go on before it.
        drop(world);
        let mut world = call.turn_without_faults();
        match &result {
            Ok(_) => world.stats.served += 1,
            Err(_) => world.stats.failed += 1,
        }
        if let Err(SimError::Deadlock) = result {
            world.failure = Some(format!("{request:?}: a second lock in one call"));
        }
        let sure = result.is_ok() && !matches!(request, Request::Trim { .. });
        let active = world.end(id, sure);
        if let Err(SimError::NotSupported) = result {
            let fast = matches!(request, Request::Zero { how: Zeroing { fast: true, .. }, .. });
            world.stats.refused += 1;
            if !fast {
                world.failure = Some(format!("{request:?}: not supported"));
            }
        }
        let Ok(extents) = result else { return };
        let payload = world.buffers[call.client][0].take().unwrap_or_default();
        let wrong = |position: usize, value: u8, what: &str| {
            let allowed: Vec<u8> = (0..=255).filter(|v| active.seen[position - from].has(*v)).collect();
            Some(format!("{request:?}: byte {position} {what} {value}, but could only be one of {allowed:?}"))
        };
        match request {
            Request::Read { .. } => {
                for (n, value) in payload.iter().enumerate() {
                    if !active.seen[n].has(*value) {
                        world.failure = wrong(from + n, *value, "was read as");
                    }
                    world.pin(&active, from + n, *value);
                }
            }
            Request::Extents { one, .. } => {
                let mut at = from as u64;
                for extent in &extents {
                    if extent.offset != at || extent.length == 0 {
                        world.failure = Some(format!("{request:?}: {extents:?} is no list of extents"));
                        return;
                    }
                    at += extent.length;
                    for position in extent.offset as usize..(at as usize).min(to) {
                        if extent.zero && !active.seen[position - from].has(0) {
                            world.failure = wrong(position, 0, "was said to be");
                        }
                    }
                }
                if extents.is_empty() || at as usize > to.max(from) || one && extents.len() > 1 {
                    world.failure = Some(format!("{request:?}: {extents:?} is not what was asked for"));
                }
            }
            _ => {}
        }
        if must_be_durable && self.settings.writes == Writes::Durable {
            for position in from..to {
                let value = world.durable[position];
                let mut allowed = active.seen[position - from];
                if let Some(writes) = active.writes {
                    allowed.add(writes(id, position));
                }
                if !allowed.has(value) {
                    world.failure = wrong(position, value, "is durable as");
                }
            }
        }
    }

    /// What comes after the last request. Afterwards next has to hold what a client could read, if writes are to get there.
    pub fn finalize(&self, subject: &dyn Subject) -> Result<(), SimError> {
        {
            let mut world = self.world();
            world.status[0] = Status::Ready;
            world.turn = 0;
            world.buffers[0] = vec![None];
        }
        let result = subject.finalize(&Call { simulation: self, client: 0 });
        let mut world = self.world();
        world.release(0);
        if result.is_ok() && self.settings.writes == Writes::Durable {
            for (position, value) in world.next.iter().enumerate() {
                assert!(
                    world.possible[position].has(*value),
                    "seed {}: byte {position} of next is {value} in the end",
                    self.settings.seed
                );
            }
        }
        result
    }
}

impl<'s> Call<'s> {
    /// The end of a call, for subjects that serve several requests one after another.
    pub fn answered(&self) {
        self.simulation.world().release(self.client);
    }

    fn settings(&self) -> &'s Settings {
        &self.simulation.settings
    }

    fn wait_for_turn<'w>(&self, mut world: MutexGuard<'w, World>) -> MutexGuard<'w, World> {
        while world.turn != self.client || world.stuck {
            if world.stuck {
                drop(world);
                panic!("deadlock");
            }
            world = self.simulation.wake[self.client].wait(world).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        world
    }

    fn turn_without_faults(&self) -> MutexGuard<'s, World> {
        let mut world = self.simulation.world();
        self.simulation.next_turn(&mut world);
        self.wait_for_turn(world)
    }

    /// Lets others go on, and comes back, or traps.
    fn turn(&self) -> MutexGuard<'s, World> {
        let mut world = self.turn_without_faults();
        if self.settings().traps > 0 && world.rng.below(10000) < self.settings().traps {
            world.stats.traps += 1;
            drop(world);
            resume_unwind(Box::new(Trap));
        }
        world
    }

    /// Does `piece` for parts of a range, with others in between.
    fn in_pieces(&self, length: u32, mut piece: impl FnMut(&mut World, usize, usize)) {
        let mut done = 0;
        while done < length as usize {
            let mut world = self.turn();
            let n = (1 + world.rng.below(24) as usize).min(length as usize - done);
            piece(&mut world, done, n);
            done += n;
        }
    }

    fn next_may_fail(&self) -> bool {
        let mut world = self.turn();
        world.rng.permille(self.settings().next_fails)
    }

    fn check_range(&self, offset: u64, length: u64) {
        let size = self.settings().size;
        assert!(length > 0 && offset + length <= size, "{offset}+{length} is outside of next");
    }

    fn change_next(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        value: impl Fn(&mut World, usize) -> Option<u8>,
    ) -> Result<(), SimError> {
        assert!(self.settings().writes != Writes::Kept, "next was written to");
        self.check_range(offset, length);
        let fails = self.next_may_fail();
        // One that fails has done a part, or nothing.
        let length = if fails { self.turn().rng.below(length) } else { length };
        self.in_pieces(length as u32, |world, at, n| {
            for position in at..at + n {
                if let Some(value) = value(world, position) {
                    let position = offset as usize + position;
                    world.next[position] = value;
                    world.changes += 1;
                    let change = (world.changes, position, value);
                    world.volatile[self.client].push(change);
                }
            }
        });
        if fails {
            return Err(SimError::Io);
        }
        if fua {
            self.turn().settle(self.client, offset as usize..(offset + length) as usize);
        }
        Ok(())
    }
}

impl Host for Call<'_> {
    type Error = SimError;

    fn lock(&self, offset: u64, length: u64, mode: Mode) -> Result<(), SimError> {
        let mut world = self.turn();
        if world.locks.iter().any(|lock| lock.client == self.client) {
            return Err(SimError::Deadlock);
        }
        world.locks.push(Lock { client: self.client, lo: offset, hi: offset + length, mode, granted: false });
        world.status[self.client] = Status::Waiting;
        world.grant();
        if world.status[self.client] == Status::Waiting {
            world.stats.waits += 1;
            self.simulation.next_turn(&mut world);
            drop(self.wait_for_turn(world));
        }
        Ok(())
    }

    fn unlock(&self) {
        self.turn().release(self.client);
    }

    fn run(&self, map: u32, first: u64, limit: u64) -> (u8, u64) {
        let world = self.turn();
        let rest = &world.maps[map as usize][first as usize..];
        let state = rest[0];
        let count = rest.iter().take(limit as usize).take_while(|other| **other == state).count();
        (state, count as u64)
    }

    fn find(&self, map: u32, first: u64, states: u8) -> Option<u64> {
        let world = self.turn();
        let rest = world.maps[map as usize].get(first as usize..)?;
        rest.iter().position(|state| states >> state & 1 == 1).map(|n| first + n as u64)
    }

    fn set(&self, map: u32, first: u64, count: u64, states: u8, to: u8) -> u64 {
        let mut world = self.turn();
        let mut changed = 0;
        for state in &mut world.maps[map as usize][first as usize..(first + count) as usize] {
            if states >> *state & 1 == 1 {
                *state = to;
                changed += 1;
            }
        }
        changed
    }

    fn count(&self, map: u32, state: u8) -> u64 {
        self.turn().maps[map as usize].iter().filter(|other| **other == state).count() as u64
    }

    fn slot(&self, slot: u32) -> Words {
        self.turn().slots[slot as usize]
    }

    fn replace(&self, slot: u32, version: u64, words: [u64; 4]) -> bool {
        let mut world = self.turn();
        let slot = &mut world.slots[slot as usize];
        let same = slot.version == version;
        if same {
            *slot = Words { version: version + 1, words };
        }
        same
    }

    fn scratch_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), SimError> {
        self.in_pieces(length, |world, done, n| {
            let from = offset as usize + done;
            let bytes = world.scratch[from..from + n].to_vec();
            world.buffer(self.client, buf)[at as usize + done..][..n].copy_from_slice(&bytes);
        });
        Ok(())
    }

    fn scratch_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), SimError> {
        let bits = self.settings().bits;
        {
            let mut world = self.turn();
            let blocks = (offset >> bits) as usize..=((offset + u64::from(length) - 1) >> bits) as usize;
            let used = world.allocated.iter().filter(|allocated| **allocated).count();
            let more = world.allocated[blocks.clone()].iter().filter(|allocated| !**allocated).count();
            let full = self.settings().scratch_full;
            if (used + more) as u64 > self.settings().quota || world.rng.permille(full) {
                world.stats.full += 1;
                // A part of what has its place already may have been overwritten.
                let world = &mut *world;
                let n = if more == 0 { world.rng.below(u64::from(length)) as usize } else { 0 };
                let bytes = world.buffer(self.client, buf)[at as usize..][..n].to_vec();
                world.scratch[offset as usize..][..n].copy_from_slice(&bytes);
                return Err(SimError::Full);
            }
            world.allocated[blocks].fill(true);
            world.stats.peak = world.stats.peak.max((used + more) as u64);
        }
        self.in_pieces(length, |world, done, n| {
            let bytes = world.buffer(self.client, buf)[at as usize + done..][..n].to_vec();
            let to = offset as usize + done;
            world.scratch[to..to + n].copy_from_slice(&bytes);
        });
        Ok(())
    }

    fn scratch_punch(&self, offset: u64, length: u64) -> Result<(), SimError> {
        let bits = self.settings().bits;
        let end = offset + length;
        self.in_pieces(length as u32, |world, done, n| {
            let from = offset as usize + done;
            world.scratch[from..from + n].fill(0);
        });
        let mut world = self.turn();
        let size = self.settings().size;
        for block in (offset.div_ceil(1 << bits))..if end == size { end.div_ceil(1 << bits) } else { end >> bits } {
            world.allocated[block as usize] = false;
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, SimError> {
        Ok(self.settings().size)
    }

    fn next_max(&self) -> u32 {
        self.settings().next_max
    }

    fn next_pread(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), SimError> {
        self.check_range(offset, length.into());
        self.turn().stats.next_reads += 1;
        let fails = self.next_may_fail();
        self.in_pieces(length, |world, done, n| {
            let from = offset as usize + done;
            let bytes = if fails { vec![0xdd; n] } else { world.next[from..from + n].to_vec() };
            world.buffer(self.client, buf)[at as usize + done..][..n].copy_from_slice(&bytes);
        });
        if fails { Err(SimError::Io) } else { Ok(()) }
    }

    fn next_pwrite(&self, offset: u64, length: u32, buf: u32, at: u32, fua: bool) -> Result<(), SimError> {
        assert!(length <= self.settings().next_max);
        self.turn().stats.next_writes += 1;
        let client = self.client;
        self.change_next(offset, length.into(), fua, |world, n| Some(world.buffer(client, buf)[at as usize + n]))
    }

    fn next_flush(&self) -> Result<(), SimError> {
        if self.next_may_fail() {
            return Err(SimError::Io);
        }
        let mut world = self.turn();
        let whole = 0..world.next.len();
        if self.settings().multi_conn {
            for client in 0..self.settings().clients {
                world.settle(client, whole.clone());
            }
        } else {
            world.settle(self.client, whole);
        }
        Ok(())
    }

    fn next_zero(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), SimError> {
        if how.fast && self.turn().rng.permille(500) {
            return Err(SimError::NotSupported);
        }
        self.change_next(offset, length, how.fua, |_, _| Some(0))
    }

    fn next_trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), SimError> {
        self.change_next(offset, length, fua, |world, _| world.rng.permille(500).then_some(0))
    }

    fn next_cache(&self, offset: u64, length: u64) -> Result<(), SimError> {
        self.check_range(offset, length);
        self.turn().stats.next_caches += 1;
        if self.next_may_fail() { Err(SimError::Io) } else { Ok(()) }
    }

    fn next_extents(&self, offset: u64, length: u64, one: bool) -> Result<Vec<Extent>, SimError> {
        self.check_range(offset, length);
        if self.next_may_fail() {
            return Err(SimError::Io);
        }
        let mut world = self.turn();
        let mut list: Vec<Extent> = Vec::new();
        let enough = 1 + world.rng.below(6) as usize;
        for position in offset..offset + length {
            let zero = world.next[position as usize] == 0;
            let told = list.len();
            match list.last_mut() {
                Some(last) if last.zero == zero => last.length += 1,
                _ if told == enough || one && told == 1 => break,
                _ => list.push(Extent { offset: position, length: 1, hole: zero, zero }),
            }
        }
        Ok(list)
    }

    fn alloc(&self, length: u32) -> Result<u32, SimError> {
        let mut world = self.turn();
        if world.rng.permille(self.settings().no_memory) {
            return Err(SimError::NoMemory);
        }
        let buffers = &mut world.buffers[self.client];
        buffers.push(Some(vec![0; length as usize]));
        Ok(buffers.len() as u32 - 1)
    }

    fn free(&self, buf: u32) {
        // Also called while a trap unwinds.
        assert_ne!(buf, PAYLOAD);
        self.simulation.world().buffers[self.client][buf as usize] = None;
    }

    fn copy(&self, to: u32, to_at: u32, from: u32, from_at: u32, length: u32) {
        let mut world = self.turn();
        let bytes = world.buffer(self.client, from)[from_at as usize..][..length as usize].to_vec();
        world.buffer(self.client, to)[to_at as usize..][..length as usize].copy_from_slice(&bytes);
    }

    fn clear(&self, buf: u32, at: u32, length: u32) {
        self.turn().buffer(self.client, buf)[at as usize..][..length as usize].fill(0);
    }
}

impl World {
    /// Makes durable what a client changed in a range.
    fn settle(&mut self, client: usize, range: std::ops::Range<usize>) {
        let World { volatile, durable, durable_since, .. } = self;
        volatile[client].retain(|(when, position, value)| {
            let inside = range.contains(position);
            if inside && *when > durable_since[*position] {
                durable[*position] = *value;
                durable_since[*position] = *when;
            }
            !inside
        });
    }

    fn buffer(&mut self, client: usize, buf: u32) -> &mut [u8] {
        self.buffers[client][buf as usize].as_deref_mut().expect("a buffer of this call")
    }
}

/// Requests of all kinds, half of them aligned to blocks, on a small part of the disk at a time.
pub fn any_request(rng: &mut Rng, settings: &Settings) -> Request {
    let block = 1 << settings.bits;
    let mut offset = rng.below(settings.size);
    let mut length = 1 + rng.below((settings.size - offset).min(4 * block));
    if rng.permille(500) {
        offset -= offset % block;
        length = (1 + rng.below(3)) * block;
    }
    length = length.min(settings.size - offset);
    let fua = rng.permille(150);
    match rng.below(100) {
        0..32 => Request::Read { offset, length: length as u32 },
        32..64 => Request::Write { offset, length: length as u32, fua },
        64..74 => {
            let how = Zeroing { fua, may_trim: rng.permille(700), fast: rng.permille(200) };
            Request::Zero { offset, length, how }
        }
        74..82 => Request::Trim { offset, length, fua },
        82..89 => Request::Extents { offset, length, one: rng.permille(300) },
        89..95 => Request::Cache { offset, length },
        _ => Request::Flush,
    }
}

/// How many runs a random test makes: `RUNS`, or `usual`. The first seed is `SEED`, or from the clock.
pub fn seeds(usual: u64) -> impl Iterator<Item = u64> {
    let from_env = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let first = from_env("SEED").unwrap_or_else(|| clock() % 1_000_000_000);
    let runs = from_env("RUNS").unwrap_or(usual);
    println!("seeds {first} to {}", first + runs - 1);
    first..first + runs
}
