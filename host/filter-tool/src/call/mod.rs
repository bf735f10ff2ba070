//! `call`: carries out one operation through a filter, and shows what the guest did in it.

mod disk;
mod operation;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rbdkit_parameters::Parameter;
use rbdkit_plugin_api::{Client, Flags, MAX_REQUEST, Peer};
use rbdkit_sandbox::{CodeExtras, Options as HostOptions, Trace};
use tokio::time::timeout;

pub use disk::{INFO as DISK, OffsetDisk};
use operation::{Operation, OperationKind, OperationReply, Stage, WriteData, before_open, on_connection};
use report::CallReport;

use crate::chain::{make_ready, over};
use crate::component::{self, Trust};
use crate::error::{Error, Result};
use crate::output;
use crate::times::more_than_zero;

/// How an operation is carried out.
#[derive(Debug, clap::Args)]
pub struct CallOptions {
    /// A parameter of the filter, or of the disk below it (size); repeat it for more
    #[arg(long = "param", value_name = "KEY=VALUE")]
    params: Vec<String>,
    /// Read this file below the filter (default: a disk of 64M on which every 8-byte word holds its
    /// offset)
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Open the connection read-only
    #[arg(long)]
    readonly: bool,
    /// pwrite: write this byte (default 0xa5)
    #[arg(long, value_name = "BYTE", value_parser = byte, conflicts_with = "data")]
    fill: Option<u8>,
    /// pwrite: write the content of this file
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Flags of the operation; repeat it for more
    #[arg(long = "flag", value_name = "FLAG")]
    flags: Vec<Flag>,
    /// The export to open
    #[arg(long, value_name = "NAME", default_value = "")]
    export: String,
    /// Show everything that the guest does from its start on, and not just the operation
    #[arg(long)]
    all: bool,
    /// How long the operation may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = more_than_zero)]
    patience: Duration,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: Trust,
}

/// A flag of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Flag {
    /// The change is durable before the answer
    Fua,
    /// zero: a hole may be left
    MayTrim,
    /// zero: fail rather than be as slow as writing
    FastZero,
    /// extents: one extent is enough
    ReqOne,
}

fn byte(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a byte from 0 to 255, or from 0x0 to 0xff".to_string())
}

/// The size of the disk below, if neither a parameter nor a file gives another.
const SIZE: u64 = 64 << 20;

/// Carries out an operation and prints what happened.
///
/// # Errors
/// The filter does not start, the words are no operation, or the operation fails.
pub fn call(file: &Path, words: &[String], options: &CallOptions) -> Result<()> {
    let (operation, params) = understood(words, options)?;
    // One thread, so that all of its processor time is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(carry_out(file, &operation, &params, options));
    // Does not wait for tasks that never end.
    runtime.shutdown_background();
    let report = report?;
    match options.json {
        true => say!("{:#}", report.json()),
        false => report.print(),
    }
    match report.answer {
        Ok(_) => Ok(()),
        Err((errno, _)) => Err(Error::Found(format!("{operation} fails with {errno}"))),
    }
}

/// The operation and the parameters in the words after the file.
fn understood(words: &[String], options: &CallOptions) -> Result<(Operation, Vec<String>)> {
    let is_param = |word: &&String| matches!(Parameter::new(word.into()), Parameter::Keyed(..));
    let (mut params, words): (Vec<&String>, Vec<&String>) = words.iter().partition(is_param);
    params.extend(&options.params);
    let [name, arguments @ ..] = words.as_slice() else {
        return Err(Error::Call("name an operation after the file, such as pread 0 4096".to_string()));
    };
    let data = match (&options.data, options.fill) {
        (Some(path), _) => Some(WriteData::Bytes(read_data(path)?)),
        (None, fill) => fill.map(WriteData::Fill),
    };
    let has = |flag| options.flags.contains(&flag);
    let flags = Flags {
        fua: has(Flag::Fua),
        may_trim: has(Flag::MayTrim),
        fast_zero: has(Flag::FastZero),
        req_one: has(Flag::ReqOne),
    };
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).clone()).collect();
    let operation = Operation::parse(name, &arguments, flags, data)?;
    Ok((operation, params.into_iter().cloned().collect()))
}

fn read_data(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let about = std::fs::metadata(path).map_err(Error::file("cannot open", path))?;
    if !about.is_file() {
        return Err(Error::Call(format!("--data {}: is not a regular file", path.display())));
    }
    let file = std::fs::File::open(path).map_err(Error::file("cannot open", path))?;
    let mut bytes = Vec::new();
    file.take(u64::from(MAX_REQUEST) + 1).read_to_end(&mut bytes).map_err(Error::file("cannot read", path))?;
    if bytes.is_empty() || bytes.len() > MAX_REQUEST as usize {
        let most = MAX_REQUEST >> 20;
        return Err(Error::Call(format!("--data {}: has to have 1 byte to {most} MiB", path.display())));
    }
    Ok(bytes)
}

/// Loads the filter and carries out the operation.
async fn carry_out(file: &Path, operation: &Operation, params: &[String], options: &CallOptions) -> Result<CallReport> {
    let trace = Arc::new(Trace::default());
    let host = component::host(HostOptions {
        extras: CodeExtras::LinesAndCount,
        trace: Some(Arc::clone(&trace)),
        ..HostOptions::default()
    })?;
    let module = host.load(&file.display().to_string(), &options.trust.fetch(file)?.bytes)?;
    let about = module.description().clone();
    let (disk, size) = match &options.disk {
        Some(path) => OffsetDisk::of_file(path)?,
        None => (OffsetDisk::of_offsets(), SIZE),
    };
    output::capture_log();
    let kind = operation.kind;
    let limit = |what: &'static str| Error::Found(format!("{what} has not ended in {:?}", options.patience));
    let chain = over(Some((module, params)), &DISK, disk.plugin(), &size.to_string())?;
    timeout(options.patience, make_ready(&chain)).await.map_err(|_| limit("get-ready"))??;
    let mut calls = trace.take();
    if kind.stage() != Stage::Load && !options.all {
        calls.clear();
        output::take_log();
    }
    disk.take_seen();

    let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
    let top = chain.top(Arc::clone(&client));
    let mut begun = Stopwatch::start();
    let mut answer = Ok(match kind {
        OperationKind::Describe => OperationReply::Value(
            format!("{} {}: {} (rbdkit-filter inspect shows all of it)", about.name, about.version, about.longname),
            about.name.clone().into(),
        ),
        _ => OperationReply::Done,
    });
    if kind.stage() == Stage::Before {
        let asked = timeout(options.patience, before_open(&top, kind, options.readonly));
        answer = asked.await.map_err(|_| limit(kind.function()))?;
    } else if kind.stage() != Stage::Load {
        let opened = timeout(options.patience, top.open(options.readonly, &options.export)).await;
        match opened.map_err(|_| limit("open"))? {
            Err(error) if kind.stage() == Stage::Open => answer = Err(error),
            Err(source) => return Err(Error::Operation { operation: "open", source }),
            Ok(hop) => {
                if kind.stage() == Stage::Request {
                    let opening = trace.take();
                    if options.all {
                        calls.extend(opening);
                    } else {
                        output::take_log();
                        disk.take_seen();
                    }
                    begun = Stopwatch::start();
                }
                let asked = timeout(options.patience, on_connection(&hop, operation)).await;
                client.set_gone();
                answer = asked.map_err(|_| limit(kind.function()))?;
            }
        }
    }
    let (wall, processor) = begun.elapsed();
    calls.extend(trace.take());
    if !options.all && kind.stage() != Stage::Request {
        calls.retain(|call| call.name == kind.function());
    }
    let mark = format!("{}: ", about.name);
    Ok(CallReport {
        filter: format!("{} ({}, {})", about.name, about.thread_model.name(), about.recovery),
        operation: operation.to_string(),
        function: (kind.function(), kind.interface()),
        is_exported: about.exports.contains(&kind.interface()),
        is_transparent: about.transparent,
        guest_calls: calls,
        below: disk.take_seen(),
        // The host's own lines about other things are left out.
        log: output::take_log().into_iter().filter(|line| line.starts_with(&mark)).collect(),
        answer: answer.map_err(|error| (error.errno().name().to_string(), error.to_string())),
        times: (kind.stage() != Stage::Load).then_some((wall, processor)),
    })
}

/// Measures a time.
struct Stopwatch {
    begun: Instant,
    processor: Duration,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch { processor: output::processor_time(), begun: Instant::now() }
    }

    /// Elapsed time, and this thread's processor time.
    fn elapsed(&self) -> (Duration, Duration) {
        (self.begun.elapsed(), output::processor_time().saturating_sub(self.processor))
    }
}
