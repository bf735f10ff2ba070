//! Finds a filter that keeps state in its memory although the host may replace its instances.
//!
//! The same steps run once on instances that serve many calls, and once with a fresh instance for
//! each call. What clients see and what is on the disk below must not differ. A filter whose
//! answers are random differs without that, so the first run is made twice.

use std::sync::Arc;

use rbdkit_plugin_api::{Errno, ThreadModel};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use super::content;
use super::disk::Disk;
use super::operation::{Answer, carry_out};
use super::run::Limits;
use super::script::Script;
use super::server::{Filter, Server, Trouble};
use super::steps::{Request, Step};
use crate::error::{Error, Result};

/// What a client saw of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Done,
    Data(Vec<u8>),
    /// Offset, length, hole, zero.
    Extents(Vec<(u64, u64, bool, bool)>),
    Failed(Errno),
}

/// What a run showed: each step, and digests of the changed units of the disk below at the end.
#[derive(Debug)]
struct Observed {
    seen: Vec<Seen>,
    below: Vec<(u64, [u8; 32])>,
}

impl Observed {
    /// Whether it differs in what both runs have reached.
    fn differs_from(&self, other: &Observed) -> bool {
        let both = self.seen.len().min(other.seen.len());
        self.seen[..both] != other.seen[..both] || (self.seen.len() == other.seen.len() && self.below != other.below)
    }
}

/// What a comparison shows.
#[derive(Debug)]
pub enum Compared {
    /// No difference.
    Same,
    /// The filter may keep state in its memory, or its answers differ each time.
    Inapplicable(&'static str),
    /// What differs, in a line.
    Differs(String),
}

/// Runs the operations of a script on reused and on fresh instances.
///
/// # Errors
/// The filter does not start.
pub async fn compare(filter: &Filter, script: &Script, limits: Limits) -> Result<Compared> {
    // Each run gets a third of the time.
    let third = limits.until.saturating_duration_since(Instant::now()) / 3;
    let limits = || Limits { until: Instant::now() + third, ..limits };
    let fresh = filter.with_fresh_instances()?;
    let (reused, model) = observe(filter, script, limits()).await?;
    if !(model == ThreadModel::Parallel || filter.is_stateless()?) {
        return Ok(Compared::Inapplicable("its thread model and recovery allow state in its memory"));
    }
    let (other, _) = observe(&fresh, script, limits()).await?;
    let Some(difference) = difference(script, &reused, &other) else { return Ok(Compared::Same) };
    if observe(filter, script, limits()).await?.0.differs_from(&reused) {
        return Ok(Compared::Inapplicable("its answers differ each time"));
    }
    let why = match model {
        ThreadModel::Parallel => "the host gives the calls of a parallel filter to any of its instances",
        _ => "the host replaces the instances of a filter that calls itself stateless",
    };
    Ok(Compared::Differs(format!(
        "the filter keeps state in its memory: {difference}; {why} (keep the state in maps, slots or scratch, or \
         choose a thread model and a recovery that allow it)"
    )))
}

/// Carries out the operations one after the other.
async fn observe(filter: &Filter, script: &Script, limits: Limits) -> Result<(Observed, ThreadModel)> {
    let disk = Arc::new(Disk::new(script.access, script.disk_seed));
    let mut server = Server::start(filter, &disk, limits.operation).await.map_err(failed)?;
    let model = server.thread_model();
    let mut seen = Vec::new();
    for step in &script.steps {
        let Step::Operation { connection, operation, .. } = step else { continue };
        let hop = server.connection(*connection).await.map_err(failed)?;
        let answer = timeout(limits.operation, carry_out(hop, operation.clone())).await;
        let Ok(answer) = answer else {
            server.abandon();
            return Err(Error::Found(super::run::hang(&operation.describe(), limits.operation)));
        };
        seen.push(match answer {
            Ok(Answer::Done) => Seen::Done,
            Ok(Answer::Data(mut buffer)) => {
                let span = buffer.span();
                Seen::Data(buffer.bytes(span).to_vec())
            }
            Ok(Answer::Extents(extents)) => {
                let all = extents.as_slice().iter();
                Seen::Extents(all.map(|extent| (extent.offset, extent.length, extent.hole, extent.zero)).collect())
            }
            Err(error) => Seen::Failed(error.errno()),
        });
        if Instant::now() >= limits.until {
            break;
        }
    }
    server.end().await.map_err(failed)?;
    Ok((Observed { seen, below: changed_units(&disk, script.disk_seed) }, model))
}

/// Digests of the units of a disk that do not have their first content any more. Which others were
/// used differs from run to run if the filter reads in the background.
fn changed_units(disk: &Disk, seed: u64) -> Vec<(u64, [u8; 32])> {
    let mut changed = Vec::new();
    let mut first = vec![0; content::UNIT];
    let all = disk.inspect(
        |_| false,
        |offset, bytes| {
            let first = &mut first[..bytes.len()];
            content::initial(first, seed, offset);
            if first != bytes {
                changed.push((offset, Sha256::digest(bytes).into()));
            }
            Ok::<(), std::convert::Infallible>(())
        },
    );
    match all {
        Ok(()) => changed,
        Err(never) => match never {},
    }
}

fn failed(trouble: Trouble) -> Error {
    match trouble {
        Trouble::Fails(error) => error,
        Trouble::Hangs(call) => Error::Found(format!("the filter never answers: {call}")),
    }
}

/// The first difference between the two runs, as the rest of a sentence.
fn difference(script: &Script, reused: &Observed, fresh: &Observed) -> Option<String> {
    let operations = script.steps.iter().filter_map(|step| match step {
        Step::Operation { operation, .. } => Some(operation),
        _ => None,
    });
    // A run that reached its time has seen fewer steps.
    let both = reused.seen.iter().zip(&fresh.seen).zip(operations);
    for ((one, other), operation) in both {
        if one != other {
            return Some(format!("{} {}", operation.describe(), in_words(operation, one, other)));
        }
    }
    if reused.seen.len() != fresh.seen.len() {
        return None;
    }
    let places = reused.below.iter().zip(&fresh.below);
    let place = match places.filter(|(one, other)| one != other).map(|(one, _)| one.0).next() {
        Some(place) => place,
        None if reused.below.len() == fresh.below.len() => return None,
        None => 0,
    };
    Some(format!("the disk below differs at the end, after {place} bytes, when each call gets a fresh instance"))
}

fn in_words(operation: &Request, one: &Seen, other: &Seen) -> String {
    let ended = |seen: &Seen| match seen {
        Seen::Failed(errno) => format!("fails with {errno}"),
        _ => "succeeds".to_string(),
    };
    match (one, other) {
        (Seen::Data(one), Seen::Data(other)) => {
            let at = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or_default();
            let place = operation.range().map_or(0, |(offset, _)| offset) + at as u64;
            format!(
                "returns 0x{:02x} at {place} on an instance that served other calls, and 0x{:02x} on a fresh one",
                one[at], other[at]
            )
        }
        (Seen::Extents(_), Seen::Extents(_)) => {
            "tells other extents on an instance that served other calls than on a fresh one".to_string()
        }
        _ => format!("{} on an instance that served other calls, and {} on a fresh one", ended(one), ended(other)),
    }
}
