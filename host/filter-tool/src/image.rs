//! `image`: says what an image is and what is dangerous in it. Nothing is served. The parsers are
//! the filter `auto`, in the sandbox.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{Buffer, Client, Peer, Span};
use rbdkit_sandbox::Options as HostOptions;
use serde_json::Value;
use tokio::time::timeout;

use crate::call::{DISK, OffsetDisk};
use crate::chain::{make_ready, over};
use crate::component;
use crate::error::{Error, Result};
use crate::output;
use crate::times::more_than_zero;

/// The filter, if it was built before this program.
const AUTO: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/auto.rs"));

/// What to look for.
#[derive(Debug, clap::Args)]
pub struct ImageOptions {
    /// The formats from the outermost to the innermost, with commas, instead of what the signatures
    /// say (gzip,qcow2)
    #[arg(long, value_name = "FORMATS")]
    format: Option<String>,
    /// How many formats within each other are opened (1 to 8)
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    depth: u32,
    /// How long it may take. A compressed image is decompressed once to find out what is in it
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = more_than_zero)]
    patience: Duration,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// A report is shorter than this. Formats bound what they tell.
const MAX_REPORT: u64 = 16 << 20;

/// How much of a report is read at once.
const PIECE: u64 = 1 << 20;

/// Prints the report.
///
/// # Errors
/// The image cannot be read, it is refused, or something in it is dangerous.
pub fn image(file: &Path, options: &ImageOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(report(file, options));
    // Does not wait for tasks that never end.
    runtime.shutdown_background();
    let report = report?;
    let found: Value = serde_json::from_slice(&report).map_err(|error| Error::Found(format!("the report: {error}")))?;
    match options.json {
        true => say!("{found:#}"),
        false => lines(&found).iter().for_each(|line| say!("{line}")),
    }
    let dangers = found["dangers"].as_u64().unwrap_or(0);
    let file = file.display();
    match (found["refused"].as_str(), dangers) {
        (None, 0) => Ok(()),
        (None, 1) => Err(Error::Found(format!("{file}: there is a danger"))),
        (None, n) => Err(Error::Found(format!("{file}: there are {n} dangers"))),
        (Some(why), _) => Err(Error::Found(format!("{file}: {why}"))),
    }
}

/// The report as JSON.
async fn report(file: &Path, options: &ImageOptions) -> Result<Vec<u8>> {
    let missing = || Error::Found("this program was built without the filter auto (make builds it)".to_string());
    let component = AUTO.ok_or_else(missing)?;
    let (disk, size) = OffsetDisk::of_file(file)?;
    let host = component::host(HostOptions::default())?;
    let module = host.load("auto", component)?;
    let mut params = vec!["auto-report=true".to_string(), format!("auto-depth={}", options.depth)];
    params.extend(options.format.as_ref().map(|format| format!("format={format}")));
    output::capture_log();
    let chain = over(Some((module, &params)), &DISK, disk.plugin(), &size.to_string())?;
    let work = async {
        make_ready(&chain).await?;
        let top = chain.top(Arc::new(Client::new(1, Peer::Unknown, None, false)));
        let failed = |source| Error::Operation { operation: "open", source };
        let hop = top.open(true, "").await.map_err(failed)?;
        read(&hop).await
    };
    let late = || Error::Found(format!("{}: took more than {:?} (--patience)", file.display(), options.patience));
    let result = timeout(options.patience, work).await.map_err(|_| late())?;
    // The filter logs why it failed.
    result.inspect_err(|_| output::take_log().iter().for_each(|line| output::note(line)))
}

async fn read(hop: &Arc<Hop>) -> Result<Vec<u8>> {
    let size = hop.size();
    if size > MAX_REPORT {
        return Err(Error::Found(format!("the report has {size} bytes, and at most {MAX_REPORT} are read")));
    }
    let mut report = Vec::new();
    for offset in (0..size).step_by(PIECE as usize) {
        let length = PIECE.min(size - offset) as u32;
        let (mut buffer, result) = hop.pread(Buffer::new(length), Span::new(0, length), offset).await;
        result.map_err(|source| Error::Operation { operation: "pread", source })?;
        let span = buffer.span();
        report.extend_from_slice(buffer.bytes(span));
    }
    Ok(report)
}

/// The report for people.
fn lines(found: &Value) -> Vec<String> {
    let formats = list(found, "formats");
    let kind = found["kind"].as_str().unwrap_or_default();
    let mut lines = vec![format!("{kind}, {} bytes", found["file-size"])];
    if let (Some(size), false) = (found["disk-size"].as_u64(), formats.is_empty()) {
        lines.push(format!("the disk has {size} bytes"));
    }
    let within = list(found, "content").iter().map(|content| (content, "in the disk: "));
    for (format, place) in formats.iter().map(|format| (format, "")).chain(within) {
        lines.push(format!("{place}{}", format["format"].as_str().unwrap_or_default()));
        for (name, value) in format["facts"].as_object().into_iter().flatten() {
            lines.push(format!("  {name}: {}", value.as_str().unwrap_or_default()));
        }
        for danger in list(format, "dangers") {
            lines.push(format!("  danger: {}", danger.as_str().unwrap_or_default()));
        }
    }
    lines.push(match found["refused"].as_str() {
        Some(why) => format!("refused: {why}"),
        None => "it can be served".to_string(),
    });
    // Names in an image are the image's text.
    lines.iter().map(|line| rbdkit_plugin_api::text::one_line(line)).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}
