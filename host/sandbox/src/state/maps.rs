//! Maps of blocks: one of four states for each, sparse, with atomic functions on ranges.
//!
//! A map is cut into chunks of 2048 blocks ([`chunk`](super::chunk)). A chunk all of whose blocks have state 0 is not there; one whose
//! blocks all have the same state is an entry without words; so memory goes with what is *mixed*, not with the size of the export, which may be
//! 2^63 - 1 bytes. Chunks live in stripes, neighbouring chunks in different ones, each behind a lock of its own.
//!
//! **Atomic.** A function holds the locks of all stripes that its range touches, taken in ascending order, while it works: what it answers
//! was true at one moment, and of two callers who set the same block under the same condition exactly one counts it. Nearly every call is about
//! blocks of one chunk and takes one lock. Runs are followed word by word and chunk by chunk.
//!
//! **Memory.** Every chunk is charged to the filter's quota before anything is changed. `set` cannot answer an error, so a `set` for which there is no
//! memory changes nothing and traps: the request fails, the data stays right. A change that is held back reserves what it may
//! need when it is asked for, so that publishing it cannot fail; what a change frees that may be undone stays taken until it stands. Undoing may
//! overdraw all the same where others have changed neighbouring blocks: by the words of the chunks at the ends of what it resets.
//! Reserving for the worst case when a map is sized was the alternative: it would refuse large exports of which little is ever used.
//!
//! **Held back and undone.** What a call asks for beyond `now` is in its [`Changes`]. Published changes of one call are each atomic,
//! not all together. Undoing goes backwards and resets a block only if it is still in the state that the call gave it: if somebody
//! else has moved it on, theirs stands. A block that somebody moved away *and back* meanwhile cannot be told from one that nobody
//! touched: it is reset as well. A filter for which that would be wrong holds a range lock over the change and what may fail;
//! where the state that is restored is the careful one (dirty again, not cached again), it is never wrong.

use std::collections::btree_map::{BTreeMap, Entry, Range};
use std::iter::Peekable;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rbdkit_plugin_api::Errno;

use super::chunk::{BLOCKS, Chunk, Deltas};
use super::{Quota, ScopeState, Trap};

/// The trap for using a map before `resize`.
pub(super) const NOT_SIZED: Trap = Trap("a map is used before it was sized");
const OUTSIDE: Trap = Trap("a range of blocks ends outside of its map");
const NO_STATE: Trap = Trap("a map has the states 0 to 3");
const NO_MEMORY: Trap = Trap("the memory for maps is used up");
const TOO_MUCH: Trap = Trap("a call holds back more changes of maps than can be published at once");

/// The most stripes a map has. More would not help: a server has fewer threads at work than that.
const STRIPES: u64 = 64;
/// What a stripe is charged: it has a cache line to itself.
const STRIPE_BYTES: u64 = 64;
/// What a chunk's place is charged: 32 bytes in a node that may be little more than a third full.
const PLACE_BYTES: u64 = 96;
/// What a mixed chunk is charged besides: its words and the allocator's header.
const WORDS_BYTES: u64 = 528;
/// What a run in a call's undo log is charged: 24 bytes in a vector that may be half empty.
const LOGGED_BYTES: u64 = 48;
/// What a change in a call's lists is charged besides: 64 bytes, the same way.
const LISTED_BYTES: u64 = 128;
/// Chunks that what a call holds back may touch in all, unless it is one change. Publishing them cannot be interrupted and is on nobody's account of
/// time: it takes some 0.2 s for so many at the worst. An honest request touches one, or as many as 4 GiB have.
const HELD_CHUNKS: u64 = 1 << 20;

/// Blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Their state.
    pub state: u8,
    /// How many.
    pub count: u64,
}

/// When a change is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once.
    Now,
    /// When the call succeeds or unlocks; never if it fails.
    OnSuccess,
    /// At once; taken back if the call fails.
    UndoOnFailure,
}

#[derive(Default)]
#[repr(align(64))]
struct Stripe(RwLock<Chunks>);

/// The chunks of a stripe that are there, by number.
type Chunks = BTreeMap<u64, Chunk>;

/// What is settled when a map is first sized.
struct Shape {
    block: u32,
    /// A power of two. Chunk n is in stripe n modulo their number.
    stripes: Box<[Stripe]>,
}

/// One map.
pub struct Map {
    shape: OnceLock<Shape>,
    blocks: AtomicU64,
    /// How many blocks have states 1 to 3.
    counts: [AtomicU64; 3],
    /// What is charged to `quota` for this map, in bytes.
    charged: AtomicU64,
    quota: Arc<Quota>,
}

/// Blocks `first..end` of a map, not empty.
#[derive(Clone, Copy)]
struct Blocks {
    first: u64,
    end: u64,
}

impl Blocks {
    fn chunks(self) -> (u64, u64) {
        (self.first / BLOCKS, (self.end - 1) / BLOCKS)
    }

    /// What of chunk `number` lies within, counted from the chunk's beginning.
    fn within(self, number: u64) -> (u64, u64) {
        let base = number * BLOCKS;
        (self.first.max(base) - base, (self.end - base).min(BLOCKS))
    }

    /// The most memory that setting them to `to` can take: places for all chunks, and words for those at the two ends. A chunk that is
    /// covered whole is never split.
    fn worst(self, states: u8, to: u8) -> u64 {
        let (low, high) = self.chunks();
        let places = if states & 1 != 0 && to != 0 { high - low + 1 } else { 0 };
        places.saturating_mul(PLACE_BYTES).saturating_add(2 * WORDS_BYTES)
    }

    /// The most chunks that setting them can have to look at: those that the memory for maps has room for.
    fn most_chunks(self, memory: &Quota) -> u64 {
        let (low, high) = self.chunks();
        (high - low + 1).min(memory.limit() / PLACE_BYTES)
    }
}

/// Stripes that are locked, by their index; in ascending order.
type Locked<G> = Vec<(usize, G)>;

impl Shape {
    fn index(&self, chunk: u64) -> usize {
        (chunk % self.stripes.len() as u64) as usize
    }

    fn read(&self, index: usize) -> RwLockReadGuard<'_, Chunks> {
        self.stripes[index].0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, index: usize) -> RwLockWriteGuard<'_, Chunks> {
        self.stripes[index].0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the stripes of the chunks `low..=high` in the one order that everybody keeps to.
    fn lock<'a, G>(&'a self, (low, high): (u64, u64), lock: impl Fn(&'a Shape, usize) -> G) -> Locked<G> {
        let all = self.stripes.len() as u64;
        let mut indices: Vec<usize> = (low..=high).take(all as usize).map(|chunk| self.index(chunk)).collect();
        indices.sort_unstable();
        indices.into_iter().map(|index| (index, lock(self, index))).collect()
    }
}

/// A part of a walk: one chunk that is there, or a gap of chunks that are not.
enum Piece<'a> {
    Chunk(u64, &'a Chunk),
    Gap,
}

/// The chunks of several locked stripes in ascending order, gaps included, each with the blocks asked for within it.
struct Walk<'a> {
    /// By stripe; none for a stripe that was not needed.
    heads: Vec<Option<Peekable<Range<'a, u64, Chunk>>>>,
    blocks: Blocks,
}

impl<'a> Walk<'a> {
    fn new<G: Deref<Target = Chunks>>(shape: &Shape, locked: &'a Locked<G>, blocks: Blocks) -> Walk<'a> {
        let (low, high) = blocks.chunks();
        let mut heads: Vec<_> = shape.stripes.iter().map(|_| None).collect();
        for (index, chunks) in locked {
            heads[*index] = Some(chunks.range(low..=high).peekable());
        }
        Walk { heads, blocks }
    }
}

impl<'a> Iterator for Walk<'a> {
    /// First block, end, and what is there.
    type Item = (u64, u64, Piece<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let Blocks { first, end } = self.blocks;
        if first >= end {
            return None;
        }
        let number = first / BLOCKS;
        let stripe = (number % self.heads.len() as u64) as usize;
        if let Some((_, chunk)) = self.heads[stripe].as_mut().and_then(|head| head.next_if(|(n, _)| **n == number)) {
            self.blocks.first = end.min((number + 1).saturating_mul(BLOCKS));
            return Some((first, self.blocks.first, Piece::Chunk(number, chunk)));
        }
        let next = self.heads.iter_mut().flatten().filter_map(|head| head.peek().map(|(n, _)| **n)).min();
        self.blocks.first = next.map_or(end, |next| next * BLOCKS);
        Some((first, self.blocks.first, Piece::Gap))
    }
}

/// What a `set` is asked to do.
#[derive(Clone, Copy)]
struct Change {
    blocks: Blocks,
    /// Bit n: state n.
    states: u8,
    to: u8,
}

/// What a change took in memory and did to the counts, while the locks are held.
#[derive(Default)]
struct Effect {
    set: u64,
    taken: i64,
    deltas: Deltas,
}

impl Effect {
    /// Changes one chunk and drops it if nothing is left in it.
    fn on(&mut self, chunks: &mut Chunks, number: u64, change: &Change) {
        let (at, end) = change.blocks.within(number);
        let mut entry = match chunks.entry(number) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(_) if change.states & 1 == 0 => return,
            Entry::Vacant(_) if change.to == 0 => {
                self.set += end - at;
                return;
            }
            Entry::Vacant(entry) => {
                self.taken += PLACE_BYTES as i64;
                entry.insert_entry(Chunk::uniform(0))
            }
        };
        let chunk = entry.get_mut();
        let before = chunk.is_mixed();
        self.set += chunk.set(at, end, change.states, change.to, &mut self.deltas);
        self.taken += (i64::from(chunk.is_mixed()) - i64::from(before)) * WORDS_BYTES as i64;
        if chunk.is_blank() {
            self.taken -= PLACE_BYTES as i64;
            entry.remove();
        }
    }
}

/// Where the memory for a change comes from.
enum Memory {
    /// From the quota, if there is enough.
    Ask,
    /// So many bytes were taken from it already.
    Reserved(u64),
    /// From the quota, in any case.
    Overdraw,
}

/// What a call has changed in one `set`, to be undone.
struct Undo {
    scope: Arc<ScopeState>,
    map: usize,
    to: u8,
    log: Log,
}

/// What undoing takes.
#[derive(Default)]
struct Log {
    /// Blocks and the state they had.
    runs: Vec<(u64, u64, u8)>,
    /// Bytes that the change has freed. They stay taken, so that they are there if it is undone.
    kept: u64,
}

impl Map {
    /// A map that has yet to be sized. Its memory is charged to `quota`.
    pub fn new(quota: Arc<Quota>) -> Map {
        Map {
            shape: OnceLock::new(),
            blocks: AtomicU64::new(0),
            counts: Default::default(),
            charged: AtomicU64::new(0),
            quota,
        }
    }

    /// Makes it as many blocks of `block` bytes as cover `bytes`. It never shrinks: a smaller size than before changes nothing.
    ///
    /// # Errors
    /// EINVAL for blocks of 0 bytes or of another size than before; ENOMEM if the quota is used up.
    pub fn resize(&self, block: u32, bytes: u64) -> Result<(), Errno> {
        if block == 0 {
            return Err(Errno::Einval);
        }
        let blocks = bytes.div_ceil(u64::from(block));
        if self.shape.get().is_none() {
            let stripes = blocks.div_ceil(BLOCKS).clamp(1, STRIPES).next_power_of_two();
            let cost = stripes * STRIPE_BYTES;
            if !self.quota.take(cost) {
                return Err(Errno::Enomem);
            }
            let shape = Shape { block, stripes: (0..stripes).map(|_| Stripe::default()).collect() };
            match self.shape.set(shape) {
                Ok(()) => _ = self.charged.fetch_add(cost, Ordering::Relaxed),
                // Another connection was faster.
                Err(_) => self.quota.give(cost),
            }
        }
        if self.shape.get().is_none_or(|shape| shape.block != block) {
            return Err(Errno::Einval);
        }
        // Looked at first: a scratch file's book is sized before each write, and writing here would take the line from every reader.
        if self.blocks() < blocks {
            self.blocks.fetch_max(blocks, Ordering::AcqRel);
        }
        Ok(())
    }

    fn shape(&self) -> Result<&Shape, Trap> {
        self.shape.get().ok_or(NOT_SIZED)
    }

    /// How many blocks it has; 0 before it was sized.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// The state of block `first` and how many from there on, at most `limit`, have the same. Past the end: state 0, count 0.
    ///
    /// # Errors
    /// The map was not sized.
    pub fn get_run(&self, first: u64, limit: u64) -> Result<Run, Trap> {
        let shape = self.shape()?;
        let end = first.saturating_add(limit).min(self.blocks());
        if first >= end {
            return Ok(Run { state: 0, count: 0 });
        }
        let blocks = Blocks { first, end };
        let number = first / BLOCKS;
        // Most runs end in the chunk they begin in.
        if let Some(chunk) = shape.read(shape.index(number)).get(&number) {
            let (at, to) = blocks.within(number);
            let (state, count) = chunk.run(at, to);
            if at + count < to || number == blocks.chunks().1 {
                return Ok(Run { state, count });
            }
        } else if number == blocks.chunks().1 {
            return Ok(Run { state: 0, count: end - first });
        }
        let locked = shape.lock(blocks.chunks(), Shape::read);
        let mut run = Run { state: 0, count: 0 };
        for (from, to, piece) in Walk::new(shape, &locked, blocks) {
            let (state, count) = match piece {
                Piece::Gap => (0, to - from),
                Piece::Chunk(number, chunk) => {
                    let base = number * BLOCKS;
                    chunk.run(from - base, to - base)
                }
            };
            if run.count > 0 && state != run.state {
                break;
            }
            run = Run { state, count: run.count + count };
            if count < to - from {
                break;
            }
        }
        Ok(run)
    }

    /// The first block from `first` on whose state is one of `states` (bit n stands for state n).
    ///
    /// # Errors
    /// The map was not sized, or there are no such states.
    pub fn find(&self, first: u64, states: u8) -> Result<Option<u64>, Trap> {
        let shape = self.shape()?;
        if states > 0b1111 {
            return Err(NO_STATE);
        }
        let end = self.blocks();
        let counted = (1..4u8).any(|state| states & (1 << state) != 0 && self.counter(state) > 0);
        if first >= end || (states & 1 == 0 && !counted) {
            return Ok(None);
        }
        let blocks = Blocks { first, end };
        let number = first / BLOCKS;
        {
            let chunks = shape.read(shape.index(number));
            let (at, to) = blocks.within(number);
            let found = match chunks.get(&number) {
                Some(chunk) => chunk.find(at, to, states),
                None => (states & 1 != 0).then_some(at),
            };
            if let Some(found) = found {
                return Ok(Some(number * BLOCKS + found));
            }
        }
        let locked = shape.lock(blocks.chunks(), Shape::read);
        Ok(Walk::new(shape, &locked, blocks).find_map(|(from, to, piece)| match piece {
            Piece::Gap => (states & 1 != 0).then_some(from),
            Piece::Chunk(number, chunk) => {
                let base = number * BLOCKS;
                chunk.find(from - base, to - base, states).map(|found| base + found)
            }
        }))
    }

    /// Sets those of `count` blocks from `first` whose state is one of `states` (bit n stands for state n) to `to`, at once. How
    /// many they were, those included that were in `to` already.
    ///
    /// # Errors
    /// The map was not sized, there are no such states, or the range ends outside; or there is no memory. Nothing was changed.
    pub fn set(&self, first: u64, count: u64, states: u8, to: u8) -> Result<u64, Trap> {
        match self.change(first, count, states, to)? {
            Some(change) => self.apply(&change, Memory::Ask, None),
            None => Ok(0),
        }
    }

    /// How many blocks have `state`, 1 to 3.
    ///
    /// # Errors
    /// The map was not sized, or there is no such state.
    pub fn count(&self, state: u8) -> Result<u64, Trap> {
        self.shape()?;
        if !(1..=3).contains(&state) {
            return Err(Trap("a map counts the states 1 to 3"));
        }
        Ok(self.counter(state))
    }

    fn counter(&self, state: u8) -> u64 {
        self.counts[usize::from(state) - 1].load(Ordering::Relaxed)
    }

    /// Whether every block has state 0.
    pub(super) fn is_blank(&self) -> bool {
        (1..4).all(|state| self.counter(state) == 0)
    }

    /// Checks what a guest asks for; none if the range is empty.
    fn change(&self, first: u64, count: u64, states: u8, to: u8) -> Result<Option<Change>, Trap> {
        self.shape()?;
        if states > 0b1111 || to > 3 {
            return Err(NO_STATE);
        }
        let end = first.checked_add(count).filter(|end| *end <= self.blocks()).ok_or(OUTSIDE)?;
        Ok((count > 0).then_some(Change { blocks: Blocks { first, end }, states, to }))
    }

    /// Carries out a change. Fails only for want of memory, and then before anything was changed; `log` gets the runs that
    /// really change.
    fn apply(&self, change: &Change, memory: Memory, mut log: Option<&mut Log>) -> Result<u64, Trap> {
        let shape = self.shape()?;
        let (low, high) = change.blocks.chunks();
        let mut effect = Effect::default();
        if low == high {
            let mut chunks = shape.write(shape.index(low));
            let (at, end) = change.blocks.within(low);
            let need = match chunks.get(&low) {
                Some(chunk) if chunk.would_split(at, end, change.states, change.to) => WORDS_BYTES,
                None if change.states & 1 != 0 && change.to != 0 => PLACE_BYTES + WORDS_BYTES,
                _ => 0,
            };
            if let Some(log) = &mut log {
                let piece = chunks.get(&low).map_or(Piece::Gap, |chunk| Piece::Chunk(low, chunk));
                self.log(&mut log.runs, change, std::iter::once((change.blocks.first, change.blocks.end, piece)))?;
            }
            let taken = self.reserve(memory, || need)?;
            effect.on(&mut chunks, low, change);
            self.settle(&effect, taken, log);
        } else {
            let mut locked = shape.lock((low, high), Shape::write);
            let taken = self.reserve(memory, || need_of(&locked, change))?;
            if let Some(log) = &mut log
                && let Err(trap) = self.log(&mut log.runs, change, Walk::new(shape, &locked, change.blocks))
            {
                self.quota.give(taken);
                return Err(trap);
            }
            for (index, chunks) in &mut locked {
                effect_on_stripe(&mut effect, chunks, *index as u64, shape.stripes.len() as u64, change);
            }
            self.settle(&effect, taken, log);
        }
        Ok(effect.set)
    }

    /// Takes what a change may need. Answers how much was taken.
    fn reserve(&self, memory: Memory, need: impl FnOnce() -> u64) -> Result<u64, Trap> {
        match memory {
            Memory::Reserved(taken) => Ok(taken),
            Memory::Ask => {
                let need = need();
                if need == 0 || self.quota.take(need) { Ok(need) } else { Err(NO_MEMORY) }
            }
            Memory::Overdraw => {
                let need = need();
                self.quota.overdraw(need);
                Ok(need)
            }
        }
    }

    /// Enters what a change did, while its locks are still held: gives back what it did not need and what it freed,
    /// unless that is kept for undoing it.
    fn settle(&self, effect: &Effect, taken: u64, log: Option<&mut Log>) {
        let mut back = taken as i64 - effect.taken;
        if let Some(log) = log
            && effect.taken < 0
        {
            log.kept = effect.taken.unsigned_abs();
            back = taken as i64;
        }
        if back >= 0 {
            self.quota.give(back as u64);
        } else {
            self.quota.overdraw(back.unsigned_abs());
        }
        if effect.taken != 0 {
            self.charged.fetch_add(effect.taken as u64, Ordering::Relaxed);
        }
        for (counter, delta) in self.counts.iter().zip(&effect.deltas[1..]) {
            if *delta != 0 {
                counter.fetch_add(*delta as u64, Ordering::Relaxed);
            }
        }
    }

    /// Writes down the runs that a change is about to change, and charges for them.
    fn log<'a>(
        &self,
        log: &mut Vec<(u64, u64, u8)>,
        change: &Change,
        pieces: impl Iterator<Item = (u64, u64, Piece<'a>)>,
    ) -> Result<(), Trap> {
        let mut note = |from: u64, to: u64, state: u8| {
            if change.states & (1 << state) == 0 || state == change.to {
                return Ok(());
            }
            match log.last_mut() {
                Some((first, count, old)) if *old == state && *first + *count == from => *count += to - from,
                _ if !self.quota.take(LOGGED_BYTES) => return Err(NO_MEMORY),
                _ => log.push((from, to - from, state)),
            }
            Ok(())
        };
        for (mut from, to, piece) in pieces {
            match piece {
                Piece::Gap => note(from, to, 0)?,
                Piece::Chunk(number, chunk) => {
                    let base = number * BLOCKS;
                    while from < to {
                        let (state, count) = chunk.run(from - base, to - base);
                        note(from, from + count, state)?;
                        from += count;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.quota.give(*self.charged.get_mut());
    }
}

/// The most memory that a change of several chunks may need, now that their stripes are locked.
fn need_of<G: Deref<Target = Chunks>>(locked: &Locked<G>, change: &Change) -> u64 {
    let (low, high) = change.blocks.chunks();
    if change.states & 1 == 0 || change.to == 0 {
        return 2 * WORDS_BYTES;
    }
    let there: u64 = locked.iter().map(|(_, chunks)| chunks.range(low..=high).count() as u64).sum();
    (high - low + 1 - there).saturating_mul(PLACE_BYTES).saturating_add(2 * WORDS_BYTES)
}

/// Changes the chunks of one stripe that a change of several touches.
fn effect_on_stripe(effect: &mut Effect, chunks: &mut Chunks, index: u64, stripes: u64, change: &Change) {
    let (low, high) = change.blocks.chunks();
    // The first chunk from `low` on that is in this stripe.
    let mut number = low + (index + stripes - low % stripes) % stripes;
    if change.states & 1 != 0 && change.to != 0 {
        while number <= high {
            effect.on(chunks, number, change);
            number += stripes;
        }
        return;
    }
    // What is not there stays so: only what is there has to be looked at, however large the range is.
    let mut there = 0;
    if number <= high {
        let numbers: Vec<u64> = chunks.range(number..=high).map(|(number, _)| *number).collect();
        there = numbers
            .iter()
            .map(|number| {
                let (at, end) = change.blocks.within(*number);
                effect.on(chunks, *number, change);
                end - at
            })
            .sum();
    }
    if change.states & 1 != 0 {
        effect.set += covered(change.blocks, index, stripes) - there;
    }
}

/// How many of the blocks lie in chunks of stripe `index`.
fn covered(blocks: Blocks, index: u64, stripes: u64) -> u64 {
    let (low, high) = blocks.chunks();
    let number = low + (index + stripes - low % stripes) % stripes;
    if number > high {
        return 0;
    }
    let chunks = (high - number) / stripes + 1;
    // With its last chunk a map may reach to 2^64, and what is taken off brings the sum back below.
    let mut sum = chunks.wrapping_mul(BLOCKS);
    for edge in [low, high] {
        if edge % stripes == index {
            let (at, end) = blocks.within(edge);
            sum = sum.wrapping_sub(BLOCKS - (end - at));
        }
    }
    sum
}

/// What one call wants of maps beyond changing them at once. Dropping it is failing: what was held back is forgotten, what was to be
/// undone is undone.
#[derive(Default)]
pub struct Changes {
    held: Vec<HeldBack>,
    /// Chunks that those may touch.
    held_chunks: u64,
    undo: Vec<Undo>,
}

struct HeldBack {
    scope: Arc<ScopeState>,
    map: usize,
    change: Change,
    reserved: u64,
}

impl Changes {
    /// [`Map::set`] on map `id` of `scope`, seen as `when` says. For [`When::OnSuccess`] the answer is 0.
    ///
    /// # Errors
    /// As [`Map::set`]; there is no map `id`; publishing all that is held back would take too long.
    pub fn set(
        &mut self,
        scope: &Arc<ScopeState>,
        id: u32,
        first: u64,
        count: u64,
        states: u8,
        to: u8,
        when: When,
    ) -> Result<u64, Trap> {
        let map = scope.map(id)?;
        let Some(change) = map.change(first, count, states, to)? else { return Ok(0) };
        match when {
            When::Now => map.apply(&change, Memory::Ask, None),
            When::OnSuccess => {
                let reserved = change.blocks.worst(states, to);
                let chunks = self.held_chunks.saturating_add(change.blocks.most_chunks(&map.quota));
                if chunks > HELD_CHUNKS && !self.held.is_empty() {
                    return Err(TOO_MUCH);
                }
                if !map.quota.take(reserved.saturating_add(LISTED_BYTES)) {
                    return Err(NO_MEMORY);
                }
                self.held_chunks = chunks;
                self.held.push(HeldBack { scope: Arc::clone(scope), map: id as usize, change, reserved });
                Ok(0)
            }
            When::UndoOnFailure => {
                if !map.quota.take(LISTED_BYTES) {
                    return Err(NO_MEMORY);
                }
                let mut log = Log::default();
                let result = map.apply(&change, Memory::Ask, Some(&mut log));
                let undo = Undo { scope: Arc::clone(scope), map: id as usize, to, log };
                if result.is_err() || undo.log.runs.is_empty() {
                    map.quota.give(undo.cost());
                } else {
                    self.undo.push(undo);
                }
                result
            }
        }
    }

    /// Carries out what was held back, in the order of asking; cannot fail. At `unlock`, and when the call succeeds.
    pub fn publish(&mut self) {
        self.held_chunks = 0;
        for held in self.held.drain(..) {
            let map = &held.scope.maps[held.map];
            // The map was sized and the memory is reserved.
            let _ = map.apply(&held.change, Memory::Reserved(held.reserved), None);
            map.quota.give(LISTED_BYTES);
        }
    }

    /// The call has succeeded: publishes what was held back, and lets stand what could have been undone.
    pub fn succeed(&mut self) {
        self.publish();
        for undo in self.undo.drain(..) {
            undo.scope.maps[undo.map].quota.give(undo.cost());
        }
    }

    /// The call has failed: forgets what was held back, and undoes what was to be undone.
    pub fn fail(&mut self) {
        self.held_chunks = 0;
        for held in self.held.drain(..) {
            held.scope.maps[held.map].quota.give(held.reserved + LISTED_BYTES);
        }
        for undo in self.undo.drain(..).rev() {
            let map = &undo.scope.maps[undo.map];
            for &(first, count, old) in &undo.log.runs {
                let blocks = Blocks { first, end: first + count };
                // The map was sized, and what may be overdrawn cannot run out.
                let _ = map.apply(&Change { blocks, states: 1 << undo.to, to: old }, Memory::Overdraw, None);
            }
            map.quota.give(undo.cost());
        }
    }

    /// Whether there is nothing to settle: of most calls.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.undo.is_empty()
    }
}

impl Undo {
    fn cost(&self) -> u64 {
        LISTED_BYTES + LOGGED_BYTES * self.log.runs.len() as u64 + self.log.kept
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.fail();
    }
}

#[cfg(test)]
mod tests;
