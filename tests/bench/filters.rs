//! What the layer of each filter that passes requests on costs, beside nofilter's, in processor
//! time for a read of 512 bytes ([`pinned`](crate::pinned) says how it is measured).

use std::path::Path;

use crate::pinned::{self, Answers, Requests};
use crate::results::Spread;

/// Reads that are so short that what happens to the bytes hardly counts.
const READS: Requests = Requests { block: 512, depth: 32, disk: 1 << 20, answers: Answers::Data };

/// How many times nofilter's layer a filter may cost that serves the read.
const SERVES: f64 = 1.2;

/// The same for a filter that counts or compares in each read: it calls the host once or twice
/// more.
const COUNTS: f64 = 2.5;

/// The same for a filter that a read passes by. It costs nothing; this is for what is measured too
/// high on a busy machine.
const PASSES_BY: f64 = 0.15;

/// The filters with their parameters, with which they change nothing, and how many times nofilter's
/// layer each may cost.
pub const FILTERS: [(&str, &[&str], f64); 20] = [
    ("blocksize-policy", &[], SERVES),
    ("delay", &[], SERVES),
    ("error", &[], SERVES),
    ("log", &[], SERVES),
    ("map", &["map=0-:0"], SERVES),
    ("multi-conn", &[], SERVES),
    ("offset", &[], SERVES),
    ("rate", &[], SERVES),
    ("retry-request", &[], SERVES),
    ("nofilter", &[], SERVES),
    ("scan", &[], SERVES),
    ("truncate", &[], SERVES),
    ("count", &[], COUNTS),
    ("stats", &["statsfile=/dev/null"], COUNTS),
    ("cacheextents", &[], PASSES_BY),
    ("exportname", &[], PASSES_BY),
    ("fua", &[], PASSES_BY),
    ("ip", &[], PASSES_BY),
    ("limit", &[], PASSES_BY),
    ("protect", &["protect=0-511"], PASSES_BY),
];

/// What a filter's layer costs.
#[derive(Clone, Debug)]
pub struct Cost {
    pub name: &'static str,
    /// Microseconds of processor time that it adds to a read. The median.
    pub layer: f64,
    /// That divided by what nofilter's layer adds, turn by turn.
    pub ratios: Vec<f64>,
}

/// Measures the filters.
///
/// # Errors
/// What failed.
pub fn measure(program: &Path, turns: u64) -> Result<Vec<Cost>, String> {
    let options = FILTERS.map(|(name, parameters, _)| {
        let parameters = parameters.iter().map(|word| format!("--filter-param={name}:{word}"));
        (name, std::iter::once(format!("--filter={name}")).chain(parameters).collect())
    });
    beside_nofilter(program, &options, turns)
}

/// Measures servers with each of these filters, given as the options of a command line, in turn
/// with one without a filter and one with nofilter.
///
/// # Errors
/// What failed.
pub fn beside_nofilter(
    program: &Path,
    filters: &[(&'static str, Vec<String>)],
    turns: u64,
) -> Result<Vec<Cost>, String> {
    let served = |filter: &[String]| {
        let plugin = ["pattern".to_owned(), READS.disk.to_string()];
        filter.iter().cloned().chain(plugin).collect::<Vec<String>>()
    };
    let mut command_lines = vec![served(&[]), served(&["--filter=nofilter".to_owned()])];
    command_lines.extend(filters.iter().map(|(_, options)| served(options)));
    let mut chains = pinned::start(program, &command_lines)?;
    let _pinned = pinned::as_client()?;
    let rows = pinned::in_turns(&mut chains, READS, turns)?;
    let cost = |(nth, (name, _)): (usize, &(&'static str, Vec<String>))| {
        let layer = |row: &Vec<f64>| row[nth + 2] - row[0];
        Cost {
            name,
            layer: Spread::of(rows.iter().map(layer)).map_or(f64::NAN, |spread| spread.median),
            ratios: rows.iter().map(|row| layer(row) / (row[1] - row[0])).collect(),
        }
    };
    Ok(filters.iter().enumerate().map(cost).collect())
}
