//! The layer that passes everything on and records it.
//!
//! It offers just what the layer below it offers. What that layer cannot do is emulated by the gate
//! in front of this one, as it would be without it. So the recorded layer gets the same calls, and
//! the record has what really passed. Only one thing differs: it is never prompt, because it copies
//! or hashes the data of long requests.

use std::borrow::Cow;
use std::sync::Arc;

use rbdkit_chain::{Hop, Layer, NextLayer};
use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Disk, Done, Errno, ExportEntry, Extents, Flags, Handle, Op, OpenArgs,
    RangeCommand, Result, Span, ThreadModel,
};

use crate::before_open::{facts, list_size, listed};
use crate::entry::{Answer, Call, End, Entry, Gate, Kind, MAX_TEXT, Outcome, Start};
use crate::payload::{Keep, kept};
use crate::recorder::{Recorder, Reserved, Room};

/// Room for an entry without payload, extents or a text.
const SMALL: u32 = 256;

/// Room for an entry with a text.
const TEXT: u32 = SMALL + MAX_TEXT as u32;

/// Makes a layer that passes everything on to the layer below it, and records it as what passed
/// this gate.
pub fn recording_layer(recorder: &Arc<Recorder>, gate: Gate) -> Arc<dyn Layer> {
    Arc::new(RecordingLayer { recorder: Arc::clone(recorder), gate })
}

/// See the module.
struct RecordingLayer {
    recorder: Arc<Recorder>,
    gate: Gate,
}

impl Layer for RecordingLayer {
    fn name(&self) -> &str {
        "record"
    }

    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }

    fn preconnect(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (tap, client) = (self.before_open(), Arc::clone(next.client()));
            let call = Call::Preconnect { client: client.id, readonly, facts: facts(&client) };
            let begun = tap.begin(tap.recorder.reserve(TEXT).await, call);
            let result = next.preconnect(readonly).await;
            begun.end(tap.recorder.reserve(SMALL).await, done(&result));
            result
        })
    }

    fn list_exports(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            let tap = self.before_open();
            let call = Call::ListExports { client: next.client().id, readonly };
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, call);
            let result = next.list_exports(readonly).await;
            let room = tap.recorder.reserve(SMALL + result.as_ref().map_or(0, |list| list_size(list))).await;
            let outcome = match &result {
                Ok(list) => Outcome::Answered(Answer::Exports(list.iter().map(listed).collect())),
                Err(error) => Outcome::Failed(error.errno()),
            };
            begun.end(room, outcome);
            result
        })
    }

    fn default_export(&self, readonly: bool, next: NextLayer) -> BoxFuture<'_, Result<String>> {
        Box::pin(async move {
            let tap = self.before_open();
            let call = Call::DefaultExport { client: next.client().id, readonly };
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, call);
            let result = next.default_export(readonly).await;
            let outcome = match &result {
                Ok(name) => Outcome::Answered(Answer::DefaultExport(Cow::Borrowed(name))),
                Err(error) => Outcome::Failed(error.errno()),
            };
            begun.end(tap.recorder.reserve(TEXT).await, outcome);
            result
        })
    }

    fn open(&self, args: OpenArgs, next: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle = self.recorder.next_handle();
        let tap = Tap { recorder: Arc::clone(&self.recorder), gate: self.gate, handle };
        Box::pin(async move {
            let name = Cow::Borrowed(args.exportname.as_str());
            let call = Call::Open { client: args.client.id, readonly: args.readonly, name };
            let room = tap.recorder.reserve(TEXT).await;
            let begun = tap.begin(room, call);
            let opened = next.open(args.readonly, &args.exportname).await;
            let outcome = match &opened {
                Ok(hop) => Outcome::Answered(Answer::Opened { size: hop.size(), can: hop.can() }),
                Err(error) => Outcome::Failed(error.errno()),
            };
            begun.end(tap.recorder.reserve(SMALL).await, outcome);
            opened.map(|hop| Arc::new(Recorded { hop, tap }) as Arc<dyn Handle>)
        })
    }

    fn stop(&self) {
        self.recorder.begin_stop();
    }
}

impl RecordingLayer {
    /// Where calls are recorded that belong to a client and to nothing that was opened.
    fn before_open(&self) -> Tap {
        Tap { recorder: Arc::clone(&self.recorder), gate: self.gate, handle: 0 }
    }
}

/// Where the calls of one handle are recorded.
#[derive(Clone)]
struct Tap {
    recorder: Arc<Recorder>,
    gate: Gate,
    handle: u32,
}

impl Tap {
    /// Records that a call begins.
    fn begin(&self, room: Option<Room>, call: Call<'_>) -> Begun {
        let (number, time, kind) = (self.recorder.next_call(), self.recorder.time(), call.kind());
        let start = Start { number, time, gate: self.gate, handle: self.handle, call };
        self.recorder.push(room, Entry::Start(start));
        Begun { recorder: Arc::clone(&self.recorder), number, kind, is_over: false }
    }
}

/// A call that has begun. If its future is dropped, the record says so.
struct Begun {
    recorder: Arc<Recorder>,
    number: u64,
    kind: Kind,
    is_over: bool,
}

impl Begun {
    fn end(mut self, room: Option<Room>, outcome: Outcome<'_>) {
        self.is_over = true;
        let end = self.entry(outcome);
        self.recorder.push(room, end);
    }

    fn entry<'a>(&self, outcome: Outcome<'a>) -> Entry<'a> {
        Entry::End(End { number: self.number, time: self.recorder.time(), kind: self.kind, outcome })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_over {
            self.recorder.push_small(self.entry(Outcome::Dropped));
        }
    }
}

/// A call whose input and answer a record keeps.
trait Recordable: Send + Sync + 'static {
    /// What the call takes: a buffer or nothing.
    type Input: Send + 'static;
    /// What it gives.
    type Output: Send + Unpin + 'static;

    /// The most bytes of the entry about its begin.
    fn start_size(&self, keep: Keep) -> u32;
    /// What is recorded of its begin.
    fn call(&self, input: &mut Self::Input, keep: Keep) -> Call<'static>;
    /// Calls the layer below.
    fn pass_on(&self, hop: &Arc<Hop>, input: Self::Input) -> Op<Self::Output>;
    /// The most bytes of the entry about its end.
    fn end_size(&self, output: &Self::Output, keep: Keep) -> u32;
    /// What is recorded of its end.
    fn outcome(&self, output: &mut Self::Output, keep: Keep) -> Outcome<'static>;
}

/// The handle of a recorded connection.
struct Recorded {
    hop: Arc<Hop>,
    tap: Tap,
}

impl Recorded {
    /// Records the begin of a call, passes it on, and records its end.
    fn record<C: Recordable>(&self, call: C, mut input: C::Input) -> Op<C::Output> {
        let (hop, tap) = (&self.hop, &self.tap);
        let keep = tap.recorder.keep();
        let room = match tap.recorder.reserve_now(call.start_size(keep)) {
            Reserved::Now(room) => Some(room),
            Reserved::Never => None,
            Reserved::Later => {
                let (hop, tap) = (Arc::clone(hop), tap.clone());
                return Op::later(async move {
                    let room = tap.recorder.reserve(call.start_size(keep)).await;
                    let begun = begin(&tap, room, &call, &mut input, keep);
                    let output = call.pass_on(&hop, input).await;
                    answered(begun, &call, output, keep).await
                });
            }
        };
        let begun = begin(tap, room, &call, &mut input, keep);
        match call.pass_on(hop, input) {
            Op::Ready(mut output) => match tap.recorder.reserve_now(call.end_size(&output, keep)) {
                Reserved::Later => Op::later(async move { answered(begun, &call, output, keep).await }),
                Reserved::Never => {
                    begun.end(None, Outcome::Dropped);
                    Op::Ready(output)
                }
                Reserved::Now(room) => {
                    let outcome = call.outcome(&mut output, keep);
                    begun.end(Some(room), outcome);
                    Op::Ready(output)
                }
            },
            Op::Later(future) => Op::later(async move { answered(begun, &call, future.await, keep).await }),
            Op::Taken => Op::Taken,
        }
    }
}

fn begin<C: Recordable>(tap: &Tap, room: Option<Room>, call: &C, input: &mut C::Input, keep: Keep) -> Begun {
    // After the record's end nothing is hashed or copied.
    let what = match &room {
        Some(_) => call.call(input, keep),
        None => Call::Flush,
    };
    tap.begin(room, what)
}

async fn answered<C: Recordable>(begun: Begun, call: &C, mut output: C::Output, keep: Keep) -> C::Output {
    match begun.recorder.reserve(call.end_size(&output, keep)).await {
        Some(room) => {
            let outcome = call.outcome(&mut output, keep);
            begun.end(Some(room), outcome);
        }
        None => begun.end(None, Outcome::Dropped),
    }
    output
}

/// The size of an entry with a payload.
fn with_payload(length: u32, keep: Keep) -> u32 {
    match keep {
        Keep::Digests => SMALL,
        Keep::Bytes => SMALL + length,
    }
}

fn done(result: &Result<()>) -> Outcome<'static> {
    match result {
        Ok(()) => Outcome::Answered(Answer::Done),
        Err(error) => Outcome::Failed(error.errno()),
    }
}

struct Pread(Span, u64);

impl Recordable for Pread {
    type Input = Buffer;
    type Output = Done;

    fn start_size(&self, _: Keep) -> u32 {
        SMALL
    }

    fn call(&self, _: &mut Buffer, _: Keep) -> Call<'static> {
        Call::Pread { offset: self.1, length: self.0.len }
    }

    fn pass_on(&self, hop: &Arc<Hop>, buffer: Buffer) -> Op<Done> {
        hop.pread(buffer, self.0, self.1)
    }

    fn end_size(&self, output: &Done, keep: Keep) -> u32 {
        if output.1.is_ok() { with_payload(self.0.len, keep) } else { SMALL }
    }

    fn outcome(&self, output: &mut Done, keep: Keep) -> Outcome<'static> {
        match &output.1 {
            Ok(()) => Outcome::Answered(Answer::Data(kept(&mut output.0, self.0, keep))),
            Err(error) => Outcome::Failed(error.errno()),
        }
    }
}

struct Pwrite(Span, u64, Flags);

impl Recordable for Pwrite {
    type Input = Buffer;
    type Output = Done;

    fn start_size(&self, keep: Keep) -> u32 {
        with_payload(self.0.len, keep)
    }

    fn call(&self, buffer: &mut Buffer, keep: Keep) -> Call<'static> {
        let Pwrite(span, offset, flags) = *self;
        Call::Pwrite { offset, length: span.len, flags, payload: kept(buffer, span, keep) }
    }

    fn pass_on(&self, hop: &Arc<Hop>, buffer: Buffer) -> Op<Done> {
        hop.pwrite(buffer, self.0, self.1, self.2)
    }

    fn end_size(&self, _: &Done, _: Keep) -> u32 {
        SMALL
    }

    fn outcome(&self, output: &mut Done, _: Keep) -> Outcome<'static> {
        done(&output.1)
    }
}

/// A call without data.
struct Plain(Call<'static>);

impl Recordable for Plain {
    type Input = ();
    type Output = Result<()>;

    fn start_size(&self, _: Keep) -> u32 {
        SMALL
    }

    fn call(&self, (): &mut (), _: Keep) -> Call<'static> {
        self.0.clone()
    }

    fn pass_on(&self, hop: &Arc<Hop>, (): ()) -> Op<Result<()>> {
        match self.0 {
            Call::Flush => hop.flush(),
            Call::Trim { offset, length, flags } => hop.trim(offset, length, flags),
            Call::Zero { offset, length, flags } => hop.zero(offset, length, flags),
            Call::Cache { offset, length } => hop.cache(offset, length),
            _ => Op::Ready(Err(Errno::Einval.into())),
        }
    }

    fn end_size(&self, _: &Result<()>, _: Keep) -> u32 {
        SMALL
    }

    fn outcome(&self, output: &mut Result<()>, _: Keep) -> Outcome<'static> {
        done(output)
    }
}

struct ExtentsCall(u64, u64, Flags);

impl Recordable for ExtentsCall {
    type Input = ();
    type Output = Result<Extents>;

    fn start_size(&self, _: Keep) -> u32 {
        SMALL
    }

    fn call(&self, (): &mut (), _: Keep) -> Call<'static> {
        Call::Extents { offset: self.0, length: self.1, flags: self.2 }
    }

    fn pass_on(&self, hop: &Arc<Hop>, (): ()) -> Op<Result<Extents>> {
        hop.extents(self.0, self.1, self.2)
    }

    fn end_size(&self, output: &Result<Extents>, _: Keep) -> u32 {
        // An extent takes 9 bytes.
        SMALL + output.as_ref().map_or(0, |extents| 9 * extents.as_slice().len() as u32)
    }

    fn outcome(&self, output: &mut Result<Extents>, _: Keep) -> Outcome<'static> {
        match output {
            Ok(extents) => Outcome::Answered(Answer::Extents(extents.as_slice().to_vec())),
            Err(error) => Outcome::Failed(error.errno()),
        }
    }
}

impl Handle for Recorded {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.hop.size()))
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        let (hop, tap) = (Arc::clone(&self.hop), self.tap.clone());
        Op::later(async move {
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, Call::BlockSizes);
            let sizes = hop.block_sizes().await;
            begun.end(tap.recorder.reserve(SMALL).await, Outcome::Answered(Answer::BlockSizes(sizes)));
            Ok(sizes)
        })
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        let (hop, tap) = (Arc::clone(&self.hop), self.tap.clone());
        Op::later(async move {
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, Call::Description);
            let text = hop.description().await;
            let told = text.as_deref().map(Cow::Borrowed);
            begun.end(tap.recorder.reserve(TEXT).await, Outcome::Answered(Answer::Description(told)));
            Ok(text)
        })
    }

    fn disk(&self) -> BoxFuture<'_, Result<Disk>> {
        Box::pin(async move {
            let tap = &self.tap;
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, Call::Disk);
            let disk = self.hop.disk().await;
            let outcome = match &disk {
                Ok(id) => Outcome::Answered(Answer::Disk(id.name().map(Cow::Borrowed))),
                Err(error) => Outcome::Failed(error.errno()),
            };
            begun.end(tap.recorder.reserve(TEXT).await, outcome);
            disk.map(Disk::Is)
        })
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.hop.can()))
    }

    fn zero_step(&self) -> u32 {
        self.hop.zero_step()
    }

    fn takes_long(&self, _: RangeCommand) -> bool {
        // The record has room for any length, and the hop below cuts what its layer does not take.
        true
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.record(Pread(span, offset), buffer)
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        self.record(Pwrite(span, offset, flags), buffer)
    }

    fn flush(&self) -> Op<Result<()>> {
        self.record(Plain(Call::Flush), ())
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.record(Plain(Call::Trim { offset, length, flags }), ())
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.record(Plain(Call::Zero { offset, length, flags }), ())
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.record(Plain(Call::Cache { offset, length }), ())
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.record(ExtentsCall(offset, length, flags), ())
    }

    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let tap = &self.tap;
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, Call::Finalize);
            let result = self.hop.finalize().await;
            begun.end(tap.recorder.reserve(SMALL).await, done(&result));
            result
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let tap = &self.tap;
            let begun = tap.begin(tap.recorder.reserve(SMALL).await, Call::Close);
            self.hop.close().await;
            begun.end(tap.recorder.reserve(SMALL).await, Outcome::Answered(Answer::Done));
        })
    }
}
