//! Prefetching: a guest asks for a range and goes on, and the host reads the range in the
//! background.
//!
//! Each connection has one queue in each layer. Ranges are cut into pieces of at most 1 MiB, so
//! that a client's read in between waits no longer than one piece takes. Several pieces are under
//! way at once, which hides a source's latency. A range's parts that are queued, under way or just
//! done are left out, and pieces for which the queue has no room are dropped. Prefetches are only
//! hints, so errors are only counted. What the layer below knows to be zero is left out too,
//! because reading it costs nothing. A prefetch holds no lock and no instance of this layer, and
//! works on the layer below as any other request does.
//!
//! A filter that exports `background` supplies ranges of its own when the queue is empty. An idle
//! worker asks the filter for a range, wakes the next worker, fetches the range, and asks again. So
//! these ranges need no request of a client, no more of them are under way than there are workers,
//! and the filter gives a range out only when a worker is about to fetch it. Only one worker at a
//! time asks. What the filter computes for that is on an account of its own
//! ([`super::background`]).
//!
//! When the connection ends no more prefetches are begun. The layer below is closed after the last
//! one that is under way.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rbdkit_chain::STEP;
use rbdkit_plugin_api::{BoxFuture, Errno, Extent, Extents, Flags, Result, Support, ThreadModel, lock};
use tokio::sync::Notify;

use super::charge::Charge;
use super::next::Next;
use super::shared::FilterShared;

/// The longest piece, in bytes: what a source of 100 MB/s sends in the 10 ms that one request
/// takes.
const PIECE: u64 = 1 << 20;

/// Ranges that a queue holds at most, however short they are.
const MAX_RANGES: usize = 64;

/// The longest background range, in bytes: the largest value of nbdkit's scan-size.
const LONGEST: u64 = 32 << 20;

/// A range that takes no longer than this was cached already.
const AT_ONCE: Duration = Duration::from_micros(200);

/// A worker pauses for this long after a background range that was cached already. So a filter that
/// scans the same ranges repeatedly uses a hundredth of a core, and with ranges of 2 MiB still
/// covers 2 GiB a second for each worker.
const PAUSE: Duration = Duration::from_millis(1);

/// Prefetches use at most this part of the filter's `buffers-total`.
const PART_FOR_PREFETCHES: u64 = 4;

/// How many finished pieces are remembered, because a moving window asks again for the part that
/// overlaps.
const MAX_REMEMBERED: usize = 16;

/// One connection's prefetches.
pub(crate) struct Prefetcher {
    shared: Arc<FilterShared>,
    /// Pieces under way at once.
    most: u32,
    queue: Mutex<Queue>,
    idle: Notify,
    /// Notified when no more prefetches are begun.
    stopping: Notify,
    /// Set if the filter exports `background`.
    next_range: OnceLock<NextRange>,
}

/// Asks the filter for its next background range (`background.next-range`): offset, length, and the
/// layer below to fetch it from. Also returns how long the guest computed.
///
/// The future is boxed because the guest's answer may ask for prefetches, and a future cannot be a
/// part of itself.
pub(crate) type NextRange =
    Box<dyn Fn() -> BoxFuture<'static, (Option<((u64, u64), Arc<Next>)>, Duration)> + Send + Sync>;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Piece>,
    waiting_bytes: u64,
    under_way: Vec<(u64, u64)>,
    done: VecDeque<(u64, u64)>,
    workers: u32,
    stopped: bool,
    source: Source,
}

/// Where ranges come from when the queue is empty.
#[derive(Default)]
enum Source {
    /// The filter has none, or no more for now.
    #[default]
    Empty,
    /// The filter may be asked.
    Ready,
    /// A worker is asking the filter.
    Asked,
}

/// What a worker does next.
enum Job {
    Fetch(Piece),
    /// Ask the filter.
    Ask,
}

struct Piece {
    offset: u64,
    length: u64,
    next: Arc<Next>,
}

impl Piece {
    /// A background range, cut to the export. None if it lies outside of the export.
    fn within(offset: u64, length: u64, next: Arc<Next>) -> Option<Piece> {
        let end = offset.saturating_add(length.min(LONGEST)).min(next.hop.size());
        if offset >= end {
            return None;
        }
        Some(Piece { offset, length: end - offset, next })
    }

    /// What fetching it takes at most: a list of extents, and then the buffer that the gate reads
    /// into if next has no cache of its own.
    fn bytes(&self) -> u64 {
        let can = self.next.hop.can();
        let list = 2 * size_of::<Extent>() as u64 * Extents::limit(self.length) as u64;
        let buffer = if can.cache == Support::Emulate { self.length.min(STEP.into()) } else { 0 };
        if can.extents { list.max(buffer) } else { buffer }
    }

    /// Caches the parts that are not known to be zero.
    async fn fetch(&self) -> Result<()> {
        let hop = &self.next.hop;
        let block = hop.block_sizes().await.map_or(1, |sizes| u64::from(sizes.minimum));
        let (offset, end) = aligned(self.offset, self.offset + self.length, block, hop.size());
        if hop.can().extents {
            // Without an answer all of it counts as data.
            if let Ok(extents) = hop.extents(offset, end - offset, Flags::NONE).await {
                // What the extents do not cover counts as data. This is one request, from the first
                // data to the last, because a list may have tens of thousands of runs, and closing
                // waits for requests under way.
                let data = || extents.as_slice().iter().filter(|extent| !extent.zero);
                let known = extents.next_offset().min(end);
                let from = data().next().map_or(known, |first| first.offset);
                let to = if known < end {
                    end
                } else {
                    data().next_back().map_or(from, |last| (last.offset + last.length).min(end))
                };
                return match from < to {
                    true => {
                        let (from, to) = aligned(from, to, block, hop.size());
                        hop.cache(from, to - from).await
                    }
                    false => Ok(()),
                };
            }
        }
        hop.cache(offset, end - offset).await
    }
}

/// The parts of `from..to` that none of `ranges` (offset, length) covers, in ascending order.
fn uncovered(from: u64, to: u64, ranges: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut left = vec![(from, to)];
    for (offset, length) in ranges {
        let end = offset + length;
        let mut rest = Vec::with_capacity(left.len() + 1);
        for (a, b) in left {
            if end <= a || offset >= b {
                rest.push((a, b));
                continue;
            }
            if a < offset {
                rest.push((a, offset));
            }
            if end < b {
                rest.push((end, b));
            }
        }
        left = rest;
    }
    left
}

impl Queue {
    /// The parts of a range that are neither queued, under way nor just done.
    fn new_in(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let waiting = self.waiting.iter().map(|piece| (piece.offset, piece.length));
        uncovered(from, to, waiting.chain(self.under_way.iter().copied()).chain(self.done.iter().copied()))
    }

    fn begin(&mut self) -> Option<Job> {
        if self.stopped {
            return None;
        }
        if let Some(piece) = self.waiting.pop_front() {
            self.waiting_bytes -= piece.length;
            self.under_way.push((piece.offset, piece.length));
            return Some(Job::Fetch(piece));
        }
        if !matches!(self.source, Source::Ready) {
            return None;
        }
        self.source = Source::Asked;
        Some(Job::Ask)
    }

    fn end(&mut self, piece: &Piece, result: &Result<()>) {
        let range = (piece.offset, piece.length);
        if let Some(index) = self.under_way.iter().position(|known| *known == range) {
            self.under_way.swap_remove(index);
        }
        if result.is_ok() {
            if self.done.len() == MAX_REMEMBERED {
                self.done.pop_front();
            }
            self.done.push_back(range);
        }
    }
}

impl Prefetcher {
    /// `below` is the thread model of the layers below. If they serve one request at a time, only
    /// one prefetch is begun at a time: more would not run, and would delay the client's next read.
    pub(crate) fn new(shared: &Arc<FilterShared>, below: ThreadModel) -> Arc<Prefetcher> {
        let most = if below == ThreadModel::Parallel { shared.limits.prefetches } else { 1 };
        Arc::new(Prefetcher {
            shared: Arc::clone(shared),
            most,
            queue: Mutex::default(),
            idle: Notify::new(),
            stopping: Notify::new(),
            next_range: OnceLock::new(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Queues a range of next. Returns whether it was accepted: all of it is queued, under way, or
    /// was just done.
    pub(crate) fn ask(self: &Arc<Self>, next: &Arc<Next>, offset: u64, length: u64) -> bool {
        let hop = &next.hop;
        let end = offset.saturating_add(length).min(hop.size());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
        if hop.can().cache == Support::None || offset >= end {
            return false;
        }
        let (from, to) = (offset, end);
        let counters = &self.shared.counters;
        let limits = &self.shared.limits;
        let mut queue = self.queue();
        if queue.stopped {
            return false;
        }
        if self.next_range.get().is_some() && matches!(queue.source, Source::Empty) {
            queue.source = Source::Ready;
            self.wake(&mut queue, &runtime);
        }
        let parts = queue.new_in(from, to);
        if parts.iter().map(|(a, b)| b - a).sum::<u64>() < to - from {
            counters.prefetches_merged.fetch_add(1, Relaxed);
        }
        for (mut from, to) in parts {
            while from < to {
                let length = (to - from).min(PIECE);
                let full = queue.waiting.len() >= MAX_RANGES
                    || queue.waiting_bytes.saturating_add(length) > limits.prefetch_queue;
                if full {
                    counters.prefetches_dropped.fetch_add(1, Relaxed);
                    return false;
                }
                queue.waiting.push_back(Piece { offset: from, length, next: Arc::clone(next) });
                queue.waiting_bytes += length;
                from += length;
                self.wake(&mut queue, &runtime);
            }
        }
        true
    }

    /// Starts one more worker, if the limit allows.
    fn wake(self: &Arc<Self>, queue: &mut Queue, runtime: &tokio::runtime::Handle) {
        if queue.workers < self.most {
            queue.workers += 1;
            runtime.spawn(Arc::clone(self).work());
        }
    }

    /// The connection is open, and its filter has ranges of its own.
    pub(crate) fn begin_background(self: &Arc<Self>, next: Option<&Next>, next_range: NextRange) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if next.is_none_or(|next| next.hop.can().cache == Support::None) {
            return;
        }
        let _ = self.next_range.set(next_range);
        let mut queue = self.queue();
        queue.source = Source::Ready;
        self.wake(&mut queue, &runtime);
    }

    /// Waits this long, or until no more prefetches are begun.
    async fn rest(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let stopping = self.stopping.notified();
        tokio::pin!(stopping);
        stopping.as_mut().enable();
        if !self.queue().stopped {
            let _ = tokio::time::timeout(time, stopping).await;
        }
    }

    /// Asks the filter for a range.
    async fn ask_filter(self: &Arc<Self>) -> Option<Piece> {
        self.rest(self.shared.background.wait(Instant::now())).await;
        let piece = match self.next_range.get() {
            Some(next_range) if !self.queue().stopped => {
                let (range, computed) = next_range().await;
                self.shared.background.charge(Instant::now(), computed);
                range.and_then(|((offset, length), next)| Piece::within(offset, length, next))
            }
            _ => None,
        };
        let mut queue = self.queue();
        let Some(piece) = piece.filter(|_| !queue.stopped) else {
            queue.source = Source::Empty;
            return None;
        };
        queue.source = Source::Ready;
        queue.under_way.push((piece.offset, piece.length));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.wake(&mut queue, &runtime);
        }
        Some(piece)
    }

    /// A worker: fetches one piece after the other until none is left.
    async fn work(self: Arc<Self>) {
        let counters = &self.shared.counters;
        loop {
            let job = {
                let mut queue = self.queue();
                let job = queue.begin();
                if job.is_none() {
                    queue.workers -= 1;
                    if queue.workers == 0 {
                        self.idle.notify_waiters();
                    }
                }
                job
            };
            let Some(job) = job else { return };
            let background = matches!(job, Job::Ask);
            let piece = match job {
                Job::Fetch(piece) => piece,
                Job::Ask => match self.ask_filter().await {
                    Some(piece) => piece,
                    None => continue,
                },
            };
            let started = Instant::now();
            // Prefetches are hints: they are left out where requests may need the memory.
            let charge = Some(&self.shared.buffers)
                .filter(|buffers| buffers.used() + piece.bytes() <= buffers.limit() / PART_FOR_PREFETCHES)
                .and_then(|buffers| Charge::new(buffers, piece.bytes()));
            let Some(charge) = charge else {
                counters.prefetches_dropped.fetch_add(1, Relaxed);
                self.queue().end(&piece, &Err(Errno::Enomem.into()));
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let result = piece.fetch().await;
            drop(charge);
            counters.prefetches.fetch_add(1, Relaxed);
            if let Err(error) = &result {
                counters.prefetches_failed.fetch_add(1, Relaxed);
                tracing::debug!("{}: prefetch at offset {}: {error}", self.shared.name, piece.offset);
            }
            self.queue().end(&piece, &result);
            if background && started.elapsed() < AT_ONCE {
                self.rest(PAUSE).await;
            }
        }
    }

    /// Begins no more prefetches.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue();
        queue.stopped = true;
        queue.waiting.clear();
        queue.waiting_bytes = 0;
        drop(queue);
        self.stopping.notify_waiters();
    }

    /// Waits until none is under way. Returns false if that takes longer than `most`.
    pub(crate) async fn drained(&self, most: Duration) -> bool {
        let idle = async {
            loop {
                let notified = self.idle.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if self.queue().workers == 0 {
                    return;
                }
                notified.await;
            }
        };
        if self.queue().workers == 0 {
            return true;
        }
        tokio::time::timeout(most, idle).await.is_ok()
    }
}

/// A range widened to whole blocks of the layer below; its end may be the end of the export.
fn aligned(from: u64, to: u64, block: u64, size: u64) -> (u64, u64) {
    let up = to.checked_next_multiple_of(block).unwrap_or(size);
    (from - from % block, up.min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_asked_for() {
        let covered = |ranges: &[(u64, u64)]| uncovered(10, 50, ranges.iter().copied());
        assert_eq!(covered(&[]), [(10, 50)]);
        assert_eq!(covered(&[(0, 20), (30, 5)]), [(20, 30), (35, 50)]);
        assert_eq!(covered(&[(0, 100)]), []);
        assert_eq!(covered(&[(50, 10), (0, 10)]), [(10, 50)]);
        assert_eq!(covered(&[(40, 30), (20, 5)]), [(10, 20), (25, 40)]);
    }

    #[test]
    fn ranges_are_widened_to_whole_blocks() {
        assert_eq!(aligned(100, 700, 512, 10_000), (0, 1024));
        assert_eq!(aligned(512, 10_000, 512, 10_000), (512, 10_000));
        assert_eq!(aligned(5, 6, 1, 10), (5, 6));
    }
}
