//! Runs a script: carries out its steps, and compares the answers with the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rbdkit_chain::Hop;
use rbdkit_plugin_api::{BlockSizes, Errno};
use tokio::time::{Instant, timeout_at};

use super::disk::Disk;
use super::model::Model;
use super::operation::{Answer, carry_out};
use super::promise::Promise;
use super::script::Script;
use super::server::{Filter, Server, Trouble};
use super::steps::{CONNECTIONS, Request, Step, together};
use crate::error::{Error, Result};

/// How often each operation was tried, and how it ended.
pub type Tally = BTreeMap<&'static str, BTreeMap<String, u64>>;

/// After this many operations that all fail, the rest is not tried.
const ALL_FAIL: u64 = 100;

/// A run has at least this many steps, if its script has, however slow the machine is.
const LEAST: usize = 100;

/// An operation that fails each time counts as broken after this many times.
const BROKEN: u64 = 5;

/// What kind of fault was found. A shorter script has to find the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A trap, or a limit.
    Fault,
    /// No answer.
    Hang,
    /// An operation fails that should not.
    Fails,
    /// A read returns other bytes, or extents contradict them.
    Differs,
    /// The disk below differs at the end.
    Disk,
    /// The disk below was written.
    Wrote,
    /// Data that should be durable is not.
    Durability,
    /// It keeps state in its memory.
    State,
}

/// A fault of the filter.
#[derive(Clone, Debug)]
pub struct Finding {
    pub kind: Kind,
    /// One line.
    pub message: String,
}

/// What a run has shown.
#[derive(Debug)]
pub struct Outcome {
    pub finding: Option<Finding>,
    /// The steps that were carried out.
    pub steps: usize,
    pub tally: Tally,
    /// The longest time of steps that began together.
    pub slowest: Duration,
    /// Why the script could show nothing.
    pub note: Option<&'static str>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// An operation.
    pub operation: Duration,
    /// The run ends between two steps after this time, but not before [`LEAST`] steps.
    pub until: Instant,
}

/// Which part of an answer about extents counts. The answer may run on beyond its range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Only the range: what is beyond it may have changed at the same time.
    Range,
    Export,
}

/// Runs a script over a new disk.
///
/// # Errors
/// The filter does not start, or the script does not fit its export.
pub async fn run(filter: &Filter, script: &Script, limits: Limits) -> Result<Outcome> {
    let disk = Arc::new(Disk::new(script.access, script.disk_seed));
    let mut run = match Run::start(filter, script, &disk, limits).await {
        Ok(run) => run,
        Err(Trouble::Fails(error)) => return Err(error),
        Err(Trouble::Hangs(call)) => return Err(Error::Found(hang(call, limits.operation))),
    };
    let mut finding = run.steps(&script.steps).await.err();
    if finding.as_ref().is_none_or(|finding| finding.kind != Kind::Hang) {
        let end = run.end().await;
        finding = finding.or(end.err());
    }
    if let Some(server) = run.server.take() {
        server.abandon();
    }
    Ok(Outcome {
        finding: finding.map(|found| run.judged(found)),
        steps: run.done,
        tally: run.tally,
        slowest: run.slowest,
        note: None,
    })
}

/// The message about a call that does not end.
pub fn hang(call: &str, limit: Duration) -> String {
    format!("the filter never answers: {call} has not ended in {limit:?}")
}

fn found<T>(kind: Kind, message: impl Into<String>) -> Result<T, Finding> {
    Err(Finding { kind, message: message.into() })
}

struct Run<'a> {
    filter: &'a Filter,
    disk: &'a Arc<Disk>,
    promise: Promise,
    limits: Limits,
    /// None while it restarts.
    server: Option<Server>,
    model: Model,
    block_sizes: Option<BlockSizes>,
    /// The size of the export.
    size: u64,
    done: usize,
    tally: Tally,
    slowest: Duration,
    /// The first failure that should not be, while nothing has succeeded.
    failure: Option<Finding>,
    succeeded: u64,
    failed: u64,
    only_enomem: bool,
    /// A flush or finalize has failed, so writes that were answered may be lost.
    lost: bool,
}

impl<'a> Run<'a> {
    async fn start(
        filter: &'a Filter,
        script: &Script,
        disk: &'a Arc<Disk>,
        limits: Limits,
    ) -> Result<Run<'a>, Trouble> {
        let mut server = Server::start(filter, disk, limits.operation).await?;
        let export = server.export().await?;
        for step in &script.steps {
            if let Step::Operation { operation, .. } = step
                && let Some((offset, length)) = operation.range()
                && offset + length > export.size
            {
                let (what, size) = (operation.describe(), export.size);
                return Err(Error::Script(format!("{what} is beyond the {size} bytes that are tested")).into());
            }
        }
        Ok(Run {
            filter,
            disk,
            promise: script.promise,
            limits,
            server: Some(server),
            model: Model::new(script.promise, export.size as usize, script.disk_seed, disk.size()),
            block_sizes: export.block_sizes,
            size: export.size,
            done: 0,
            tally: Tally::new(),
            slowest: Duration::ZERO,
            failure: None,
            succeeded: 0,
            failed: 0,
            only_enomem: true,
            lost: false,
        })
    }

    async fn steps(&mut self, steps: &[Step]) -> Result<(), Finding> {
        while self.done < steps.len() && (self.done < LEAST || Instant::now() < self.limits.until) {
            let count = together(steps, self.done);
            let batch = &steps[self.done..self.done + count];
            self.done += count;
            match &batch[0] {
                Step::Operation { .. } => self.operations(batch).await?,
                Step::Reconnect(connection) => {
                    self.flush(*connection).await?;
                    self.close(*connection).await?;
                }
                Step::Restart => self.restart().await?,
                Step::Instances => self.server()?.free_instances(),
                Step::Fault(below, fault) => self.disk.expect(*below, *fault),
            }
            self.check_rules(batch)?;
            if self.succeeded == 0 && self.failed >= ALL_FAIL {
                break;
            }
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// The rules that hold after each step.
    fn check_rules(&mut self, batch: &[Step]) -> Result<(), Finding> {
        let what = match &batch[0] {
            Step::Operation { operation, .. } => operation.describe(),
            _ => "a connection's end".to_string(),
        };
        if self.server()?.faults() > 0 {
            let others = if batch.len() > 1 { ", or in an operation that began with it" } else { "" };
            return found(
                Kind::Fault,
                format!("the filter failed in {what}{others}: it trapped or reached a limit (the log says why)"),
            );
        }
        self.check_read_only()
    }

    /// A filter that is said to be read-only must not have changed the disk below.
    fn check_read_only(&self) -> Result<(), Finding> {
        match self.disk.first_change() {
            Some(change) if self.promise == Promise::ReadOnly => found(
                Kind::Wrote,
                format!("the filter is said to be read-only, but it sent a {change} to the disk below"),
            ),
            _ => Ok(()),
        }
    }

    fn server(&mut self) -> Result<&mut Server, Finding> {
        self.server.as_mut().ok_or_else(|| Finding { kind: Kind::Fails, message: "the server is gone".into() })
    }

    /// Begins operations together, waits for all, and checks their answers.
    async fn operations(&mut self, batch: &[Step]) -> Result<(), Finding> {
        let (failures, writes) = (self.disk.failures(), self.disk.writes());
        let begun = Instant::now();
        let mut tasks = Vec::new();
        for step in batch {
            let Step::Operation { connection, operation, .. } = step else { continue };
            let hop = self.open(*connection).await?;
            tasks.push((operation, tokio::spawn(carry_out(hop, operation.clone()))));
        }
        let deadline = Instant::now() + self.limits.operation;
        let mut answers = Vec::new();
        for (operation, task) in tasks {
            match timeout_at(deadline, task).await {
                Err(_) => return found(Kind::Hang, hang(&operation.describe(), self.limits.operation)),
                Ok(Err(panic)) => return found(Kind::Fault, format!("{} panicked: {panic}", operation.describe())),
                Ok(Ok(answer)) => answers.push((operation, answer)),
            }
        }
        self.slowest = self.slowest.max(begun.elapsed());
        let excused = self.disk.failures() > failures;
        let faults = self.server()?.faults();
        // Changes first: reads of the same batch are elsewhere, except below a filter of its own
        // rules, where any change may show anywhere.
        let mut changed = false;
        for (operation, answer) in &answers {
            let result = answer.as_ref().map_or_else(|error| error.errno().name(), |_| "ok");
            *self.tally.entry(operation.name()).or_default().entry(result.to_string()).or_default() += 1;
            match answer {
                Ok(_) => self.model.apply(operation),
                Err(_) => self.model.doubt(operation),
            }
            changed |= operation.changes();
        }
        if let [(operation, Ok(_))] = &answers[..]
            && !excused
            && faults == 0
        {
            self.check_durability(operation, writes)?;
        }
        let may_compare = !changed || self.promise.keeps_data();
        let reach = if changed { Reach::Range } else { Reach::Export };
        for (operation, answer) in answers {
            match answer {
                Ok(answer) => {
                    self.succeeded += u64::from(is_data(operation));
                    if may_compare {
                        self.compare(operation, answer, reach)?;
                    }
                }
                Err(error) if faults == 0 => self.failed(operation, &error, excused)?,
                // The fault is reported, not its error.
                Err(_) => {}
            }
        }
        match self.failure.take_if(|_| self.succeeded > 0) {
            Some(finding) => Err(finding),
            None => Ok(()),
        }
    }

    fn compare(&mut self, operation: &Request, answer: Answer, reach: Reach) -> Result<(), Finding> {
        let wrong = match (operation, answer) {
            (Request::Pread { offset, .. }, Answer::Data(mut buffer)) => {
                let all = buffer.span();
                self.model.read(*offset, buffer.bytes(all))
            }
            (Request::Extents { offset, length }, Answer::Extents(mut extents)) => {
                if reach == Reach::Range {
                    extents.cut(offset + length);
                }
                let zero = extents.as_slice().iter().filter(|extent| extent.zero);
                zero.map(|extent| self.model.zero_extent(extent.offset, extent.length))
                    .find(Result::is_err)
                    .unwrap_or(Ok(()))
            }
            _ => Ok(()),
        };
        wrong.or_else(|wrong| found(Kind::Differs, format!("{} {wrong}", operation.describe())))
    }

    /// What a flush covers, and what was written with FUA, must not be lost. `writes` is the number
    /// of writes that the disk below had got before the operation.
    fn check_durability(&self, operation: &Request, writes: u64) -> Result<(), Finding> {
        if !matches!(self.promise, Promise::Identity | Promise::Bijective) || self.lost {
            return Ok(());
        }
        match self.disk.not_durable(operation, writes, self.promise) {
            Some(wrong) => found(Kind::Durability, wrong),
            None => Ok(()),
        }
    }

    /// An operation has failed. Decides whether it may.
    fn failed(&mut self, operation: &Request, error: &rbdkit_plugin_api::Error, excused: bool) -> Result<(), Finding> {
        let errno = error.errno();
        if is_data(operation) {
            self.failed += 1;
            self.only_enomem &= errno == Errno::Enomem;
        }
        let fast = matches!(operation, Request::Zero { flags, .. } if flags.fast_zero) && errno == Errno::Enotsup;
        // A write may have been answered before the disk failed it.
        let late = *operation == Request::Flush && self.disk.failures() > 0;
        self.lost |= *operation == Request::Flush;
        if excused || fast || late || self.is_out_of_block_sizes(operation) || !self.promise.keeps_data() {
            return Ok(());
        }
        let message = format!("{} fails with {errno}, although the disk below has not failed", operation.describe());
        let finding = Finding { kind: Kind::Fails, message };
        if self.succeeded > 0 {
            return Err(finding);
        }
        self.failure.get_or_insert(finding);
        Ok(())
    }

    /// Whether a filter that states block sizes may refuse the operation.
    fn is_out_of_block_sizes(&self, operation: &Request) -> bool {
        let (Some(sizes), Some((offset, length))) = (self.block_sizes, operation.range()) else { return false };
        let unit = u64::from(sizes.minimum);
        offset % unit != 0 || length % unit != 0 || length > u64::from(sizes.maximum)
    }

    /// Opens a connection, if it is not open.
    async fn open(&mut self, connection: u8) -> Result<Arc<Hop>, Finding> {
        let (failures, limit, size) = (self.disk.failures(), self.limits.operation, self.size);
        let hop = self.server()?.connection(connection).await.map_err(|trouble| self.trouble(trouble, limit))?;
        let keeps = self.promise.keeps_data() && self.disk.failures() == failures;
        if keeps && hop.size() < size {
            return found(
                Kind::Differs,
                format!("the export had {size} bytes, and on another connection {}", hop.size()),
            );
        }
        Ok(hop)
    }

    fn trouble(&self, trouble: Trouble, limit: Duration) -> Finding {
        match trouble {
            Trouble::Hangs(call) => Finding { kind: Kind::Hang, message: hang(call, limit) },
            Trouble::Fails(error) => Finding { kind: Kind::Fails, message: error.with_causes() },
        }
    }

    async fn flush(&mut self, connection: u8) -> Result<(), Finding> {
        let hop = self.open(connection).await?;
        if hop.can().flush {
            let operation = Request::Flush;
            self.operations(&[Step::Operation { connection, joins: false, operation }]).await?;
        }
        Ok(())
    }

    async fn close(&mut self, connection: u8) -> Result<(), Finding> {
        let limit = self.limits.operation;
        let closed = self.server()?.close(connection).await;
        self.closed(closed, limit)
    }

    fn closed(&mut self, closed: Result<(), Trouble>, limit: Duration) -> Result<(), Finding> {
        match closed {
            Ok(()) => Ok(()),
            Err(Trouble::Fails(_)) if self.disk.failures() > 0 || !self.promise.keeps_data() => {
                self.lost = true;
                Ok(())
            }
            Err(trouble) => Err(self.trouble(trouble, limit)),
        }
    }

    /// Ends the server and starts another one over the same disk.
    async fn restart(&mut self) -> Result<(), Finding> {
        self.stop().await?;
        let limit = self.limits.operation;
        let started = Server::start(self.filter, self.disk, limit).await;
        self.server = Some(started.map_err(|trouble| self.trouble(trouble, limit))?);
        // A filter may keep what was written for as long as it runs. Only an identity has to have
        // it on the disk below.
        if self.promise != Promise::Identity || self.lost {
            self.model.forget();
        }
        Ok(())
    }

    /// Flushes and closes all connections, and ends the server.
    async fn stop(&mut self) -> Result<(), Finding> {
        self.flush(1).await?;
        for connection in 1..=CONNECTIONS {
            self.close(connection).await?;
        }
        let (limit, faults) = (self.limits.operation, self.server()?.faults());
        let Some(server) = self.server.take() else { return Ok(()) };
        let ended = server.end().await;
        self.closed(ended, limit)?;
        if faults > 0 {
            return found(Kind::Fault, "the filter failed in finalize or close (the log says why)");
        }
        Ok(())
    }

    /// The end of the test: what is on the disk below?
    async fn end(&mut self) -> Result<(), Finding> {
        self.disk.heal();
        self.stop().await?;
        if self.promise == Promise::Identity && !self.lost {
            self.model.disk(self.disk).or_else(|wrong| found(Kind::Disk, wrong))?;
        }
        self.check_read_only()?;
        if self.succeeded == 0 && self.failed >= BROKEN {
            let how: Vec<&str> = self.tally.values().flat_map(|how| how.keys()).map(String::as_str).collect();
            return found(Kind::Fails, how.into_iter().find(|how| *how != "ok").unwrap_or_default());
        }
        for (operation, outcomes) in &self.tally {
            let failed: u64 = outcomes.iter().filter(|(how, _)| *how != "ok").map(|(_, count)| count).sum();
            if failed >= BROKEN && !outcomes.contains_key("ok") && self.disk.failures() == 0 {
                let how: Vec<&str> = outcomes.keys().map(String::as_str).collect();
                return found(
                    Kind::Fails,
                    format!("every {operation} fails ({failed} of {failed}: {})", how.join(", ")),
                );
            }
        }
        Ok(())
    }

    /// The finding with a better message, if nothing has ever succeeded.
    fn judged(&self, finding: Finding) -> Finding {
        if finding.kind != Kind::Fails || self.succeeded > 0 || self.failed == 0 {
            return finding;
        }
        let first = &finding.message;
        let what = if self.only_enomem {
            "every read and write fails with ENOMEM: the filter needs more memory than its limits allow"
        } else {
            "every read and write fails"
        };
        Finding { message: format!("{what} ({0} of {0}): {first}", self.failed), ..finding }
    }
}

/// Whether it is one of those that every filter has to serve.
fn is_data(operation: &Request) -> bool {
    matches!(operation, Request::Pread { .. } | Request::Pwrite { .. })
}
