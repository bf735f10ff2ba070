//! A record in memory: its calls and the order of their begins and ends. Payloads stay in the file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rbdkit_plugin_api::Errno;
use rbdkit_record::Reader;
use rbdkit_record::format::{
    Answer, Call, ClientFacts, DIGEST, Entry, Finish, Gate, ListedExport, Outcome, Payload, Session,
};

use super::ranges::Ranges;
use crate::error::{Error, Result};

/// The most calls of a record. Each takes some 200 bytes of memory.
const MAX_CALLS: usize = 1 << 22;

/// The most bytes of reads and writes that are under way at once. A server allows 512 MiB by
/// default.
const MAX_UNDER_WAY: u64 = 1 << 30;

/// Bytes of a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Zeroes,
    Digest([u8; DIGEST]),
    /// In the file, from this byte on.
    Stored(u64),
}

/// A call of the record.
#[derive(Debug)]
pub struct Recorded {
    pub number: u64,
    pub gate: Gate,
    pub handle: u32,
    /// The call. Its payload is in `data`.
    pub call: Call<'static>,
    /// None: the record ends before the call did. The bytes of a pread are in `data`.
    pub outcome: Option<Outcome<'static>>,
    /// The bytes of a pwrite, or those that a pread gave.
    pub data: Option<Data>,
    /// A change of the same bytes was under way at the same time, so either order is right.
    pub is_racy: bool,
}

impl Recorded {
    /// The error that it failed with. ESHUTDOWN does not count: its client had left.
    pub fn errno(&self) -> Option<Errno> {
        match self.outcome {
            Some(Outcome::Failed(errno)) if errno != Errno::Eshutdown => Some(errno),
            _ => None,
        }
    }

    /// Whether it succeeded.
    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Answered(_)))
    }

    /// The call for people.
    pub fn describe(&self) -> String {
        let kind = self.call.kind().name();
        match self.call.range() {
            Some((offset, length)) => format!("{kind} of {length} bytes at {offset}"),
            None => kind.to_string(),
        }
    }
}

/// Something happens to the call of this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Begins(usize),
    Ends(usize),
}

/// What is known of something that was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The index of the open.
    pub call: usize,
    pub client: u64,
    pub name: String,
    /// Which disk: the name that the layer gave for it, or else the name of the export.
    pub disk: String,
}

/// A record.
pub struct Recording {
    pub session: Session,
    /// Whether the record has what happens before a connection is open. Version 1 has not.
    pub has_preconnects: bool,
    pub calls: Vec<Recorded>,
    pub events: Vec<Event>,
    pub opened: HashMap<u32, Opened>,
    pub finish: Option<Finish>,
    /// Where the file ends in the middle of an entry.
    pub cut_at: Option<u64>,
    file: File,
}

/// The error about a file that is not a record.
pub fn unreadable(path: &Path) -> impl Fn(rbdkit_record::ReadError) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Record { path: path.clone(), source: Box::new(source) }
}

impl Recording {
    /// Reads a record.
    ///
    /// # Errors
    /// It is none, or it is damaged.
    pub fn load(path: &Path) -> Result<Recording> {
        let mut reader = Reader::open(path).map_err(unreadable(path))?;
        let file = File::open(path).map_err(Error::file("cannot open", path))?;
        let mut recording = Recording {
            session: reader.session().clone(),
            has_preconnects: reader.version() > 1,
            calls: Vec::new(),
            events: Vec::new(),
            opened: HashMap::new(),
            finish: None,
            cut_at: None,
            file,
        };
        let mut pending: HashMap<u64, usize> = HashMap::new();
        let mut under_way = 0;
        while let Some(read) = reader.next().map_err(unreadable(path))? {
            match read.entry {
                // The reader allows it only at the beginning.
                Entry::Session(_) => {}
                Entry::Finish(finish) => recording.finish = Some(finish),
                Entry::Start(start) => {
                    let index = recording.calls.len();
                    if index >= MAX_CALLS {
                        return Err(Error::Found(format!("{}: has more than {MAX_CALLS} calls", path.display())));
                    }
                    let (call, data) = owned_call(start.call, read.end);
                    if let Call::Open { client, name, .. } = &call {
                        let (client, name) = (*client, name.clone().into_owned());
                        let opened = Opened { call: index, client, disk: name.clone(), name };
                        recording.opened.insert(start.handle, opened);
                    }
                    under_way += data_bytes(&call);
                    if under_way > MAX_UNDER_WAY {
                        let path = path.display();
                        return Err(Error::Found(format!(
                            "{path}: reads and writes of more than 1 GiB are under way at once"
                        )));
                    }
                    pending.insert(start.number, index);
                    recording.events.push(Event::Begins(index));
                    recording.calls.push(Recorded {
                        number: start.number,
                        gate: start.gate,
                        handle: start.handle,
                        call,
                        outcome: None,
                        data,
                        is_racy: false,
                    });
                }
                Entry::End(end) => {
                    let Some(index) = pending.remove(&end.number) else { continue };
                    let call = &mut recording.calls[index];
                    under_way -= data_bytes(&call.call);
                    let (outcome, data) = owned_outcome(end.outcome, read.end);
                    if let (Outcome::Answered(Answer::Disk(Some(disk))), Some(opened)) =
                        (&outcome, recording.opened.get_mut(&call.handle))
                    {
                        opened.disk = format!("disk {disk}");
                    }
                    call.outcome = Some(outcome);
                    call.data = call.data.or(data);
                    recording.events.push(Event::Ends(index));
                }
            }
        }
        recording.cut_at = reader.cut_at();
        recording.one_disk_for_one_name();
        recording.find_races();
        Ok(recording)
    }

    /// Whether nothing is missing at the end.
    pub fn is_whole(&self) -> bool {
        self.finish.as_ref().is_some_and(|finish| finish.lost == 0)
    }

    /// The bytes of a payload. `begin` is the offset of its request, which synthetic bytes depend
    /// on.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self, data: Data, begin: u64, length: u32) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        match data {
            Data::Zeroes => {}
            Data::Digest(digest) => synthetic(&mut bytes, seed_of(&digest), begin),
            Data::Stored(at) => self.file.read_exact_at(&mut bytes, at)?,
        }
        Ok(bytes)
    }

    /// Reads bytes of the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// What was opened for a call.
    pub fn opened(&self, call: &Recorded) -> Option<&Opened> {
        self.opened.get(&call.handle)
    }

    /// The client of a call.
    pub fn client(&self, call: &Recorded) -> Option<u64> {
        call.call.client().or_else(|| self.opened(call).map(|opened| opened.client))
    }

    /// Handles below that were opened with the name of a handle whose disk is known have that disk.
    fn one_disk_for_one_name(&mut self) {
        let known: HashMap<String, String> = self
            .opened
            .values()
            .filter(|opened| self.calls[opened.call].gate == Gate::Below && opened.disk != opened.name)
            .map(|opened| (opened.name.clone(), opened.disk.clone()))
            .collect();
        for opened in self.opened.values_mut() {
            if let Some(disk) = known.get(&opened.name).filter(|_| self.calls[opened.call].gate == Gate::Below) {
                opened.disk.clone_from(disk);
            }
        }
    }

    /// Finds the calls that had a change of the same bytes beside them.
    fn find_races(&mut self) {
        let mut active: HashMap<(Gate, String), Active> = HashMap::new();
        for event in &self.events {
            let (Event::Begins(index) | Event::Ends(index)) = *event;
            let call = &self.calls[index];
            let Some((offset, length)) = call.call.range() else { continue };
            let disk = self.opened.get(&call.handle).map(|opened| opened.disk.clone()).unwrap_or_default();
            let active = active.entry((call.gate, disk)).or_default();
            let changes = call.call.kind().changes();
            if matches!(event, Event::Ends(_)) {
                active.reads.retain(|other| *other != index);
                if changes {
                    for (at, length, owner) in active.changes.pieces(offset, length) {
                        if owner == Some(index) {
                            active.changes.remove(at, length);
                        }
                    }
                }
                continue;
            }
            if !changes && active.uncertain.touches(offset, length) {
                self.calls[index].is_racy = true;
            }
            if changes {
                active.uncertain.remove(offset, length);
            }
            if active.changes.touches(offset, length) {
                let others = active.changes.pieces(offset, length);
                others.iter().filter_map(|piece| piece.2).for_each(|other| self.calls[other].is_racy = true);
                self.calls[index].is_racy = true;
                for (at, length, _) in others.into_iter().filter(|piece| changes && piece.2.is_some()) {
                    active.uncertain.put(at, length, ());
                }
            }
            if changes {
                for other in &active.reads {
                    let (begin, size) = self.calls[*other].call.range().unwrap_or_default();
                    if begin < offset + length && offset < begin + size {
                        self.calls[*other].is_racy = true;
                    }
                }
                active.changes.put(offset, length, index);
            } else {
                active.reads.push(index);
            }
        }
    }
}

/// The calls under way on one disk.
#[derive(Default)]
struct Active {
    /// The index of the change.
    changes: Ranges<usize>,
    reads: Vec<usize>,
    /// Two changes at once were the last ones here, so nobody knows which came last.
    uncertain: Ranges<()>,
}

/// Fills bytes that begin at this offset with what stands for bytes that the record does not have.
pub fn synthetic(bytes: &mut [u8], seed: u64, offset: u64) {
    crate::check::content::fill(bytes, seed | 1, offset);
}

/// The seed of the bytes that stand for those with this digest.
pub fn seed_of(digest: &[u8; DIGEST]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The bytes of a buffer that a call has while it is under way.
fn data_bytes(call: &Call<'_>) -> u64 {
    match call {
        Call::Pread { length, .. } | Call::Pwrite { length, .. } => u64::from(*length),
        _ => 0,
    }
}

fn owned_data(payload: &Payload<'_>, end: u64) -> Data {
    match payload {
        Payload::Zeroes => Data::Zeroes,
        Payload::Digest(digest) => Data::Digest(*digest),
        Payload::Bytes(bytes) => Data::Stored(end - bytes.len() as u64),
    }
}

fn own(text: Option<Cow<'_, str>>) -> Option<Cow<'static, str>> {
    text.map(|text| Cow::Owned(text.into_owned()))
}

fn owned_call(call: Call<'_>, end: u64) -> (Call<'static>, Option<Data>) {
    let call = match call {
        Call::Open { client, readonly, name } => Call::Open { client, readonly, name: Cow::Owned(name.into_owned()) },
        Call::Pwrite { offset, length, flags, payload } => {
            let data = owned_data(&payload, end);
            return (Call::Pwrite { offset, length, flags, payload: Payload::Zeroes }, Some(data));
        }
        Call::Pread { offset, length } => Call::Pread { offset, length },
        Call::Flush => Call::Flush,
        Call::Trim { offset, length, flags } => Call::Trim { offset, length, flags },
        Call::Zero { offset, length, flags } => Call::Zero { offset, length, flags },
        Call::Cache { offset, length } => Call::Cache { offset, length },
        Call::Extents { offset, length, flags } => Call::Extents { offset, length, flags },
        Call::BlockSizes => Call::BlockSizes,
        Call::Description => Call::Description,
        Call::Disk => Call::Disk,
        Call::Finalize => Call::Finalize,
        Call::Close => Call::Close,
        Call::Preconnect { client, readonly, facts } => {
            let ClientFacts { peer, credentials, security_context, tls } = facts;
            let facts = ClientFacts { peer, credentials, security_context: own(security_context), tls };
            Call::Preconnect { client, readonly, facts }
        }
        Call::ListExports { client, readonly } => Call::ListExports { client, readonly },
        Call::DefaultExport { client, readonly } => Call::DefaultExport { client, readonly },
    };
    (call, None)
}

fn owned_outcome(outcome: Outcome<'_>, end: u64) -> (Outcome<'static>, Option<Data>) {
    let answer = match outcome {
        Outcome::Failed(errno) => return (Outcome::Failed(errno), None),
        Outcome::Dropped => return (Outcome::Dropped, None),
        Outcome::Answered(answer) => answer,
    };
    let answer = match answer {
        Answer::Data(payload) => {
            let data = owned_data(&payload, end);
            return (Outcome::Answered(Answer::Data(Payload::Zeroes)), Some(data));
        }
        Answer::Done => Answer::Done,
        Answer::Opened { size, can } => Answer::Opened { size, can },
        Answer::Extents(extents) => Answer::Extents(extents),
        Answer::BlockSizes(sizes) => Answer::BlockSizes(sizes),
        Answer::Description(text) => Answer::Description(own(text)),
        Answer::Disk(text) => Answer::Disk(own(text)),
        Answer::Exports(list) => {
            let each = |one: ListedExport<'_>| ListedExport {
                name: Cow::Owned(one.name.into_owned()),
                description: own(one.description),
            };
            Answer::Exports(list.into_iter().map(each).collect())
        }
        Answer::DefaultExport(name) => Answer::DefaultExport(Cow::Owned(name.into_owned())),
    };
    (Outcome::Answered(answer), None)
}
