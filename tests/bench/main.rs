//! `make bench`: rbdkit beside nbdkit, qemu-nbd and the least that a server can do, with real
//! clients.
//!
//! Each case is measured in rounds. In a round all programs do the same job one right after
//! another, and another program begins in each round. What counts is the ratio within a round:
//! absolute figures of a shared machine drift, ratios of neighbours hardly do. Tables, page, chart
//! and JSON have the medians, the median of the ratios with their spread, and for each target
//! whether it is reached.
//!
//! Environment:
//!
//! * `QUICK=1`: fewer cases and programs, 3 rounds of 1 s. It takes 5 minutes instead of 25.
//! * `ROUNDS`, `SECONDS_EACH`: how often (5) and how many seconds (2) each program does each job.
//! * `ONLY`: the case of this name, or those whose name contains it, or one of several between `;`.
//!   `layers` is what a filter costs, `filters` what each built-in one costs beside nofilter,
//!   `languages` what one costs in each language, `at rest` memory and start, `remote` the remote
//!   sources, `formats` the filters for image formats. `ONLY=remote` and `ONLY=formats` renew their
//!   section of the page. `ONLY="formats: gzip"` measures only the rows whose name begins so.
//! * `PROGRAMS`: only these of `rbdkit,nbdkit,qemu-threads,qemu-uring,bare`.
//! * `BEFORE`: another build of rbdkit that is measured as well, to see the effect of a change.
//! * `RBDKIT`, `NBDKIT`, `QEMU_NBD`: the paths of the programs.
//! * `TMPDIR`: the directory for the disks (2.3 GiB).
//! * `BENCH_OUTPUT`: the path of the page, by default BENCHMARKS.md. The chart is written beside
//!   it. A run that leaves something out writes only `target/bench.json`, unless this is set.
#![forbid(unsafe_code)]

mod cases;
mod chart;
mod clients;
mod filters;
mod formats;
mod languages;
mod layers;
mod machine;
mod once;
mod pinned;
mod remote;
mod report;
mod results;
mod servers;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use cases::{Case, Program};
use clients::Images;
use report::Report;
use results::Line;
use servers::Programs;

/// What `ONLY` may name besides cases.
const OTHERS: [&str; 6] = ["layers", "filters", "languages", "at rest", REMOTE, FORMATS];

/// How many turns all chains take for each round.
const TURNS: u64 = 4;

/// The settings in the environment.
struct Settings {
    quick: bool,
    rounds: u64,
    seconds: u64,
    only: Vec<String>,
    programs: Vec<Program>,
    output: Option<PathBuf>,
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn number(name: &str, default: u64) -> Result<u64, String> {
    let Some(text) = text(name) else { return Ok(default) };
    let number = text.parse().map_err(|_| format!("{name} is a number, not '{text}'"))?;
    if number == 0 { Err(format!("{name} is at least 1")) } else { Ok(number) }
}

/// The programs with these names.
fn programs(names: &str) -> Result<Vec<Program>, String> {
    let known = || Program::ALL.map(Program::name).join(", ");
    let find = |name: &str| {
        let found = Program::ALL.into_iter().find(|program| program.name() == name);
        found.ok_or_else(|| format!("PROGRAMS knows {}, not '{name}'", known()))
    };
    names.split(',').map(|name| find(name.trim())).collect()
}

impl Settings {
    fn from_environment() -> Result<Settings, String> {
        let quick = text("QUICK").is_some_and(|text| text != "0");
        let (rounds, seconds) = if quick { (3, 1) } else { (5, 2) };
        Ok(Settings {
            quick,
            rounds: number("ROUNDS", rounds)?,
            seconds: number("SECONDS_EACH", seconds)?,
            only: text("ONLY")
                .map(|text| text.split(';').map(|part| part.trim().to_owned()).collect())
                .unwrap_or_default(),
            programs: text("PROGRAMS").map_or(Ok(Program::ALL.to_vec()), |names| programs(&names))?,
            output: text("BENCH_OUTPUT").map(PathBuf::from),
        })
    }

    /// Whether the run leaves something out that belongs to the page.
    fn is_partial(&self) -> bool {
        self.quick || !self.only.is_empty() || self.programs.len() < Program::ALL.len()
    }

    /// The selected cases, each with the selected programs.
    fn cases(&self, with_before: bool) -> Vec<Case> {
        let mut cases = cases::cases(self.quick);
        let names: Vec<String> = cases.iter().map(Case::name).collect();
        // A whole name selects that case alone, even if it is a part of another name.
        let fits = |name: &str, part: &String| if names.contains(part) { name == part } else { name.contains(part) };
        cases.retain(|case| self.only.is_empty() || self.only.iter().any(|part| fits(&case.name(), part)));
        for case in &mut cases {
            if with_before {
                case.programs.insert(1, Program::Before);
            }
            case.programs.retain(|program| self.programs.contains(program));
        }
        cases.retain(|case| !case.programs.is_empty());
        cases
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let settings = Settings::from_environment()?;
    let programs = Programs::find();
    let versions = programs.versions()?;
    if let [only] = &settings.only[..]
        && let Some(name) = only.strip_prefix(FORMATS)
    {
        return only_formats(&settings, &programs, name.trim_start_matches([':', ' ']));
    }
    let cases = settings.cases(programs.before.is_some());
    if cases.is_empty() && !settings.only.iter().all(|part| OTHERS.contains(&part.as_str())) {
        return Err(format!("no case's name contains ONLY={}", settings.only.join(";")));
    }
    if settings.only == [REMOTE] {
        return only_remote(&settings, &programs);
    }
    let images = Images::make(&cases).map_err(|error| error.to_string())?;
    let asked = |name: &str| {
        let only = settings.only.is_empty() || settings.only.iter().any(|part| part == name);
        only && settings.programs.contains(&Program::Rbdkit)
    };
    let once = if asked("at rest") {
        eprintln!("bench: at rest");
        once::measure(&programs)
    } else {
        Vec::new()
    };
    let mut layers = Ok(Vec::new());
    if asked("layers") {
        eprintln!("bench: layers");
        layers = attempt(|| layers::measure(&programs.rbdkit, TURNS * settings.rounds));
    }
    let mut filters = Ok(Vec::new());
    if asked("filters") {
        eprintln!("bench: filters");
        filters = attempt(|| filters::measure(&programs.rbdkit, TURNS * settings.rounds));
    }
    let (mut languages, mut unbuilt) = (Vec::new(), Vec::new());
    if asked("languages") {
        eprintln!("bench: languages");
        (languages, unbuilt) = languages::measure(&programs.rbdkit, TURNS * settings.rounds);
    }
    let (lines, mut failures) = rounds(&settings, &programs, cases, &images);
    failures.extend(unbuilt);
    let layers = layers.unwrap_or_else(|why| {
        failures.push(format!("layers: {why}"));
        Vec::new()
    });
    let filters = filters.unwrap_or_else(|why| {
        failures.push(format!("filters: {why}"));
        Vec::new()
    });
    let wanted = asked(REMOTE) && !(settings.quick && settings.only.is_empty());
    let remote = wanted.then(|| remote::measure(&programs, REMOTE_ROUNDS.min(settings.rounds)));
    failures.extend(remote.iter().flat_map(|remote| remote.failures.clone()));
    let formats = (asked(FORMATS) && !(settings.quick && settings.only.is_empty()))
        .then(|| formats::measure(&programs, "", settings.rounds, settings.seconds));
    failures.extend(formats.iter().flat_map(|formats| formats.failures.clone()));
    let partial = settings.is_partial() || !failures.is_empty();
    let (rounds, seconds) = (settings.rounds, settings.seconds);
    let report = Report {
        lines,
        layers,
        filters,
        languages,
        once,
        remote,
        formats,
        rounds,
        seconds,
        versions,
        failures,
        partial,
    };
    println!("{}", report.tables());
    write(&report, settings.output).map_err(|error| format!("the results were not written: {error}"))?;
    if report.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("bench: {} measurements failed: see above", report.failures.len());
    Ok(ExitCode::FAILURE)
}

/// The word of `ONLY` for the remote sources.
const REMOTE: &str = "remote";

/// How many rounds of the remote sources are measured. Each takes a minute.
const REMOTE_ROUNDS: u64 = 3;

/// Measures only the remote sources and writes their section into the existing page.
fn only_remote(settings: &Settings, programs: &Programs) -> Result<ExitCode, String> {
    let remote = remote::measure(programs, REMOTE_ROUNDS.min(settings.rounds));
    let section = remote.section(&report::target_table(&remote.verdicts(), false));
    println!("{section}");
    let is_whole = remote.failures.is_empty();
    renew(settings, "remote", &section, &remote.json(), is_whole)?;
    for failure in &remote.failures {
        eprintln!("bench: {failure}");
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The word of `ONLY` for the filters for image formats.
const FORMATS: &str = "formats";

/// Measures only the filters for image formats, those rows whose name begins with `name`. If all
/// were measured, it writes their section into the existing page.
fn only_formats(settings: &Settings, programs: &Programs, name: &str) -> Result<ExitCode, String> {
    let formats = formats::measure(programs, name, settings.rounds, settings.seconds);
    if formats.is_empty() {
        return Err(format!("no row of the formats has a name that begins with {name}"));
    }
    let section = formats.section();
    println!("{section}");
    let is_whole = formats.failures.is_empty() && name.is_empty() && !settings.quick;
    renew(settings, "formats", &section, &formats.json(), is_whole)?;
    Ok(if formats.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the results of a section as JSON, and if it is whole into the existing page.
fn renew(
    settings: &Settings,
    name: &str,
    section: &str,
    json: &serde_json::Value,
    is_whole: bool,
) -> Result<(), String> {
    let root = rbdkit_tests::server::root();
    let page = settings.output.clone().unwrap_or_else(|| root.join("BENCHMARKS.md"));
    let old = std::fs::read_to_string(&page).unwrap_or_else(|_| "# Measurements".to_owned());
    let json = serde_json::to_string_pretty(json).map_err(|error| error.to_string())?;
    let written = std::fs::write(root.join(format!("target/bench-{name}.json")), json + "\n")
        .and_then(|()| if is_whole { std::fs::write(&page, remote::replace(&old, section)) } else { Ok(()) });
    written.map_err(|error| format!("the results were not written: {error}"))
}

/// Measures all cases in all rounds. The result has the failures too.
fn rounds(settings: &Settings, programs: &Programs, cases: Vec<Case>, images: &Images) -> (Vec<Line>, Vec<String>) {
    let mut lines: Vec<Line> = cases.into_iter().map(Line::new).collect();
    let mut failures = Vec::new();
    for round in 0..settings.rounds {
        for (nth, line) in lines.iter_mut().enumerate() {
            eprintln!("bench: round {} of {}: {}", round + 1, settings.rounds, line.case.name());
            let mut order = line.case.programs.clone();
            let first = (round as usize + nth) % order.len();
            order.rotate_left(first);
            for program in order {
                let done = attempt(|| clients::measure(programs, program, &line.case, images, settings.seconds));
                if let Err(why) = &done {
                    eprintln!("bench: {}: {why}", program.name());
                    failures.push(format!("{} by {}, round {}: {why}", line.case.name(), program.name(), round + 1));
                }
                line.push(program, done.ok());
            }
        }
    }
    (lines, failures)
}

/// Makes one measurement. Its failure, even a panic, leaves a gap in the table and does not end the
/// run.
fn attempt<T>(measure: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(measure)).unwrap_or_else(|_| Err("it panicked: see standard error".to_owned()))
}

fn write(report: &Report, output: Option<PathBuf>) -> std::io::Result<()> {
    let root = rbdkit_tests::server::root();
    let json = serde_json::to_string_pretty(&report.json())?;
    std::fs::write(root.join("target/bench.json"), json + "\n")?;
    let page = match output {
        Some(page) => page,
        None if report.partial => return Ok(()),
        None => root.join("BENCHMARKS.md"),
    };
    let chart = page.with_extension("svg");
    let name = chart.file_name().unwrap_or_default().to_string_lossy().into_owned();
    std::fs::write(&chart, chart::svg(&report.lines, &report.subtitle()))?;
    std::fs::write(&page, report.page(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(only: &[&str], names: &str) -> Settings {
        let only = only.iter().map(|part| (*part).to_owned()).collect();
        Settings { quick: false, rounds: 1, seconds: 1, only, programs: programs(names).unwrap(), output: None }
    }

    #[test]
    fn only_and_programs_narrow_the_matrix_and_make_the_run_partial() {
        let some = settings(&["cow, file", "memory"], "rbdkit,nbdkit");
        let cases = some.cases(true);
        assert!(cases.iter().all(|case| case.name().starts_with("cow, file") || case.name().contains("memory")));
        assert!(cases.iter().any(|case| case.name().contains("memory: ")));
        assert!(cases.iter().flat_map(|case| &case.programs).all(|program| program.name().ends_with("kit")));
        let one = settings(&["file: randread 4k depth 1"], "rbdkit").cases(false);
        assert_eq!(one.iter().map(Case::name).collect::<Vec<_>>(), ["file: randread 4k depth 1"]);
        assert!(some.is_partial() && settings(&[], "rbdkit").is_partial());
        let all = settings(&[], "rbdkit,before,nbdkit,qemu-threads,qemu-uring,bare");
        assert!(!all.is_partial());
        assert!(all.cases(false).iter().all(|case| !case.programs.contains(&Program::Before)));
        assert!(all.cases(true).iter().all(|case| case.programs.contains(&Program::Before)));
    }

    #[test]
    fn a_program_that_is_not_known_is_an_error_that_names_those_that_are() {
        let error = programs("rbdkit,qemu").unwrap_err();
        assert!(error.contains("qemu-threads") && error.ends_with("not 'qemu'"), "{error}");
    }
}
