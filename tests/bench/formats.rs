//! What the filters for image formats cost, beside the programs that serve the same files. They are
//! part of `make bench`; `ONLY=formats` measures only them, and `ONLY="formats: qcow2, zlib"` those
//! whose name begins with `qcow2, zlib`.
//!
//! A row is a pair: rbdkit with a filter, and what it is compared with, which does the same job
//! right after or right before it. That is qemu-nbd or nbdkit with its own filter over the same
//! file, or rbdkit over the file that was converted. So each row has a ratio of rates and one of
//! processor time, round by round.
//!
//! The data is made of words that repeat, numbers that grow, and noise, so that it becomes a third
//! when it is compressed, as disks do.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rbdkit_tests::{Launch, Rng, Server, TempDir, tool};

use crate::remote::Source;
use crate::results::Spread;
use crate::servers::{Programs, cpu_seconds};
use crate::targets::{Limit, Verdict};

/// The size of the disk in bytes.
const SIZE: u64 = 128 << 20;
/// The size of the disk behind a web server. Readahead is slow at the beginning, and opening an
/// image takes some requests: a short disk would measure only that.
const LONG: u64 = 512 << 20;
/// What is compressed once for all, so that a decoder of one thread needs a second or two.
const PACKED: u64 = 64 << 20;
/// The size of a block of xz. Without an option xz makes larger ones, which nbdkit decodes as a
/// whole for a read of one byte.
const XZ_BLOCK: &str = "--block-size=4194304";

/// The files, each made from the disk when a row needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Raw,
    Long,
    Qcow2,
    Qcow2Long,
    Qcow2Zlib,
    Qcow2Zstd,
    Vmdk,
    Gzip,
    Xz,
}

impl File {
    /// The name, whose end is the format's.
    fn name(self) -> &'static str {
        match self {
            File::Raw => "disk.img",
            File::Long => "long.img",
            File::Qcow2 => "disk.qcow2",
            File::Qcow2Long => "long.qcow2",
            File::Qcow2Zlib => "zlib.qcow2",
            File::Qcow2Zstd => "zstd.qcow2",
            File::Vmdk => "disk.vmdk",
            File::Gzip => "packed.img.gz",
            File::Xz => "packed.img.xz",
        }
    }

    /// The size of what it holds.
    fn size(self) -> u64 {
        match self {
            File::Gzip | File::Xz => PACKED,
            File::Long | File::Qcow2Long => LONG,
            _ => SIZE,
        }
    }

    /// The filter that serves it, and qemu's name of the format.
    fn format(self) -> Option<&'static str> {
        match self {
            File::Raw | File::Long => None,
            File::Qcow2 | File::Qcow2Long | File::Qcow2Zlib | File::Qcow2Zstd => Some("qcow2"),
            File::Vmdk => Some("vmdk"),
            File::Gzip => Some("gzip"),
            File::Xz => Some("xz"),
        }
    }

    /// The disk that it holds.
    fn raw(self) -> File {
        if self.size() == LONG { File::Long } else { File::Raw }
    }

    /// Makes the file from its disk, unless it is there.
    fn make(self, dir: &Path) -> Result<PathBuf, String> {
        let path = dir.join(self.name());
        if path.exists() {
            return Ok(path);
        }
        let convert = |options: &[&str], format: &str| {
            self.raw().make(dir)?;
            let from = [self.raw().name(), self.name()].map(|name| dir.join(name).display().to_string());
            let words = options.iter().map(|word| (*word).to_owned()).chain(from);
            let all = ["convert", "-f", "raw", "-O", format].map(str::to_owned).into_iter().chain(words);
            run("qemu-img", &all.collect::<Vec<String>>())
        };
        let pack = |tool: &str, options: &[&str]| {
            let packed = dir.join("packed.img");
            std::fs::File::create(&packed)
                .and_then(|file| fill(file, PACKED))
                .map_err(|error| format!("the disk: {error}"))?;
            let words = options.iter().map(|word| (*word).to_owned());
            run(tool, &words.chain([packed.display().to_string()]).collect::<Vec<String>>())
        };
        match self {
            File::Raw | File::Long => {
                let file = std::fs::File::create(&path).and_then(|file| fill(file, self.size()));
                file.map_err(|error| format!("the disk: {error}"))
            }
            File::Qcow2 | File::Qcow2Long => convert(&[], "qcow2"),
            File::Qcow2Zlib => convert(&["-c"], "qcow2"),
            File::Qcow2Zstd => convert(&["-c", "-o", "compression_type=zstd"], "qcow2"),
            File::Vmdk => convert(&["-o", "subformat=streamOptimized"], "vmdk"),
            File::Gzip => pack("gzip", &["-k"]),
            File::Xz => pack("xz", &["-k", "-3", XZ_BLOCK]),
        }?;
        Ok(path)
    }
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// fio with this many random reads of 4 KiB in flight.
    Random(u32),
    /// fio with eight sequential reads of 256 KiB in flight.
    Sequential,
    /// nbdcopy with one request of this many bytes in flight, once, from the connection on.
    Copy(u32),
}

impl Client {
    fn unit(self) -> &'static str {
        if matches!(self, Client::Random(_)) { "op/s" } else { "MiB/s" }
    }
}

/// One request of 256 KiB in flight.
const COPY: Client = Client::Copy(256 << 10);
/// As a client reads that does not hide latency.
const SERIAL: Client = Client::Copy(64 << 10);

/// What a row is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rival {
    QemuNbd,
    Nbdkit,
    /// rbdkit without the format's filter over the disk that was converted.
    Raw,
}

impl Rival {
    fn name(self) -> &'static str {
        match self {
            Rival::QemuNbd => "qemu-nbd",
            Rival::Nbdkit => "nbdkit's filter",
            Rival::Raw => "rbdkit, raw",
        }
    }
}

/// A comparison.
struct Pair {
    name: &'static str,
    file: File,
    client: Client,
    rival: Rival,
    /// Whether the file is behind a web server that takes 10 ms for a request, below readahead and
    /// cache.
    is_remote: bool,
    /// The least ratio of the rates, if one is asked for.
    target: Option<f64>,
}

const fn pair(name: &'static str, file: File, client: Client, rival: Rival, target: f64) -> Pair {
    Pair { name, file, client, rival, is_remote: false, target: Some(target) }
}

const PAIRS: [Pair; 12] = [
    pair("qcow2: randread 4k depth 1", File::Qcow2, Client::Random(1), Rival::QemuNbd, 1.3),
    pair("qcow2: randread 4k depth 32", File::Qcow2, Client::Random(32), Rival::QemuNbd, 1.3),
    pair("qcow2: randread 4k depth 1", File::Qcow2, Client::Random(1), Rival::Raw, 0.8),
    pair("qcow2: randread 4k depth 32", File::Qcow2, Client::Random(32), Rival::Raw, 0.8),
    pair("qcow2: read 256k depth 8", File::Qcow2, Client::Sequential, Rival::QemuNbd, 1.2),
    pair("qcow2, zlib: copy 256k", File::Qcow2Zlib, COPY, Rival::QemuNbd, 0.6),
    pair("qcow2, zlib: randread 4k depth 1", File::Qcow2Zlib, Client::Random(1), Rival::QemuNbd, 0.6),
    Pair { target: None, ..pair("qcow2, zstd: copy 256k", File::Qcow2Zstd, COPY, Rival::QemuNbd, 0.0) },
    Pair { target: None, ..pair("vmdk, stream: copy 256k", File::Vmdk, COPY, Rival::QemuNbd, 0.0) },
    pair("gzip: copy 256k", File::Gzip, COPY, Rival::Nbdkit, 0.7),
    pair("xz: copy 256k", File::Xz, COPY, Rival::Nbdkit, 0.7),
    Pair {
        is_remote: true,
        ..pair("qcow2, 10 ms a request, readahead, cache: copy 64k", File::Qcow2Long, SERIAL, Rival::Raw, 0.6)
    },
];

/// The result of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    /// Operations or MiB a second.
    rate: f64,
    /// Seconds of the server's processor time for a million operations or MiB.
    cpu: f64,
}

/// A round of a pair: this filter, and the other.
type Round = Option<(Sample, Sample)>;

/// All rounds of all pairs.
pub struct Formats {
    rounds: Vec<(&'static Pair, Vec<Round>)>,
    /// The machine's load averages at the begin and the end, as the kernel tells them.
    load: [String; 2],
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// Measures the pairs whose name begins with this, with so many seconds for a client that has no
/// end.
pub fn measure(programs: &Programs, name: &str, rounds: u64, seconds: u64) -> Formats {
    static ALL: [Pair; PAIRS.len()] = PAIRS;
    let dir = TempDir::new();
    let pairs = ALL.iter().filter(|pair| pair.name.starts_with(name));
    let rounds_of = pairs.map(|pair| (pair, Vec::new())).collect();
    let mut formats = Formats { rounds: rounds_of, load: [load(), String::new()], failures: Vec::new() };
    for round in 0..rounds {
        for (pair, samples) in &mut formats.rounds {
            let name = format!("{} / {}", pair.name, pair.rival.name());
            eprintln!("bench: formats, round {} of {rounds}: {name}", round + 1);
            // The other one begins in each second round.
            let sample = |rival| sample(programs, pair, rival, dir.path(), seconds);
            let result = match round % 2 {
                0 => sample(None).and_then(|ours| Ok((ours, sample(Some(pair.rival))?))),
                _ => sample(Some(pair.rival)).and_then(|theirs| Ok((sample(None)?, theirs))),
            };
            if let Err(why) = &result {
                eprintln!("bench: {why}");
                formats.failures.push(format!("{name}, round {}: {why}", round + 1));
            }
            samples.push(result.ok());
        }
    }
    formats.load[1] = load();
    formats
}

/// The load average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Measures one side of a pair: the filter, or what it is compared with.
fn sample(programs: &Programs, pair: &Pair, rival: Option<Rival>, dir: &Path, seconds: u64) -> Result<Sample, String> {
    let file = if rival == Some(Rival::Raw) { pair.file.raw() } else { pair.file };
    let path = file.make(dir)?;
    rustix::fs::sync();
    let source = if pair.is_remote { Some(Source::start_file(&path, 10)?) } else { None };
    let launch = match rival {
        Some(Rival::QemuNbd) => {
            let format = format!("--format={}", file.format().unwrap_or("raw"));
            Launch::new(["--read-only", "--persistent", "--shared=0", "--cache=writeback", &format])
                .arg(&path)
                .socket_options(&["-k"], "--pid-file")
                .program(programs.qemu_nbd.clone())
        }
        _ => {
            let program = if rival == Some(Rival::Nbdkit) { &programs.nbdkit } else { &programs.rbdkit };
            let filters = file.format().into_iter().chain(source.iter().flat_map(|_| ["readahead", "cache"]));
            let launch =
                Launch::new(["-r"]).args(filters.map(|name| format!("--filter={name}"))).program(program.clone());
            match &source {
                Some(source) => launch.args(["curl", source.url()]),
                None => launch.arg("file").path("file", &path),
            }
        }
    };
    let server =
        launch.try_start().map_err(|failed| format!("it did not start ({}): {}", failed.status, failed.stderr))?;
    let before = cpu_seconds(server.pid())?;
    let (units, elapsed) = serve(&server, pair.client, file.size(), seconds)?;
    let cpu = cpu_seconds(server.pid())? - before;
    Ok(Sample { rate: units / elapsed, cpu: cpu * 1e6 / units })
}

/// Lets a client read. The result is the number of operations or MiB, and the seconds that they
/// took.
fn serve(server: &Server, client: Client, size: u64, seconds: u64) -> Result<(f64, f64), String> {
    let fio = |pattern: &str, block: &str, depth: u32, unit: f64| {
        let options = [
            "--name=formats".to_owned(),
            "--ioengine=nbd".to_owned(),
            format!("--uri={}", server.uri()),
            format!("--rw={pattern}"),
            format!("--bs={block}"),
            format!("--iodepth={depth}"),
            format!("--size={size}"),
            format!("--runtime={seconds}"),
            "--time_based".to_owned(),
            "--norandommap".to_owned(),
            "--output-format=json".to_owned(),
        ];
        let text = output("fio", &options)?;
        let json = text.find('{').and_then(|at| serde_json::from_str::<serde_json::Value>(&text[at..]).ok());
        let number = |key: &str| json.as_ref().and_then(|json| json["jobs"][0]["read"][key].as_f64());
        match (number("total_ios"), number("runtime")) {
            (Some(total), Some(milliseconds)) if total > 0.0 => Ok((total * unit, milliseconds / 1e3)),
            _ => Err(format!("not what fio says: {text}")),
        }
    };
    match client {
        Client::Random(depth) => fio("randread", "4k", depth, 1.0),
        Client::Sequential => fio("read", "256k", 8, 0.25),
        Client::Copy(request) => {
            let options = ["--connections=1", "--requests=1"].map(str::to_owned);
            let rest = [format!("--request-size={request}"), server.uri(), "null:".to_owned()];
            let started = Instant::now();
            run("nbdcopy", &[&options[..], &rest].concat())?;
            Ok((size as f64 / f64::from(1 << 20), started.elapsed().as_secs_f64()))
        }
    }
}

fn output(program: &str, arguments: &[String]) -> Result<String, String> {
    let finished = tool(program, arguments);
    match finished.code {
        0 => Ok(finished.stdout),
        code => Err(format!("{program} failed ({code}): {}{}", finished.stdout, finished.stderr)),
    }
}

fn run(program: &str, arguments: &[String]) -> Result<(), String> {
    output(program, arguments).map(drop)
}

/// Fills a file with data that becomes a third when it is compressed.
fn fill(mut file: std::fs::File, size: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut rng = Rng::new(size);
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| {
            let length = 2 + rng.below(9) as usize;
            (0..length).map(|_| b'a' + rng.below(26) as u8).collect()
        })
        .collect();
    for _ in 0..size >> 20 {
        file.write_all(&piece(&mut rng, &words))?;
    }
    file.sync_all()
}

/// A MiB of data: parts of some hundred bytes of each kind.
fn piece(rng: &mut Rng, words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((1 << 20) + 4096);
    while bytes.len() < 1 << 20 {
        let count = 20 + rng.below(100);
        match rng.below(20) {
            // Text. Of two numbers the smaller one is small more often, as words are.
            0..12 => (0..count).for_each(|_| {
                let rank = rng.below(words.len() as u64).min(rng.below(words.len() as u64));
                bytes.extend(&words[rank as usize]);
                bytes.push(b' ');
            }),
            // Records with a number that grows.
            12..17 => {
                let first = rng.next_u64() as u32;
                (0..count as u32).for_each(|n| {
                    bytes.extend((first + n * 16).to_le_bytes());
                    bytes.extend([0, 0, n as u8 & 3, 0]);
                });
            }
            17 => bytes.extend(rng.bytes(count as usize * 4)),
            // What is there already.
            _ => {
                let length = (bytes.len() as u64).min(count * 10);
                let from = (bytes.len() as u64 - length) as usize;
                bytes.extend_from_within(from..from + length as usize);
            }
        }
    }
    bytes.truncate(1 << 20);
    bytes
}

impl Formats {
    /// Whether no pair was asked for.
    pub fn is_empty(&self) -> bool {
        self.rounds.is_empty()
    }

    fn ratio(rounds: &[Round], field: fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(rounds.iter().flatten().map(|(ours, theirs)| field(ours) / field(theirs)))
    }

    /// The targets and whether they are reached.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let asked = self.rounds.iter().filter_map(|(pair, rounds)| Some((pair, rounds, pair.target?)));
        let verdict = |(pair, rounds, least): (&&'static Pair, &Vec<Round>, f64)| Verdict {
            row: pair.name,
            what: pair.rival.name().to_owned(),
            limit: Limit::AtLeast(least),
            measured: Formats::ratio(rounds, |sample| sample.rate),
            unit: "",
        };
        asked.map(verdict).collect()
    }

    /// The table of all pairs.
    fn rows(&self) -> String {
        let mut table = "| | beside | rate | its rate | ratio | least to greatest | asked for | CPU ratio |\n\
             |---|---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for (pair, rounds) in &self.rounds {
            let unit = pair.client.unit();
            let ratio = |field| Formats::ratio(rounds, field).map(|spread| format!("{:.2}", spread.median));
            let Some(spread) = Formats::ratio(rounds, |sample| sample.rate) else { continue };
            let rates = |side: fn(&(Sample, Sample)) -> Sample| {
                Spread::of(rounds.iter().flatten().map(|round| side(round).rate)).map_or(0.0, |spread| spread.median)
            };
            table += &format!(
                "| {} | {} | {:.0} {unit} | {:.0} {unit} | {:.2} | {:.2} to {:.2} | {} | {} |\n",
                pair.name,
                pair.rival.name(),
                rates(|round| round.0),
                rates(|round| round.1),
                spread.median,
                spread.least,
                spread.greatest,
                pair.target.map(|target| format!(">= {target}")).unwrap_or_default(),
                ratio(|sample| sample.cpu).unwrap_or_default(),
            );
        }
        table
    }

    /// The section of the page.
    pub fn section(&self) -> String {
        let verdicts = self.verdicts();
        let reached = verdicts.iter().filter(|verdict| verdict.is_reached() == Some(true)).count();
        let [before, after] = &self.load;
        let rounds = self.rounds.first().map_or(0, |(_, rounds)| rounds.len());
        format!(
            "{HEADING}\n\n\
             In each row rbdkit with the filter of a format and what the second column names do the same job, one\n\
             right after the other, {rounds} times. The ratios are within rounds; above 1 rbdkit with the filter is\n\
             faster. CPU is the server's for each read or MiB; below 1 the filter takes less. The data becomes a\n\
             third when it is compressed. `rbdkit, raw` serves the disk before it was converted. `copy` is\n\
             nbdcopy with one request in flight, from the connection on, so it includes what is decompressed\n\
             before the first byte: gzip has no index, and both programs decompress the file once. The disk of\n\
             the last row is behind a web server that waits 10 ms before each answer, below `readahead` and\n\
             `cache`, and so is the raw one. The load average was {before} at the begin and {after} at the end:\n\
             a rate that is measured beside other work\n\
             says little, and the ratio of processor times more. {reached} of {} targets reached.\n\n{}",
            verdicts.len(),
            self.rows()
        )
    }

    /// The results for programs.
    pub fn json(&self) -> serde_json::Value {
        let sample = |sample: &Sample| serde_json::json!({"rate": sample.rate, "cpu_us": sample.cpu});
        let pairs = self.rounds.iter().map(|(pair, rounds)| {
            let rounds: Vec<_> = rounds.iter().flatten().map(|(ours, theirs)| [sample(ours), sample(theirs)]).collect();
            serde_json::json!({"name": pair.name, "beside": pair.rival.name(), "rounds": rounds})
        });
        pairs.collect::<Vec<_>>().into()
    }
}

/// The first line of the section.
pub const HEADING: &str = "## Image formats";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_judged_by_the_ratio_within_its_rounds() {
        static PAIR: Pair = pair("a", File::Qcow2, COPY, Rival::QemuNbd, 0.6);
        let at = |rate, cpu| Sample { rate, cpu };
        let rounds = vec![
            Some((at(10.0, 3.0), at(20.0, 1.0))),
            None,
            Some((at(7.0, 3.0), at(10.0, 1.0))),
            Some((at(1.0, 3.0), at(1.0, 1.0))),
        ];
        let formats = Formats { rounds: vec![(&PAIR, rounds)], load: ["1.5".into(), "2.5".into()], failures: vec![] };
        let [verdict] = &formats.verdicts()[..] else { panic!("one verdict") };
        assert_eq!(
            verdict.measured.map(|spread| (spread.least, spread.median, spread.greatest)),
            Some((0.5, 0.7, 1.0))
        );
        assert_eq!(verdict.is_reached(), Some(true));
        let section = formats.section();
        assert!(
            section.contains("| a | qemu-nbd | 7 MiB/s | 10 MiB/s | 0.70 | 0.50 to 1.00 | >= 0.6 | 3.00 |"),
            "{section}"
        );
    }

    #[test]
    fn the_data_has_no_holes_and_becomes_about_a_third() {
        let dir = TempDir::new();
        let path = dir.join("data");
        fill(std::fs::File::create(&path).unwrap(), 4 << 20).unwrap();
        let data = std::fs::read(&path).unwrap();
        assert_eq!(data.len(), 4 << 20);
        assert!(data.chunks(4096).all(|block| block.iter().any(|byte| *byte != 0)));
        run("gzip", &["-k".to_owned(), path.display().to_string()]).unwrap();
        let packed = std::fs::metadata(dir.join("data.gz")).unwrap().len();
        assert!((data.len() as u64 / 5..data.len() as u64 / 2).contains(&packed), "{packed} bytes");
    }
}
