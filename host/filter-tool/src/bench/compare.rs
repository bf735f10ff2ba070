//! Compares a result with an earlier one.
//!
//! Times are compared in times of the same round without a filter, so that a machine that is slower
//! today changes little. A workload counts as slower or faster only if all its rounds are on one
//! side of all rounds of the other run, and the medians differ by more than [`LEAST`]: a difference
//! within the spread of the rounds is noise.

use std::fmt;

use serde_json::{Value, json};

use super::result::{Measured, Old, median};

/// The smallest change that counts, as a part of the time.
const LEAST: f64 = 0.05;

/// Runs with fewer rounds say nothing about their spread.
const LEAST_ROUNDS: usize = 3;

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpeedVerdict {
    Faster,
    Slower,
    Same,
}

impl fmt::Display for SpeedVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpeedVerdict::Faster => "faster",
            SpeedVerdict::Slower => "slower",
            SpeedVerdict::Same => "same",
        })
    }
}

/// How one workload compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub request: String,
    pub depth: u32,
    pub verdict: SpeedVerdict,
    /// By how much of the old time the new one differs.
    pub time: f64,
    /// The instructions before and now.
    pub instructions: Option<(u64, u64)>,
}

/// How a run compares with an earlier one.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub changes: Vec<Change>,
    /// What else differs between the two runs.
    pub notes: Vec<String>,
}

/// Decides whether times have changed.
fn verdict(old: &[f64], new: &[f64]) -> SpeedVerdict {
    if old.len() < LEAST_ROUNDS || new.len() < LEAST_ROUNDS {
        return SpeedVerdict::Same;
    }
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let change = median(new) / median(old) - 1.0;
    if change > LEAST && least(new) > most(old) {
        SpeedVerdict::Slower
    } else if change < -LEAST && most(new) < least(old) {
        SpeedVerdict::Faster
    } else {
        SpeedVerdict::Same
    }
}

impl Comparison {
    /// Compares the workloads that both runs have.
    pub fn new(old: &Old, new: &Measured) -> Comparison {
        let mut notes = Vec::new();
        if old.filter != new.filter {
            notes.push(format!("the earlier run was of {}", old.filter));
        }
        if old.params != new.params {
            notes.push("the earlier run had other parameters".to_string());
        }
        let changes = new.cells.iter().filter(|cell| !cell.refused && cell.error.is_none()).filter_map(|cell| {
            let workload = cell.workload;
            let before = old.cells.iter().find(|old| {
                old.operation == workload.operation.name()
                    && old.length == u64::from(workload.length)
                    && old.depth == u64::from(workload.depth)
            })?;
            let now = cell.relative();
            let old_median = median(&before.relative);
            Some(Change {
                request: workload.request(),
                depth: workload.depth,
                verdict: verdict(&before.relative, &now),
                time: if old_median > 0.0 { median(&now) / old_median - 1.0 } else { 0.0 },
                instructions: before.instructions.zip(cell.instructions),
            })
        });
        Comparison { changes: changes.collect(), notes }
    }

    /// Slower if any workload is; faster if some are and none is slower.
    pub fn verdict(&self) -> SpeedVerdict {
        let any = |verdict| self.changes.iter().any(|change| change.verdict == verdict);
        match (any(SpeedVerdict::Slower), any(SpeedVerdict::Faster)) {
            (true, _) => SpeedVerdict::Slower,
            (false, true) => SpeedVerdict::Faster,
            (false, false) => SpeedVerdict::Same,
        }
    }

    /// The comparison for programs.
    pub fn json(&self) -> Value {
        let changes = self.changes.iter().map(|change| {
            json!({
                "request": change.request,
                "depth": change.depth,
                "verdict": change.verdict.to_string(),
                "time": change.time,
                "instructions-before": change.instructions.map(|(before, _)| before),
                "instructions": change.instructions.map(|(_, now)| now),
            })
        });
        json!({
            "verdict": self.verdict().to_string(),
            "notes": self.notes,
            "workloads": changes.collect::<Vec<_>>(),
        })
    }

    /// Prints the comparison for people.
    pub fn print(&self) {
        say!("\ncompared with the earlier run, in times of the same requests without a filter:");
        self.notes.iter().for_each(|note| say!("note: {note}"));
        for change in &self.changes {
            let instructions = match change.instructions {
                Some((before, now)) if before != now => format!(", instructions {before} -> {now}"),
                _ => String::new(),
            };
            say!(
                "{:<14} {:>5} {:<6} {:+.0} %{instructions}",
                change.request,
                change.depth,
                change.verdict.to_string(),
                change.time * 100.0
            );
        }
        say!("verdict: {}", self.verdict());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_only_beyond_the_spread_of_the_rounds() {
        let old = [1.0, 1.1, 1.2];
        assert_eq!(verdict(&old, &[1.3, 1.4, 1.5]), SpeedVerdict::Slower);
        assert_eq!(verdict(&[1.3, 1.4, 1.5], &old), SpeedVerdict::Faster);
        // One round as fast as before.
        assert_eq!(verdict(&old, &[1.15, 1.4, 1.5]), SpeedVerdict::Same);
        // Clear, but small.
        assert_eq!(verdict(&[1.0, 1.001, 1.002], &[1.01, 1.011, 1.012]), SpeedVerdict::Same);
        assert_eq!(verdict(&[1.0], &[9.0, 9.0, 9.0]), SpeedVerdict::Same);
        assert_eq!(verdict(&[], &[]), SpeedVerdict::Same);
    }

    fn change(verdict: SpeedVerdict) -> Change {
        Change { request: "read 4 KiB".into(), depth: 1, verdict, time: 0.0, instructions: None }
    }

    #[test]
    fn one_slower_workload_makes_the_verdict() {
        let of = |verdicts: &[SpeedVerdict]| {
            Comparison { changes: verdicts.iter().map(|verdict| change(*verdict)).collect(), notes: vec![] }.verdict()
        };
        assert_eq!(of(&[SpeedVerdict::Faster, SpeedVerdict::Slower]), SpeedVerdict::Slower);
        assert_eq!(of(&[SpeedVerdict::Faster, SpeedVerdict::Same]), SpeedVerdict::Faster);
        assert_eq!(of(&[SpeedVerdict::Same]), SpeedVerdict::Same);
        assert_eq!(of(&[]), SpeedVerdict::Same);
    }
}
