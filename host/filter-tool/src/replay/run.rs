//! Runs a record against a filter.
//!
//! The record's events are taken in their order. A call begins where it began in the record, and
//! before the event of its end nothing goes on until it has ended. So calls that overlapped in the
//! record overlap here, and others do not. The layer below answers only while an end is waited for:
//! calls that began together have all reached it by then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rbdkit_chain::{Chain, Hop, NextLayer};
use rbdkit_parameters::Missing;
use rbdkit_plugin_api::{BoxFuture, Buffer, Client, Errno, Error as OpError, Peer};
use rbdkit_record::format::{Call, ClientFacts, Gate, Kind, Outcome};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::below::{self, LayerBelow, Strange};
use super::compare::{BelowRule, Difference, Reply, Verdict, compare, compare_below};
use super::parameters::complete;
use super::session::{Event, Recorded, Recording};
use crate::chain::{assembled, assigned, make_ready};
use crate::component::{self, Trust};
use crate::error::{Error, Result};

/// The most differences that are kept. All are counted.
const KEPT: usize = 100;

/// How long a client stays whose call was not answered in the record.
const LEAVES_AFTER: Duration = Duration::from_secs(1);

/// What a replay has shown.
#[derive(Debug, Default)]
pub struct ReplayOutcome {
    /// The filter's name in its description.
    pub filter: String,
    /// The parameters whose values are the record's, and those that the filter does not have.
    pub parameters: Vec<String>,
    pub left_out: Vec<String>,
    /// Calls of the record that were sent to the filter, and those among them that were compared.
    pub calls: u64,
    pub compared: u64,
    pub differences: Vec<Difference>,
    pub differing: u64,
    /// How often each kind of call was sent below: in the record, and now.
    pub below: BTreeMap<&'static str, (u64, u64)>,
    /// Whether what is left below was compared.
    pub below_compared: bool,
    pub strange: Strange,
    pub errors_left: u64,
    pub took: Duration,
}

impl ReplayOutcome {
    fn add(&mut self, difference: Difference) {
        self.differing += 1;
        if self.differences.len() < KEPT {
            self.differences.push(difference);
        }
    }
}

/// What a call gave, and the hop if it opened one.
type Given = (Result<Reply, OpError>, Option<Arc<Hop>>);

type Future = BoxFuture<'static, Given>;

/// A call that has begun: its answer, or the task that waits for it.
enum Running {
    Over(Given),
    Task(JoinHandle<Given>),
}

/// The clients and handles of the replay.
struct Replay {
    recording: Arc<Recording>,
    chain: Arc<Chain>,
    answers: watch::Sender<bool>,
    /// How long the filter may take for a call.
    patience: Duration,
    /// Each client's layers: what they say of exports before a connection is open holds for it.
    clients: HashMap<u64, NextLayer>,
    handles: HashMap<u32, Arc<Hop>>,
    /// The handles that were finalized, or are about to be.
    finalized: HashSet<u32>,
    running: HashMap<usize, Running>,
    outcome: ReplayOutcome,
}

/// Runs the record against the filter.
///
/// # Errors
/// The filter does not start, or the record's file cannot be read.
pub async fn run(
    recording: Arc<Recording>,
    (filter, trust): (&Path, &Trust),
    params: &[String],
    rule: BelowRule,
    patience: Duration,
) -> Result<ReplayOutcome> {
    let begun = Instant::now();
    let (answers, receiver) = watch::channel(true);
    let below = LayerBelow::new(Arc::clone(&recording), receiver);
    let module = component::load(filter, trust)?.module;
    let mut assignment = assigned(&module, params, &below::INFO, Missing::Allowed).map_err(|error| match error {
        // The layer below has no parameters.
        Error::UnknownParameter { key, known, .. } => {
            let has = if known.is_empty() { "none".to_string() } else { known };
            Error::Found(format!("the filter has no parameter '{key}' (it has: {has})"))
        }
        error => error,
    })?;
    let given = assignment.filters.pop().unwrap_or_default();
    let completed = complete(&recording.session.parameters, &module.description().params, given)?;
    assignment.filters.push(completed.values);
    let outcome = ReplayOutcome {
        filter: module.description().name.clone(),
        parameters: completed.from_record,
        left_out: completed.left_out,
        ..ReplayOutcome::default()
    };
    let chain = assembled(Some((module, assignment)), &below::INFO, below.plugin(), "")?;
    match timeout(patience, make_ready(&chain)).await {
        Ok(ready) => ready?,
        Err(_) => return Err(Error::Found(hangs("get-ready", patience))),
    }
    let mut run = Replay {
        recording: Arc::clone(&recording),
        chain,
        answers,
        patience,
        clients: HashMap::new(),
        handles: HashMap::new(),
        finalized: HashSet::new(),
        running: HashMap::new(),
        outcome,
    };
    let ended = match run.events().await {
        Ok(()) => run.end().await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        run.abandon();
        return Err(error);
    }
    let mut outcome = run.outcome;
    if recording.is_whole() {
        outcome.below_compared = true;
        compare_below(&below, rule)?.into_iter().for_each(|difference| outcome.add(difference));
    }
    outcome.below = counts(&recording, &below);
    outcome.strange = below.strange();
    outcome.errors_left = below.errors_left();
    outcome.took = begun.elapsed();
    Ok(outcome)
}

fn counts(recording: &Recording, below: &LayerBelow) -> BTreeMap<&'static str, (u64, u64)> {
    let mut counts: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    for call in recording.calls.iter().filter(|call| call.gate == Gate::Below) {
        if below::Sent::of(&call.call).is_some() {
            counts.entry(call.call.kind().name()).or_default().0 += 1;
        }
    }
    below.inspect(|disks| {
        for (sent, count) in disks.values().flat_map(|state| &state.sent) {
            counts.entry(sent.kind.name()).or_default().1 += count;
        }
    });
    counts
}

fn hangs(call: &str, patience: Duration) -> String {
    format!("the filter never answers: {call} has not ended in {patience:?}")
}

impl Replay {
    async fn events(&mut self) -> Result<()> {
        let recording = Arc::clone(&self.recording);
        for event in &recording.events {
            let (Event::Begins(index) | Event::Ends(index)) = *event;
            let call = &recording.calls[index];
            if call.gate == Gate::Below {
                continue;
            }
            match event {
                Event::Begins(_) => self.begin(index, call).await?,
                Event::Ends(_) => self.ends(index, call).await?,
            }
        }
        Ok(())
    }

    /// Begins a call, up to where it first waits.
    async fn begin(&mut self, index: usize, call: &Recorded) -> Result<()> {
        self.answers.send_replace(false);
        let mut future: Future = match &call.call {
            Call::Preconnect { client, readonly, facts } => preconnect(self.client(*client, Some(facts)), *readonly),
            Call::ListExports { client, readonly } => list_exports(self.client(*client, None), *readonly),
            Call::DefaultExport { client, readonly } => default_export(self.client(*client, None), *readonly),
            Call::Open { client, readonly, name } => {
                let begins = match self.recording.has_preconnects {
                    true => Begins::WithOpen,
                    false => Begins::WithPreconnect,
                };
                open(self.client(*client, None), begins, *readonly, name.clone().into_owned())
            }
            _ => {
                // A handle whose open failed here and not in the record: that was reported.
                let Some(hop) = self.handles.get(&call.handle) else { return Ok(()) };
                let (hop, input) = (Arc::clone(hop), self.input(call)?);
                carry_out(hop, call.call.clone(), input)
            }
        };
        self.outcome.calls += 1;
        if call.call.kind() == Kind::Finalize {
            self.finalized.insert(call.handle);
        }
        let running = match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            Poll::Ready(given) => Running::Over(given),
            Poll::Pending => Running::Task(tokio::spawn(future)),
        };
        self.running.insert(index, running);
        Ok(())
    }

    /// The layers of a client. Without facts it comes from somewhere.
    fn client(&mut self, id: u64, facts: Option<&ClientFacts<'_>>) -> NextLayer {
        let chain = &self.chain;
        let made = || {
            let (peer, credentials, tls) =
                facts.map_or((Peer::Unknown, None, false), |facts| (facts.peer.clone(), facts.credentials, facts.tls));
            let context = facts.and_then(|facts| facts.security_context.as_ref()).map(ToString::to_string);
            chain.top(Arc::new(Client::new(id, peer, credentials, tls).with_security_context(context)))
        };
        self.clients.entry(id).or_insert_with(made).clone()
    }

    /// Waits for the end of a call, and compares its answer.
    async fn ends(&mut self, index: usize, call: &Recorded) -> Result<()> {
        self.answers.send_replace(true);
        let Some(running) = self.running.remove(&index) else { return Ok(()) };
        let (reply, hop) = self.given(running, call).await?;
        if let Some(hop) = hop {
            self.handles.insert(call.handle, hop);
        }
        if call.call.kind() == Kind::Close {
            self.handles.remove(&call.handle);
        }
        match compare(&self.recording, call, &reply)? {
            Verdict::Same => self.outcome.compared += 1,
            Verdict::Unknown => {}
            Verdict::Differs(difference) => {
                self.outcome.compared += 1;
                self.outcome.add(difference);
            }
        }
        Ok(())
    }

    /// Waits for what a call gives. If its client left in the record before it was answered, the
    /// client leaves here too.
    async fn given(&self, running: Running, call: &Recorded) -> Result<Given> {
        let mut task = match running {
            Running::Over(given) => return Ok(given),
            Running::Task(task) => task,
        };
        if matches!(call.outcome, None | Some(Outcome::Dropped | Outcome::Failed(Errno::Eshutdown))) {
            if let Ok(Ok(given)) = timeout(LEAVES_AFTER.min(self.patience), &mut task).await {
                return Ok(given);
            }
            let top = self.recording.client(call).and_then(|client| self.clients.get(&client));
            top.inspect(|top| top.client().set_gone());
        }
        match timeout(self.patience, task).await {
            Ok(Ok(given)) => Ok(given),
            Ok(Err(panic)) => Err(Error::Found(format!("{} panicked: {panic}", call.describe()))),
            Err(_) => {
                let what = format!("call {}, {},", call.number, call.describe());
                Err(Error::Found(hangs(&what, self.patience)))
            }
        }
    }

    /// Waits for calls that had no end in the record, and closes what is open.
    async fn end(&mut self) -> Result<()> {
        self.answers.send_replace(true);
        let recording = Arc::clone(&self.recording);
        for (index, running) in std::mem::take(&mut self.running) {
            let call = &recording.calls[index];
            let (_, hop) = self.given(running, call).await?;
            match (hop, call.call.kind()) {
                (Some(hop), _) => drop(self.handles.insert(call.handle, hop)),
                (None, Kind::Close) => drop(self.handles.remove(&call.handle)),
                _ => {}
            }
        }
        for (handle, hop) in std::mem::take(&mut self.handles) {
            let is_finalized = self.finalized.contains(&handle);
            let closed = async {
                if !is_finalized {
                    let _ = hop.finalize().await;
                }
                hop.close().await;
            };
            timeout(self.patience, closed).await.map_err(|_| Error::Found(hangs("finalize", self.patience)))?;
        }
        self.chain.cleanup(Instant::now() + self.patience).await;
        Ok(())
    }

    /// Gives up calls that do not end.
    fn abandon(&self) {
        self.answers.send_replace(true);
        self.clients.values().for_each(|top| top.client().set_gone());
        self.chain.begin_stop();
    }

    /// The bytes that a call writes.
    fn input(&self, call: &Recorded) -> Result<Option<Buffer>> {
        match (&call.call, call.data) {
            (Call::Pwrite { offset, length, .. }, Some(data)) => {
                Ok(Some(Buffer::from_vec(self.recording.bytes(data, *offset, *length)?)))
            }
            _ => Ok(None),
        }
    }
}

fn preconnect(top: NextLayer, readonly: bool) -> Future {
    Box::pin(async move { (top.preconnect(readonly).await.map(|()| Reply::Done), None) })
}

fn list_exports(top: NextLayer, readonly: bool) -> Future {
    Box::pin(async move { (top.list_exports(readonly).await.map(Reply::Exports), None) })
}

fn default_export(top: NextLayer, readonly: bool) -> Future {
    Box::pin(async move { (top.default_export(readonly).await.map(Reply::DefaultExport), None) })
}

/// What a connection of the record begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// The record has no preconnect, but there was one.
    WithPreconnect,
    /// If there was a preconnect, then the record has it before this.
    WithOpen,
}

fn open(top: NextLayer, begins: Begins, readonly: bool, name: String) -> Future {
    Box::pin(async move {
        let opened = async {
            if begins == Begins::WithPreconnect {
                top.preconnect(readonly).await?;
            }
            top.open(readonly, &name).await
        };
        match opened.await {
            Ok(hop) => (Ok(Reply::Opened { size: hop.size(), can: hop.can() }), Some(hop)),
            Err(error) => (Err(error), None),
        }
    })
}

/// Calls the filter.
fn carry_out(hop: Arc<Hop>, call: Call<'static>, input: Option<Buffer>) -> Future {
    Box::pin(async move {
        let reply = match call {
            Call::Pread { offset, length } => {
                let buffer = Buffer::new(length);
                let span = buffer.span();
                let (mut buffer, result) = hop.pread(buffer, span, offset).await;
                result.map(|()| {
                    buffer.materialize(span);
                    Reply::Data(buffer)
                })
            }
            Call::Pwrite { offset, length, flags, .. } => {
                let buffer = input.unwrap_or_else(|| Buffer::new(length));
                let span = buffer.span();
                hop.pwrite(buffer, span, offset, flags).await.1.map(|()| Reply::Done)
            }
            Call::Flush => hop.flush().await.map(|()| Reply::Done),
            Call::Trim { offset, length, flags } => hop.trim(offset, length, flags).await.map(|()| Reply::Done),
            Call::Zero { offset, length, flags } => hop.zero(offset, length, flags).await.map(|()| Reply::Done),
            Call::Cache { offset, length } => hop.cache(offset, length).await.map(|()| Reply::Done),
            Call::Extents { offset, length, flags } => hop.extents(offset, length, flags).await.map(Reply::Extents),
            Call::BlockSizes => Ok(Reply::BlockSizes(hop.block_sizes().await)),
            Call::Description => Ok(Reply::Description(hop.description().await)),
            Call::Disk => hop.disk().await.map(|disk| Reply::Disk(disk.name().map(str::to_string))),
            Call::Finalize => hop.finalize().await.map(|()| Reply::Done),
            Call::Close => {
                hop.close().await;
                Ok(Reply::Done)
            }
            Call::Open { .. } | Call::Preconnect { .. } | Call::ListExports { .. } | Call::DefaultExport { .. } => {
                Err(Errno::Einval.into())
            }
        };
        (reply, None)
    })
}
