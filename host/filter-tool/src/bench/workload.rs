//! Requests of one kind, and a round of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Buffer, Error as LayerError, Flags, Span};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

impl Direction {
    /// Its word in the output.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Read => "read",
            Direction::Write => "write",
        }
    }
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pub operation: Direction,
    /// Bytes of a request.
    pub length: u32,
    /// How many requests are under way at once.
    pub depth: u32,
}

impl Workload {
    /// All workloads, in the order of the output.
    pub fn all() -> Vec<Workload> {
        let mut all = Vec::new();
        for operation in [Direction::Read, Direction::Write] {
            for length in [4 << 10, 64 << 10, 1 << 20] {
                all.extend([1, 32].map(|depth| Workload { operation, length, depth }));
            }
        }
        all
    }

    /// What is requested, without the depth.
    pub fn request(&self) -> String {
        match self.length {
            0..0x10_0000 => format!("{} {} KiB", self.operation.name(), self.length >> 10),
            _ => format!("{} {} MiB", self.operation.name(), self.length >> 20),
        }
    }
}

/// What one round showed. Times are in nanoseconds.
#[derive(Debug, Default)]
pub struct Round {
    pub requests: u64,
    pub failed: u64,
    /// One of the errors, if all requests failed.
    pub error: Option<LayerError>,
    /// The round's time divided by the number of requests.
    pub time_each: f64,
    pub p50: f64,
    pub p99: f64,
}

/// The most requests of one task in one round whose time is kept.
const MAX_TIMES: usize = 100_000;

/// Sends requests for this long, and at least one of each task.
pub async fn round(hop: &Arc<Hop>, workload: Workload, time: Duration) -> Round {
    let place = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let until = begun + time;
    let mut tasks = vec![];
    // At depth 1 no task is needed, whose switches would be measured.
    let mut done = if workload.depth == 1 {
        vec![requests(Arc::clone(hop), workload, until, Arc::clone(&place)).await]
    } else {
        for _ in 0..workload.depth {
            tasks.push(tokio::spawn(requests(Arc::clone(hop), workload, until, Arc::clone(&place))));
        }
        Vec::new()
    };
    for task in tasks {
        // A task that panicked has said so.
        done.extend(task.await);
    }
    let elapsed = begun.elapsed();
    let requests: u64 = done.iter().map(|one| one.requests).sum();
    let failed = done.iter().map(|one| one.failed).sum();
    let error = done.iter_mut().find_map(|one| one.error.take()).filter(|_| failed == requests);
    let mut times: Vec<u64> = done.into_iter().flat_map(|one| one.times).collect();
    times.sort_unstable();
    Round {
        requests,
        failed,
        error,
        time_each: elapsed.as_nanos() as f64 / requests.max(1) as f64,
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
    }
}

/// The value below which this percentage of sorted values lies.
fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| *time as f64)
}

/// What one task has done.
#[derive(Default)]
struct TaskRound {
    requests: u64,
    failed: u64,
    times: Vec<u64>,
    error: Option<LayerError>,
}

async fn requests(hop: Arc<Hop>, workload: Workload, until: Instant, place: Arc<AtomicU64>) -> TaskRound {
    let mut round = TaskRound::default();
    let length = workload.length.min(u32::try_from(hop.size()).unwrap_or(u32::MAX)).max(1);
    let mut buffer = Buffer::from_vec(vec![1; length as usize]);
    let mut now = Instant::now();
    loop {
        let result;
        (buffer, result) = one(&hop, workload.operation, buffer, length, place.fetch_add(1, Relaxed)).await;
        let after = Instant::now();
        round.requests += 1;
        if let Err(error) = result {
            round.failed += 1;
            round.error = Some(error);
        }
        if buffer.len() != length {
            buffer = Buffer::from_vec(vec![1; length as usize]);
        }
        if round.times.len() < MAX_TIMES {
            round.times.push(u64::try_from((after - now).as_nanos()).unwrap_or(u64::MAX));
        }
        now = after;
        if now >= until {
            return round;
        }
        // Other tasks get their turn: an operation that is ready at once does not yield.
        if workload.depth > 1 {
            tokio::task::yield_now().await;
            now = Instant::now();
        }
    }
}

/// Sends one request. `number` says where.
pub async fn one(
    hop: &Arc<Hop>,
    operation: Direction,
    buffer: Buffer,
    length: u32,
    number: u64,
) -> (Buffer, Result<(), LayerError>) {
    let places = (hop.size() / u64::from(length)).max(1);
    // 7919 is a prime number, so this stride visits all blocks, out of order.
    let offset = (number.wrapping_mul(7919) % places) * u64::from(length);
    let span = Span::new(0, length);
    match operation {
        Direction::Read => hop.pread(buffer, span, offset).await,
        Direction::Write => hop.pwrite(buffer, span, offset, Flags::NONE).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<u64> = (1..=100).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 99)), (51.0, 100.0));
        assert_eq!((percentile(&[], 50), percentile(&[7], 99)), (0.0, 7.0));
    }

    #[test]
    fn there_are_twelve_workloads() {
        let all: Vec<String> = Workload::all().iter().map(|one| format!("{} {}", one.request(), one.depth)).collect();
        assert_eq!(all.len(), 12);
        assert_eq!((all[0].as_str(), all[11].as_str()), ("read 4 KiB 1", "write 1 MiB 32"));
    }
}
