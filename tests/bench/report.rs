//! The measurements as tables, as a page and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::cases::Program;
use crate::filters::Cost;
use crate::formats::Formats;
use crate::layers::{CHAINS, Layers};
use crate::machine;
use crate::once::Once;
use crate::remote::Remote;
use crate::results::{Field, Line, Sample, Spread};
use crate::targets::{Measurements, Verdict, judge};

/// Everything that was measured.
pub struct Report {
    /// The measurements of each case.
    pub lines: Vec<Line>,
    /// What a layer costs, for each size of a request.
    pub layers: Vec<Layers>,
    pub filters: Vec<Cost>,
    pub languages: Vec<Cost>,
    /// What is measured outside of the rounds.
    pub once: Vec<Once>,
    /// The remote sources.
    pub remote: Option<Remote>,
    /// The filters for image formats.
    pub formats: Option<Formats>,
    /// How often each case was measured.
    pub rounds: u64,
    /// How many seconds each measurement took.
    pub seconds: u64,
    /// The versions of the programs.
    pub versions: Vec<String>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
    /// Whether something was left out on purpose. Such a run does not become the page.
    pub partial: bool,
}

/// How many cores may be busy with other things without much effect on the ratios.
const CALM: f64 = 0.2;

const RATE: Field = |sample| sample.rate;

/// A number with as many digits as are significant.
fn shown(value: f64) -> String {
    match value.abs() {
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn cell(value: Option<f64>) -> String {
    value.map(shown).unwrap_or_default()
}

fn range(spread: Option<Spread>) -> String {
    spread.map(|spread| format!("{:.2} to {:.2}", spread.least, spread.greatest)).unwrap_or_default()
}

/// Each target and whether it is reached. For a partial run, only the targets that it measured.
pub fn target_table(verdicts: &[Verdict], partial: bool) -> String {
    let mut table =
        "| target | of | asked for | measured | least to greatest | reached |\n|---|---|--:|--:|--:|---|\n".to_owned();
    let mut last = "";
    for verdict in verdicts.iter().filter(|one| !partial || one.measured.is_some()) {
        let row = if verdict.row == last { "" } else { verdict.row };
        last = verdict.row;
        let unit = if verdict.unit.is_empty() { String::new() } else { format!(" {}", verdict.unit) };
        let reached = match verdict.is_reached() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "not measured",
        };
        let measured = verdict.measured.map(|spread| format!("{:.2}{unit}", spread.median)).unwrap_or_default();
        let _ = writeln!(
            table,
            "| {row} | {} | {}{unit} | {measured} | {} | {reached} |",
            verdict.what,
            verdict.limit,
            range(verdict.measured)
        );
    }
    table
}

impl Report {
    /// How many cores were busy with other things during the measurements: the median and the most.
    fn others(&self) -> Option<Spread> {
        let samples = self.lines.iter().flat_map(|line| line.case.programs.iter().flat_map(|&one| line.samples(one)));
        Spread::of(samples.flatten().map(|sample| sample.others))
    }

    fn disturbance(&self) -> String {
        let cores = |spread: Spread| {
            format!(
                "other things kept {:.2} cores busy at the median and {:.2} at most",
                spread.median, spread.greatest
            )
        };
        let much = |spread: &Spread| spread.median > CALM;
        let warning = match self.others() {
            Some(spread) if much(&spread) => ": **too much for these numbers to be trusted**",
            _ => "",
        };
        format!("{}{warning}", self.others().map_or_else(|| "nobody looked who else was busy".to_owned(), cores))
    }

    fn verdicts(&self) -> Vec<Verdict> {
        judge(&Measurements {
            lines: &self.lines,
            layers: &self.layers,
            languages: &self.languages,
            filters: &self.filters,
            once: &self.once,
        })
    }

    /// Whether this run measured another build of rbdkit too.
    fn has_before(&self) -> bool {
        self.lines.iter().any(|line| line.case.programs.contains(&Program::Before))
    }

    /// One line that says how the measurements were made.
    pub fn subtitle(&self) -> String {
        format!("{} rounds of {} s on {}", self.rounds, self.seconds, machine::description())
    }

    fn summary(&self) -> String {
        let verdicts = self.verdicts();
        let count = |wanted| verdicts.iter().filter(|verdict| verdict.is_reached() == wanted).count();
        let (yes, no, unknown) = (count(Some(true)), count(Some(false)), count(None));
        let not_measured = if unknown > 0 { format!(", {unknown} not measured") } else { String::new() };
        format!("{yes} of {} reached, {no} missed{not_measured}.", verdicts.len())
    }

    fn targets(&self) -> String {
        target_table(&self.verdicts(), self.partial)
    }

    /// The rates, and the ratios to the other programs.
    fn rates(&self) -> String {
        let mut table = "| case | rbdkit | nbdkit | ratio | least to greatest \
             | qemu threads | qemu io_uring | bare | rbdkit / bare |\n\
            |---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for line in &self.lines {
            let rate = |program| cell(line.median(program, RATE));
            let ratio = |to| line.ratio(Program::Rbdkit, to, RATE);
            let median = |to| ratio(to).map(|spread| format!("{:.2}", spread.median)).unwrap_or_default();
            let _ = writeln!(
                table,
                "| {} | {} {} | {} | {} | {} | {} | {} | {} | {} |",
                line.case.name(),
                rate(Program::Rbdkit),
                line.case.job.unit(),
                rate(Program::Nbdkit),
                median(Program::Nbdkit),
                range(ratio(Program::Nbdkit)),
                rate(Program::QemuThreads),
                rate(Program::QemuUring),
                rate(Program::Bare),
                median(Program::Bare)
            );
        }
        table
    }

    /// Latency, processor time and memory of the programs side by side.
    fn details(&self) -> String {
        const PROGRAMS: [Program; 5] =
            [Program::Rbdkit, Program::Nbdkit, Program::QemuThreads, Program::QemuUring, Program::Bare];
        let mut table = "| case | p50 us | p99 us | CPU us a request | peak MiB |\n|---|--:|--:|--:|--:|\n".to_owned();
        for line in &self.lines {
            let all = |field: Field| {
                let values = PROGRAMS.map(|program| match line.median(program, field) {
                    Some(value) => shown(value),
                    None => "-".to_owned(),
                });
                if values.iter().all(|value| value == "-") { String::new() } else { values.join(" / ") }
            };
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} |",
                line.case.name(),
                all(|sample| sample.p50),
                all(|sample| sample.p99),
                all(|sample| sample.cpu),
                all(|sample| sample.peak)
            );
        }
        table
    }

    /// The processor time of a request through each chain, and what each layer adds.
    fn layers(&self) -> String {
        let chains: String = CHAINS.iter().map(|count| format!(" {count} nofilters |")).collect();
        let mut table = format!("| reads of |{chains} each layer |\n|---|{}--:|\n", "--:|".repeat(CHAINS.len()));
        for layers in &self.layers {
            let cpu: String = layers.cpu.iter().map(|&cpu| format!(" {} us |", shown(cpu))).collect();
            let slope = Spread::of(layers.slopes.iter().copied()).map(|spread| format!("{:.2} us", spread.median));
            let _ = writeln!(table, "| {} KiB |{cpu} {} |", layers.block >> 10, slope.unwrap_or_default());
        }
        table
    }

    /// What the layer of each filter adds to a read. `what` is the head of the first column.
    fn costs(what: &str, costs: &[Cost]) -> String {
        let mut table = format!("| {what} | a read | of nofilter's layer | least to greatest |\n|---|--:|--:|--:|\n");
        for cost in costs {
            let ratio = Spread::of(cost.ratios.iter().copied());
            let median = ratio.map(|spread| format!("{:.2}", spread.median)).unwrap_or_default();
            let _ = writeln!(table, "| {} | {} us | {median} | {} |", cost.name, shown(cost.layer), range(ratio));
        }
        table
    }

    fn at_rest(&self) -> String {
        let mut table = "| | rbdkit | nbdkit |\n|---|--:|--:|\n".to_owned();
        for once in &self.once {
            let unit = once.figure.unit();
            let with_unit =
                |value: Option<f64>| value.map(|value| format!("{} {unit}", shown(value))).unwrap_or_default();
            let _ =
                writeln!(table, "| {} | {} | {} |", once.figure.what(), with_unit(once.rbdkit), with_unit(once.nbdkit));
        }
        table
    }

    /// The comparison of the two builds of rbdkit, if there are two.
    fn changes(&self) -> String {
        let mut table = "| case | now | before | ratio | least to greatest | CPU ratio | p99 ratio |\n\
             |---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for line in &self.lines {
            let ratio = |field| line.ratio(Program::Rbdkit, Program::Before, field);
            let median = |field| ratio(field).map(|spread| format!("{:.2}", spread.median)).unwrap_or_default();
            let _ = writeln!(
                table,
                "| {} | {} {} | {} | {} | {} | {} | {} |",
                line.case.name(),
                cell(line.median(Program::Rbdkit, RATE)),
                line.case.job.unit(),
                cell(line.median(Program::Before, RATE)),
                median(RATE),
                range(ratio(RATE)),
                median(|sample| sample.cpu),
                median(|sample| sample.p99)
            );
        }
        table
    }

    /// All tables, for the terminal and for the page.
    pub fn tables(&self) -> String {
        let disturbance = self.disturbance();
        let mut text =
            format!("## Targets\n\n{} While it measured, {disturbance}.\n\n{}\n", self.summary(), self.targets());
        if self.has_before() {
            let _ = write!(text, "## Now and before\n\n{}\n", self.changes());
        }
        let _ = write!(
            text,
            "## Rates\n\n\
             Above 1 rbdkit is faster. nbdkit's filters are its own, in native code.\n\n{}\n\
             ## Latency, processor time and memory\n\n\
             The figures are those of rbdkit / nbdkit / qemu-nbd with threads / qemu-nbd with io_uring / the bare\n\
             responder. CPU is the server's processor time, in the server and in the kernel on its behalf; a\n\
             microsecond a request is a second for a million requests. A request of nbdcopy is 256 KiB. Peak\n\
             memory is resident memory, and includes the disk if that is in memory.\n\n{}",
            self.rates(),
            self.details()
        );
        if !self.layers.is_empty() {
            let _ = write!(
                text,
                "\n## What a layer costs\n\n\
                 The processor time of a server on one processor, where it never polls. The client sends the same\n\
                 number of requests at once to every chain and takes all answers before it sends more\n\
                 (`tests/bench/pinned.rs`).\n\n{}",
                self.layers()
            );
        }
        if !self.filters.is_empty() {
            let _ = write!(
                text,
                "\n## What each filter costs that passes requests on\n\n\
                 The processor time that its layer adds to a read of 512 bytes, with the default parameters. Past\n\
                 some of the filters a read goes without a call (`tests/bench/filters.rs`).\n\n{}",
                Report::costs("filter", &self.filters)
            );
        }
        if !self.languages.is_empty() {
            let _ = write!(
                text,
                "\n## What a filter costs in each language\n\n\
                 The filter that `rbdkit-filter new` writes, which makes two calls of the host in a read. The figures\n\
                 are the processor time that its layer adds to a read of 512 bytes, measured like that of the layers\n\
                 above (`tests/bench/languages.rs`).\n\n{}",
                Report::costs("language", &self.languages)
            );
        }
        if !self.once.is_empty() {
            let _ = write!(text, "\n## At rest\n\n{}", self.at_rest());
        }
        if let Some(remote) = &self.remote {
            let _ = write!(text, "\n{}", remote.section(&target_table(&remote.verdicts(), false)));
        }
        if let Some(formats) = &self.formats {
            let _ = write!(text, "\n{}", formats.section());
        }
        if !self.failures.is_empty() {
            let _ = write!(text, "\n## Not measured\n\n");
            self.failures.iter().for_each(|failure| {
                let _ = writeln!(text, "* {}", failure.trim().replace('\n', " "));
            });
        }
        text
    }

    /// The page BENCHMARKS.md. `chart` is the name of the chart beside it.
    pub fn page(&self, chart: &str) -> String {
        format!(
            "# Measurements\n\n\
             `make bench` writes this page. fio's nbd engine and nbdcopy do the same jobs over a Unix socket\n\
             against rbdkit, nbdkit, qemu-nbd and a bare responder (`tests/bench/bare.rs`), which shows what the\n\
             socket and the client allow if the server does nothing. There are {} rounds of {} s for each\n\
             program. In a round the programs run one right after another, and another program begins in each\n\
             round. A ratio is the median of the ratios within the rounds. Absolute figures depend on the machine\n\
             and on what else it does.\n\n\
             Machine: {}.\n\n\
             Programs: {}.\n\n\
             ![rbdkit's rate over nbdkit's, case by case]({chart})\n\n{}",
            self.rounds,
            self.seconds,
            machine::description(),
            self.versions.join("; "),
            self.tables()
        )
    }

    /// For programs: every sample of every round, and the targets.
    pub fn json(&self) -> Value {
        let spread = |spread: Option<Spread>| match spread {
            Some(spread) => json!({"median": spread.median, "least": spread.least, "greatest": spread.greatest}),
            None => Value::Null,
        };
        let sample = |sample: &Option<Sample>| match sample {
            Some(s) => {
                json!({
                    "rate": s.rate, "p50_us": s.p50, "p99_us": s.p99,
                    "cpu_us": s.cpu, "peak_mib": s.peak, "others": s.others,
                })
            }
            None => Value::Null,
        };
        let case = |line: &Line| {
            let samples = line.case.programs.iter().map(|&program| {
                let rounds: Vec<Value> = line.samples(program).iter().map(sample).collect();
                (program.name().to_owned(), Value::from(rounds))
            });
            json!({
                "name": line.case.name(),
                "unit": line.case.job.unit(),
                "ratio_to_nbdkit": spread(line.ratio(Program::Rbdkit, Program::Nbdkit, RATE)),
                "samples": samples.collect::<serde_json::Map<_, _>>(),
            })
        };
        let target = |verdict: &Verdict| {
            json!({
                "target": verdict.row,
                "of": verdict.what,
                "asked_for": verdict.limit.to_string(),
                "unit": verdict.unit,
                "measured": spread(verdict.measured),
                "reached": verdict.is_reached(),
            })
        };
        let once = |once: &Once| {
            let (what, unit) = (once.figure.what(), once.figure.unit());
            json!({"what": what, "unit": unit, "rbdkit": once.rbdkit, "nbdkit": once.nbdkit})
        };
        let layers = |layers: &Layers| {
            let (bytes, cpu) = (layers.block, &layers.cpu);
            json!({"bytes": bytes, "chains": CHAINS, "cpu_us": cpu, "each_us": layers.slopes})
        };
        let cost = |what: &'static str| {
            move |cost: &Cost| {
                let (each, ratios) = (cost.layer, &cost.ratios);
                json!({what: cost.name, "each_us": each, "of_nofilter": ratios})
            }
        };
        json!({
            "machine": machine::description(),
            "others": spread(self.others()),
            "programs": self.versions,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "partial": self.partial,
            "targets": self.verdicts().iter().map(target).collect::<Vec<_>>(),
            "cases": self.lines.iter().map(case).collect::<Vec<_>>(),
            "layers": self.layers.iter().map(layers).collect::<Vec<_>>(),
            "filters": self.filters.iter().map(cost("filter")).collect::<Vec<_>>(),
            "languages": self.languages.iter().map(cost("language")).collect::<Vec<_>>(),
            "at_rest": self.once.iter().map(once).collect::<Vec<_>>(),
            "remote": self.remote.as_ref().map(Remote::json),
            "formats": self.formats.as_ref().map(Formats::json),
            "not_measured": self.failures,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::cases;
    use crate::once::Figure;

    fn report(lines: Vec<Line>, failures: Vec<String>) -> Report {
        let once = vec![Once { figure: Figure::Idle, rbdkit: Some(40.0), nbdkit: None }];
        let versions = vec!["rbdkit \"0.1.0\"".to_owned()];
        let layers = vec![Layers { block: 4096, cpu: [1.0, 1.5, 4.0, 7.0], slopes: vec![0.5, 0.625] }];
        let languages = vec![Cost { name: "rust", layer: 0.75, ratios: vec![1.125, 1.375] }];
        let filters = vec![Cost { name: "ip", layer: 0.0, ratios: vec![0.0, 0.01] }];
        Report {
            lines,
            layers,
            filters,
            languages,
            once,
            remote: None,
            formats: None,
            rounds: 2,
            seconds: 1,
            versions,
            failures,
            partial: false,
        }
    }

    fn measured() -> Vec<Line> {
        let fill = |case: crate::cases::Case| {
            let programs = case.programs.clone();
            let mut line = Line::new(case);
            for rate in [30_000.0, 40_000.0] {
                for &program in &programs {
                    let factor = if program == Program::Rbdkit { 1.5 } else { 1.0 };
                    let sample =
                        Sample { rate: rate * factor, p50: 20.0, p99: 50.5, cpu: 7.25, peak: 11.0, others: 0.25 };
                    line.push(program, Some(sample));
                }
            }
            line
        };
        cases(false).into_iter().map(fill).collect()
    }

    #[test]
    fn every_row_of_a_table_has_as_many_cells_as_its_head() {
        for lines in [measured(), cases(false).into_iter().map(Line::new).collect()] {
            let text = report(lines, vec!["a\nfailure".to_owned()]).tables();
            let mut columns = 0;
            let mut rows = 0;
            for line in text.lines() {
                let bars = line.matches('|').count();
                if bars == 0 {
                    columns = 0;
                    continue;
                }
                assert!(columns == 0 || columns == bars, "{line}");
                columns = bars;
                rows += 1;
            }
            assert!(rows > 100, "{rows} rows:\n{text}");
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn the_json_has_every_sample_and_says_what_failed() {
        let mut lines = measured();
        lines[0].push(Program::Rbdkit, None);
        let text = report(lines, vec!["it \"failed\"".to_owned()]).json().to_string();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["cases"].as_array().map(Vec::len), Some(cases(false).len()));
        let first = &json["cases"][0];
        assert_eq!(first["name"], "file: randread 4k depth 1");
        assert_eq!(first["samples"]["rbdkit"][1]["rate"], 60_000.0);
        assert_eq!(first["samples"]["rbdkit"][2], Value::Null);
        assert_eq!(first["ratio_to_nbdkit"]["median"], 1.5);
        assert_eq!(json["programs"][0], "rbdkit \"0.1.0\"");
        assert_eq!(json["not_measured"][0], "it \"failed\"");
        let of = |row: &str| {
            let targets = json["targets"].as_array().unwrap();
            targets.iter().find(|target| target["target"].as_str().is_some_and(|text| text.starts_with(row))).cloned()
        };
        assert_eq!(of("no filter, 4 KiB random write").unwrap()["reached"], true);
        assert_eq!(of("memory").unwrap()["reached"], false);
        assert_eq!(of("start").unwrap()["reached"], Value::Null, "it was not measured");
    }

    #[test]
    fn the_page_names_the_chart_and_counts_the_targets() {
        let page = report(measured(), vec![]).page("BENCHMARKS.svg");
        assert!(page.starts_with("# Measurements\n") && page.contains("](BENCHMARKS.svg)"));
        assert!(page.contains(" reached, ") && page.contains("| **no** |") && page.contains("| yes |"));
        assert!(!page.contains("## Not measured"));
        assert!(page.contains("other things kept 0.25 cores busy") && page.contains("**too much"));
    }
}
