//! One connection of the crowd: it chooses requests, sends them, and compares every reply.

use std::fmt;

use super::crowd::{Crowd, Tally};
use super::stripe::{Known, Stripe};
use crate::Rng;
use crate::raw::{Client, Extent, Reply, STATE_ZERO, can, cmd, error, flag};

/// A request that is in flight.
struct Inflight {
    cookie: u64,
    kind: u16,
    flags: u16,
    offset: u64,
    length: u32,
    stripe: usize,
    data: Vec<u8>,
}

impl Inflight {
    fn changes(&self) -> bool {
        matches!(self.kind, cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM)
    }

    /// Whether the answers of the two requests could depend on their order.
    fn conflicts(&self, other: &Inflight) -> bool {
        let overlap =
            self.offset < other.offset + u64::from(other.length) && other.offset < self.offset + u64::from(self.length);
        overlap && (self.changes() || other.changes())
    }
}

impl fmt::Display for Inflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ["read", "write", "disc", "flush", "trim", "cache", "write_zeroes", "block_status"]
            .get(self.kind as usize)
            .unwrap_or(&"?");
        write!(f, "{name} of {} at {} ({:#x}), flags {:#x}", self.length, self.offset, self.offset, self.flags)
    }
}

/// One connection and the stripes that it owns.
pub(super) struct Worker<'a> {
    client: Client,
    stripes: Vec<Option<Stripe>>,
    owned: Vec<usize>,
    size: u64,
    inflight: Vec<Inflight>,
    rng: Rng,
    crowd: &'a Crowd,
    tally: Tally,
}

impl<'a> Worker<'a> {
    /// A worker without stripes, on a disk of `size` bytes in `count` stripes.
    pub fn new(client: Client, count: usize, size: u64, rng: Rng, crowd: &'a Crowd) -> Worker<'a> {
        let stripes = (0..count).map(|_| None).collect();
        let (owned, inflight) = (Vec::new(), Vec::new());
        Worker { client, stripes, owned, size, inflight, rng, crowd, tally: Tally::default() }
    }

    /// Makes the worker the owner of a stripe.
    pub fn give(&mut self, nth: usize, stripe: Stripe) {
        self.owned.push(nth);
        self.stripes[nth] = Some(stripe);
    }

    /// Ends the worker: its connection, what it did, and the stripes that it owned.
    pub fn finish(self) -> (Client, Tally, impl Iterator<Item = (usize, Stripe)>) {
        let stripes = self.stripes.into_iter().enumerate().filter_map(|(nth, stripe)| Some((nth, stripe?)));
        (self.client, self.tally, stripes)
    }

    /// Sends this many requests and compares all replies.
    pub fn run(&mut self, operations: u64) {
        for _ in 0..operations {
            let request = self.choose();
            while self.inflight.len() >= self.crowd.depth || self.inflight.iter().any(|r| r.conflicts(&request)) {
                self.complete();
            }
            self.submit(request);
        }
        while !self.inflight.is_empty() {
            self.complete();
        }
    }

    /// A random range within one stripe that the worker owns.
    fn own_range(&mut self) -> (usize, u64, u32) {
        let nth = self.owned[self.rng.below(self.owned.len() as u64) as usize];
        let (start, end) = self.stripes[nth].as_ref().map_or((0, 1), |stripe| (stripe.start, stripe.end()));
        let size = end - start;
        let (mut from, mut length) = match self.rng.below(20) {
            0 => (start, size),
            1..=9 => (start + self.rng.below(size), 1 + self.rng.below(2000)),
            10..=14 => (start + self.rng.below(size), 1 + self.rng.below(16 << 10)),
            _ => ((start + self.rng.below(size)) & !4095, 4096 << self.rng.below(4)),
        };
        from = from.max(start);
        length = length.min(end - from);
        (nth, from, length as u32)
    }

    /// A random range of the whole disk.
    fn any_range(&mut self) -> (u64, u32) {
        let from = self.rng.below(self.size);
        let length = (1 + self.rng.below(256 << 10)).min(self.size - from);
        (from, length as u32)
    }

    fn choose(&mut self) -> Inflight {
        let (stripe, mut offset, mut length) = self.own_range();
        let wide = self.rng.chance(15);
        let kind = match self.rng.below(100) {
            0..35 => cmd::READ,
            35..67 => cmd::WRITE,
            67..77 if self.client.can(can::WRITE_ZEROES) => cmd::WRITE_ZEROES,
            77..84 if self.client.can(can::TRIM) => cmd::TRIM,
            84..86 if self.client.can(can::FLUSH) => cmd::FLUSH,
            86..90 if self.client.can(can::CACHE) => cmd::CACHE,
            90..100 if self.client.can_extents() => cmd::BLOCK_STATUS,
            _ => cmd::READ,
        };
        if wide && matches!(kind, cmd::READ | cmd::BLOCK_STATUS | cmd::CACHE) {
            (offset, length) = self.any_range();
        }
        let mut flags = 0;
        let mut maybe = |percent: u64, possible: bool, flag: u16| {
            if possible && self.rng.chance(percent) {
                flags |= flag;
            }
        };
        let zeroes = kind == cmd::WRITE_ZEROES;
        maybe(5, matches!(kind, cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM) && self.client.can(can::FUA), flag::FUA);
        maybe(30, zeroes, flag::NO_HOLE);
        maybe(30, zeroes && self.client.can(can::FAST_ZERO), flag::FAST_ZERO);
        maybe(20, kind == cmd::BLOCK_STATUS, flag::REQ_ONE);
        maybe(10, kind == cmd::READ && self.client.can(can::DF), flag::DF);
        if kind == cmd::FLUSH {
            (offset, length) = (0, 0);
        }
        let data = if kind == cmd::WRITE { self.content(length as usize) } else { Vec::new() };
        Inflight { cookie: 0, kind, flags, offset, length, stripe, data }
    }

    /// Data to write: mostly random bytes, sometimes one byte repeated, sometimes zeroes, which a
    /// layer may treat in another way.
    fn content(&mut self, length: usize) -> Vec<u8> {
        match self.rng.below(10) {
            0 => vec![0; length],
            1 => vec![self.rng.next_u64() as u8; length],
            _ => self.rng.bytes(length),
        }
    }

    fn submit(&mut self, mut request: Inflight) {
        let (kind, flags) = (request.kind, request.flags);
        let sent = self.client.submit(kind, flags, request.offset, request.length, &request.data);
        request.cookie = sent.unwrap_or_else(|error| panic!("cannot send the {request}: {error}"));
        self.inflight.push(request);
    }

    fn complete(&mut self) {
        let reply = self.client.receive().unwrap_or_else(|error| {
            let waiting: Vec<String> = self.inflight.iter().map(ToString::to_string).collect();
            panic!("no reply ({error}); in flight: {waiting:#?}");
        });
        let nth = self.inflight.iter().position(|request| request.cookie == reply.cookie).expect("a cookie of ours");
        let request = self.inflight.swap_remove(nth);
        self.tally.operations += 1;
        match reply.result {
            Ok(_) => self.succeeded(&request, reply),
            Err(error) => self.failed(&request, error),
        }
    }

    fn succeeded(&mut self, request: &Inflight, reply: Reply) {
        match request.kind {
            cmd::READ => self.compare(request, &reply.result.unwrap_or_default()),
            cmd::BLOCK_STATUS => self.compare_extents(request, &reply.extents),
            cmd::WRITE => self.own(request).write(request.offset, &request.data),
            cmd::WRITE_ZEROES => {
                let zeroes = vec![0; request.length as usize];
                self.own(request).write(request.offset, &zeroes);
            }
            cmd::TRIM => self.own(request).mark(request.offset, request.length, Known::ValueOrZero),
            _ => {}
        }
    }

    fn failed(&mut self, request: &Inflight, error: u32) {
        // A fast zero request that would have been slow: nothing was changed.
        if error == error::ENOTSUP && request.flags & flag::FAST_ZERO != 0 {
            return;
        }
        assert!(self.crowd.may_fail && error == error::EIO, "{request} failed with {error}");
        self.tally.failed += 1;
        if request.changes() {
            self.own(request).mark(request.offset, request.length, Known::Nothing);
        }
    }

    fn own(&mut self, request: &Inflight) -> &mut Stripe {
        self.stripes[request.stripe].as_mut().expect("its own stripe")
    }

    fn compare(&mut self, request: &Inflight, data: &[u8]) {
        for stripe in self.stripes.iter().flatten() {
            if let Some(difference) = stripe.difference(request.offset, data) {
                panic!("{request}: {difference}");
            }
        }
        self.tally.compared += data.len() as u64;
    }

    fn compare_extents(&mut self, request: &Inflight, extents: &[Extent]) {
        let mut at = request.offset;
        let end = request.offset + u64::from(request.length);
        for extent in extents {
            assert!(at < end && at + extent.length <= self.size, "{request}: {extents:?}");
            // Beyond the requested range other requests are in flight, so its bytes may change now.
            let length = extent.length.min(end - at);
            if extent.flags & STATE_ZERO != 0 {
                for stripe in self.stripes.iter_mut().flatten() {
                    if let Some(difference) = stripe.declare_zero(at, length) {
                        panic!("{request}: the extent {extent:?} at {at} is said to read as zero: {difference}");
                    }
                }
            }
            at += extent.length;
            self.tally.extents += 1;
        }
    }
}
