//! The state that all clients share: whose turn it is, their locks, and what the host holds.

use std::ops::Range;

use crate::host::{Mode, Words};

use super::model::{Model, data};
use super::random::Rng;
use super::settings::{Settings, Stats};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ready,
    Waiting,
    Done,
}

pub struct Lock {
    pub client: usize,
    pub start: u64,
    pub end: u64,
    pub mode: Mode,
    pub granted: bool,
}

pub struct World {
    pub rng: Rng,
    /// The client that runs.
    pub turn: usize,
    pub status: Vec<Status>,
    /// In the order of the requests.
    pub locks: Vec<Lock>,
    pub maps: [Vec<u8>; 8],
    pub slots: [Words; 16],
    pub scratch: Vec<u8>,
    /// Whether each block of scratch takes space.
    pub allocated: Vec<bool>,
    pub next: Vec<u8>,
    pub durable: Vec<u8>,
    /// How many bytes of next have been changed.
    changes: u64,
    /// For each byte of `durable`: the number of the change that it comes from.
    durable_since: Vec<u64>,
    /// What each client changed since its last flush: the number of the change, position and value.
    volatile: Vec<Vec<(u64, usize, u8)>>,
    /// The buffers of each client.
    pub buffers: Vec<Vec<Option<Vec<u8>>>>,
    pub model: Model,
    pub failure: Option<String>,
    /// No client can continue.
    pub stuck: bool,
    pub stats: Stats,
}

impl World {
    pub fn new(settings: &Settings) -> World {
        let size = settings.size as usize;
        let blocks = settings.size.div_ceil(1 << settings.bits) as usize;
        // A third of next is zero, so that it has holes.
        let next: Vec<u8> = (0..size).map(|n| if n / 40 % 3 == 1 { 0 } else { data(0, n) }).collect();
        let clients = settings.clients;
        World {
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
            model: Model::new(&next),
            next,
            buffers: vec![Vec::new(); clients],
            failure: None,
            stuck: false,
            stats: Stats::default(),
        }
    }

    /// Chooses the client that runs next. False if no client can continue.
    pub fn choose(&mut self) -> bool {
        let ready = self.status.iter().filter(|status| **status == Status::Ready).count() as u64;
        if ready == 0 {
            return self.status.iter().all(|status| *status == Status::Done);
        }
        // In 60% of the steps the same client continues. That gives other orders, and saves time:
        // the switch of threads is the slowest part of the simulation.
        if self.status[self.turn] == Status::Ready && self.rng.permille(600) {
            return true;
        }
        let nth = self.rng.below(ready) as usize;
        let is_ready = |(client, status): (usize, &Status)| (*status == Status::Ready).then_some(client);
        self.turn = self.status.iter().enumerate().filter_map(is_ready).nth(nth).unwrap_or(0);
        true
    }

    /// Grants each lock that no earlier lock conflicts with.
    pub fn grant(&mut self) {
        for n in 0..self.locks.len() {
            let (before, rest) = self.locks.split_at(n);
            let lock = &rest[0];
            let conflict = |other: &Lock| {
                other.start < lock.end
                    && lock.start < other.end
                    && (other.mode == Mode::Exclusive || lock.mode == Mode::Exclusive)
            };
            if !lock.granted && !before.iter().any(conflict) {
                let client = lock.client;
                self.locks[n].granted = true;
                self.status[client] = Status::Ready;
            }
        }
    }

    /// Releases a client's lock.
    pub fn release(&mut self, client: usize) {
        self.locks.retain(|lock| lock.client != client);
        self.grant();
    }

    /// A client changes one byte of next. It is not durable yet.
    pub fn change_next(&mut self, client: usize, position: usize, value: u8) {
        self.next[position] = value;
        self.changes += 1;
        self.volatile[client].push((self.changes, position, value));
    }

    /// Makes durable what a client changed in a range.
    pub fn make_durable(&mut self, client: usize, range: Range<usize>) {
        let World { volatile, durable, durable_since, .. } = self;
        volatile[client].retain(|(change, position, value)| {
            let inside = range.contains(position);
            if inside && *change > durable_since[*position] {
                durable[*position] = *value;
                durable_since[*position] = *change;
            }
            !inside
        });
    }

    pub fn buffer(&mut self, client: usize, buf: u32) -> &mut [u8] {
        self.buffers[client][buf as usize].as_deref_mut().expect("a buffer of this call")
    }
}
