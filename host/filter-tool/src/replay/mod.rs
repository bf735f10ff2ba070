//! `replay`: shows a record of `rbdkit --record`, or runs it against a filter and compares.
//!
//! [`session`] reads the record, [`below`] makes the layer below the filter of it, [`parameters`]
//! gives the filter the record's parameters, [`run`] sends the calls from above, and [`compare`]
//! compares the answers. [`show`] prints a record as text.

mod below;
mod compare;
mod content;
mod parameters;
mod ranges;
mod report;
mod run;
mod session;
mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use compare::BelowRule;
use rbdkit_record::format::Gate;
use session::Recording;

use crate::component::Trust;
use crate::error::{Error, Result};
use crate::times::up_to_a_day;

/// How a record is replayed or shown.
#[derive(Debug, clap::Args)]
pub struct ReplayOptions {
    /// Print the record, one line for each call, instead of running it
    #[arg(long)]
    show: bool,
    /// Let the calls that the filter sends down count too, in any order (filters that prefetch or
    /// write back differ from run to run)
    #[arg(long)]
    exact: bool,
    /// How long the filter may take to answer a call
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = up_to_a_day)]
    patience: Duration,
    /// Write the result to this file as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: Trust,
}

/// Shows the record, or replays it.
///
/// # Errors
/// What differs, or why the record cannot be read or the filter not be run.
pub fn replay(file: &Path, filter: Option<&Path>, params: &[String], options: &ReplayOptions) -> Result<()> {
    match (filter, options.show) {
        (None, true) => show::show(file, if options.json { show::ShowFormat::Json } else { show::ShowFormat::Text }),
        (Some(_), true) => Err(Error::Found("--show runs no filter: leave the filter or --show out".into())),
        (None, false) => Err(Error::Found("which filter? FILTER.wasm follows the record, or --show".into())),
        (Some(filter), false) => {
            let result = compared(file, filter, params, options);
            // A filter that hangs or a record that is damaged is a failed test as well.
            if let (Err(error), Some(junit)) = (&result, &options.junit)
                && !matches!(error, Error::Differs(_))
            {
                report::write_junit_error(junit, filter, &error.with_causes())?;
            }
            result
        }
    }
}

fn compared(file: &Path, filter: &Path, params: &[String], options: &ReplayOptions) -> Result<()> {
    let recording = Arc::new(Recording::load(file)?);
    if !recording.session.is_filter {
        return Err(Error::Found(format!(
            "{}: the record is of the plugin {}, below which nothing was recorded: only --show is possible",
            file.display(),
            recording.session.layer
        )));
    }
    if !recording.calls.iter().any(|call| call.gate == Gate::Above) {
        return Err(Error::Found(format!(
            "{}: no call reached the recorded filter: nothing can be replayed",
            file.display()
        )));
    }
    let rule = if options.exact { BelowRule::Calls } else { BelowRule::Content };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome =
        runtime.block_on(run::run(Arc::clone(&recording), (filter, &options.trust), params, rule, options.patience));
    // Does not wait for tasks that never end.
    runtime.shutdown_background();
    let outcome = outcome?;
    if let Some(junit) = &options.junit {
        report::write_junit(junit, filter, file, &outcome)?;
    }
    match options.json {
        true => say!("{:#}", report::json(&recording, &outcome)),
        false => report::print(file, &recording, &outcome),
    }
    match outcome.differences.first() {
        None => Ok(()),
        Some(first) => Err(Error::Differs(first.line())),
    }
}
