//! A record as text, one line for each call, or as JSON.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rbdkit_plugin_api::text::{one_line, quoted};
use rbdkit_plugin_api::{Capabilities, Flags, Peer, Support, hex};
use rbdkit_record::Reader;
use rbdkit_record::format::{
    Answer, Call, ClientFacts, End, Entry, Finish, Gate, GivenParameter, Kind, Outcome, Payload, Reason, Session, Start,
};
use serde_json::{Value, json};

use super::session::unreadable;
use crate::error::Result;

/// The most bytes of an export's name that are shown.
const LONGEST_NAME: usize = 256;

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowFormat {
    Text,
    Json,
}

/// A call that has begun.
struct Begun {
    time: u64,
    gate: Gate,
    handle: u32,
    client: u64,
    kind: &'static str,
    range: Option<(u64, u64)>,
    what: String,
}

/// Counts of a kind of call at one gate.
#[derive(Default)]
struct Total {
    calls: u64,
    bytes: u64,
    failed: u64,
    time: u64,
}

/// Prints a record. A call is printed when it has ended.
///
/// # Errors
/// It cannot be read, or is damaged. What comes before is printed.
pub fn show(file: &Path, format: ShowFormat) -> Result<()> {
    let mut reader = Reader::open(file).map_err(unreadable(file))?;
    let session = reader.session().clone();
    match format {
        ShowFormat::Text => {
            say!("{}", headline(file, &session));
            for GivenParameter { key, value, .. } in &session.parameters {
                let value = value.as_ref().map_or("set".to_string(), |value| quoted(value));
                say!("  parameter {} {value}", one_line(key));
            }
        }
        ShowFormat::Json => say!("{}", session_json(&session)),
    }
    let mut begun: HashMap<u64, Begun> = HashMap::new();
    let mut clients: HashMap<u32, u64> = HashMap::new();
    let mut totals: BTreeMap<(Gate, &'static str), Total> = BTreeMap::new();
    let mut last = None;
    while let Some(read) = reader.next().map_err(unreadable(file))? {
        match read.entry {
            Entry::Session(_) => {}
            Entry::Finish(finish) => last = Some(finish),
            Entry::Start(start) => {
                let named = start.call.client();
                if let (Some(client), Kind::Open) = (named, start.call.kind()) {
                    clients.insert(start.handle, client);
                }
                let client = named.or_else(|| clients.get(&start.handle).copied()).unwrap_or_default();
                let total = totals.entry((start.gate, start.call.kind().name())).or_default();
                total.calls += 1;
                total.bytes += start.call.range().map_or(0, |(_, length)| length);
                let Start { number, time, gate, handle, call } = start;
                let (kind, range, what) = (call.kind().name(), call.range(), request(&call));
                begun.insert(number, Begun { time, gate, handle, client, kind, range, what });
            }
            Entry::End(end) => {
                let Some(call) = begun.remove(&end.number) else { continue };
                let total = totals.entry((call.gate, end.kind.name())).or_default();
                total.failed += u64::from(!matches!(end.outcome, Outcome::Answered(_)));
                total.time += end.time.saturating_sub(call.time);
                line(format, end.number, &call, Some(&end));
            }
        }
    }
    let mut unanswered: Vec<(u64, Begun)> = begun.into_iter().collect();
    unanswered.sort_by_key(|(number, _)| *number);
    for (number, call) in &unanswered {
        line(format, *number, call, None);
    }
    let note = ending(last.as_ref(), reader.cut_at());
    match format {
        ShowFormat::Text => {
            if let Some(note) = note {
                say!("{note}");
            }
            summary(&totals);
        }
        ShowFormat::Json => {
            let (lost, reason) = last.map_or((None, None), |last| (Some(last.lost), Some(last.reason.why())));
            say!("{}", json!({ "entry": "end", "whole": note.is_none(), "lost": lost, "why": reason, "note": note }));
        }
    }
    Ok(())
}

/// What a record is of.
pub fn headline(file: &Path, session: &Session) -> String {
    let sort = if session.is_filter { "filter" } else { "plugin" };
    let payloads = if session.has_payloads { "payloads" } else { "digests" };
    format!(
        "{}: {sort} {}, recorded by rbdkit {} on {}, with {payloads}",
        one_line(&file.display().to_string()),
        one_line(&session.layer),
        one_line(&session.program),
        date(session.began)
    )
}

/// What is missing at the end. None: nothing.
pub fn ending(finish: Option<&Finish>, cut_at: Option<u64>) -> Option<String> {
    match (finish, cut_at) {
        (Some(Finish { reason: Reason::Whole, lost: 0, .. }), None) => None,
        (Some(finish), None) => {
            Some(format!("the record ended early, {} entries are missing: {}", finish.lost, finish.reason.why()))
        }
        (_, Some(at)) => Some(format!("the file ends in the middle of the entry at byte {at}, which does not count")),
        (None, None) => Some("the record has no end: the server was killed, or still runs".to_string()),
    }
}

fn line(format: ShowFormat, number: u64, call: &Begun, end: Option<&End<'_>>) {
    let took = end.map(|end| end.time.saturating_sub(call.time));
    let result = match end {
        None => "no answer".to_string(),
        Some(end) => match &end.outcome {
            Outcome::Failed(errno) => errno.to_string(),
            Outcome::Dropped => "given up".to_string(),
            Outcome::Answered(answer) => answered(answer),
        },
    };
    let gate = if call.gate == Gate::Above { "above" } else { "below" };
    if format == ShowFormat::Json {
        let Begun { time, handle, client, kind, range, what, .. } = call;
        let (offset, length) = range.unzip();
        let ok = end.is_some_and(|end| matches!(end.outcome, Outcome::Answered(_)));
        say!(
            "{}",
            json!({
                "entry": "call", "number": number, "gate": gate, "client": client, "handle": handle, "kind": kind,
                "offset": offset, "length": length, "call": what,
                "began_ns": time, "ended_ns": end.map(|end| end.time), "ok": ok, "result": result,
            })
        );
        return;
    }
    // The time is in seconds with a place for microseconds.
    let (seconds, micros) = (call.time / 1_000_000_000, call.time % 1_000_000_000 / 1000);
    let took = took.map(|took| format!(" ({:.3} ms)", took as f64 / 1e6)).unwrap_or_default();
    say!(
        "{seconds}.{micros:06} {number} client={} handle={} {gate} {} -> {result}{took}",
        call.client,
        call.handle,
        call.what
    );
}

fn request(call: &Call<'_>) -> String {
    let mut text = call.kind().name().to_string();
    match call {
        Call::Open { readonly, name, .. } => {
            text.push_str(&format!(" {}{}", shortened(name), if *readonly { " readonly" } else { "" }));
        }
        Call::Preconnect { readonly, facts, .. } => {
            text.push_str(&format!(" {}{}", client(facts), if *readonly { " readonly" } else { "" }));
        }
        Call::ListExports { readonly: true, .. } | Call::DefaultExport { readonly: true, .. } => {
            text.push_str(" readonly");
        }
        _ => {
            if let Some((offset, length)) = call.range() {
                text.push_str(&format!(" offset={offset} length={length}"));
            }
        }
    }
    let Flags { fua, may_trim, fast_zero, req_one } = call.flags();
    for (set, name) in [(fua, "fua"), (may_trim, "may-trim"), (fast_zero, "fast-zero"), (req_one, "req-one")] {
        if set {
            text.push_str(&format!(" {name}"));
        }
    }
    if let Call::Pwrite { payload, .. } = call {
        text.push_str(&format!(" {}", payload_text(payload)));
    }
    text
}

/// What a filter can learn of a client.
fn client(facts: &ClientFacts<'_>) -> String {
    let mut text = match &facts.peer {
        Peer::Ip(address) => format!("from {address}"),
        Peer::Unix => "from a Unix socket".to_string(),
        Peer::Vsock { cid, port } => format!("from vsock {cid}:{port}"),
        Peer::Unknown => "from somewhere".to_string(),
    };
    if let Some((process, user, group)) = facts.credentials {
        text.push_str(&format!(" pid={process} uid={user} gid={group}"));
    }
    if let Some(context) = &facts.security_context {
        text.push_str(&format!(" security={}", shortened(context)));
    }
    if facts.tls {
        text.push_str(" tls");
    }
    text
}

/// A text as it is shown. Lines stay in memory until their calls have ended.
fn shortened(text: &str) -> String {
    let shown = &text[..text.floor_char_boundary(LONGEST_NAME)];
    format!("{}{}", quoted(shown), if shown.len() < text.len() { "..." } else { "" })
}

fn payload_text(payload: &Payload<'_>) -> String {
    match payload {
        Payload::Zeroes => "zeroes".to_string(),
        Payload::Digest(digest) => format!("sha256={}", hex::encode(digest)),
        Payload::Bytes(bytes) => format!("sha256={}", hex::encode(rbdkit_record::digest(bytes))),
    }
}

fn answered(answer: &Answer<'_>) -> String {
    match answer {
        Answer::Done => "ok".to_string(),
        Answer::Data(payload) => format!("ok {}", payload_text(payload)),
        Answer::Opened { size, can } => format!("ok size={size} can={}", capabilities(*can)),
        Answer::Extents(extents) => {
            const SHOWN: usize = 8;
            let shown = extents.iter().take(SHOWN).map(|extent| {
                let kind = match (extent.hole, extent.zero) {
                    (true, true) => "hole,zero",
                    (true, false) => "hole",
                    (false, true) => "zero",
                    (false, false) => "data",
                };
                format!(" {}:{kind}", extent.length)
            });
            let more = extents.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("ok{}{more}", shown.collect::<String>())
        }
        Answer::BlockSizes(None) | Answer::Description(None) => "ok none".to_string(),
        Answer::BlockSizes(Some(sizes)) => {
            format!("ok minimum={} preferred={} maximum={}", sizes.minimum, sizes.preferred, sizes.maximum)
        }
        Answer::Description(Some(text)) | Answer::Disk(Some(text)) => format!("ok {}", quoted(text)),
        Answer::Disk(None) => "ok default".to_string(),
        Answer::DefaultExport(name) => format!("ok {}", shortened(name)),
        Answer::Exports(list) => {
            const SHOWN: usize = 8;
            let shown: String = list.iter().take(SHOWN).map(|one| format!(" {}", shortened(&one.name))).collect();
            let more = list.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("ok {} exports{}{shown}{more}", list.len(), if list.is_empty() { "" } else { ":" })
        }
    }
}

fn capabilities(can: Capabilities) -> String {
    let mut names = Vec::new();
    let flags = [
        (can.write, "write"),
        (can.flush, "flush"),
        (can.rotational, "rotational"),
        (can.trim, "trim"),
        (can.fast_zero, "fast-zero"),
        (can.extents, "extents"),
        (can.multi_conn, "multi-conn"),
    ];
    names.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_string()));
    for (support, name) in [(can.zero, "zero"), (can.fua, "fua"), (can.cache, "cache")] {
        match support {
            Support::None => {}
            Support::Emulate => names.push(format!("{name}:emulated")),
            Support::Native => names.push(name.to_string()),
        }
    }
    if names.is_empty() { "read".to_string() } else { names.join(",") }
}

fn summary(totals: &BTreeMap<(Gate, &'static str), Total>) {
    say!("  {:<6} {:<18} {:>9} {:>8} {:>15} {:>10}", "gate", "call", "count", "failed", "bytes", "mean");
    for ((gate, kind), total) in totals {
        let gate = if *gate == Gate::Above { "above" } else { "below" };
        let mean = total.time as f64 / 1e6 / total.calls.max(1) as f64;
        let Total { calls, bytes, failed, .. } = total;
        say!("  {gate:<6} {kind:<18} {calls:>9} {failed:>8} {bytes:>15} {mean:>7.3} ms");
    }
}

fn session_json(session: &Session) -> Value {
    json!({
        "entry": "session",
        "program": session.program,
        "layer": session.layer,
        "sort": if session.is_filter { "filter" } else { "plugin" },
        "payloads": session.has_payloads,
        "began_ns": session.began,
        "parameters": session.parameters.iter().map(|given| {
            json!({ "key": given.key, "kind": given.kind, "value": given.value })
        }).collect::<Vec<_>>(),
    })
}

/// The date of a time in nanoseconds since 1970, in UTC.
fn date(time: u64) -> String {
    let seconds = time / 1_000_000_000;
    let (mut days, second) = (seconds / 86400, seconds % 86400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{:02}-{:02} {hours:02}:{minutes:02}:{seconds:02} UTC", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_date() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_102_444_800, "2100-01-01 00:00:00 UTC"),
        ] {
            assert_eq!(date(seconds * 1_000_000_000), text);
        }
        // The largest number that a record can have.
        assert!(date(u64::MAX).starts_with("2554-"));
    }
}
