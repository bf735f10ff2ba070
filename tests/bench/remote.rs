//! Remote sources, which show what readahead is for. They are part of `make bench`; `ONLY=remote`
//! measures only them.
//!
//! The client is nbdcopy with one request of 64 KiB in flight. It reads a disk image behind an HTTP
//! server on this machine (`tests/slow-server`) that waits before each answer. The results are
//! ratios within a round: to nbdkit, and to the rate of a client with 16 requests of 1 MiB in
//! flight over no filter. The source counts the bytes and requests, so that no cache hides any.
//!
//! **How large the image is.** Where the client waits for every piece, the rate does not depend on
//! the size, and 16 MiB are enough. With readahead the beginning is slower than the rest, so a
//! short image would measure only the beginning. [`COPY`] is a small but real disk image.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use rbdkit_tests::{Launch, Server, TempDir, tool};

use crate::results::Spread;
use crate::servers::Programs;
use crate::targets::{Limit, Verdict};

/// The size in bytes of an image that is copied with a filter that hides latency.
const COPY: u64 = 1 << 30;
/// The size in bytes of an image that is copied without such a filter.
const SERIAL: u64 = 16 << 20;
/// Random reads in a measurement with one in flight. With sixteen in flight there are sixteen times
/// as many.
const RANDOM: u64 = 250;
/// The size in bytes of the sparse disk whose copy must need little memory. Its data fills the
/// cache twice.
const SPARSE: u64 = 64 << 30;
const SPARSE_STEP: u64 = 64 << 20;
const SPARSE_DATA: usize = 2 << 20;

const READAHEAD_CACHE: &[&str] = &["--filter=readahead", "--filter=cache"];
const READAHEAD_COW: &[&str] = &["--filter=readahead", "--filter=cow"];
const CACHE: &[&str] = &["--filter=cache"];

/// The client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// nbdcopy, one request of 64 KiB in flight.
    Serial,
    /// nbdcopy, 16 requests of 1 MiB in flight.
    Wide,
    /// fio with this many random reads of 4 KiB in flight.
    Random(u32),
}

/// One measurement of a round.
struct Row {
    name: &'static str,
    nbdkit: bool,
    filters: &'static [&'static str],
    more: &'static [&'static str],
    /// Milliseconds before each answer. `None`: a file instead of a source.
    delay: Option<u64>,
    size: u64,
    reader: Reader,
}

impl Row {
    const fn copy(
        name: &'static str,
        filters: &'static [&'static str],
        more: &'static [&'static str],
        delay: u64,
    ) -> Row {
        Row { name, nbdkit: false, filters, more, delay: Some(delay), size: COPY, reader: Reader::Serial }
    }

    const fn wide(name: &'static str, delay: u64) -> Row {
        Row { reader: Reader::Wide, ..Row::copy(name, &[], &[], delay) }
    }

    const fn nbdkit(name: &'static str, filters: &'static [&'static str]) -> Row {
        Row { nbdkit: true, size: SERIAL, ..Row::copy(name, filters, &[], 10) }
    }

    const fn random(name: &'static str, filters: &'static [&'static str], depth: u32) -> Row {
        Row { reader: Reader::Random(depth), ..Row::copy(name, filters, &[], 10) }
    }
}

const ON_CACHE: &[&str] = &["cow-on-cache=true"];

const ROWS: [Row; 15] = [
    Row::nbdkit("10 ms, nbdkit: readahead, cache", READAHEAD_CACHE),
    Row::nbdkit("10 ms, nbdkit: no filter", &[]),
    Row { size: SERIAL, ..Row::copy("10 ms: no filter", &[], &[], 10) },
    Row::copy("10 ms: readahead, cache", READAHEAD_CACHE, &[], 10),
    Row::copy("10 ms: readahead, cow-on-cache", READAHEAD_COW, ON_CACHE, 10),
    Row::wide("10 ms: no filter, 16 requests of 1 MiB", 10),
    Row::copy("50 ms: readahead, cache", READAHEAD_CACHE, &[], 50),
    Row::copy("50 ms: readahead, cow-on-cache", READAHEAD_COW, ON_CACHE, 50),
    Row::wide("50 ms: no filter, 16 requests of 1 MiB", 50),
    Row { delay: None, ..Row::copy("a file: no filter", &[], &[], 0) },
    Row::random("10 ms, random 4k, depth 1: cache", CACHE, 1),
    Row::random("10 ms, random 4k, depth 1: readahead, cache", READAHEAD_CACHE, 1),
    Row::random("10 ms, random 4k, depth 16: cache", CACHE, 16),
    Row::random("10 ms, random 4k, depth 16: readahead, cache", READAHEAD_CACHE, 16),
    Row::random("10 ms, random 4k, depth 16: no filter", &[], 16),
];

/// The result of one measurement.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// MiB a second, or reads a second.
    rate: f64,
    /// Bytes that the source sent, divided by the bytes that the client read.
    fetched: f64,
    /// Requests that the source answered.
    requests: f64,
    /// Seconds of the server's processor time for each GiB.
    cpu: f64,
}

/// All rounds of all rows, and the memory of one copy.
pub struct Remote {
    samples: Vec<Vec<Option<Sample>>>,
    /// The most MiB resident while a sparse disk was copied.
    resident: Option<f64>,
    rounds: u64,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// The web server.
pub struct Source {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    url: String,
}

impl Source {
    /// One that serves this many bytes and waits so many milliseconds before each answer.
    fn start(size: u64, delay: u64) -> Result<Source, String> {
        Source::start_with(&format!("size={size}"), delay)
    }

    /// One that serves a file and waits so many milliseconds before each answer.
    ///
    /// # Errors
    /// What the server said when it did not start.
    pub fn start_file(path: &Path, delay: u64) -> Result<Source, String> {
        Source::start_with(&format!("file={}", path.display()), delay)
    }

    /// The URL of what it serves.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn start_with(content: &str, delay: u64) -> Result<Source, String> {
        let failed = |error: std::io::Error| format!("the slow server: {error}");
        let mut child = Command::new(program())
            .args([content.to_owned(), format!("delay={delay}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the slow server has no pipes".to_owned());
        };
        let mut source = Source { child, input, output: BufReader::new(output), url: String::new() };
        source.url = source.line()?;
        Ok(source)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|error| format!("the slow server: {error}"))?;
        match line.trim() {
            "" => Err("the slow server ended".to_owned()),
            line => Ok(line.to_owned()),
        }
    }

    /// The requests and bytes since the last call.
    fn counts(&mut self) -> Result<(f64, f64), String> {
        self.input.write_all(b"\n").map_err(|error| format!("the slow server: {error}"))?;
        let line = self.line()?;
        let numbers: Option<Vec<f64>> = line.split(' ').map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[requests, bytes]) => Ok((requests, bytes)),
            _ => Err(format!("the slow server said {line}")),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that is built together with this one.
fn program() -> PathBuf {
    std::env::current_exe().map(|this| this.with_file_name("rbdkit-slow-server")).unwrap_or_default()
}

fn run(program: &str, arguments: &[String]) -> Result<String, String> {
    let finished = tool(program, arguments);
    match finished.code {
        0 => Ok(finished.stdout),
        code => Err(format!("{program} failed ({code}): {}{}", finished.stdout, finished.stderr)),
    }
}

/// Measures all rows this many times.
pub fn measure(programs: &Programs, rounds: u64) -> Remote {
    let mut remote =
        Remote { samples: ROWS.iter().map(|_| Vec::new()).collect(), resident: None, rounds, failures: vec![] };
    let dir = TempDir::new();
    let file = dir.join("disk.img");
    let mut prepared = std::fs::File::create(&file)
        .and_then(|mut file| (0..COPY >> 20).try_for_each(|n| file.write_all(&[n as u8 | 1; 1 << 20])));
    for round in 0..rounds {
        for nth in 0..ROWS.len() {
            // Another row begins in each round.
            let place = (nth + round as usize * 4) % ROWS.len();
            let row = &ROWS[place];
            eprintln!("bench: remote, round {} of {rounds}: {}", round + 1, row.name);
            let sample = std::mem::replace(&mut prepared, Ok(()))
                .map_err(|error| error.to_string())
                .and_then(|()| sample(programs, row, &file));
            if let Err(why) = &sample {
                eprintln!("bench: {why}");
                remote.failures.push(format!("{}, round {}: {why}", row.name, round + 1));
            }
            remote.samples[place].push(sample.ok());
        }
    }
    let _ = std::fs::remove_file(&file);
    eprintln!("bench: remote: memory");
    match sparse(programs, &dir) {
        Ok(resident) => remote.resident = Some(resident),
        Err(why) => remote.failures.push(format!("the copy of a sparse disk: {why}")),
    }
    remote
}

fn sample(programs: &Programs, row: &Row, file: &Path) -> Result<Sample, String> {
    // Writes everything to the disk, so that the cache's file does not wait for data that others
    // left.
    rustix::fs::sync();
    let mut source = row.delay.map(|delay| Source::start(row.size, delay)).transpose()?;
    let launch = Launch::new(["-r"])
        .args(row.filters)
        .program(if row.nbdkit { &programs.nbdkit } else { &programs.rbdkit }.clone());
    let launch = match &source {
        Some(source) => launch.args(["curl", &source.url]),
        None => launch.arg("file").path("file", file),
    };
    let failed = |outcome: rbdkit_tests::Outcome| format!("it did not start ({}): {}", outcome.status, outcome.stderr);
    let server = launch.args(row.more).try_start().map_err(failed)?;
    if let Some(source) = &mut source {
        source.counts()?;
    }
    let before = crate::servers::cpu_seconds(server.pid())?;
    let started = Instant::now();
    let bytes = read(&server, row)?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = crate::servers::cpu_seconds(server.pid())? - before;
    // The prefetches that are under way when the client leaves count as well.
    drop(server);
    let (requests, sent) = source.as_mut().map_or(Ok((0.0, 0.0)), Source::counts)?;
    let unit = if matches!(row.reader, Reader::Random(_)) { 4096.0 } else { f64::from(1 << 20) };
    Ok(Sample { rate: bytes / unit / seconds, fetched: sent / bytes, requests, cpu: cpu / bytes * f64::from(1 << 30) })
}

/// Lets the client read. The result is the number of bytes.
fn read(server: &Server, row: &Row) -> Result<f64, String> {
    let copy = |requests: u32, size: u32| {
        let options =
            ["--connections=1".to_owned(), format!("--requests={requests}"), format!("--request-size={size}")];
        run("nbdcopy", &[&options[..], &[server.uri(), "null:".to_owned()]].concat()).map(|_| row.size as f64)
    };
    match row.reader {
        Reader::Serial => copy(1, 65536),
        Reader::Wide => copy(16, 1 << 20),
        Reader::Random(depth) => {
            let reads = RANDOM * u64::from(depth);
            let options = [
                "--name=random".to_owned(),
                "--ioengine=nbd".to_owned(),
                format!("--uri={}", server.uri()),
                "--rw=randread".to_owned(),
                "--bs=4k".to_owned(),
                format!("--iodepth={depth}"),
                format!("--size={}", row.size),
                format!("--number_ios={reads}"),
                "--randrepeat=1".to_owned(),
                "--norandommap".to_owned(),
            ];
            run("fio", &options).map(|_| reads as f64 * 4096.0)
        }
    }
}

/// Copies a sparse disk of 64 GiB with its holes through a cache of 1 GiB. The result is the most
/// MiB resident.
fn sparse(programs: &Programs, dir: &TempDir) -> Result<f64, String> {
    use std::os::unix::fs::FileExt;
    let path = dir.sparse_file("sparse.img", SPARSE);
    let fill = || {
        let file = std::fs::OpenOptions::new().write(true).open(&path)?;
        let data = vec![0x5a; SPARSE_DATA];
        (0..SPARSE / SPARSE_STEP).try_for_each(|n| file.write_all_at(&data, n * SPARSE_STEP))
    };
    fill().map_err(|error| error.to_string())?;
    let launch =
        Launch::new(["-r"]).args(READAHEAD_CACHE).program(programs.rbdkit.clone()).arg("file").path("file", &path);
    let launch = launch.args(["cache-max-size=1G"]);
    let server = launch.try_start().map_err(|outcome| outcome.stderr)?;
    run("nbdcopy", &["--no-extents".to_owned(), server.uri(), "null:".to_owned()])?;
    Ok(server.proc_status("VmHWM:") as f64 / 1024.0)
}

impl Remote {
    fn column(&self, name: &str) -> &[Option<Sample>] {
        let place = ROWS.iter().position(|row| row.name == name);
        place.map_or(&[], |place| &self.samples[place])
    }

    fn spread(&self, name: &str, field: fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.column(name).iter().flatten().map(field))
    }

    /// The ratios within the rounds.
    fn ratio(&self, of: &str, to: &str, field: fn(&Sample) -> f64) -> Option<Spread> {
        let pairs = self.column(of).iter().zip(self.column(to));
        Spread::of(pairs.filter_map(|(of, to)| Some(field(of.as_ref()?) / field(to.as_ref()?))))
    }

    /// The targets and whether they are reached.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let mut add = |row, what: &str, limit, measured, unit| {
            verdicts.push(Verdict { row, what: what.to_owned(), limit, measured, unit });
        };
        let rate = |sample: &Sample| sample.rate;
        let filters = ["readahead, cache", "readahead, cow-on-cache"];
        for filter in filters {
            let ratio = self.ratio(&format!("10 ms: {filter}"), "10 ms, nbdkit: readahead, cache", rate);
            add("10 ms a request: rate / nbdkit's with readahead and cache", filter, Limit::AtLeast(25.0), ratio, "");
        }
        for (row, delay, least) in [
            ("10 ms a request: rate / that of 16 requests of 1 MiB without a filter", "10 ms", 0.7),
            ("50 ms a request: the same", "50 ms", 0.6),
        ] {
            for filter in filters {
                let wide = format!("{delay}: no filter, 16 requests of 1 MiB");
                let ratio = self.ratio(&format!("{delay}: {filter}"), &wide, rate);
                add(row, filter, Limit::AtLeast(least), ratio, "");
            }
        }
        for depth in ["depth 1", "depth 16"] {
            let of = format!("10 ms, random 4k, {depth}: readahead, cache");
            let to = format!("10 ms, random 4k, {depth}: cache");
            let row = "random reads of 4 KiB: rate / that without readahead";
            add(row, depth, Limit::AtLeast(0.95), self.ratio(&of, &to, rate), "");
        }
        for depth in ["depth 1", "depth 16"] {
            let of = format!("10 ms, random 4k, {depth}: readahead, cache");
            let to = format!("10 ms, random 4k, {depth}: cache");
            let fetched = self.ratio(&of, &to, |sample| sample.fetched);
            add(
                "random reads of 4 KiB: bytes fetched / those without readahead",
                depth,
                Limit::AtMost(1.1),
                fetched,
                "",
            );
        }
        for delay in ["10 ms", "50 ms"] {
            for filter in filters {
                let name = format!("{delay}: {filter}");
                let fetched = self.spread(&name, |sample| sample.fetched);
                add("a whole copy: bytes fetched / bytes of the image", &name, Limit::AtMost(1.02), fetched, "");
            }
        }
        let resident = self.resident.and_then(|resident| Spread::of([resident]));
        let what = "64 GiB sparse through cache-max-size=1G";
        add("memory: resident at most", what, Limit::AtMost(256.0), resident, "MiB");
        verdicts
    }

    /// The table of all rows.
    fn rows(&self) -> String {
        let mut table =
            "| | rate | least to greatest | fetched / read | requests | CPU s a GiB |\n|---|--:|--:|--:|--:|--:|\n"
                .to_owned();
        for row in &ROWS {
            let unit = if matches!(row.reader, Reader::Random(_)) { "op/s" } else { "MiB/s" };
            let Some(rate) = self.spread(row.name, |sample| sample.rate) else { continue };
            let median = |field| self.spread(row.name, field).map_or(0.0, |spread| spread.median);
            let (fetched, requests) = match row.delay {
                Some(_) => (format!("{:.3}", median(|s| s.fetched)), format!("{:.0}", median(|s| s.requests))),
                None => (String::new(), String::new()),
            };
            let cpu = if matches!(row.reader, Reader::Random(_)) {
                String::new()
            } else {
                format!("{:.2}", median(|s| s.cpu))
            };
            table += &format!(
                "| {} | {:.1} {unit} | {:.1} to {:.1} | {fetched} | {requests} | {cpu} |\n",
                row.name, rate.median, rate.least, rate.greatest
            );
        }
        table
    }

    /// The section of the page.
    pub fn section(&self, targets: &str) -> String {
        let verdicts = self.verdicts();
        let reached = verdicts.iter().filter(|verdict| verdict.is_reached() == Some(true)).count();
        format!(
            "{HEADING}\n\n\
             The client is nbdcopy with one request of 64 KiB in flight if the row does not say otherwise. The\n\
             source is an HTTP server on this machine that waits before each answer (`tests/slow-server`). Its\n\
             image has {} MiB, or {} MiB where the client waits for every piece. The figures are medians of\n\
             {} rounds, and the ratios are within rounds. Source, server and client share the machine's\n\
             processors, so other programs on the machine disturb them. Before each measurement all data is\n\
             written to the disk (`sync`), because a copy is slower while the kernel writes the filters'\n\
             temporary file back. {reached} of {} targets reached.\n\n{targets}\n{}",
            COPY >> 20,
            SERIAL >> 20,
            self.rounds,
            verdicts.len(),
            self.rows()
        )
    }

    /// The results for programs.
    pub fn json(&self) -> serde_json::Value {
        let rows = ROWS.iter().zip(&self.samples).map(|(row, samples)| {
            let samples = samples.iter().map(|sample| {
                sample.map_or(serde_json::Value::Null, |s| {
                    let (rate, fetched, requests) = (s.rate, s.fetched, s.requests);
                    serde_json::json!({"rate": rate, "fetched": fetched, "requests": requests, "cpu_s_per_gib": s.cpu})
                })
            });
            (row.name.to_owned(), samples.collect::<Vec<_>>().into())
        });
        serde_json::json!({"samples": rows.collect::<serde_json::Map<_, _>>(), "resident_mib": self.resident})
    }
}

/// The first line of the section.
pub const HEADING: &str = "## Remote sources";

/// The page with this section in place of its old one, which has the same heading, or at its end.
pub fn replace(page: &str, section: &str) -> String {
    let heading = section.lines().next().unwrap_or_default();
    let Some(start) = page.find(heading) else { return format!("{}\n\n{section}", page.trim_end()) };
    let rest = &page[start + heading.len()..];
    let after = rest.find("\n## ").map_or("", |end| &rest[end..]);
    format!("{}{}\n{after}", &page[..start], section.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(rate: f64, fetched: f64) -> Remote {
        let samples =
            ROWS.iter().map(|_| vec![Some(Sample { rate, fetched, requests: 1.0, cpu: 1.0 }), None]).collect();
        Remote { samples, resident: Some(100.0), rounds: 2, failures: vec![] }
    }

    #[test]
    fn every_target_names_rows_that_there_are() {
        let verdicts = remote(1.0, 1.0).verdicts();
        assert!(verdicts.iter().all(|verdict| verdict.measured.is_some()), "{verdicts:?}");
        // All rows are equally fast.
        let missed: Vec<_> = verdicts.iter().filter(|one| one.is_reached() == Some(false)).map(|one| one.row).collect();
        assert_eq!(missed, [verdicts[0].row; 2]);
        let wasteful = remote(1.0, 1.03).verdicts();
        assert!(wasteful.iter().any(|one| one.row.starts_with("a whole copy") && one.is_reached() == Some(false)));
    }

    #[test]
    fn the_section_takes_the_place_of_the_old_one() {
        assert_eq!(
            replace("# Page\n\ntext\n", "## Remote sources\n\nnew\n"),
            "# Page\n\ntext\n\n## Remote sources\n\nnew\n"
        );
        let page = "# Page\n\n## Remote sources\n\nold\n\n### more\n\n## At rest\n\nx\n";
        assert_eq!(
            replace(page, "## Remote sources\n\nnew\n"),
            "# Page\n\n## Remote sources\n\nnew\n\n## At rest\n\nx\n"
        );
    }
}
