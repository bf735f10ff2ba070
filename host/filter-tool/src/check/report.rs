//! What was tested and found, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use rbdkit_plugin_api::text::one_line;
use serde_json::{Value, json};

use super::run::Tally;
use crate::error::{Error, Result};

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
        write(file, &junit(&self.filter, &cases.collect::<Vec<_>>()))
    }
}

/// Writes a JUnit file that says why the test could not begin or go on.
///
/// # Errors
/// The file cannot be written.
pub fn write_junit_error(file: &Path, component: &Path, message: &str) -> Result<()> {
    write(file, &junit(&component.display().to_string(), &[("start", Duration::ZERO, Some((message, "")))]))
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(Error::file("cannot write", file))
}

/// A test case: its name, the time that it took, and its failure with details.
type Case<'a> = (&'a str, Duration, Option<(&'a str, &'a str)>);

fn junit(suite: &str, cases: &[Case<'_>]) -> String {
    let failures = cases.iter().filter(|(_, _, failure)| failure.is_some()).count();
    let seconds: f64 = cases.iter().map(|(_, took, _)| took.as_secs_f64()).sum();
    let suite = xml(&one_line(suite));
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"rbdkit-filter check\" \
         tests=\"{}\" failures=\"{failures}\" errors=\"0\" time=\"{seconds:.3}\">\n",
        cases.len()
    );
    for (name, took, failure) in cases {
        let seconds = took.as_secs_f64();
        let _ = write!(text, "<testcase classname=\"{suite}\" name=\"{}\" time=\"{seconds:.3}\"", xml(name));
        text.push_str(&match failure {
            None => "/>\n".to_string(),
            Some((message, details)) => {
                format!(">\n<failure message=\"{}\">{}</failure>\n</testcase>\n", xml(&one_line(message)), xml(details))
            }
        });
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

/// Escapes text for XML.
fn xml(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\n' => escaped.push('\n'),
            // XML has no way to say these.
            other if other.is_control() || matches!(other, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_junit_file_names_the_failure_and_holds_no_markup_of_others() {
        let cases: [Case<'_>; 2] =
            [("a", Duration::from_millis(1500), None), ("b", Duration::ZERO, Some(("<&\"\u{1}", "1 x\n")))];
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n\
            <testsuite name=\"rbdkit-filter check\" tests=\"2\" failures=\"1\" errors=\"0\" time=\"1.500\">\n\
            <testcase classname=\"f&gt;\" name=\"a\" time=\"1.500\"/>\n\
            <testcase classname=\"f&gt;\" name=\"b\" time=\"0.000\">\n\
            <failure message=\"&lt;&amp;&quot;\\u{1}\">1 x\n</failure>\n</testcase>\n</testsuite>\n</testsuites>\n";
        assert_eq!(junit("f>", &cases), expected);
    }
}
