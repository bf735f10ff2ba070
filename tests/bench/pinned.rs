//! Measures the processor time of servers for a request, to a hundredth of a microsecond.
//!
//! A server that serves one busy client polls for requests, and that time is on its account too.
//! With more to do for each request it polls less. So with an ordinary client layers would seem to
//! cost next to nothing. Three things make the measurement honest:
//!
//! * A server has one processor. There it never polls (`host/server/src/socket.rs`), so all of its
//!   work is seen.
//! * The client, on the other processors, sends many requests in one piece and takes all answers
//!   before it sends more. So the number of system calls and wakes for each request does not depend
//!   on what the server does for it.
//! * All servers run at once and are measured in turn, a slice of time each, so that drifts of the
//!   machine affect all of them. Time is counted in nanoseconds for each thread.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rbdkit_tests::raw::{Client, STRUCTURED_REPLY, Stream, cmd, request};
use rbdkit_tests::{Launch, Server};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The length of the answer to a read that is all hole: the head of a chunk, offset and length.
const HOLE_ANSWER: usize = 20 + 12;

/// The length of the answer to a read that is all data, without the data: the head of a chunk, and
/// the offset.
const DATA_ANSWER: usize = 20 + 8;

/// The flag of the last chunk, and the type for a hole or for data.
const HOLE: [u8; 4] = [0, 1, 0, 2];
const DATA: [u8; 4] = [0, 1, 0, 1];

/// How long a server is measured before it is the next one's turn.
const SLICE: Duration = Duration::from_millis(100);

/// What a disk has.
#[derive(Clone, Copy, Debug)]
pub enum Answers {
    Holes,
    Data,
}

/// The reads that a client sends.
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    /// The length of one in bytes.
    pub block: u32,
    /// How many are sent at once.
    pub depth: u32,
    /// The size of the disk in bytes.
    pub disk: u32,
    pub answers: Answers,
}

/// Restricts this thread, and what it starts, to these processors. Dropping it lifts the
/// restriction.
pub struct Pinned(CpuSet);

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
pub struct Chain {
    server: Server,
    stream: Stream,
}

impl Chain {
    fn start(program: &Path, arguments: &[String]) -> Result<Chain, String> {
        let launch = Launch::new(arguments).program(program.to_owned());
        let server = launch.try_start().map_err(|outcome| format!("it did not start: {}", outcome.stderr))?;
        let stream = Client::connect(server.socket()).into_stream();
        Ok(Chain { server, stream })
    }

    /// Sends one batch of requests and takes all of its answers.
    fn batch(&mut self, nth: u32, Requests { block, depth, disk, answers }: Requests) -> Result<(), String> {
        let message = (0..depth).flat_map(|one| {
            let offset = u64::from((nth * depth + one) % (disk / block)) * u64::from(block);
            request(0, cmd::READ, one.into(), offset, block)
        });
        let failed = |error: std::io::Error| format!("the client: {error}");
        self.stream.0.write_all(&message.collect::<Vec<u8>>()).map_err(failed)?;
        let (length, kind) = match answers {
            Answers::Holes => (HOLE_ANSWER, HOLE),
            Answers::Data => (DATA_ANSWER + block as usize, DATA),
        };
        let bytes = self.stream.bytes(depth as usize * length).map_err(failed)?;
        let is_right = |answer: &[u8]| answer.starts_with(&STRUCTURED_REPLY.to_be_bytes()) && answer[4..8] == kind;
        match bytes.chunks(length).all(is_right) {
            true => Ok(()),
            false => Err(format!("an answer that is not one of {answers:?}")),
        }
    }

    /// Microseconds of processor time for a request, over a slice.
    fn slice(&mut self, requests: Requests) -> Result<f64, String> {
        let cpu = |chain: &Chain| chain.server.cpu().ok_or("the kernel does not tell the threads' time (schedstat)");
        // The server may have slept. These requests make the client count as busy again.
        for nth in 0..8 {
            self.batch(nth, requests)?;
        }
        let (before, started, mut batches) = (cpu(self)?, Instant::now(), 0);
        while started.elapsed() < SLICE {
            self.batch(batches, requests)?;
            batches += 1;
        }
        Ok(cpu(self)?.saturating_sub(before) as f64 / 1e3 / f64::from(batches * requests.depth))
    }
}

/// Starts a server with each of these command lines, all on one processor.
///
/// # Errors
/// What the server said when it did not start.
pub fn start(program: &Path, command_lines: &[Vec<String>]) -> Result<Vec<Chain>, String> {
    let (servers, _) = processors()?;
    let _pinned = Pinned::to(std::iter::once(servers))?;
    command_lines.iter().map(|words| Chain::start(program, words)).collect()
}

/// Keeps this thread off the servers' processor as long as the result lives.
///
/// # Errors
/// What the kernel refuses.
pub fn as_client() -> Result<Pinned, String> {
    let (_, clients) = processors()?;
    Pinned::to(clients.into_iter())
}

/// Measures all servers this many times in turn: microseconds of processor time for a request, one
/// row for each turn.
///
/// # Errors
/// What failed.
pub fn in_turns(chains: &mut [Chain], requests: Requests, turns: u64) -> Result<Vec<Vec<f64>>, String> {
    let mut rows = Vec::new();
    // The first turn warms everything up and does not count.
    for turn in 0..=turns {
        let row = chains.iter_mut().map(|chain| chain.slice(requests)).collect::<Result<Vec<f64>, String>>()?;
        if turn > 0 {
            rows.push(row);
        }
    }
    Ok(rows)
}
