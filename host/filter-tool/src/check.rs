//! `check`: tests every operation of a component, over a disk in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Buffer, Errno, Flags, Span, Support};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::chain::{chain, make_ready, open};
use crate::error::{Error, Result};
use crate::output::complain;

/// How long the layers may clean up: the limit `setup` of a filter, and some.
const CLEANUP: Duration = Duration::from_secs(65);

/// The bytes of a block that `check` reads and writes, if the filter does not need larger ones.
const BLOCK: u32 = 4096;

/// The blocks that `check` works on, from the beginning of the export.
const BLOCKS: u64 = 512;

/// How long an operation may take. Intended delays of a filter are shorter.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often each operation was tried, and how it ended.
struct Tally {
    outcomes: BTreeMap<&'static str, BTreeMap<String, u64>>,
    progress: Arc<Notify>,
}

impl Tally {
    fn add(&mut self, operation: &'static str, result: &Result<(), rbdkit_plugin_api::Error>) {
        let outcome = result.as_ref().map_or_else(|e| e.errno().name().to_string(), |()| "ok".to_string());
        self.progress.notify_one();
        *self.outcomes.entry(operation).or_default().entry(outcome).or_default() += 1;
    }
}

/// How many findings are printed. Further ones are only counted.
const SAID: usize = 20;

/// Runs every operation and compares what is read with what was written.
pub fn check(file: &Path, params: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let progress = Arc::new(Notify::new());
        let stuck = async { while timeout(PATIENCE, progress.notified()).await.is_ok() {} };
        tokio::select! {
            outcome = try_out(file, params, &progress) => outcome,
            () = stuck => Err(Error::Found(format!("the filter hangs: no operation has ended in {PATIENCE:?}"))),
        }
    });
    // Does not wait for tasks that never end.
    runtime.shutdown_background();
    let wrong = outcome?;
    let Some((last, others)) = wrong.split_last() else {
        say!("nothing wrong was found");
        return Ok(());
    };
    others.iter().take(SAID - 1).for_each(|line| complain(line));
    match others.len().saturating_sub(SAID - 1) {
        0 => Err(Error::Found(last.clone())),
        more => Err(Error::Found(format!("{} more like these", more + 1))),
    }
}

/// Runs two connections. Returns the findings.
async fn try_out(file: &Path, params: &[String], progress: &Arc<Notify>) -> Result<Vec<String>> {
    let (chain, host) = chain(Some((file, params)))?;
    make_ready(&chain).await?;
    let hop = open(&chain, 1).await?;
    let can = hop.can();
    say!("{}: export of {} bytes", hop.name(), hop.size());
    say!(
        "can: write={} flush={} trim={} zero={:?} fua={:?} cache={:?} extents={} multi-conn={}",
        can.write,
        can.flush,
        can.trim,
        can.zero,
        can.fua,
        can.cache,
        can.extents,
        can.multi_conn
    );
    let mut tally = Tally { outcomes: BTreeMap::new(), progress: Arc::clone(progress) };
    let mut wrong = exercise(&hop, &mut tally).await;
    let finalize = hop.finalize().await;
    tally.add("finalize", &finalize);
    hop.close().await;
    // The first connection must not have left anything that disturbs a second one.
    let again = open(&chain, 2).await?;
    let (_, result) = again.pread(chain.pool().take(BLOCK), Span::new(0, BLOCK), 0).await;
    tally.add("pread", &result);
    tally.add("finalize", &again.finalize().await);
    again.close().await;
    chain.cleanup(tokio::time::Instant::now() + CLEANUP).await;
    for (operation, outcomes) in &tally.outcomes {
        let outcomes: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
        say!("{operation:<9} {}", outcomes.join(", "));
    }
    // A filter may fail requests on purpose. It must not trap, exceed a limit or give invalid
    // answers.
    let counted = host.iter().flat_map(|host| host.statistics());
    let faults: u64 = counted.map(|(_, counters)| counters.faults.load(Ordering::Relaxed)).sum();
    if faults > 0 {
        wrong.push(format!("the filter failed in {faults} calls"));
    }
    Ok(wrong)
}

/// Walks over the first blocks, the same way each time: writes, zeroes, trims, reads back, asks for
/// extents, flushes. Returns what was wrong.
async fn exercise(hop: &Arc<Hop>, tally: &mut Tally) -> Vec<String> {
    let can = hop.can();
    let block = hop.block_sizes().await.map_or(BLOCK, |sizes| BLOCK.max(sizes.minimum));
    let blocks = BLOCKS.min(hop.size() / u64::from(block));
    let mut wrong = Vec::new();
    let mut expected: Vec<Option<u8>> = vec![None; blocks as usize];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |limit: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % limit.max(1)
    };
    for step in 0..4 * blocks {
        let at = random(blocks);
        let offset = at * u64::from(block);
        match random(10) {
            0..=2 if can.write => {
                let byte = (step % 255) as u8 + 1;
                let buffer = Buffer::from_vec(vec![byte; block as usize]);
                let fua = can.fua != Support::None && random(8) == 0;
                let (_, result) = hop.pwrite(buffer, Span::new(0, block), offset, Flags { fua, ..Flags::NONE }).await;
                expected[at as usize] = result.is_ok().then_some(byte);
                tally.add("pwrite", &result);
            }
            3 if can.zero != Support::None => {
                let flags = Flags { may_trim: random(2) == 0, ..Flags::NONE };
                let result = hop.zero(offset, u64::from(block), flags).await;
                expected[at as usize] = result.is_ok().then_some(0);
                tally.add("zero", &result);
            }
            4 if can.trim => {
                let result = hop.trim(offset, u64::from(block), Flags::NONE).await;
                expected[at as usize] = None;
                tally.add("trim", &result);
            }
            5 if can.flush => tally.add("flush", &hop.flush().await),
            6 if can.cache != Support::None => tally.add("cache", &hop.cache(offset, u64::from(block)).await),
            7 if can.extents => {
                let result = hop.extents(offset, u64::from(block), Flags::NONE).await.map(|_| ());
                tally.add("extents", &result);
            }
            _ => {
                let (mut buffer, result) = hop.pread(Buffer::new(block), Span::new(0, block), offset).await;
                tally.add("pread", &result);
                let all = buffer.span();
                if let (Ok(()), Some(byte)) = (&result, expected[at as usize])
                    && buffer.bytes(all).iter().any(|read| *read != byte)
                {
                    wrong.push(format!("block {at} reads differently from what was written to it (byte {byte:#04x})"));
                    expected[at as usize] = None;
                }
            }
        }
    }
    if let Err(error) = hop.pread(Buffer::new(block), Span::new(0, block), hop.size()).await.1
        && error.errno() != Errno::Einval
    {
        wrong.push(format!("a read past the end answers {} instead of EINVAL", error.errno()));
    }
    wrong
}
