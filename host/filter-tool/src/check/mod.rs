//! `check`: tests a filter with random operations against a model of its export.
//!
//! The test has three parts: over a disk that can be written, over one that cannot, and over one
//! that fails and delays operations. Each part is a script of random steps ([`generate`]), which
//! [`run`] carries out and compares with a [`model`]. What the model may expect depends on what the
//! author says of the filter ([`promise`]). If a script fails, [`shrink`] looks for the smallest
//! one that still does.

pub mod content;
mod disk;
mod generate;
mod instances;
mod model;
mod operation;
mod promise;
mod report;
mod run;
mod script;
mod server;
mod shrink;
mod steps;
mod volatile;

use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rbdkit_plugin_api::units::parse_size;
use tokio::time::Instant;

use content::Random;
use disk::{Access, Disk};
use generate::{Export, Faults, Mix};
use instances::Compared;
use promise::Promise;
use report::{Found, Part, Report, write_junit_error};
use run::{Finding, Kind, Limits, Outcome, Tally, hang, run};
use script::{Reference, Script};
use server::{Filter, Server, Trouble};
use shrink::smallest;

use crate::component::Trust;
use crate::error::{Error, Result};
use crate::output;
use crate::times::up_to_a_day;

/// How a filter is tested.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What the filter promises, which decides what counts as wrong
    #[arg(long, value_name = "WHAT", default_value = "bijective")]
    transforms: Promise,
    /// Repeat the test with these random numbers (default: others each time; the test prints them)
    #[arg(long)]
    seed: Option<u64>,
    /// Operations to try
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ops: u32,
    /// End the test after this time, and the search for the smallest sequence after as much again
    #[arg(long, default_value = "10s", value_parser = up_to_a_day)]
    time: Duration,
    /// How long the filter may take to answer an operation
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = up_to_a_day)]
    patience: Duration,
    /// The longest read or write
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = largest)]
    largest: u32,
    /// Run the steps in this file, which an earlier test printed, instead of random ones
    #[arg(long, value_name = "SCRIPT")]
    replay: Option<PathBuf>,
    /// Write the smallest sequence that fails to this file
    #[arg(long, value_name = "SCRIPT")]
    save: Option<PathBuf>,
    /// Write the result to this file as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: Trust,
}

/// The largest script that is read, in bytes.
const MAX_SCRIPT: u64 = 64 << 20;

/// How often the smallest script is run again, to see whether it always fails.
const REPEATS: u32 = 3;

fn largest(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    u32::try_from(size).ok().filter(|size| (1..=32 << 20).contains(size)).ok_or("a size from 1 to 32M".to_string())
}

/// Tests the filter.
///
/// # Errors
/// What was found, or why the filter could not be tested.
pub fn check(file: &Path, params: &[String], options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(test(file, params, options));
    // Does not wait for tasks that never end.
    runtime.shutdown_background();
    match (outcome, &options.junit) {
        (Ok(report), junit) => conclude(&report, file, params, junit.as_deref(), options),
        (Err(error), Some(junit)) => {
            write_junit_error(junit, file, &error.with_causes())?;
            Err(error)
        }
        (Err(error), None) => Err(error),
    }
}

/// Prints and writes the report.
fn conclude(report: &Report, file: &Path, params: &[String], junit: Option<&Path>, options: &Options) -> Result<()> {
    if let Some(junit) = junit {
        report.write_junit(junit)?;
    }
    if options.json {
        say!("{:#}", report.json());
    }
    let Some(found) = report.finding() else {
        if !options.json {
            if options.replay.is_none() {
                say!("tested as {}: --transforms tests another promise (see --help)", report.promise);
            }
            say!("nothing wrong was found");
        }
        return Ok(());
    };
    if let Some(save) = &options.save {
        std::fs::write(save, &found.script).map_err(Error::file("cannot write", save))?;
    }
    if !options.json {
        let (failed, runs) = found.repeats;
        say!(
            "\nThe smallest sequence that was found has {} steps, and failed in {failed} of {runs} runs:\n",
            found.steps
        );
        say!("{}", found.script.trim_end());
        let script = options.save.as_deref().unwrap_or(Path::new("SCRIPT"));
        let hint = if options.save.is_some() { "" } else { " (--save SCRIPT writes this file)" };
        let filter = [&[file.display().to_string()], params].concat().join(" ");
        say!("\nrbdkit-filter check {filter} --replay {} repeats it{hint}", script.display());
    }
    Err(Error::Found(found.message.clone()))
}

/// Runs all parts, or the script of a replay.
async fn test(file: &Path, params: &[String], options: &Options) -> Result<Report> {
    let filter = Filter::fetch(file, &options.trust, params)?;
    filter.check_exports()?;
    if let Some(path) = &options.replay {
        let script = read_script(path)?;
        let mut report = begin(&filter, script.promise, None, options).await?.0;
        let begun = Instant::now();
        let limits = Limits { operation: options.patience, until: begun + options.time };
        let outcome = carry_out(&filter, &script, limits).await?;
        let finding = outcome.finding.as_ref().map(|finding| Found {
            message: finding.message.clone(),
            script: script.text(),
            steps: script.steps.len(),
            repeats: (1, 1),
        });
        report.parts.push(part("replay", script.steps.len(), outcome, begun, finding));
        show(&report, options);
        return Ok(report);
    }
    let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    let (mut report, _) = begin(&filter, options.transforms, Some(seed), options).await?;
    let parts = [
        ("a writable disk", Access::Writable, Faults::None, Reference::Model, 45),
        ("a read-only disk", Access::ReadOnly, Faults::None, Reference::Model, 20),
        ("a disk that fails", Access::Writable, Faults::Some, Reference::Model, 25),
        ("reused and fresh instances", Access::Writable, Faults::None, Reference::FreshInstances, 10),
    ];
    for (number, (name, access, faults, reference, percent)) in (0..).zip(parts) {
        let largest = match reference {
            Reference::Model => options.largest,
            Reference::FreshInstances => options.largest.min(LARGEST_COMPARED),
        };
        let mix = Mix { faults, largest };
        let mut random = Random::new(seed.wrapping_add(number));
        let disk_seed = random.below(1 << 32);
        let export = look(&filter, access, disk_seed, options.patience).await?.1;
        let count = (u64::from(options.ops) * u64::from(percent)).div_ceil(100) as u32;
        let mut steps = generate::steps(&mut random, &export, mix, count);
        if reference == Reference::FreshInstances {
            steps.retain(|step| matches!(step, steps::Step::Operation { .. }));
        }
        let planned = steps.len();
        let script = Script { promise: options.transforms, reference, access, disk_seed, steps };
        let begun = Instant::now();
        let limits = Limits { operation: options.patience, until: begun + options.time * percent / 100 };
        let outcome = carry_out(&filter, &script, limits).await?;
        let finding = match outcome.finding.is_some() {
            true => Some(minimized(&filter, script, &outcome, options).await),
            false => None,
        };
        report.parts.push(part(name, planned, outcome, begun, finding));
        if report.finding().is_some() {
            break;
        }
    }
    show(&report, options);
    Ok(report)
}

/// The longest request when two runs are compared: their answers are kept.
const LARGEST_COMPARED: u32 = 64 << 10;

/// Runs a script, and compares its answers as the script says.
async fn carry_out(filter: &Filter, script: &Script, limits: Limits) -> Result<Outcome> {
    if script.reference == Reference::Model {
        return run(filter, script, limits).await;
    }
    let begun = Instant::now();
    let (finding, note) = match instances::compare(filter, script, limits).await? {
        Compared::Same => (None, None),
        Compared::Inapplicable(why) => (None, Some(why)),
        Compared::Differs(message) => (Some(Finding { kind: Kind::State, message }), None),
    };
    let steps = script.steps.len();
    Ok(Outcome { finding, steps, tally: Tally::new(), slowest: begun.elapsed(), note })
}

fn part(name: &'static str, planned: usize, outcome: Outcome, begun: Instant, finding: Option<Found>) -> Part {
    let Outcome { steps, tally, note, .. } = outcome;
    Part { name, planned, steps, tally, note, took: begun.elapsed(), finding }
}

/// Starts the filter once, and says what it is.
async fn begin(filter: &Filter, promise: Promise, seed: Option<u64>, options: &Options) -> Result<(Report, Export)> {
    let (name, export) = look(filter, Access::Writable, 1, options.patience).await?;
    if !options.json {
        let can = export.can;
        if let Some(seed) = seed {
            say!("seed {seed}");
        }
        say!("{name}: {} bytes of the export are tested", export.size);
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
    }
    Ok((Report { filter: name, promise: promise.name(), seed, parts: Vec::new() }, export))
}

/// The filter's name, and what its export is.
async fn look(filter: &Filter, access: Access, disk_seed: u64, patience: Duration) -> Result<(String, Export)> {
    let asked = async {
        let mut server = Server::start(filter, &Arc::new(Disk::new(access, disk_seed)), patience).await?;
        let answer = (server.name.clone(), server.export().await?);
        let faults = server.faults();
        server.end().await?;
        match faults {
            0 => Ok(answer),
            _ => Err(Error::Found("the filter failed when a connection was opened (the log says why)".into()).into()),
        }
    };
    let (name, export) = asked.await.map_err(|trouble| match trouble {
        Trouble::Hangs(call) => Error::Found(hang(call, patience)),
        Trouble::Fails(error) => error,
    })?;
    if export.size < export.block_sizes.map_or(1, |sizes| u64::from(sizes.minimum)) {
        return Err(Error::Found(format!("the export has {} bytes: there is nothing to test", export.size)));
    }
    Ok((name, export))
}

/// Looks for the smallest script that finds the same as `outcome`.
async fn minimized(filter: &Filter, mut script: Script, outcome: &Outcome, options: &Options) -> Found {
    let mut message = outcome.finding.as_ref().map(|finding| finding.message.clone()).unwrap_or_default();
    let kind = outcome.finding.as_ref().map(|finding| finding.kind);
    script.steps.truncate(outcome.steps);
    // Calls that hang would use up the time. They are given up as soon as they take much longer
    // than all others.
    let operation = (outcome.slowest * 20).max(Duration::from_millis(500)).min(options.patience);
    let until = Instant::now() + options.time;
    let mut last = None;
    let again = async |steps: &[steps::Step]| {
        if Instant::now() >= until {
            return None;
        }
        let script = Script { steps: steps.to_vec(), ..script.clone() };
        let limits = Limits { operation, until: until + operation };
        let outcome = carry_out(filter, &script, limits).await.ok()?;
        outcome.finding.filter(|finding| Some(finding.kind) == kind)
    };
    let steps = script.steps.clone();
    let steps = output::without_log(async {
        smallest(steps, async |steps: &[steps::Step]| {
            let mut finding = again(steps).await;
            // Operations that begin together may come in another order next time.
            if finding.is_some() && steps.iter().any(|step| matches!(step, steps::Step::Operation { joins: true, .. }))
            {
                finding = again(steps).await;
            }
            let fails = finding.is_some();
            last = finding.or(last.take());
            fails
        })
        .await
    })
    .await;
    script.steps = steps;
    // Nothing comes before the first step.
    if let Some(steps::Step::Operation { joins, .. }) = script.steps.first_mut() {
        *joins = false;
    }
    if let Some(finding) = last {
        message = finding.message;
    }
    let mut repeats = (1, 1);
    output::without_log(async {
        let limits = Limits { operation, until: Instant::now() + options.patience };
        for _ in 0..REPEATS {
            let outcome = carry_out(filter, &script, limits).await;
            let fails = outcome.is_ok_and(|outcome| outcome.finding.is_some_and(|found| Some(found.kind) == kind));
            repeats = (repeats.0 + u32::from(fails), repeats.1 + 1);
        }
    })
    .await;
    Found { message, steps: script.steps.len(), script: script.text(), repeats }
}

/// Prints how often each operation was tried.
fn show(report: &Report, options: &Options) {
    if options.json {
        return;
    }
    for part in &report.parts {
        let early = match part.steps < part.planned && part.finding.is_none() {
            true => format!(" (of {}: the time was up, --time gives more)", part.planned),
            false => String::new(),
        };
        if let Some(why) = part.note {
            say!("over {}: not compared: {why}", part.name);
            continue;
        }
        say!("over {}: {} steps{early} in {:.1} s", part.name, part.steps, part.took.as_secs_f64());
        for (operation, outcomes) in &part.tally {
            let outcomes: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
            say!("  {operation:<9} {}", outcomes.join(", "));
        }
    }
}

/// Reads a script.
fn read_script(path: &Path) -> Result<Script> {
    let file = std::fs::File::open(path).map_err(Error::file("cannot open", path))?;
    let mut text = String::new();
    file.take(MAX_SCRIPT + 1).read_to_string(&mut text).map_err(Error::file("cannot read", path))?;
    if text.len() as u64 > MAX_SCRIPT {
        return Err(Error::Script(format!("{}: is larger than 64 MiB", path.display())));
    }
    Script::parse(&text).map_err(|wrong| Error::Script(format!("{}: {wrong}", path.display())))
}
