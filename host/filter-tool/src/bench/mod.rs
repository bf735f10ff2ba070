//! `bench`: measures what a filter costs.
//!
//! Each workload is measured in rounds, in which the filter, nofilter and no filter alternate, so
//! that what else the machine does strikes all three. Instructions are counted apart from that, by
//! code that counts them, because such code is slower.

mod compare;
mod disk;
mod profile;
mod result;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbdkit_chain::{Chain, Hop};
use rbdkit_plugin_api::Buffer;
use rbdkit_plugin_api::units::parse_duration;
use rbdkit_sandbox::{CodeExtras, Host, Options as HostOptions, Profile, Trace};

use compare::{Comparison, SpeedVerdict};
use disk::INFO;
use profile::profile;
use result::{Cell, ColdStart, Measured, Old, median};
use workload::{Direction, Workload, one, round};

use crate::chain::{make_ready, open, over};
use crate::component::{self, Trust};
use crate::error::{Error, Result};

/// How a filter is measured.
#[derive(Debug, clap::Args)]
pub struct BenchOptions {
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = time)]
    time: Duration,
    /// Print JSON, for programs and for a later --compare
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: Trust,
    /// Compare with an earlier run, whose --json output is in this file
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// With --compare: exit with status 1 if the filter has become slower
    #[arg(long, requires = "compare")]
    fail_if_slower: bool,
    /// Write a profile of the guest's functions to this file, for Speedscope and Firefox's profiler
    #[arg(long, value_name = "OUT.json")]
    profile: Option<PathBuf>,
}

fn time(text: &str) -> Result<Duration, String> {
    match Duration::from_nanos(parse_duration(text)?) {
        time if time >= Duration::from_millis(100) && time <= Duration::from_secs(86400) => Ok(time),
        _ => Err("a time from 100ms to a day".to_string()),
    }
}

/// The filter that does nothing, if it was built before this program.
const NOFILTER: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/nofilter.rs"));

/// The size of the disk below, if the parameters give no other.
const SIZE: &str = "64M";

/// How many rounds a workload has.
const ROUNDS: u32 = 5;

/// How many requests of each kind are counted. The median is shown.
const COUNTED: u64 = 5;

/// How much longer than asked all rounds may take on a machine that is busy.
const SLACK: Duration = Duration::from_secs(5);

/// No directory can be made there, so compiled code is not kept.
const NO_CACHE: &str = "/dev/null/none";

/// Measures a filter and prints the result.
///
/// # Errors
/// The filter does not start, all its requests fail, or it has become slower and that is an error.
pub fn bench(file: &Path, params: &[String], options: &BenchOptions) -> Result<()> {
    let old = options.compare.as_deref().map(Old::read).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(file, params, options));
    // Does not wait for tasks that never end.
    runtime.shutdown_background();
    let measured = measured?;
    let comparison = old.map(|old| Comparison::new(&old, &measured));
    if options.json {
        let mut value = measured.json();
        if let Some(comparison) = &comparison {
            value["comparison"] = comparison.json();
        }
        say!("{value:#}");
    } else {
        measured.print();
        if let Some(comparison) = &comparison {
            comparison.print();
        }
        if let Some(path) = &options.profile {
            say!("profile: {} (open it at https://www.speedscope.app or https://profiler.firefox.com)", path.display());
        }
    }
    match comparison.map(|comparison| comparison.verdict()) {
        Some(SpeedVerdict::Slower) if options.fail_if_slower => {
            Err(Error::Found("the filter has become slower".to_string()))
        }
        _ => Ok(()),
    }
}

/// A component, and how it is started.
struct Subject<'a> {
    label: String,
    bytes: &'a [u8],
    params: &'a [String],
}

impl Subject<'_> {
    fn chain(&self, host: &Arc<Host>) -> Result<Arc<Chain>> {
        let module = host.load(&self.label, self.bytes)?;
        over(Some((module, self.params)), &INFO, (INFO.make)(), SIZE)
    }

    async fn connection(&self, host: &Arc<Host>) -> Result<Arc<Hop>> {
        connect(&self.chain(host)?).await
    }
}

async fn connect(chain: &Arc<Chain>) -> Result<Arc<Hop>> {
    make_ready(chain).await?;
    open(chain, 1).await
}

/// The three that are compared in each round.
struct Contenders {
    filter: Arc<Hop>,
    nofilter: Option<Arc<Hop>>,
    none: Arc<Hop>,
}

async fn measure(file: &Path, params: &[String], options: &BenchOptions) -> Result<Measured> {
    let bytes = options.trust.fetch(file)?.bytes;
    let begun = Instant::now();
    let subject = Subject { label: file.display().to_string(), bytes: &bytes, params };
    let cold = cold_start(&subject).await?;
    let host = component::host(HostOptions::default())?;
    let module = host.load(&subject.label, &bytes)?;
    let name = format!("{} {}", module.description().name, module.description().version);
    drop(module);
    // The disk of each has the size that the parameters give.
    let size: Vec<String> = params.iter().filter(|word| word.starts_with("size=")).cloned().collect();
    let nofilter = NOFILTER.map(|bytes| Subject { label: "nofilter".into(), bytes, params: &size });
    let contenders = Contenders {
        filter: subject.connection(&host).await?,
        nofilter: match &nofilter {
            Some(nofilter) => Some(nofilter.connection(&host).await?),
            None => None,
        },
        none: connect(&without_filter(&size)?).await?,
    };
    let counts = count(&subject).await?;
    // A profile gets a fifth of the time.
    let share = if options.profile.is_some() { 0.8 } else { 1.0 };
    let time = options.time.mul_f64(share).saturating_sub(begun.elapsed()).max(options.time / 4);
    let workloads = Workload::all();
    let each = time / (workloads.len() as u32 * ROUNDS * 3);
    // Requests of a slow filter take longer than a round. Then there are fewer rounds.
    let until = Instant::now() + time * 2 + SLACK;
    let mut cells = Vec::new();
    for workload in workloads {
        let counted = counts
            .requests
            .iter()
            .find(|counted| counted.operation == workload.operation && counted.length == workload.length);
        cells.push(cell(&contenders, workload, (each, until), counted).await);
    }
    let works = |cell: &&Cell| !cell.refused && cell.error.is_none();
    if let (None, Some(error)) = (cells.iter().find(works), cells.iter().find_map(|cell| cell.error.as_ref())) {
        return Err(Error::Found(format!("every request fails: {error}")));
    }
    if let Some(path) = &options.profile {
        let sampled = sample(&subject, options.time / 5).await?;
        std::fs::write(path, format!("{sampled}\n")).map_err(Error::file("cannot write", path))?;
    }
    Ok(Measured {
        filter: name,
        params: params.to_vec(),
        seconds: begun.elapsed().as_secs_f64(),
        cells,
        memory: counts.memory,
        cold,
    })
}

/// A chain of the disk alone.
fn without_filter(size: &[String]) -> Result<Arc<Chain>> {
    let size = size.last().and_then(|word| word.strip_prefix("size="));
    over(None, &INFO, (INFO.make)(), size.unwrap_or(SIZE))
}

/// Measures one workload in rounds of this time. After `until` no more than one round begins.
async fn cell(
    contenders: &Contenders,
    workload: Workload,
    (each, until): (Duration, Instant),
    counted: Option<&Counted>,
) -> Cell {
    let mut cell = Cell {
        workload,
        refused: workload.operation == Direction::Write && !contenders.filter.can().write,
        requests: 0,
        failed: 0,
        error: None,
        p50: 0.0,
        p99: 0.0,
        throughput: 0.0,
        filter: Vec::new(),
        nofilter: Vec::new(),
        none: Vec::new(),
        instructions: counted.map(|counted| counted.instructions),
        host_calls: counted.map(|counted| counted.host_calls),
    };
    if cell.refused {
        return cell;
    }
    let (mut p99, mut throughput) = (Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        if number > 0 && Instant::now() > until {
            break;
        }
        let filter = round(&contenders.filter, workload, each).await;
        cell.requests += filter.requests;
        cell.failed += filter.failed;
        cell.filter.push(filter.p50);
        p99.push(filter.p99);
        throughput.push(f64::from(workload.length) * 1e9 / filter.time_each);
        if let Some(error) = filter.error {
            cell.error = Some(error.to_string());
            break;
        }
        if let Some(nofilter) = &contenders.nofilter {
            let nofilter = round(nofilter, workload, each).await;
            cell.nofilter.push(nofilter.p50);
        }
        let none = round(&contenders.none, workload, each).await;
        cell.none.push(none.p50);
    }
    (cell.p50, cell.p99) = (median(&cell.filter), median(&p99));
    cell.throughput = median(&throughput);
    cell
}

/// How long the filter takes to start.
async fn cold_start(subject: &Subject<'_>) -> Result<ColdStart> {
    let nanoseconds = |begun: Instant| begun.elapsed().as_nanos() as f64;
    let host = component::host(HostOptions { cache_dir: Some(NO_CACHE.into()), ..HostOptions::default() })?;
    let begun = Instant::now();
    host.load(&subject.label, subject.bytes)?;
    let compile = nanoseconds(begun);
    let trace = Arc::new(Trace::default());
    let host = component::host(HostOptions { trace: Some(Arc::clone(&trace)), ..HostOptions::default() })?;
    // This compiles it if it is not in the cache.
    host.load(&subject.label, subject.bytes)?;
    let begun = Instant::now();
    let module = host.load(&subject.label, subject.bytes)?;
    let load = nanoseconds(begun);
    trace.take();
    // Making the disk takes time as well, so the guest's own calls are counted.
    let chain = over(Some((module, subject.params)), &INFO, (INFO.make)(), SIZE)?;
    let calls = trace.take().into_iter().filter(|call| matches!(call.name, "instantiate" | "configure"));
    let configure = calls.map(|call| call.took.as_nanos() as f64).sum();
    make_ready(&chain).await?;
    let begun = Instant::now();
    let hop = open(&chain, 1).await?;
    let length = u32::try_from(hop.size()).unwrap_or(u32::MAX).clamp(1, 4096);
    // If it fails, the measurement below says so.
    let _ = one(&hop, Direction::Read, Buffer::new(length), length, 0).await;
    Ok(ColdStart { compile, load, configure, first_read: nanoseconds(begun) })
}

/// What a request of one kind executes.
struct Counted {
    operation: Direction,
    length: u32,
    instructions: u64,
    host_calls: u64,
}

struct Counts {
    requests: Vec<Counted>,
    /// Bytes of an instance after the longest request.
    memory: u64,
}

/// Counts instructions and calls of the host.
async fn count(subject: &Subject<'_>) -> Result<Counts> {
    let trace = Arc::new(Trace::default());
    let options =
        HostOptions { extras: CodeExtras::LinesAndCount, trace: Some(Arc::clone(&trace)), ..HostOptions::default() };
    let hop = subject.connection(&component::host(options)?).await?;
    let mut counts = Counts { requests: Vec::new(), memory: 0 };
    for Workload { operation, length, depth } in Workload::all() {
        if depth != 1 || (operation == Direction::Write && !hop.can().write) {
            continue;
        }
        let (mut instructions, mut host_calls) = (Vec::new(), Vec::new());
        for number in 0..COUNTED {
            trace.take();
            let length = length.min(u32::try_from(hop.size()).unwrap_or(u32::MAX)).max(1);
            let buffer = Buffer::from_vec(vec![1; length as usize]);
            // A request that fails executes instructions as well.
            let _ = one(&hop, operation, buffer, length, number).await;
            let calls = trace.take();
            instructions.push(calls.iter().filter_map(|call| call.instructions).sum::<u64>());
            host_calls.push(calls.iter().map(|call| call.host_calls.len() as u64 + call.left_out).sum::<u64>());
            counts.memory = calls.iter().map(|call| call.memory).fold(counts.memory, u64::max);
        }
        instructions.sort_unstable();
        host_calls.sort_unstable();
        counts.requests.push(Counted {
            operation,
            length,
            instructions: instructions[instructions.len() / 2],
            host_calls: host_calls[host_calls.len() / 2],
        });
    }
    Ok(counts)
}

/// Samples the guest's functions for this long, under all kinds of requests.
async fn sample(subject: &Subject<'_>, time: Duration) -> Result<serde_json::Value> {
    let samples = Profile::begin();
    let options = HostOptions { profile: Some(Arc::clone(&samples)), ..HostOptions::default() };
    let hop = subject.connection(&component::host(options)?).await?;
    let all = Workload::all().into_iter();
    let all = all.filter(|workload| workload.depth == 1 && (workload.operation == Direction::Read || hop.can().write));
    let all: Vec<Workload> = all.collect();
    for workload in &all {
        round(&hop, *workload, time / all.len() as u32).await;
    }
    Ok(profile(&samples.samples()))
}
