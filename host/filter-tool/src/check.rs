//! `check` and `bench`: a component in a real chain over a disk in memory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rbdkit_chain::{Chain, Hop, Layer};
use rbdkit_plugin_api::{Buffer, Client, Errno, Flags, Param, Peer, Plugin, Pool, Span, Support};
use rbdkit_sandbox::{FilterLimits, Host};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::inspect;

/// The disk below the filter: larger than a readahead window and than most block sizes, small enough to be quick.
const DISK: &str = "64M";

/// The part of the export that `check` works on, in steps of its own block.
const BLOCK: u32 = 4096;
const BLOCKS: u64 = 512;

/// So long an operation may take. A delay that somebody wants to see is shorter.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a chain of the filter (or of nothing) over a memory disk, and the host that knows of its faults.
fn chain(filter: Option<(&Path, &[String])>) -> Result<(Arc<Chain>, Option<Arc<Host>>)> {
    let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
    let mut host = None;
    if let Some((file, params)) = filter {
        let loaded = inspect::load(file)?;
        host = Some(loaded.host);
        let module = loaded.module;
        let mut values = Vec::new();
        for param in params {
            let (key, value) = param.split_once('=').with_context(|| format!("{param}: parameters are key=value"))?;
            let specs = &module.description().params;
            let spec = specs.iter().find(|spec| spec.answers_to(key)).with_context(|| {
                let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
                format!("the filter has no parameter '{key}' (it has: {})", known.join(", "))
            })?;
            values.push((spec.name.clone(), spec.read(key, OsStr::new(value)).map_err(|e| anyhow!("{e}"))?));
        }
        layers.push(module.configure(values, FilterLimits::default()).map_err(|e| anyhow!("{e}"))?);
    }
    let mut plugin: Box<dyn Plugin> = (rbdkit_plugin_memory::INFO.make)();
    let size = Param { key: "size", value: OsStr::new(DISK) };
    plugin
        .config(size)
        .and_then(|()| plugin.config_complete())
        .and_then(|()| plugin.get_ready())
        .and_then(|()| plugin.after_fork())
        .map_err(|e| anyhow!("{e}"))?;
    Ok((Chain::new(layers, "memory", plugin, Pool::new()), host))
}

async fn open(chain: &Arc<Chain>, id: u64) -> Result<Arc<Hop>> {
    let top = chain.top(Arc::new(Client::new(id, Peer::Unknown, None, false)));
    top.preconnect(false).await.map_err(|e| anyhow!("preconnect: {e}"))?;
    top.open(false, "").await.map_err(|e| anyhow!("open: {e}"))
}

/// How often each operation was tried, and how it ended.
struct Tally {
    outcomes: BTreeMap<&'static str, BTreeMap<String, u64>>,
    progress: Arc<Notify>,
}

impl Tally {
    fn add(&mut self, operation: &'static str, result: &std::result::Result<(), rbdkit_plugin_api::Error>) {
        let outcome = result.as_ref().map_or_else(|e| e.errno().name().to_string(), |()| "ok".to_string());
        self.progress.notify_one();
        *self.outcomes.entry(operation).or_default().entry(outcome).or_default() += 1;
    }
}

/// Things that are wrong and are said; of more only how many.
const SAID: usize = 20;

/// Runs every operation and compares what is read with what was written.
pub fn check(file: &Path, params: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let progress = Arc::new(Notify::new());
        let stuck = async { while timeout(PATIENCE, progress.notified()).await.is_ok() {} };
        tokio::select! {
            outcome = try_out(file, params, &progress) => outcome,
            () = stuck => Err(anyhow!("the filter waits and waits: nothing has ended in {PATIENCE:?}")),
        }
    });
    // What waits for ever is not waited for.
    runtime.shutdown_background();
    let wrong = outcome?;
    let Some((last, others)) = wrong.split_last() else {
        say!("nothing wrong was found");
        return Ok(());
    };
    others.iter().take(SAID - 1).for_each(|line| crate::complain(line));
    match others.len().saturating_sub(SAID - 1) {
        0 => bail!("{last}"),
        more => bail!("{} more like these", more + 1),
    }
}

/// What was wrong.
async fn try_out(file: &Path, params: &[String], progress: &Arc<Notify>) -> Result<Vec<String>> {
    let (chain, host) = chain(Some((file, params)))?;
    chain.get_ready().await.map_err(|e| anyhow!("{e}"))?;
    chain.after_fork().await.map_err(|e| anyhow!("{e}"))?;
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
    // A second connection finds what the first left behind in working order.
    let again = open(&chain, 2).await?;
    let (_, result) = again.pread(chain.pool().take(BLOCK), Span::new(0, BLOCK), 0).await;
    tally.add("pread", &result);
    tally.add("finalize", &again.finalize().await);
    again.close().await;
    chain.cleanup().await;
    for (operation, outcomes) in &tally.outcomes {
        let outcomes: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
        say!("{operation:<9} {}", outcomes.join(", "));
    }
    // An error may be what a filter is for. A trap, a limit or an answer that cannot be is not.
    let counted = host.iter().flat_map(|host| host.statistics());
    let faults: u64 = counted.map(|(_, counters)| counters.faults.load(Ordering::Relaxed)).sum();
    if faults > 0 {
        wrong.push(format!("the filter failed in {faults} calls"));
    }
    Ok(wrong)
}

/// A deterministic walk over the first blocks: write or zero or trim, read back, ask for extents, flush. Returns what was wrong.
async fn exercise(hop: &Arc<Hop>, tally: &mut Tally) -> Vec<String> {
    let can = hop.can();
    let block = hop.block_sizes().map_or(BLOCK, |sizes| BLOCK.max(sizes.minimum));
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
                let (mut buffer, result) = hop.pread(hop_buffer(block), Span::new(0, block), offset).await;
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
    if let Err(error) = hop.pread(hop_buffer(block), Span::new(0, block), hop.size()).await.1
        && error.errno() != Errno::Einval
    {
        wrong.push(format!("a read past the end answers {} instead of EINVAL", error.errno()));
    }
    wrong
}

fn hop_buffer(length: u32) -> Buffer {
    Buffer::new(length)
}

/// Rounds in alternation with and without the filter; the medians of each are compared.
const ROUNDS: usize = 7;

/// Measures the processor time that the filter adds to a request, at 4 KiB and 1 MiB.
pub fn bench(file: &Path, params: &[String], requests: u32) -> Result<()> {
    // One thread: what is measured is the cost, not how far it spreads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let with = prepare(Some((file, params))).await?;
        let without = prepare(None).await?;
        say!("{:<24} {:>12} {:>12} {:>12}", "request", "without", "with", "the filter");
        for (name, length, write) in
            [("pread 4 KiB", 4 << 10, false), ("pread 1 MiB", 1 << 20, false), ("pwrite 4 KiB", 4 << 10, true)]
        {
            if write && !with.can().write {
                continue;
            }
            let count = if length > 65536 { requests / 50 } else { requests }.max(1);
            let (mut filtered, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                filtered.push(round(&with, length, write, count).await?);
                plain.push(round(&without, length, write, count).await?);
            }
            let (with_median, without_median) = (median(filtered), median(plain));
            say!(
                "{name:<24} {:>9} ns {:>9} ns {:>9} ns",
                without_median.as_nanos(),
                with_median.as_nanos(),
                with_median.saturating_sub(without_median).as_nanos()
            );
        }
        Ok(())
    })
}

async fn prepare(filter: Option<(&Path, &[String])>) -> Result<Arc<Hop>> {
    let (chain, _) = chain(filter)?;
    chain.get_ready().await.map_err(|e| anyhow!("{e}"))?;
    chain.after_fork().await.map_err(|e| anyhow!("{e}"))?;
    open(&chain, 1).await
}

async fn round(hop: &Arc<Hop>, length: u32, write: bool, count: u32) -> Result<Duration> {
    let places = (hop.size() / u64::from(length)).max(1);
    let mut buffer = Buffer::from_vec(vec![1; length as usize]);
    let begun = processor_time();
    for i in 0..count {
        // A stride that is prime to the number of places visits all of them, out of order.
        let offset = (u64::from(i) * 7919 % places) * u64::from(length);
        let span = Span::new(0, length);
        let (returned, result) = if write {
            hop.pwrite(buffer, span, offset, Flags::NONE).await
        } else {
            hop.pread(buffer, span, offset).await
        };
        result.map_err(|e| anyhow!("{e}"))?;
        buffer = returned;
    }
    Ok((processor_time() - begun) / count)
}

/// What this thread has used of a processor: other programs on the machine do not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
