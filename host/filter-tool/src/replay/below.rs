//! The layer below the filter, made up from the record: a plugin that serves what the recorded
//! layer found below it.
//!
//! Its content is what the record's reads found before anything was written there, and what the
//! filter writes now. So a filter may read in other pieces than the recorded one did. Errors and
//! extents are given again for a call of the same kind and range, in the order of the record.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, ConfigError, Disk, DiskId, Done, Errno, Error, ExportEntry,
    Extents, Flags, Handle, Op, OpenArgs, Param, Plugin, PluginInfo, Quota, RangeCommand, Result, Span, ThreadModel,
    lock,
};
use rbdkit_record::format::{Answer, Call, Gate, Kind, ListedExport, Outcome};
use tokio::sync::watch;

use super::content::{MAX_WRITTEN, RangeContent};
use super::ranges::{Detail, Ranges};
use super::session::{Event, Recorded, Recording};

/// What the plugin is. It is made by [`LayerBelow::plugin`].
pub const INFO: PluginInfo = PluginInfo {
    name: "record",
    longname: "layer below a filter in rbdkit-filter replay",
    description: "Serves what a record has of the layer below a filter",
    params: Vec::new,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(BelowPlugin(None)),
};

/// The most different calls of a disk that are counted.
const MAX_SENT: usize = 1 << 22;

/// A disk below the filter.
#[derive(Default)]
pub struct State {
    pub content: Ranges<RangeContent>,
    /// What the filter has changed.
    pub changed: Ranges<()>,
    /// How often the filter sent each call.
    pub sent: BTreeMap<Sent, u64>,
}

/// A call without what it carries. Flags are in the order of [`Flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    pub kind: Kind,
    pub offset: u64,
    pub length: u64,
    pub flags: [bool; 4],
}

impl Sent {
    /// A call of a kind that has a range or is a flush.
    pub fn of(call: &Call<'_>) -> Option<Sent> {
        let kind = call.kind();
        let (offset, length) = match call.range() {
            Some(range) => range,
            None if kind == Kind::Flush => (0, 0),
            None => return None,
        };
        let Flags { fua, may_trim, fast_zero, req_one } = call.flags();
        Some(Sent { kind, offset, length, flags: [fua, may_trim, fast_zero, req_one] })
    }
}

/// What happened below that the record does not have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strange {
    /// Bytes that were read and that the record does not have.
    pub unknown: u64,
    /// Handles that were opened and that the record does not have.
    pub opens: u64,
}

/// The outcomes of recorded calls of one kind and range on one disk.
type Outcomes = HashMap<(String, Kind, u64, u64), VecDeque<usize>>;

/// What the layer below said of a disk.
#[derive(Clone, Debug, Default)]
struct Facts {
    block_sizes: Option<BlockSizes>,
    description: Option<String>,
}

/// See the module.
pub struct LayerBelow {
    pub recording: Arc<Recording>,
    facts: HashMap<String, Facts>,
    disks: Mutex<BTreeMap<String, State>>,
    outcomes: Mutex<Outcomes>,
    /// The opens of each client that were not taken yet.
    opens: Mutex<HashMap<u64, VecDeque<u32>>>,
    /// The recorded calls of each kind before something is open.
    before_open: Mutex<HashMap<Kind, VecDeque<usize>>>,
    strange: Mutex<Strange>,
    written: Arc<Quota>,
    /// Whether calls are answered. Calls that come before the answer wait.
    answers: watch::Receiver<bool>,
}

impl LayerBelow {
    /// The layer below of a record. It answers while `answers` is true.
    pub fn new(recording: Arc<Recording>, answers: watch::Receiver<bool>) -> Arc<LayerBelow> {
        let mut disks: BTreeMap<String, State> = BTreeMap::new();
        let mut opens: HashMap<u64, VecDeque<u32>> = HashMap::new();
        let mut outcomes: Outcomes = HashMap::new();
        let mut facts: HashMap<String, Facts> = HashMap::new();
        let mut before_open: HashMap<Kind, VecDeque<usize>> = HashMap::new();
        let mut changed: HashMap<&str, Ranges<()>> = HashMap::new();
        for event in &recording.events {
            let (Event::Begins(index) | Event::Ends(index)) = *event;
            let call = &recording.calls[index];
            if call.gate == Gate::Below && call.call.kind().is_before_open() && matches!(event, Event::Begins(_)) {
                before_open.entry(call.call.kind()).or_default().push_back(index);
            }
            let Some(opened) = recording.opened(call).filter(|_| call.gate == Gate::Below) else { continue };
            let begins = matches!(event, Event::Begins(_));
            if begins && call.call.kind() == Kind::Open {
                opens.entry(opened.client).or_default().push_back(call.handle);
                disks.entry(opened.disk.clone()).or_default();
            }
            if begins && let Some(sent) = Sent::of(&call.call) {
                let key = (opened.disk.clone(), sent.kind, sent.offset, sent.length);
                outcomes.entry(key).or_default().push_back(index);
            }
            match &call.outcome {
                Some(Outcome::Answered(Answer::BlockSizes(sizes))) => {
                    facts.entry(opened.disk.clone()).or_default().block_sizes = *sizes;
                }
                Some(Outcome::Answered(Answer::Description(text))) => {
                    let text = text.as_ref().map(ToString::to_string);
                    facts.entry(opened.disk.clone()).or_default().description = text;
                }
                _ => {}
            }
            let Some((offset, length)) = call.call.range() else { continue };
            if begins && call.call.kind().changes() {
                changed.entry(&opened.disk).or_default().put(offset, length, ());
            }
            if !begins
                && call.call.kind() == Kind::Pread
                && call.is_ok()
                && let Some(data) = call.data
            {
                let content = &mut disks.entry(opened.disk.clone()).or_default().content;
                learn(content, changed.get(opened.disk.as_str()), offset, length, &RangeContent::of(data));
            }
        }
        Arc::new(LayerBelow {
            recording: Arc::clone(&recording),
            facts,
            disks: Mutex::new(disks),
            outcomes: Mutex::new(outcomes),
            opens: Mutex::new(opens),
            before_open: Mutex::new(before_open),
            strange: Mutex::default(),
            written: Arc::new(Quota::new(MAX_WRITTEN)),
            answers,
        })
    }

    /// The plugin that serves it.
    pub fn plugin(self: &Arc<LayerBelow>) -> Box<dyn Plugin> {
        Box::new(BelowPlugin(Some(Arc::clone(self))))
    }

    /// Calls `look` with the disks by their names.
    pub fn inspect<T>(&self, look: impl FnOnce(&BTreeMap<String, State>) -> T) -> T {
        look(&lock(&self.disks))
    }

    /// What happened that the record does not have.
    pub fn strange(&self) -> Strange {
        *lock(&self.strange)
    }

    /// Errors of the record that were not given, because the filter did not send their calls.
    pub fn errors_left(&self) -> u64 {
        let outcomes = lock(&self.outcomes);
        let left = outcomes.values().flatten().filter(|index| self.recording.calls[**index].errno().is_some());
        left.count() as u64
    }

    /// The recorded handle for an open of the filter: the client's next one, of this name if there
    /// is one.
    fn take_open(&self, client: u64, name: &str) -> Option<u32> {
        let recording = &self.recording;
        let is_named = |handle: &u32| recording.opened.get(handle).is_some_and(|opened| opened.name == name);
        if let Some(queue) = lock(&self.opens).get_mut(&client) {
            let place = queue.iter().position(is_named)?;
            return queue.remove(place);
        }
        None
    }

    /// Any recorded handle of this name.
    fn any_open(&self, name: &str) -> Option<u32> {
        lock(&self.strange).opens += 1;
        let recording = &self.recording;
        let mut handles = recording.opened.iter().filter(|(_, opened)| {
            let call = &recording.calls[opened.call];
            opened.name == name && call.gate == Gate::Below && call.is_ok()
        });
        handles.next().map(|(handle, _)| *handle)
    }

    /// The next recorded call of this kind. The last one answers for all that come after it: a
    /// filter may ask more often than the recorded one.
    fn next_before_open(&self, kind: Kind) -> Option<&Recorded> {
        let mut calls = lock(&self.before_open);
        let queue = calls.get_mut(&kind)?;
        let index = if queue.len() > 1 { queue.pop_front() } else { queue.front().copied() };
        index.map(|index| &self.recording.calls[index])
    }

    /// Counts a call that the filter sent.
    fn count(&self, disk: &str, sent: Sent) {
        let mut disks = lock(&self.disks);
        let counts = &mut disks.entry(disk.to_string()).or_default().sent;
        if counts.len() < MAX_SENT || counts.contains_key(&sent) {
            *counts.entry(sent).or_default() += 1;
        }
    }

    /// Answers a call: `act` gets the disk, and the recorded call of the same kind and range if
    /// there is one.
    fn answer<T: Send + 'static>(
        self: &Arc<LayerBelow>,
        disk: &str,
        call: &Call<'_>,
        act: impl FnOnce(&LayerBelow, &mut State, Option<&Recorded>) -> T + Send + 'static,
    ) -> Op<T> {
        let recorded = Sent::of(call).and_then(|sent| {
            self.count(disk, sent);
            let key = (disk.to_string(), sent.kind, sent.offset, sent.length);
            lock(&self.outcomes).get_mut(&key).and_then(VecDeque::pop_front)
        });
        let (below, disk) = (Arc::clone(self), disk.to_string());
        let answer = move || {
            let mut disks = lock(&below.disks);
            let state = disks.entry(disk).or_default();
            act(&below, state, recorded.map(|index| &below.recording.calls[index]))
        };
        let mut answers = self.answers.clone();
        if *answers.borrow() {
            return Op::Ready(answer());
        }
        Op::later(async move {
            // If nobody can say any more when to answer, it is now.
            let _ = answers.wait_for(|now| *now).await;
            answer()
        })
    }
}

/// Remembers content that was read before anything was known of it or had changed it.
fn learn(
    content: &mut Ranges<RangeContent>,
    changed: Option<&Ranges<()>>,
    offset: u64,
    length: u64,
    read: &RangeContent,
) {
    for (at, length, known) in content.pieces(offset, length) {
        if known.is_some() {
            continue;
        }
        let unchanged = changed.map_or_else(|| vec![(at, length, None)], |changed| changed.pieces(at, length));
        for (at, length, change) in unchanged {
            if change.is_none() {
                content.put(at, length, read.after(at - offset));
            }
        }
    }
}

/// Fails with the recorded error.
fn recorded_error(recorded: Option<&Recorded>) -> Result<()> {
    match recorded.and_then(Recorded::errno) {
        Some(errno) => Err(Error::new(errno, "the layer below failed so in the record")),
        None => Ok(()),
    }
}

fn entry(listed: &ListedExport<'_>) -> ExportEntry {
    let description = listed.description.as_ref().map(ToString::to_string);
    ExportEntry { name: listed.name.to_string(), description }
}

struct BelowPlugin(Option<Arc<LayerBelow>>);

impl Plugin for BelowPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            // The tool's default for disks. The size is in the record.
            "size" => Ok(()),
            _ => Err(param.unknown("record")),
        }
    }

    fn preconnect(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<()>> {
        let recorded = self.0.as_ref().and_then(|below| below.next_before_open(Kind::Preconnect));
        let result = recorded_error(recorded);
        Box::pin(async { result })
    }

    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        let recorded = self.0.as_ref().and_then(|below| below.next_before_open(Kind::ListExports));
        let result = recorded_error(recorded).map(|()| match recorded.and_then(|call| call.outcome.as_ref()) {
            Some(Outcome::Answered(Answer::Exports(list))) => Some(list.iter().map(entry).collect()),
            _ => None,
        });
        Box::pin(async { result })
    }

    fn default_export(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<String>> {
        let recorded = self.0.as_ref().and_then(|below| below.next_before_open(Kind::DefaultExport));
        let result = recorded_error(recorded).map(|()| match recorded.and_then(|call| call.outcome.as_ref()) {
            Some(Outcome::Answered(Answer::DefaultExport(name))) => name.to_string(),
            _ => String::new(),
        });
        Box::pin(async { result })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            let below = self.0.as_ref().ok_or(Errno::Enxio)?;
            let name = &args.exportname;
            let handle = below.take_open(args.client.id, name).or_else(|| below.any_open(name));
            let handle = handle.ok_or_else(|| {
                Error::new(Errno::Enoent, format!("the record has no export '{name}' of the layer below"))
            })?;
            BelowHandle::new(below, handle).map(|handle| Arc::new(handle) as Arc<dyn Handle>)
        })
    }
}

/// A handle with the answers of a recorded one.
struct BelowHandle {
    below: Arc<LayerBelow>,
    /// The key of the disk.
    disk: String,
    size: u64,
    can: Capabilities,
    facts: Facts,
    id: DiskId,
}

impl BelowHandle {
    fn new(below: &Arc<LayerBelow>, handle: u32) -> Result<BelowHandle> {
        let recording = &below.recording;
        let opened = recording.opened.get(&handle).ok_or(Errno::Enoent)?;
        let open = &recording.calls[opened.call];
        let Some(Outcome::Answered(Answer::Opened { size, can })) = open.outcome else {
            recorded_error(Some(open))?;
            return Err(Errno::Eshutdown.into());
        };
        let facts = below.facts.get(&opened.disk).cloned().unwrap_or_default();
        let id = match opened.disk.strip_prefix("disk ") {
            Some(name) => DiskId::named(name),
            None => DiskId::DEFAULT,
        };
        Ok(BelowHandle { below: Arc::clone(below), disk: opened.disk.clone(), size, can, facts, id })
    }
}

impl Handle for BelowHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.can))
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        Op::Ready(Ok(self.facts.block_sizes))
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        Op::Ready(Ok(self.facts.description.clone()))
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        let disk = Disk::Is(self.id.clone());
        Box::pin(async { Ok(disk) })
    }

    fn takes_long(&self, _: RangeCommand) -> bool {
        // As the layer that was recorded, whose calls are matched whole.
        true
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let call = Call::Pread { offset, length: span.len };
        self.below.answer(&self.disk, &call, move |below, state, recorded| {
            let result = recorded_error(recorded).and_then(|()| {
                for (at, length, content) in state.content.pieces(offset, u64::from(span.len)) {
                    let part = Span::new(span.at + (at - offset) as u32, length as u32);
                    let content = content.unwrap_or_else(|| {
                        lock(&below.strange).unknown += length;
                        if below.recording.session.has_payloads {
                            RangeContent::Zeroes
                        } else {
                            RangeContent::Synthetic(0)
                        }
                    });
                    buffer.fill_with(part, |bytes| content.copy(&below.recording, at, bytes))?;
                }
                Ok(())
            });
            (buffer, result)
        })
    }

    fn pwrite(&self, mut buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let length = span.len;
        let call = Call::Pwrite { offset, length, flags, payload: rbdkit_record::format::Payload::Zeroes };
        self.below.answer(&self.disk, &call, move |below, state, recorded| {
            let result = recorded_error(recorded).and_then(|()| {
                let content = match buffer.is_zero(span) {
                    true => RangeContent::Zeroes,
                    false => RangeContent::keep(&below.written, buffer.data(span))?,
                };
                change(state, offset, u64::from(length), content);
                Ok(())
            });
            (buffer, result)
        })
    }

    fn flush(&self) -> Op<Result<()>> {
        self.below.answer(&self.disk, &Call::Flush, |_, _, recorded| recorded_error(recorded))
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.below.answer(&self.disk, &Call::Trim { offset, length, flags }, move |_, state, recorded| {
            recorded_error(recorded).map(|()| change(state, offset, length, RangeContent::Trimmed))
        })
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.below.answer(&self.disk, &Call::Zero { offset, length, flags }, move |_, state, recorded| {
            recorded_error(recorded).map(|()| change(state, offset, length, RangeContent::Zeroes))
        })
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.below.answer(&self.disk, &Call::Cache { offset, length }, |_, _, recorded| recorded_error(recorded))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.below.answer(&self.disk, &Call::Extents { offset, length, flags }, move |_, _, recorded| {
            recorded_error(recorded)?;
            match recorded.and_then(|recorded| recorded.outcome.as_ref()) {
                Some(Outcome::Answered(Answer::Extents(list))) => {
                    let mut extents = Extents::new(offset, length);
                    list.iter().all(|extent| extents.push(extent.length, extent.hole, extent.zero));
                    Ok(extents)
                }
                _ => Ok(Extents::all_data(offset, length)),
            }
        })
    }
}

fn change(state: &mut State, offset: u64, length: u64, content: RangeContent) {
    state.changed.put(offset, length, ());
    state.content.put(offset, length, content);
}
