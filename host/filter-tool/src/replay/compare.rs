//! Compares what the filter answers and leaves below with the record.

use std::collections::BTreeMap;

use rbdkit_plugin_api::text::quoted;
use rbdkit_plugin_api::{Buffer, Capabilities, Errno, Error, ExportEntry, Extents};
use rbdkit_record::format::{Answer, Gate, Kind, ListedExport, Outcome};

use super::below::{LayerBelow, Sent, State};
use super::content::{RangeContent, copy};
use super::ranges::Ranges;
use super::session::{Data, Event, Recorded, Recording};

/// What a call of the replay gave.
#[derive(Debug)]
pub enum Reply {
    Done,
    Opened { size: u64, can: Capabilities },
    Data(Buffer),
    Extents(Extents),
    BlockSizes(Option<rbdkit_plugin_api::BlockSizes>),
    Description(Option<String>),
    Disk(Option<String>),
    Exports(Vec<ExportEntry>),
    DefaultExport(String),
}

/// Something differs from the record.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The call's number in the record. None for what the filter left below.
    pub number: Option<u64>,
    /// The number of the client.
    pub client: Option<u64>,
    /// Where the bytes are that differ: of the export, or of the disk below.
    pub offset: Option<u64>,
    /// What was called, or which disk it is.
    pub what: String,
    pub expected: String,
    pub got: String,
}

impl Difference {
    /// One line.
    pub fn line(&self) -> String {
        let mut line = match (self.number, self.client) {
            (Some(number), Some(client)) => format!("call {number} (client {client}), {}", self.what),
            _ => self.what.clone(),
        };
        if let Some(offset) = self.offset {
            line.push_str(&format!(", at byte {offset}"));
        }
        format!("{line}: expected {}, got {}", self.expected, self.got)
    }
}

/// How an answer compares with the record.
pub enum Verdict {
    Same,
    /// It was not compared, because the record does not say what is right.
    Unknown,
    Differs(Difference),
}

/// Compares the answer of a call.
///
/// # Errors
/// The record's file cannot be read.
pub fn compare(recording: &Recording, call: &Recorded, reply: &Result<Reply, Error>) -> std::io::Result<Verdict> {
    let differs = |offset: Option<u64>, expected: String, got: String| {
        let client = recording.client(call);
        Verdict::Differs(Difference { number: Some(call.number), client, offset, what: call.describe(), expected, got })
    };
    let answer = match (&call.outcome, reply) {
        // The client had left, so the answer depended on when it did.
        (None | Some(Outcome::Dropped | Outcome::Failed(Errno::Eshutdown)), _) => return Ok(Verdict::Unknown),
        (Some(Outcome::Failed(expected)), Err(got)) if *expected == got.errno() => return Ok(Verdict::Same),
        (Some(Outcome::Failed(expected)), Err(got)) => return Ok(differs(None, expected.to_string(), got.to_string())),
        (Some(Outcome::Failed(expected)), Ok(_)) => return Ok(differs(None, expected.to_string(), "success".into())),
        (Some(Outcome::Answered(_)), Err(got)) => return Ok(differs(None, "success".into(), got.to_string())),
        (Some(Outcome::Answered(answer)), Ok(reply)) => (answer, reply),
    };
    Ok(match answer {
        (Answer::Data(_), Reply::Data(buffer)) => {
            let (Some((offset, length)), Some(data)) = (call.call.range(), call.data) else {
                return Ok(Verdict::Unknown);
            };
            if call.is_racy || !recording.session.has_payloads || matches!(data, Data::Digest(_)) {
                return Ok(Verdict::Unknown);
            }
            let expected = recording.bytes(data, offset, length as u32)?;
            let span = buffer.span();
            match first_difference(&expected, buffer.data(span)) {
                None => Verdict::Same,
                Some((at, expected, got)) => differs(Some(offset + at), expected, got),
            }
        }
        (Answer::Extents(_), Reply::Extents(_)) if call.is_racy => Verdict::Unknown,
        (Answer::Extents(expected), Reply::Extents(got)) => {
            let mut pairs = (0..).map(|at| (expected.get(at), got.as_slice().get(at)));
            match pairs.find(|(one, other)| one != other || one.is_none()) {
                Some((one, other)) if one != other => {
                    let at = one.or(other).map(|extent| extent.offset);
                    differs(at, extent(one), extent(other))
                }
                _ => Verdict::Same,
            }
        }
        (Answer::Opened { size, .. }, Reply::Opened { size: got, .. }) if size != got => {
            differs(None, format!("a size of {size} bytes"), format!("{got} bytes"))
        }
        (Answer::Opened { can, .. }, Reply::Opened { can: got, .. }) if can != got => {
            differs(None, format!("{can:?}"), format!("{got:?}"))
        }
        (Answer::BlockSizes(sizes), Reply::BlockSizes(got)) if sizes != got => {
            differs(None, format!("{sizes:?}"), format!("{got:?}"))
        }
        (Answer::Description(text), Reply::Description(got)) if text.as_deref() != got.as_deref() => {
            differs(None, format!("{text:?}"), format!("{got:?}"))
        }
        (Answer::Exports(list), Reply::Exports(got)) => match first_other_export(list, got) {
            None => Verdict::Same,
            Some((expected, got)) => differs(None, expected, got),
        },
        (Answer::DefaultExport(name), Reply::DefaultExport(got)) if *name != got.as_str() => {
            differs(None, quoted(name), quoted(got))
        }
        (Answer::Disk(disk), Reply::Disk(got)) if disk.as_deref() != got.as_deref() => {
            differs(None, format!("{disk:?}"), format!("{got:?}"))
        }
        _ => Verdict::Same,
    })
}

/// The first export in which two lists differ.
fn first_other_export(expected: &[ListedExport<'_>], got: &[ExportEntry]) -> Option<(String, String)> {
    let shown = |name: Option<&str>, description: Option<&str>| match (name, description) {
        (None, _) => "no further export".to_string(),
        (Some(name), None) => format!("the export {}", quoted(name)),
        (Some(name), Some(text)) => format!("the export {} ({})", quoted(name), quoted(text)),
    };
    (0..expected.len().max(got.len())).find_map(|at| {
        let (one, other) = (expected.get(at), got.get(at));
        let one = shown(one.map(|one| &*one.name), one.and_then(|one| one.description.as_deref()));
        let other = shown(other.map(|one| &*one.name), other.and_then(|one| one.description.as_deref()));
        (one != other).then_some((one, other))
    })
}

fn extent(extent: Option<&rbdkit_plugin_api::Extent>) -> String {
    match extent {
        None => "no further extent".to_string(),
        Some(extent) => {
            let kind = match (extent.hole, extent.zero) {
                (true, true) => "hole,zero",
                (true, false) => "hole",
                (false, true) => "zero",
                (false, false) => "data",
            };
            format!("{kind} of {} bytes", extent.length)
        }
    }
}

/// Where two runs of bytes of one length first differ, and the bytes there.
fn first_difference(expected: &[u8], got: &[u8]) -> Option<(u64, String, String)> {
    const SHOWN: usize = 8;
    let at = expected.iter().zip(got).position(|(one, other)| one != other)?;
    let shown = |bytes: &[u8]| {
        let part = bytes[at..].iter().take(SHOWN);
        part.map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
    };
    Some((at as u64, shown(expected), shown(got)))
}

/// What the recorded filter left below.
#[derive(Default)]
struct Left {
    content: Ranges<RangeContent>,
    /// Nobody knows what is here: a change failed, or two came at once.
    uncertain: Ranges<()>,
    sent: BTreeMap<Sent, u64>,
}

/// How exactly the calls to the layer below have to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BelowRule {
    /// What they leave there.
    Content,
    /// Also the calls themselves, in any order.
    Calls,
}

/// Compares what the filter has left below. The record has to be whole.
///
/// # Errors
/// The record's file cannot be read.
pub fn compare_below(below: &LayerBelow, rule: BelowRule) -> std::io::Result<Vec<Difference>> {
    let recording = &below.recording;
    let mut left: BTreeMap<&str, Left> = BTreeMap::new();
    for event in &recording.events {
        let (Event::Begins(index) | Event::Ends(index)) = *event;
        let call = &recording.calls[index];
        let Some(opened) = recording.opened(call).filter(|_| call.gate == Gate::Below) else { continue };
        let disk = left.entry(&opened.disk).or_default();
        if matches!(event, Event::Begins(_)) {
            if let Some(sent) = Sent::of(&call.call) {
                *disk.sent.entry(sent).or_default() += 1;
            }
            continue;
        }
        let Some((offset, length)) = call.call.range().filter(|_| call.call.kind().changes()) else { continue };
        let content = match call.call.kind() {
            Kind::Trim => RangeContent::Trimmed,
            Kind::Zero => RangeContent::Zeroes,
            _ => call.data.map_or(RangeContent::Zeroes, RangeContent::of),
        };
        disk.content.put(offset, length, content);
        if call.is_ok() && !call.is_racy {
            disk.uncertain.remove(offset, length);
        } else {
            disk.uncertain.put(offset, length, ());
        }
    }
    below.inspect(|disks| {
        let mut differences = Vec::new();
        for (name, now) in disks {
            let nothing = Left::default();
            let left = left.get(name.as_str()).unwrap_or(&nothing);
            let disk = if disks.len() > 1 { format!("below, export '{name}'") } else { "below".to_string() };
            differences.extend(compare_content(recording, &disk, left, now)?);
            if rule == BelowRule::Calls {
                differences.extend(compare_calls(&disk, &left.sent, &now.sent));
            }
        }
        Ok(differences)
    })
}

fn compare_content(recording: &Recording, disk: &str, left: &Left, now: &State) -> std::io::Result<Option<Difference>> {
    let differs = |offset: u64, expected: String, got: String| {
        let (number, client, what) = (None, None, disk.to_string());
        Ok(Some(Difference { number, client, offset: Some(offset), what, expected, got }))
    };
    let state = |content: Option<&RangeContent>, length: u64| match content {
        None => format!("{length} bytes as they were"),
        Some(RangeContent::Trimmed) => format!("{length} bytes trimmed"),
        Some(_) => format!("{length} bytes written"),
    };
    let mut all = Ranges::default();
    let changed = left.content.iter().map(|(at, length, _)| (at, length));
    changed.chain(now.changed.iter().map(|(at, length, ())| (at, length))).for_each(|(at, length)| {
        all.put(at, length, ());
    });
    for (at, length, ()) in all.iter() {
        for (at, length, expected) in left.content.pieces(at, length) {
            let certain = left.uncertain.pieces(at, length);
            for (at, length, _) in certain.into_iter().filter(|piece| piece.2.is_none()) {
                for (at, length, is_changed) in now.changed.pieces(at, length) {
                    let got = now.content.pieces(at, length);
                    for (at, length, got) in got {
                        let got = got.filter(|_| is_changed.is_some());
                        let expected = expected.as_ref();
                        let is_trimmed =
                            |content: Option<&RangeContent>| matches!(content, Some(RangeContent::Trimmed));
                        if expected.is_some() != got.is_some() || is_trimmed(expected) != is_trimmed(got.as_ref()) {
                            return differs(at, state(expected, length), state(got.as_ref(), length));
                        }
                    }
                }
            }
        }
    }
    if recording.session.has_payloads { compare_bytes(recording, disk, left, now) } else { Ok(None) }
}

/// The most bytes that are compared at once.
const STEP: u64 = 1 << 20;

fn compare_bytes(recording: &Recording, disk: &str, left: &Left, now: &State) -> std::io::Result<Option<Difference>> {
    for (from, whole, content) in left.content.iter() {
        let certain = left.uncertain.pieces(from, whole);
        for (begin, length, _) in certain.into_iter().filter(|piece| piece.2.is_none()) {
            for (begin, length, got) in now.content.pieces(begin, length) {
                let Some(got) = got else { continue };
                let both_zero = |one: &RangeContent| matches!(one, RangeContent::Zeroes | RangeContent::Trimmed);
                if both_zero(content) && both_zero(&got) {
                    continue;
                }
                let mut at = begin;
                while at < begin + length {
                    let count = STEP.min(begin + length - at) as usize;
                    let (mut one, mut other) = (vec![0; count], vec![0; count]);
                    copy(content, recording, at - from, at, &mut one)?;
                    copy(&got, recording, at - begin, at, &mut other)?;
                    if let Some((skip, expected, got)) = first_difference(&one, &other) {
                        let (number, client, what) = (None, None, disk.to_string());
                        return Ok(Some(Difference { number, client, offset: Some(at + skip), what, expected, got }));
                    }
                    at += count as u64;
                }
            }
        }
    }
    Ok(None)
}

fn compare_calls(disk: &str, recorded: &BTreeMap<Sent, u64>, now: &BTreeMap<Sent, u64>) -> Vec<Difference> {
    let all: std::collections::BTreeSet<&Sent> = recorded.keys().chain(now.keys()).collect();
    let differing = all.into_iter().filter(|sent| recorded.get(sent) != now.get(sent));
    differing
        .map(|sent| {
            let times = |of: &BTreeMap<Sent, u64>| format!("{} times", of.get(sent).copied().unwrap_or_default());
            let flags = ["fua", "may-trim", "fast-zero", "req-one"].into_iter().zip(sent.flags);
            let flags: String = flags.filter(|(_, set)| *set).map(|(name, _)| format!(" {name}")).collect();
            Difference {
                number: None,
                client: None,
                offset: Some(sent.offset),
                what: format!("{disk}, {} of {} bytes{flags}", sent.kind.name(), sent.length),
                expected: times(recorded),
                got: times(now),
            }
        })
        .collect()
}
