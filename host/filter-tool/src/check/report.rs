//! What was tested and found, for people and for programs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::run::Tally;
use crate::error::Result;
use crate::junit;

/// A part of the test, over one disk.
#[derive(Debug)]
pub struct Part {
    pub name: &'static str,
    /// The steps that the script has.
    pub planned: usize,
    /// The steps that were carried out.
    pub steps: usize,
    pub tally: Tally,
    pub took: Duration,
    /// What was found, in one line. The test ends with the first finding.
    pub finding: Option<Found>,
    /// Why the part could show nothing.
    pub note: Option<&'static str>,
}

/// What was found, and how to repeat it.
#[derive(Debug)]
pub struct Found {
    pub message: String,
    /// The steps that repeat it, as text.
    pub script: String,
    /// How many steps the script has.
    pub steps: usize,
    /// How often the script failed in this number of runs.
    pub repeats: (u32, u32),
}

/// The whole test.
#[derive(Debug)]
pub struct Report {
    pub filter: String,
    pub promise: &'static str,
    /// None for a replay.
    pub seed: Option<u64>,
    pub parts: Vec<Part>,
}

impl Report {
    /// What was found.
    pub fn finding(&self) -> Option<&Found> {
        self.parts.iter().find_map(|part| part.finding.as_ref())
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let parts = self.parts.iter().map(|part| {
            json!({
                "name": part.name,
                "planned": part.planned,
                "steps": part.steps,
                "seconds": part.took.as_secs_f64(),
                "operations": part.tally,
                "note": part.note,
            })
        });
        json!({
            "filter": self.filter,
            "transforms": self.promise,
            "seed": self.seed,
            "passed": self.finding().is_none(),
            "parts": parts.collect::<Vec<_>>(),
            "finding": self.finding().map(|found| json!({
                "message": found.message,
                "script": found.script,
                "failed": found.repeats.0,
                "runs": found.repeats.1,
            })),
        })
    }

    /// Writes the report as a JUnit file: a test case for each part.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_junit(&self, file: &Path) -> Result<()> {
        let cases = self.parts.iter().map(|part| {
            let failure = part.finding.as_ref().map(|found| (found.message.as_str(), found.script.as_str()));
            (part.name, part.took, failure)
        });
        junit::write(file, "check", &self.filter, &cases.collect::<Vec<_>>())
    }
}

/// Writes a JUnit file that says why the test could not begin or go on.
///
/// # Errors
/// The file cannot be written.
pub fn write_junit_error(file: &Path, component: &Path, message: &str) -> Result<()> {
    junit::write(file, "check", &component.display().to_string(), &[("start", Duration::ZERO, Some((message, "")))])
}
