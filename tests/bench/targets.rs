//! The targets for rbdkit, and whether they are reached. Every target names its cases. A test fails
//! if a case is not in the matrix, so that no cell stays empty.

use crate::cases::Program;
use crate::filters::{Cost, FILTERS};
use crate::languages::LANGUAGES;
use crate::layers::{BLOCKS, Layers};
use crate::once::{Figure, Once};
use crate::results::{Line, Sample, Spread, ratios, round_ratios};

/// On which side of the limit the number has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Limit {
    fn holds(self, measured: f64) -> bool {
        match self {
            Limit::AtLeast(limit) => measured >= limit,
            Limit::AtMost(limit) => measured <= limit,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::AtLeast(limit) => write!(f, ">= {limit}"),
            Limit::AtMost(limit) => write!(f, "<= {limit}"),
        }
    }
}

/// What is compared with the limit. The strings are names of cases.
enum Measure {
    /// The rate divided by that of the best of these programs.
    Rate(String, &'static [Program]),
    /// The 99th percentile divided by nbdkit's.
    P99(String),
    /// The processor time for a request divided by nbdkit's.
    Cpu(String),
    /// The rate in one case divided by that in another.
    Keep(String, String),
    /// What several connections gain, divided by what nbdkit gains from them: the case with
    /// several, and the case with one.
    Scaling(String, String),
    /// Microseconds of processor time that each layer adds to a request of this many bytes.
    Layer(u32),
    /// What the layer of a filter in this language costs, divided by nofilter's.
    Language(&'static str),
    /// What the layer of this filter costs, divided by nofilter's.
    Filter(&'static str),
    Once(Figure),
}

/// A target: what is demanded, of which case, and how it is measured.
struct Target {
    row: &'static str,
    what: String,
    measure: Measure,
    limit: Limit,
}

/// A target and its measurement.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What is demanded.
    pub row: &'static str,
    /// The case.
    pub what: String,
    pub limit: Limit,
    /// `None` if this run did not measure it.
    pub measured: Option<Spread>,
    pub unit: &'static str,
}

impl Verdict {
    /// `None` if this run did not measure it.
    pub fn is_reached(&self) -> Option<bool> {
        self.measured.map(|spread| self.limit.holds(spread.median))
    }
}

const NBDKIT: &[Program] = &[Program::Nbdkit];
const BARE: &[Program] = &[Program::Bare];
const OTHERS: &[Program] = &[Program::Nbdkit, Program::QemuThreads, Program::QemuUring];

fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |row, what: &str, measure, limit| targets.push(Target { row, what: what.to_owned(), measure, limit });
    let rate = |case: &str, to| Measure::Rate(case.to_owned(), to);

    let row = "no filter, 4 KiB random read: rate / nbdkit's";
    for plugin in ["file", "memory"] {
        for (depth, limit) in [(1, 1.2), (32, 1.6), (128, 1.8)] {
            let case = format!("{plugin}: randread 4k depth {depth}");
            add(row, &case, rate(&case, NBDKIT), Limit::AtLeast(limit));
        }
    }
    let row = "no filter, 4 KiB random read: rate / the bare responder's";
    for plugin in ["file", "memory"] {
        for depth in [1, 32, 128] {
            let case = format!("{plugin}: randread 4k depth {depth}");
            add(row, &case, rate(&case, BARE), Limit::AtLeast(0.9));
        }
    }
    let row = "no filter, 4 KiB random write: rate / nbdkit's";
    for case in ["file: randwrite 4k depth 32", "memory: randwrite 4k depth 32"] {
        add(row, case, rate(case, NBDKIT), Limit::AtLeast(1.3));
    }
    let row = "no filter, sequential and nbdcopy: rate / the better of nbdkit's and qemu-nbd's";
    for case in ["file: read 256k depth 8", "file: write 256k depth 8", "file: nbdcopy out", "file: nbdcopy in"] {
        add(row, case, rate(case, OTHERS), Limit::AtLeast(1.1));
    }
    // qemu-nbd has no disk in memory.
    for case in ["memory: read 256k depth 8", "memory: nbdcopy out", "memory: nbdcopy in"] {
        add(row, case, rate(case, OTHERS), Limit::AtLeast(1.1));
    }
    let row = "no filter, depth 32: p99 / nbdkit's";
    for plugin in ["file", "memory"] {
        for pattern in ["randread", "randwrite"] {
            let case = format!("{plugin}: {pattern} 4k depth 32");
            add(row, &case, Measure::P99(case.clone()), Limit::AtMost(0.6));
        }
    }
    let row = "cow, and readahead + cache (warm): rate / that of nbdkit with its own";
    for stack in ["cow", "readahead + cache"] {
        for (depth, limit) in [(1, 1.1), (32, 2.0)] {
            for pattern in ["randread", "randwrite"] {
                let case = format!("{stack}, file: {pattern} 4k depth {depth}");
                add(row, &case, rate(&case, NBDKIT), Limit::AtLeast(limit));
            }
        }
    }
    // The limit for the sandbox alone, and the limit for the whole server.
    for limit in [0.7, 0.6] {
        for (block, _) in BLOCKS {
            let row = "each nofilter in a chain, all limits on: microseconds of CPU a request";
            add(row, &format!("reads of {} KiB", block >> 10), Measure::Layer(block), Limit::AtMost(limit));
        }
    }
    for (language, limit) in LANGUAGES {
        let row = "a filter with two host calls in a read: its layer / nofilter's";
        add(row, language, Measure::Language(language), Limit::AtMost(limit));
    }
    for (filter, _, limit) in FILTERS {
        let row = "a filter that passes a read on, or that it passes by: its layer / nofilter's";
        add(row, filter, Measure::Filter(filter), Limit::AtMost(limit));
    }
    let keep = ["nofilter x 10, memory: randread 4k depth 32", "memory: randread 4k depth 32"].map(str::to_owned);
    let [ten, none] = keep;
    add("ten nofilters: rate / that without", &ten.clone(), Measure::Keep(ten, none), Limit::AtLeast(0.7));
    let [four, one] = ["file: randread 4k depth 8 on 4 connections", "file: randread 4k depth 8"].map(str::to_owned);
    let row = "4 connections: what they gain / what they gain nbdkit";
    add(row, &four.clone(), Measure::Scaling(four, one), Limit::AtLeast(1.0));
    let over_tls = "TLS, memory: read 256k depth 8";
    let four = format!("{over_tls} on 4 connections");
    let row = "TLS, sequential: rate / nbdkit's";
    for (case, limit) in [(over_tls, 1.0), (&four, 1.2)] {
        add(row, case, rate(case, NBDKIT), Limit::AtLeast(limit));
    }
    for case in [over_tls, &four] {
        let row = "TLS, sequential: CPU a request / nbdkit's";
        add(row, case, Measure::Cpu(case.to_owned()), Limit::AtMost(0.8));
    }
    let case = "nbdkit's memory plugin: randread 4k depth 32";
    add("nbdkit's own plugin: rate / that of nbdkit with it", case, rate(case, NBDKIT), Limit::AtLeast(0.6));
    let row = "no filter: CPU a request / nbdkit's";
    for plugin in ["file", "memory"] {
        for job in ["randread 4k depth 1", "randread 4k depth 32", "randwrite 4k depth 32"] {
            let case = format!("{plugin}: {job}");
            add(row, &case, Measure::Cpu(case.clone()), Limit::AtMost(0.7));
        }
    }
    for (figure, limit) in [
        (Figure::Idle, 32.0),
        (Figure::Connection, 1024.0),
        (Figure::Instance, 256.0),
        (Figure::Start, 25.0),
        (Figure::Attacked, 50.0),
    ] {
        let row = match figure {
            Figure::Start => "start",
            Figure::Attacked => "fairness",
            Figure::Idle | Figure::Connection | Figure::Instance => "memory",
        };
        add(row, figure.what(), Measure::Once(figure), Limit::AtMost(limit));
    }
    targets
}

/// What a run has measured.
#[derive(Clone, Copy, Default)]
pub struct Measurements<'a> {
    pub lines: &'a [Line],
    pub layers: &'a [Layers],
    pub languages: &'a [Cost],
    pub filters: &'a [Cost],
    pub once: &'a [Once],
}

/// Compares the measurements with the targets.
pub fn judge(run: &Measurements<'_>) -> Vec<Verdict> {
    let judged = targets().into_iter().map(|target| {
        let unit = match target.measure {
            Measure::Layer(_) => "us",
            Measure::Once(figure) => figure.unit(),
            _ => "",
        };
        let measured = measured(&target.measure, run);
        Verdict { row: target.row, what: target.what, limit: target.limit, measured, unit }
    });
    judged.collect()
}

fn measured(measure: &Measure, run: &Measurements<'_>) -> Option<Spread> {
    let line = |name: &String| run.lines.iter().find(|line| line.case.name() == *name);
    let rate = |sample: &Sample| sample.rate;
    match measure {
        Measure::Rate(case, to) => {
            let line = line(case)?;
            line.ratio(Program::Rbdkit, line.best(to)?, rate)
        }
        Measure::P99(case) => line(case)?.ratio(Program::Rbdkit, Program::Nbdkit, |sample| sample.p99),
        Measure::Cpu(case) => line(case)?.ratio(Program::Rbdkit, Program::Nbdkit, |sample| sample.cpu),
        Measure::Keep(case, of) => ratios((line(case)?, Program::Rbdkit), (line(of)?, Program::Rbdkit), rate),
        Measure::Scaling(many, one) => {
            let (many, one) = (line(many)?, line(one)?);
            let gain = |program| round_ratios((many, program), (one, program), rate);
            let pairs = gain(Program::Rbdkit).into_iter().zip(gain(Program::Nbdkit));
            Spread::of(pairs.filter_map(|(ours, theirs)| Some(ours? / theirs?)))
        }
        Measure::Layer(block) => {
            let at = run.layers.iter().find(|layers| layers.block == *block)?;
            Spread::of(at.slopes.iter().copied())
        }
        Measure::Language(name) => {
            let language = run.languages.iter().find(|language| language.name == *name)?;
            Spread::of(language.ratios.iter().copied())
        }
        Measure::Filter(name) => {
            let filter = run.filters.iter().find(|filter| filter.name == *name)?;
            Spread::of(filter.ratios.iter().copied())
        }
        Measure::Once(figure) => {
            let value = run.once.iter().find(|once| once.figure == *figure)?.rbdkit?;
            Spread::of([value])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::cases;

    #[test]
    fn every_target_is_measured_by_a_full_run_and_most_by_a_quick_one() {
        for (quick, enough) in [(false, targets().len()), (true, targets().len() * 2 / 3)] {
            let lines: Vec<Line> = cases(quick).into_iter().map(filled).collect();
            let once = Figure::ALL.map(|figure| Once { figure, rbdkit: Some(1.0), nbdkit: None });
            let layers = BLOCKS.map(|(block, _)| Layers { block, cpu: [1.0; 4], slopes: vec![0.5] });
            let languages = LANGUAGES.map(|(name, _)| Cost { name, layer: 1.0, ratios: vec![1.0] });
            let filters = FILTERS.map(|(name, ..)| Cost { name, layer: 1.0, ratios: vec![1.0] });
            let run =
                Measurements { lines: &lines, layers: &layers, languages: &languages, filters: &filters, once: &once };
            let verdicts = judge(&run);
            let missing: Vec<&str> =
                verdicts.iter().filter(|one| one.measured.is_none()).map(|one| one.what.as_str()).collect();
            assert!(verdicts.len() - missing.len() >= enough, "quick: {quick}: {missing:?}");
        }
    }

    /// Every program is as fast as its place, in two rounds.
    fn filled(case: crate::cases::Case) -> Line {
        let programs = case.programs.clone();
        let mut line = Line::new(case);
        for _ in 0..2 {
            for (nth, &program) in programs.iter().enumerate() {
                let value = (nth + 1) as f64;
                line.push(
                    program,
                    Some(Sample { rate: value, p50: value, p99: value, cpu: value, ..Sample::default() }),
                );
            }
        }
        line
    }

    #[test]
    fn nothing_that_was_not_measured_counts_as_reached() {
        let verdicts = judge(&Measurements::default());
        assert!(verdicts.iter().all(|verdict| verdict.is_reached().is_none()));
    }

    #[test]
    fn a_target_is_reached_at_its_limit() {
        assert!(Limit::AtLeast(1.2).holds(1.2) && !Limit::AtLeast(1.2).holds(1.19));
        assert!(Limit::AtMost(0.6).holds(0.6) && !Limit::AtMost(0.6).holds(0.61));
    }

    #[test]
    fn the_better_of_the_others_is_what_counts() {
        let lines: Vec<Line> = cases(false).into_iter().map(filled).collect();
        let verdicts = judge(&Measurements { lines: &lines, ..Measurements::default() });
        let ratio = |row: &str, what: &str| {
            let verdict = verdicts.iter().find(|one| one.row.starts_with(row) && one.what == what);
            verdict.and_then(|one| one.measured).map(|spread| spread.median)
        };
        // In this model rbdkit has 1, nbdkit 2 and qemu-nbd with io_uring 4.
        assert_eq!(ratio("no filter, sequential", "file: read 256k depth 8"), Some(0.25));
        assert_eq!(ratio("no filter, 4 KiB random read: rate / nbdkit", "file: randread 4k depth 1"), Some(0.5));
        assert_eq!(ratio("no filter, 4 KiB random read: rate / the bare", "file: randread 4k depth 1"), Some(0.2));
    }
}
