//! What a replay has shown, for people and for programs.

use std::path::Path;
use std::time::Duration;

use rbdkit_plugin_api::text::one_line;
use serde_json::{Value, json};

use super::run::ReplayOutcome;
use super::session::Recording;
use super::show::{ending, headline};
use crate::error::Result;
use crate::junit;

/// Prints the summary. The first difference follows as the error of the command.
pub fn print(file: &Path, recording: &Recording, outcome: &ReplayOutcome) {
    say!("{}", headline(file, &recording.session));
    if let Some(note) = ending(recording.finish.as_ref(), recording.cut_at) {
        say!("{note}");
    }
    let ReplayOutcome { calls, compared, took, .. } = outcome;
    say!("{}: {calls} calls in {:.1} s, {compared} answers compared", one_line(&outcome.filter), took.as_secs_f64());
    if !outcome.parameters.is_empty() {
        say!("parameters of the record: {}", shown(&outcome.parameters));
    }
    if !outcome.left_out.is_empty() {
        say!("the record has parameters that the filter does not have: {}", shown(&outcome.left_out));
    }
    if !recording.session.has_payloads {
        say!("the record has digests only: errors, extents and the ranges below were compared, and no bytes");
    }
    if !outcome.below_compared {
        say!("the record is not whole: what is left below was not compared");
    }
    if !outcome.below.is_empty() {
        say!("  {:<10} {:>10} {:>10}", "below", "recorded", "now");
        for (kind, (recorded, now)) in &outcome.below {
            say!("  {kind:<10} {recorded:>10} {now:>10}");
        }
    }
    if outcome.strange.unknown > 0 {
        let read_as = if recording.session.has_payloads { "zeroes" } else { "bytes that were made up" };
        let unknown = outcome.strange.unknown;
        say!("the filter read {unknown} bytes below that the record does not have: it got {read_as}");
    }
    if outcome.strange.opens > 0 {
        say!("the filter opened the layer below {} times more than in the record", outcome.strange.opens);
    }
    if outcome.errors_left > 0 {
        say!("{} errors of the layer below were not given: the filter did not send their calls", outcome.errors_left);
    }
    match outcome.differing {
        0 => say!("nothing differs"),
        1 => say!("1 difference"),
        count => say!("{count} differences, of which this is the first"),
    }
}

/// The first keys of a list.
fn shown(keys: &[String]) -> String {
    const SHOWN: usize = 16;
    let more = keys.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let keys: Vec<String> = keys.iter().take(SHOWN).map(|key| one_line(key)).collect();
    format!("{}{more}", keys.join(", "))
}

/// The result as JSON.
pub fn json(recording: &Recording, outcome: &ReplayOutcome) -> Value {
    let differences = outcome.differences.iter().map(|difference| {
        json!({
            "message": difference.line(),
            "call": difference.number,
            "client": difference.client,
            "offset": difference.offset,
            "what": difference.what,
            "expected": difference.expected,
            "got": difference.got,
        })
    });
    let below = outcome
        .below
        .iter()
        .map(|(kind, (recorded, now))| ((*kind).to_string(), json!({ "recorded": recorded, "now": now })));
    json!({
        "filter": outcome.filter,
        "layer": recording.session.layer,
        "parameters_of_record": outcome.parameters,
        "parameters_left_out": outcome.left_out,
        "payloads": recording.session.has_payloads,
        "whole": recording.is_whole(),
        "passed": outcome.differing == 0,
        "calls": outcome.calls,
        "compared": outcome.compared,
        "below_compared": outcome.below_compared,
        "below": below.collect::<serde_json::Map<_, _>>(),
        "unknown_bytes": outcome.strange.unknown,
        "unknown_opens": outcome.strange.opens,
        "errors_not_given": outcome.errors_left,
        "differing": outcome.differing,
        "differences": differences.collect::<Vec<_>>(),
        "seconds": outcome.took.as_secs_f64(),
    })
}

/// Writes the result as a JUnit file with one test case.
///
/// # Errors
/// The file cannot be written.
pub fn write_junit(junit: &Path, filter: &Path, record: &Path, outcome: &ReplayOutcome) -> Result<()> {
    let lines: Vec<String> = outcome.differences.iter().map(|difference| one_line(&difference.line())).collect();
    let details = lines.join("\n");
    let failure = lines.first().map(|first| (first.as_str(), details.as_str()));
    let name = record.display().to_string();
    junit::write(junit, "replay", &filter.display().to_string(), &[(&name, outcome.took, failure)])
}

/// Writes a JUnit file that says why the replay did not come to an end.
///
/// # Errors
/// The file cannot be written.
pub fn write_junit_error(junit: &Path, filter: &Path, message: &str) -> Result<()> {
    junit::write(junit, "replay", &filter.display().to_string(), &[("replay", Duration::ZERO, Some((message, "")))])
}
