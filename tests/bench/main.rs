//! `make bench`: rbdkit beside nbdkit, in alternation, with real clients.
//!
//! Each figure is measured in rounds; in a round both programs do the same job one right after the other, and who begins changes from round
//! to round. What counts is the ratio within a round: absolute figures of a shared machine drift, ratios of neighbours hardly do. The table shows
//! the medians, the median of the ratios and their spread.
//!
//! Environment: `ROUNDS` (5), `SECONDS_EACH` (2), `ONLY` (a part of a case's name), `RBDKIT` and `NBDKIT` (programs), `BENCH_OUTPUT`
//! (BENCHMARKS.md; only written if nothing was left out).
#![forbid(unsafe_code)]

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use rbdkit_tests::model::{content, sparse};
use rbdkit_tests::server::program;
use rbdkit_tests::{Launch, Server, TempDir, tool};

/// Small enough for the page cache of any machine, large enough that a cache filter has something to do.
const SIZE: u64 = 256 << 20;

/// What a client does.
#[derive(Clone, Copy)]
enum Job {
    /// fio's name of the pattern, the block size, the depth.
    Fio(&'static str, &'static str, u32),
    /// nbdcopy to nowhere.
    Copy,
}

impl Job {
    fn name(self) -> String {
        match self {
            Job::Fio(pattern, block, depth) => format!("{pattern} {block} depth {depth}"),
            Job::Copy => "nbdcopy to null:".to_owned(),
        }
    }

    /// Sequential jobs are told in MiB/s, random ones in operations a second.
    fn in_bytes(self) -> bool {
        matches!(self, Job::Copy | Job::Fio("read" | "write", ..))
    }
}

const RANDOM_1: Job = Job::Fio("randread", "4k", 1);
const RANDOM_32: Job = Job::Fio("randread", "4k", 32);
const RANDOM_128: Job = Job::Fio("randread", "4k", 128);
const WRITE_32: Job = Job::Fio("randwrite", "4k", 32);
const SEQUENTIAL_8: Job = Job::Fio("read", "256k", 8);
const SEQUENTIAL_1: Job = Job::Fio("read", "64k", 1);

/// One line of the table.
struct Case {
    filters: &'static [&'static str],
    plugin: &'static str,
    job: Job,
}

impl Case {
    fn name(&self) -> String {
        let stack: Vec<&str> = self.filters.iter().copied().chain([self.plugin]).collect();
        format!("{}: {}", stack.join(", "), self.job.name())
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |filters: &'static [&'static str], plugin: &'static str, jobs: &[Job]| {
        cases.extend(jobs.iter().map(|&job| Case { filters, plugin, job }));
    };
    let all = [RANDOM_1, RANDOM_32, RANDOM_128, WRITE_32, SEQUENTIAL_8, Job::Copy];
    add(&[], "file", &all);
    add(&[], "memory", &all);
    add(&["nofilter"], "file", &[RANDOM_1, RANDOM_32, WRITE_32, SEQUENTIAL_8]);
    add(&["nofilter"], "memory", &[RANDOM_1, RANDOM_32]);
    add(&["readahead", "cache"], "file", &[RANDOM_32, WRITE_32, SEQUENTIAL_1, SEQUENTIAL_8, Job::Copy]);
    add(&["cow"], "file", &[RANDOM_32, WRITE_32, SEQUENTIAL_8, Job::Copy]);
    cases
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figure {
    /// Operations or MiB a second.
    pub rate: f64,
    /// Microseconds that 99 of 100 operations took at most; 0 where there is none.
    pub p99: f64,
}

/// The programs that are compared.
struct Programs {
    rbdkit: PathBuf,
    nbdkit: PathBuf,
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")),
        _ => default,
    }
}

fn main() -> ExitCode {
    let rounds = number("ROUNDS", 5).max(1);
    let seconds = number("SECONDS_EACH", 2).max(1);
    let only = std::env::var("ONLY").unwrap_or_default();
    let nbdkit = std::env::var_os("NBDKIT").map_or_else(|| PathBuf::from("nbdkit"), PathBuf::from);
    let programs = Programs { rbdkit: program(), nbdkit };
    let dir = TempDir::new();
    let image = dir.join("disk.img");
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name().contains(&only)).collect();
    if cases.is_empty() {
        eprintln!("bench: no case's name contains ONLY={only}");
        return ExitCode::FAILURE;
    }
    let mut lines: Vec<report::Line> =
        cases.iter().map(|case| report::Line::new(case.name(), case.filters.is_empty(), case.job.in_bytes())).collect();
    for round in 0..rounds {
        // Writes of one round are not the next one's image.
        let bytes = content(1, SIZE as usize);
        sparse(&dir, "disk.img", &bytes);
        drop(bytes);
        for (case, line) in cases.iter().zip(&mut lines) {
            eprintln!("bench: round {} of {rounds}: {}", round + 1, line.name);
            let run = |program: &Path| measure(program, case, &image, seconds);
            let (ours, theirs) = if round % 2 == 0 {
                let ours = run(&programs.rbdkit);
                (ours, run(&programs.nbdkit))
            } else {
                let theirs = run(&programs.nbdkit);
                (run(&programs.rbdkit), theirs)
            };
            line.push(ours, theirs);
        }
    }
    let report = report::Report { lines, rounds, seconds, versions: versions(&programs) };
    println!("{}", report.table());
    let json = rbdkit_tests::server::root().join("target/bench.json");
    let written = std::fs::write(&json, report.json()).and_then(|()| {
        let page = std::env::var_os("BENCH_OUTPUT")
            .map_or_else(|| rbdkit_tests::server::root().join("BENCHMARKS.md"), PathBuf::from);
        if only.is_empty() { std::fs::write(page, report.page()) } else { Ok(()) }
    });
    if let Err(error) = written {
        eprintln!("bench: the results were not written: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn versions(programs: &Programs) -> Vec<String> {
    let first = |program: &str| {
        let finished = tool(program, ["--version"]);
        finished.stdout.lines().next().unwrap_or_default().to_owned()
    };
    let path = |program: &Path| first(program.to_str().expect("a path in UTF-8"));
    vec![path(&programs.rbdkit), path(&programs.nbdkit), first("fio"), first("nbdcopy")]
}

fn serve(program: &Path, case: &Case, image: &Path) -> Server {
    let options = case.filters.iter().map(|name| format!("--filter={name}"));
    let launch = Launch::new(options).program(program.to_owned()).arg(case.plugin);
    let server = match case.plugin {
        "file" => launch.path("file", image).start(),
        _ => launch.arg(SIZE.to_string()).start(),
    };
    if case.plugin == "memory" {
        // Reading what was never written would measure something else.
        tool("nbdcopy", ["--no-extents", image.to_str().expect("a path in UTF-8"), &server.uri()]).ok();
    }
    server
}

fn measure(program: &Path, case: &Case, image: &Path, seconds: u64) -> Figure {
    let server = serve(program, case, image);
    match case.job {
        Job::Copy => {
            let started = Instant::now();
            let mut copies = 0;
            while copies == 0 || started.elapsed().as_secs() < seconds {
                tool("nbdcopy", ["--no-extents", &server.uri(), "null:"]).ok();
                copies += 1;
            }
            let bytes = (SIZE * copies) as f64;
            Figure { rate: bytes / (1 << 20) as f64 / started.elapsed().as_secs_f64(), p99: 0.0 }
        }
        Job::Fio(pattern, block, depth) => {
            let output = fio(&server, pattern, block, depth, seconds);
            parse(&output, pattern.contains("write"), case.job.in_bytes())
        }
    }
}

fn fio(server: &Server, pattern: &str, block: &str, depth: u32, seconds: u64) -> String {
    let arguments = [
        "--name=bench".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri=nbd+unix:///?socket={}", server.socket().display()),
        format!("--rw={pattern}"),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
        format!("--size={SIZE}"),
        format!("--runtime={seconds}"),
        "--time_based".to_owned(),
        "--ramp_time=200ms".to_owned(),
        "--randrepeat=1".to_owned(),
        "--norandommap".to_owned(),
        "--output-format=terse".to_owned(),
        "--terse-version=3".to_owned(),
    ];
    tool("fio", arguments).ok()
}

/// Reads fio's terse output, version 3: 5 general fields, 41 of reads, 41 of writes.
fn parse(output: &str, writes: bool, in_bytes: bool) -> Figure {
    let line = output.lines().rfind(|line| line.starts_with("3;")).unwrap_or_else(|| panic!("fio says\n{output}"));
    let fields: Vec<&str> = line.split(';').collect();
    let base = if writes { 46 } else { 5 };
    let field = |nth: usize| fields.get(base + nth).copied().unwrap_or_default();
    let value = |nth: usize| field(nth).parse::<f64>().unwrap_or_else(|_| panic!("field {nth} of\n{line}"));
    let rate = if in_bytes { value(1) / 1024.0 } else { value(2) };
    let percentile = (12..32).find_map(|nth| field(nth).strip_prefix("99.000000%="));
    let p99 = percentile.and_then(|text| text.parse().ok()).unwrap_or(0.0);
    Figure { rate, p99 }
}
