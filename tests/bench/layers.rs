//! What a layer costs: the microseconds of processor time that each nofilter of a chain adds to a
//! request, with all limits on.
//!
//! A server that serves one busy client polls for requests, and that time is on its account too.
//! With more to do for each request it polls less. So with an ordinary client layers would seem to
//! cost next to nothing. Three things make the measurement honest:
//!
//! * The server has one processor. There it never polls (`host/server/src/socket.rs`), so all of
//!   its work is seen.
//! * The client, on the other processors, sends many requests in one piece and takes all answers
//!   before it sends more. So the number of system calls and wakes for each request does not depend
//!   on the length of the chain.
//! * All chains run at once and are measured in turn, a slice of time each, so that drifts of the
//!   machine affect all of them. Time is counted in nanoseconds for each thread.
//!
//! The disk is one hole, which goes over the socket without data: sending 1 MiB costs the server a
//! hundred times what is measured here, and varies by more than that. A layer that copied or
//! touched payloads would still show.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::{Client, STRUCTURED_REPLY, Stream, cmd, request};
use rbdkit_tests::{Launch, Server};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::results::{Spread, slope};

/// The number of nofilters in each chain.
pub const CHAINS: [u8; 4] = [0, 1, 5, 10];

/// The sizes of requests in bytes, each with how many are sent at once. What a layer costs must not
/// depend on the size.
pub const BLOCKS: [(u32, u32); 2] = [(4 << 10, 32), (1 << 20, 32)];

const DISK: u32 = 64 << 20;

/// The length of the answer to a read that is all hole: the head of a chunk, offset and length.
const ANSWER: usize = 20 + 12;

/// The flag of the last chunk, and the type for a hole.
const HOLE: [u8; 4] = [0, 1, 0, 2];

/// How long a chain is measured before it is the next chain's turn.
const SLICE: Duration = Duration::from_millis(100);

/// The costs at one size of a request.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The size of a request in bytes.
    pub block: u32,
    /// Microseconds of processor time for a request, for each of [`CHAINS`]. Medians.
    pub cpu: [f64; CHAINS.len()],
    /// What each further layer costs, turn by turn.
    pub slopes: Vec<f64>,
}

/// Restricts this thread, and what it starts, to these processors. Dropping it lifts the
/// restriction.
struct Pinned(CpuSet);

impl Pinned {
    fn to(processors: impl Iterator<Item = usize>) -> Result<Pinned, String> {
        let before = sched_getaffinity(None).map_err(|error| format!("processors: {error}"))?;
        let mut set = CpuSet::new();
        processors.for_each(|processor| set.set(processor));
        sched_setaffinity(None, &set).map_err(|error| format!("processors: {error}"))?;
        Ok(Pinned(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// The processors for the server and for the client, out of those that this thread may run on.
fn processors() -> Result<(usize, Vec<usize>), String> {
    let set = sched_getaffinity(None).map_err(|error| format!("processors: {error}"))?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect();
    let (first, others) = all.split_first().ok_or("no processor")?;
    Ok((*first, if others.is_empty() { vec![*first] } else { others.to_vec() }))
}

/// A server and its one client.
struct Chain {
    server: Server,
    stream: Stream,
}

impl Chain {
    fn start(program: &Path, count: u8) -> Result<Chain, String> {
        let filters = vec!["--filter=nofilter"; count.into()];
        let launch = Launch::new(filters).program(program.to_owned()).args(["memory".to_owned(), DISK.to_string()]);
        let server = launch.try_start().map_err(|outcome| format!("it did not start: {}", outcome.stderr))?;
        let stream = Client::connect(server.socket()).into_stream();
        Ok(Chain { server, stream })
    }

    /// Sends one batch of requests and takes all of its answers.
    fn batch(&mut self, nth: u32, block: u32, depth: u32) -> Result<(), String> {
        let message = (0..depth).flat_map(|one| {
            let offset = u64::from((nth * depth + one) % (DISK / block)) * u64::from(block);
            request(0, cmd::READ, one.into(), offset, block)
        });
        let failed = |error: std::io::Error| format!("the client: {error}");
        self.stream.0.write_all(&message.collect::<Vec<u8>>()).map_err(failed)?;
        let answers = self.stream.bytes(depth as usize * ANSWER).map_err(failed)?;
        let is_hole = |answer: &[u8]| answer.starts_with(&STRUCTURED_REPLY.to_be_bytes()) && answer[4..8] == HOLE;
        match answers.chunks(ANSWER).all(is_hole) {
            true => Ok(()),
            false => Err("an answer that is no hole".into()),
        }
    }

    /// Microseconds of processor time for a request, over a slice.
    fn slice(&mut self, block: u32, depth: u32) -> Result<f64, String> {
        let cpu = |chain: &Chain| chain.server.cpu().ok_or("the kernel does not tell the threads' time (schedstat)");
        // The server may have slept. These requests make the client count as busy again.
        for nth in 0..8 {
            self.batch(nth, block, depth)?;
        }
        let (before, started, mut batches) = (cpu(self)?, Instant::now(), 0);
        while started.elapsed() < SLICE {
            self.batch(batches, block, depth)?;
            batches += 1;
        }
        Ok(cpu(self)?.saturating_sub(before) as f64 / 1e3 / f64::from(batches * depth))
    }
}

/// Measures all chains this many times in turn.
///
/// # Errors
/// What failed.
pub fn measure(program: &Path, turns: u64) -> Result<Vec<Layers>, String> {
    let (servers, clients) = processors()?;
    let chains = {
        let _pinned = Pinned::to(std::iter::once(servers))?;
        CHAINS.iter().map(|&count| Chain::start(program, count)).collect::<Result<Vec<Chain>, String>>()
    };
    let mut chains = chains?;
    let _pinned = Pinned::to(clients.into_iter())?;
    BLOCKS.iter().map(|&(block, depth)| at_block(&mut chains, block, depth, turns)).collect()
}

fn at_block(chains: &mut [Chain], block: u32, depth: u32, turns: u64) -> Result<Layers, String> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    // The first turn warms everything up and does not count.
    for turn in 0..=turns {
        let row = chains.iter_mut().map(|chain| chain.slice(block, depth)).collect::<Result<Vec<f64>, String>>()?;
        if turn > 0 {
            rows.push(row);
        }
    }
    let points =
        |row: &Vec<f64>| CHAINS.iter().map(|&count| f64::from(count)).zip(row.iter().copied()).collect::<Vec<_>>();
    let slopes = rows.iter().filter_map(|row| slope(&points(row))).collect();
    let median = |nth: usize| Spread::of(rows.iter().map(|row| row[nth])).map_or(f64::NAN, |spread| spread.median);
    Ok(Layers { block, cpu: std::array::from_fn(median), slopes })
}
