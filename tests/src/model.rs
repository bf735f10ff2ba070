//! The reference model: what a disk is, as plain bytes, and a seeded crowd of clients that compares a server with it.
//!
//! The disk is cut into stripes whose length suits no filter's block, and each stripe belongs to one connection at a time. Only the owner
//! changes a stripe, and never two overlapping requests at once, so at any moment there is exactly one right answer for
//! every byte that a connection owns; neighbours that share a filter's block with it write at the same time. Between phases every request is
//! answered, and then the stripes change hands, so what one connection wrote is read by others.

use std::fmt;
use std::path::Path;

use crate::raw::{Client, Extent, Reply, STATE_ZERO, can, cmd, error, flag};
use crate::wait::Deadline;
use crate::{Rng, TempDir};

/// What is known of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this.
    Value,
    /// It was trimmed: it is this, or zero.
    ValueOrZero,
    /// A write of it failed: it may be anything until it is written again.
    Nothing,
}

/// A part of the disk.
#[derive(Clone)]
pub struct Stripe {
    start: u64,
    bytes: Vec<u8>,
    known: Vec<Known>,
}

impl Stripe {
    /// One past its last byte.
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn range(&self, offset: u64, length: u64) -> Option<(usize, usize)> {
        let from = offset.max(self.start);
        let to = (offset + length).min(self.end());
        (from < to).then(|| ((from - self.start) as usize, (to - self.start) as usize))
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let at = (offset - self.start) as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self.known[at..at + data.len()].fill(Known::Value);
    }

    fn mark(&mut self, offset: u64, length: u32, known: Known) {
        let at = (offset - self.start) as usize;
        for old in &mut self.known[at..at + length as usize] {
            if *old != Known::Nothing {
                *old = known;
            }
        }
    }

    /// The first byte in which `data`, read at `offset`, is not what it has to be.
    fn difference(&self, offset: u64, data: &[u8]) -> Option<Difference> {
        let (from, to) = self.range(offset, data.len() as u64)?;
        let skip = (self.start + from as u64 - offset) as usize;
        let read = &data[skip..skip + (to - from)];
        // By far the most frequent case, at memcmp's speed.
        if read == &self.bytes[from..to] {
            return None;
        }
        (from..to).zip(read).find_map(|(at, &byte)| {
            let right = match self.known[at] {
                Known::Value => byte == self.bytes[at],
                Known::ValueOrZero => byte == self.bytes[at] || byte == 0,
                Known::Nothing => true,
            };
            (!right).then(|| Difference {
                offset: self.start + at as u64,
                read: byte,
                model: self.bytes[at],
                known: self.known[at],
            })
        })
    }

    /// The server says that the range reads as zero: from now on it has to.
    fn declare_zero(&mut self, offset: u64, length: u64) -> Option<Difference> {
        let (from, to) = self.range(offset, length)?;
        for at in from..to {
            match self.known[at] {
                Known::Value if self.bytes[at] != 0 => {
                    let (offset, model) = (self.start + at as u64, self.bytes[at]);
                    return Some(Difference { offset, read: 0, model, known: Known::Value });
                }
                Known::Value => {}
                Known::ValueOrZero | Known::Nothing => (self.bytes[at], self.known[at]) = (0, Known::Value),
            }
        }
        None
    }
}

struct Difference {
    offset: u64,
    read: u8,
    model: u8,
    known: Known,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { offset, read, model, known } = self;
        write!(f, "byte {offset} ({offset:#x}) is {read:#04x} and should be {model:#04x} ({known:?})")
    }
}

/// How a crowd treats a disk.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// Everything follows from it but the order in which threads run.
    pub seed: u64,
    /// Operations in all.
    pub operations: u64,
    /// Connections at a time.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Whether requests may fail with EIO (something below fails on purpose).
    pub may_fail: bool,
    /// Bytes in a stripe.
    pub stripe: u64,
    /// Times that stripes change hands.
    pub phases: u64,
}

impl Crowd {
    /// The usual one.
    pub fn new(seed: u64, operations: u64) -> Crowd {
        Crowd { seed, operations, connections: 4, depth: 6, may_fail: false, stripe: 70_001, phases: 6 }
    }

    /// Requests may fail.
    pub fn may_fail(mut self) -> Crowd {
        self.may_fail = true;
        self
    }
}

/// A whole disk.
pub struct Disk {
    stripes: Vec<Stripe>,
    size: u64,
}

/// How many requests of which kind came to what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that were answered.
    pub operations: u64,
    /// Of which failed on purpose.
    pub failed: u64,
    /// Extents that were compared.
    pub extents: u64,
    /// Bytes that were compared.
    pub compared: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.operations += other.operations;
        self.failed += other.failed;
        self.extents += other.extents;
        self.compared += other.compared;
    }
}

impl Disk {
    /// With these bytes at first.
    pub fn new(content: &[u8], stripe: u64) -> Disk {
        let stripes = content.chunks(stripe as usize).enumerate().map(|(nth, bytes)| Stripe {
            start: nth as u64 * stripe,
            bytes: bytes.to_vec(),
            known: vec![Known::Value; bytes.len()],
        });
        Disk { stripes: stripes.collect(), size: content.len() as u64 }
    }

    /// The same disk in stripes of another length.
    pub fn cut(&mut self, stripe: u64) {
        let bytes: Vec<u8> = self.stripes.iter().flat_map(|part| part.bytes.iter().copied()).collect();
        let known: Vec<Known> = self.stripes.iter().flat_map(|part| part.known.iter().copied()).collect();
        let parts = bytes.chunks(stripe as usize).zip(known.chunks(stripe as usize)).enumerate();
        let parts = parts.map(|(nth, (bytes, known))| Stripe {
            start: nth as u64 * stripe,
            bytes: bytes.to_vec(),
            known: known.to_vec(),
        });
        self.stripes = parts.collect();
    }

    /// Compares bytes of the disk that came from elsewhere (the file below, another connection).
    ///
    /// # Panics
    /// With the first byte that differs.
    pub fn compare(&self, what: &str, data: &[u8]) {
        assert_eq!(data.len() as u64, self.size, "{what}: the size");
        for stripe in &self.stripes {
            if let Some(difference) = stripe.difference(0, data) {
                panic!("{what}: {difference}");
            }
        }
    }

    /// Compares with what a new connection reads.
    pub fn compare_with(&self, what: &str, client: &mut Client, retry: bool) {
        assert_eq!(client.size, self.size, "{what}: the size");
        let mut data = Vec::with_capacity(self.size as usize);
        let deadline = Deadline::new();
        while (data.len() as u64) < self.size {
            let length = (self.size - data.len() as u64).min(256 << 10) as u32;
            match client.read(data.len() as u64, length) {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(error::EIO) if retry => deadline.check("the whole disk is read, some reads again"),
                Err(error) => panic!("{what}: reading {length} at {} failed with {error}", data.len()),
            }
        }
        self.compare(what, &data);
    }

    /// Lets the crowd at the server.
    ///
    /// # Panics
    /// With the first thing that is not as it has to be.
    pub fn exercise(&mut self, socket: &Path, crowd: &Crowd) -> Tally {
        let mut rng = Rng::new(crowd.seed);
        let mut clients: Vec<Client> = (0..crowd.connections).map(|_| Client::connect(socket)).collect();
        let mut tally = Tally::default();
        let each = crowd.operations.div_ceil(crowd.phases * crowd.connections as u64);
        for phase in 0..crowd.phases {
            // Some connections are new in each phase: what is kept for a connection must not be what is kept for the disk.
            let renewed = (phase as usize) % crowd.connections;
            let old = std::mem::replace(&mut clients[renewed], Client::connect(socket));
            old.disconnect();
            let mut workers: Vec<Worker> = clients
                .drain(..)
                .map(|client| {
                    let stripes = self.stripes.iter().map(|_| None).collect();
                    let size = self.size;
                    let inflight = Vec::new();
                    let tally = Tally::default();
                    Worker { client, stripes, owned: Vec::new(), size, inflight, rng: rng.fork(), crowd, tally }
                })
                .collect();
            for (nth, stripe) in self.stripes.drain(..).enumerate() {
                let owner = (nth + phase as usize) % crowd.connections;
                workers[owner].owned.push(nth);
                workers[owner].stripes[nth] = Some(stripe);
            }
            std::thread::scope(|scope| {
                let running: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(move || worker.run(each))).collect();
                let failed = running.into_iter().filter_map(|thread| thread.join().err()).next();
                if let Some(panic) = failed {
                    std::panic::resume_unwind(panic);
                }
            });
            let count = workers[0].stripes.len();
            let mut stripes: Vec<Option<Stripe>> = (0..count).map(|_| None).collect();
            for mut worker in workers {
                for &nth in &worker.owned {
                    stripes[nth] = worker.stripes[nth].take();
                }
                tally.add(worker.tally);
                clients.push(worker.client);
            }
            self.stripes = stripes.into_iter().map(|stripe| stripe.expect("each has an owner")).collect();
        }
        clients.into_iter().for_each(Client::disconnect);
        tally
    }
}

/// A request that waits for its reply.
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

    /// Whether the two must not be under way together if both answers are to be foreseen.
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

/// One connection and the stripes that are its own.
struct Worker<'a> {
    client: Client,
    stripes: Vec<Option<Stripe>>,
    owned: Vec<usize>,
    size: u64,
    inflight: Vec<Inflight>,
    rng: Rng,
    crowd: &'a Crowd,
    tally: Tally,
}

impl Worker<'_> {
    fn run(&mut self, operations: u64) {
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

    /// A range within one stripe of its own.
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

    /// Any range, whoever owns it.
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

    /// What to write: mostly noise, sometimes a pattern, sometimes zeroes (which a layer may treat otherwise).
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
        // Too slow to be fast: nothing was changed, and the client would write.
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
            assert!(at < end && at + u64::from(extent.length) <= self.size, "{request}: {extents:?}");
            // What lies beyond the range that was asked for may change under us: other requests are in flight there.
            let length = u64::from(extent.length).min(end - at);
            if extent.flags & STATE_ZERO != 0 {
                for stripe in self.stripes.iter_mut().flatten() {
                    if let Some(difference) = stripe.declare_zero(at, length) {
                        panic!("{request}: the extent {extent:?} at {at} is said to read as zero: {difference}");
                    }
                }
            }
            at += u64::from(extent.length);
            self.tally.extents += 1;
        }
    }
}

/// A disk's first content: noise with holes, so that extents have something to say.
pub fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x00c0_ffee);
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let run = (1 + rng.below(300_000) as usize).min(size - at);
        if rng.chance(50) {
            bytes[at..at + run].copy_from_slice(&rng.bytes(run));
        }
        at += run;
    }
    bytes
}

/// A file with this content, in which long runs of zeroes are holes.
pub fn sparse(dir: &TempDir, name: &str, content: &[u8]) -> std::path::PathBuf {
    use std::os::unix::fs::FileExt;
    let path = dir.sparse_file(name, content.len() as u64);
    let file = std::fs::File::options().write(true).open(&path).expect("a file of the test");
    for (nth, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, nth as u64 * 4096).expect("a file of the test");
        }
    }
    path
}
