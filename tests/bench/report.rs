//! What was measured as a table, as a page and as JSON.

use std::fmt::Write;

use crate::Figure;

/// The least ratio without filters that is good enough.
const FLOOR: f64 = 0.8;

/// The measurements of one case.
pub struct Line {
    /// Stack and job.
    pub name: String,
    plain: bool,
    in_bytes: bool,
    ours: Vec<Figure>,
    theirs: Vec<Figure>,
}

/// A median and the least and greatest.
struct Spread {
    median: f64,
    least: f64,
    greatest: f64,
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    };
    Spread { median, least: values[0], greatest: values[values.len() - 1] }
}

impl Line {
    /// No measurements yet.
    pub fn new(name: String, plain: bool, in_bytes: bool) -> Line {
        Line { name, plain, in_bytes, ours: Vec::new(), theirs: Vec::new() }
    }

    /// Those of one round.
    pub fn push(&mut self, ours: Figure, theirs: Figure) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    fn ratio(&self) -> Spread {
        spread(self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours.rate / theirs.rate))
    }

    fn rates(&self) -> (f64, f64) {
        let median = |figures: &[Figure]| spread(figures.iter().map(|figure| figure.rate)).median;
        (median(&self.ours), median(&self.theirs))
    }

    fn p99s(&self) -> (f64, f64) {
        let median = |figures: &[Figure]| spread(figures.iter().map(|figure| figure.p99)).median;
        (median(&self.ours), median(&self.theirs))
    }

    fn unit(&self) -> &'static str {
        if self.in_bytes { "MiB/s" } else { "op/s" }
    }

    fn row(&self) -> String {
        let (ours, theirs) = self.rates();
        let (our_p99, their_p99) = self.p99s();
        let ratio = self.ratio();
        let p99 = match our_p99 + their_p99 > 0.0 {
            true => format!("{our_p99:.0} / {their_p99:.0}"),
            false => String::new(),
        };
        let note = if self.plain && ratio.median < FLOOR { " (!)" } else { "" };
        format!(
            "| {} | {ours:.0} {unit} | {theirs:.0} {unit} | {:.2}{note} | {:.2} to {:.2} | {p99} |",
            self.name,
            ratio.median,
            ratio.least,
            ratio.greatest,
            unit = self.unit()
        )
    }
}

/// Everything.
pub struct Report {
    /// One for each case.
    pub lines: Vec<Line>,
    /// How often each was measured.
    pub rounds: u64,
    /// How long.
    pub seconds: u64,
    /// Of the programs.
    pub versions: Vec<String>,
}

impl Report {
    /// In Markdown.
    pub fn table(&self) -> String {
        let mut table =
            "| case | rbdkit | nbdkit | ratio | least to greatest | p99 in us, rbdkit / nbdkit |\n|---|--:|--:|--:|--:|--:|\n"
                .to_owned();
        for line in &self.lines {
            table.push_str(&line.row());
            table.push('\n');
        }
        table
    }

    /// The page BENCHMARKS.md.
    pub fn page(&self) -> String {
        format!(
            "# Measurements\n\n\
             Written by `make bench`: rbdkit beside nbdkit in alternation, with fio's nbd engine and nbdcopy over a Unix socket, {} rounds of {} s\n\
             each. The ratio is the median of the ratios within the rounds; absolute figures depend on the machine and what else it does.\n\
             Above 1 rbdkit is faster; (!) marks what is below {FLOOR} without filters. nbdkit's filters are its own, in native code.\n\n\
             Machine: {}.\n\nPrograms: {}.\n\n{}",
            self.rounds,
            self.seconds,
            machine(),
            self.versions.join("; "),
            self.table()
        )
    }

    /// For programs.
    pub fn json(&self) -> String {
        let mut json = String::new();
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let versions: Vec<String> = self.versions.iter().map(|text| quoted(text)).collect();
        let _ = write!(
            json,
            "{{\n  \"machine\": {},\n  \"programs\": [{}],\n  \"rounds\": {},\n  \"seconds\": {},\n  \"cases\": [",
            quoted(&machine()),
            versions.join(", "),
            self.rounds,
            self.seconds
        );
        for (nth, line) in self.lines.iter().enumerate() {
            let rates = |figures: &[Figure]| {
                figures.iter().map(|figure| format!("{:.1}", figure.rate)).collect::<Vec<_>>().join(", ")
            };
            let (ours, theirs) = line.p99s();
            let _ = write!(
                json,
                "{}\n    {{\"name\": {}, \"unit\": \"{}\", \"ratio\": {:.3}, \"rbdkit\": [{}], \"nbdkit\": [{}], \
                 \"p99_us\": [{ours:.1}, {theirs:.1}]}}",
                if nth == 0 { "" } else { "," },
                quoted(&line.name),
                line.unit(),
                line.ratio().median,
                rates(&line.ours),
                rates(&line.theirs)
            );
        }
        json.push_str("\n  ]\n}\n");
        json
    }
}

/// What kind of machine it was; not which one.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    };
    let model = field(&cpuinfo, "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| {
        let kib: u64 = text.split_whitespace().next()?.parse().ok()?;
        Some(format!("{} GiB of memory", (kib + (1 << 19)) >> 20))
    });
    // The version; what a builder hung on behind it says nothing about speed.
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.split('-').next().unwrap_or_default().to_owned();
    let parts = [model, format!("{cores} cores"), memory.unwrap_or_default(), format!("Linux {}", kernel.trim())];
    parts.join(", ")
}
