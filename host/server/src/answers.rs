//! Answers on their way out: a queue that whoever finds the writer idle writes.
//!
//! There is at most one writer. It owns the batch that it is writing, so no lock is held over a system call. When the socket is full
//! the batch moves to a task that waits for it, and the others go on. Room in flight is given back as soon as an answer is out.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rbdkit_plugin_api::shelf::Stir;
use tokio::sync::Notify;

use super::budget::{Budget, Pages};
use super::socket::Output;
use rbdkit_nbd::reply::Answer;

/// An answer and what it gives back once it is out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub answer: Answer,
    pub pages: Pages,
}

type Batch = VecDeque<Outgoing>;

#[derive(Debug, Default)]
struct State {
    queue: Batch,
    /// Somebody writes, and will look at the queue again before it leaves.
    writing: bool,
    /// An empty queue with its memory, for the next turn.
    spare: Batch,
}

/// Slices in one system call: 64 answers of a header and a payload. More than fills any socket buffer with payloads, and few enough
/// for the stack.
const SLICES: usize = 128;

/// System calls that one writer makes before it lets other tasks run.
const TURNS: usize = 16;

/// How long a thread that serves one client waits for it to take answers before it leaves that to a task and reads on, for a client that
/// sends all before it reads any. One that reads makes room as soon as it gets a processor, which on a busy machine takes some milliseconds;
/// waiting in place spares two changes of threads, and what would be read meanwhile would only wait as well.
const PATIENCE: Duration = Duration::from_millis(50);

/// The outgoing side of a connection, and the count of what is in flight.
#[derive(Debug)]
pub(super) struct Answers {
    output: Arc<Output>,
    budget: Arc<Budget>,
    /// How long a client may take nothing while others wait for the bytes it holds.
    stall: Duration,
    state: Mutex<State>,
    broken: AtomicBool,
    break_waiting_writer: Notify,
    /// Requests and pages given back since the beginning. What was admitted is counted by the reader, which is alone in adding.
    requests_done: AtomicU64,
    pages_done: AtomicU64,
    written: AtomicU64,
    /// The connection's own task waits for `wake`.
    waiting: AtomicBool,
    wake: Notify,
    /// For who gives back what requests leave behind.
    stir: Arc<Stir>,
}

enum Progress {
    /// All of the batch is out.
    Done,
    /// The socket is full.
    Full,
    /// Enough for one turn.
    Turn,
}

impl Answers {
    pub fn new(output: Arc<Output>, budget: Arc<Budget>, stir: Arc<Stir>, stall: Duration) -> Answers {
        Answers {
            output,
            budget,
            stall,
            state: Mutex::default(),
            broken: AtomicBool::new(false),
            break_waiting_writer: Notify::new(),
            requests_done: AtomicU64::new(0),
            pages_done: AtomicU64::new(0),
            written: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            wake: Notify::new(),
            stir,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues answers and writes what goes without waiting, or from a thread that may wait (`here`) with a little waiting.
    pub fn send(self: &Arc<Self>, answers: &mut Vec<Outgoing>, here: bool) {
        if answers.is_empty() {
            return;
        }
        let batch = {
            let mut state = self.state();
            state.queue.extend(answers.drain(..));
            if state.writing {
                return;
            }
            state.writing = true;
            let spare = std::mem::take(&mut state.spare);
            std::mem::replace(&mut state.queue, spare)
        };
        self.write(batch, here);
    }

    fn write(self: &Arc<Self>, mut batch: Batch, here: bool) {
        let mut partial = 0;
        loop {
            let progress = self.write_turn(&mut batch, &mut partial);
            let again = match progress {
                Ok(Progress::Done) => return,
                Ok(Progress::Turn) => here,
                Ok(Progress::Full) => here && self.output.writable_here(PATIENCE).unwrap_or(false),
                Err(error) => return self.fail(&error, batch),
            };
            if !again {
                tokio::spawn(Arc::clone(self).write_later(batch, partial));
                return;
            }
        }
    }

    async fn write_later(self: Arc<Self>, mut batch: Batch, mut partial: usize) {
        loop {
            if self.is_broken() {
                return self.discard(batch);
            }
            let ready = tokio::select! {
                ready = tokio::time::timeout(self.stall, self.output.writable()) => ready,
                () = self.break_waiting_writer.notified() => continue,
            };
            match ready {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.fail(&error, batch),
                Err(_) if self.budget.is_short() => {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "takes no answers while others wait");
                    return self.fail(&error, batch);
                }
                Err(_) => continue,
            }
            match self.write_turn(&mut batch, &mut partial) {
                Ok(Progress::Done) => return,
                Ok(Progress::Full) => {}
                Ok(Progress::Turn) => tokio::task::yield_now().await,
                Err(error) => return self.fail(&error, batch),
            }
        }
    }

    /// Writes the batch, and what is queued meanwhile. After [`Progress::Done`] there is no writer.
    fn write_turn(&self, batch: &mut Batch, partial: &mut usize) -> io::Result<Progress> {
        for _ in 0..TURNS {
            if batch.is_empty() && !self.next(batch) {
                return Ok(Progress::Done);
            }
            let written = match batch.front_mut() {
                Some(first) if first.answer.has_lent() && first.answer.head_is_out(*partial) => {
                    self.write_lent(&mut first.answer)?
                }
                _ => self.write_slices(batch, *partial)?,
            };
            let Some(written) = written else { return Ok(Progress::Full) };
            self.written.fetch_add(written as u64, Ordering::Relaxed);
            self.account(batch, partial, written);
        }
        Ok(Progress::Turn)
    }

    fn write_slices(&self, batch: &Batch, partial: usize) -> io::Result<Option<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (count, more) = gather(batch, partial, &mut slices);
        self.output.try_write(&slices[..count], more)
    }

    /// What is lent of an answer whose head is out.
    fn write_lent(&self, answer: &mut Answer) -> io::Result<Option<usize>> {
        let Some(buffer) = answer.lent() else { return Ok(Some(0)) };
        let all_is_left = buffer.lent() == buffer.len();
        match self.output.try_splice(buffer) {
            // It is neither a socket nor a pipe.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && all_is_left => {
                answer.copy_lent();
                Ok(Some(0))
            }
            other => other,
        }
    }

    /// Exchanges an empty batch for the queue. False: there is nothing, and the writer is none any more.
    fn next(&self, batch: &mut Batch) -> bool {
        let mut state = self.state();
        if state.queue.is_empty() {
            state.writing = false;
            // What a burst has made large is not kept for an idle connection.
            if batch.capacity() <= SLICES {
                state.spare = std::mem::take(batch);
            }
            return false;
        }
        std::mem::swap(&mut state.queue, batch);
        true
    }

    /// Drops the answers that are out.
    fn account(&self, batch: &mut Batch, partial: &mut usize, written: usize) {
        *partial += written;
        let (mut requests, mut pages) = (0, 0);
        while let Some(first) = batch.front() {
            let length = first.answer.length();
            if *partial < length {
                break;
            }
            *partial -= length;
            requests += 1;
            pages += u64::from(first.pages.0);
            batch.pop_front();
        }
        self.release(requests, pages);
    }

    fn release(&self, requests: u64, pages: u64) {
        if requests == 0 {
            return;
        }
        self.budget.give_back(pages);
        self.pages_done.fetch_add(pages, Ordering::SeqCst);
        self.requests_done.fetch_add(requests, Ordering::SeqCst);
        self.stir.stir();
        self.nudge();
    }

    fn fail(&self, error: &io::Error, batch: Batch) {
        tracing::debug!("writing to the client: {error}");
        self.break_off();
        self.discard(batch);
    }

    /// Drops the writer's batch and everything queued; there is no writer then. Whoever queues more becomes one, fails at once and
    /// comes here again.
    fn discard(&self, batch: Batch) {
        self.drop_all(batch);
        let queued = {
            let mut state = self.state();
            state.writing = false;
            std::mem::take(&mut state.queue)
        };
        self.drop_all(queued);
    }

    fn drop_all(&self, batch: Batch) {
        let pages = batch.iter().map(|outgoing| u64::from(outgoing.pages.0)).sum();
        let requests = batch.len() as u64;
        drop(batch);
        self.release(requests, pages);
    }

    /// Nothing will be written any more. The reader finds out by the end of its input.
    pub fn break_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.output.shut_down();
        self.break_waiting_writer.notify_one();
        self.nudge();
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Requests answered, on the wire or into nowhere.
    pub fn requests_done(&self) -> u64 {
        self.requests_done.load(Ordering::SeqCst)
    }

    /// Their pages.
    pub fn pages_done(&self) -> u64 {
        self.pages_done.load(Ordering::SeqCst)
    }

    /// Bytes that the client's socket took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Lets the connection's task look again, if it waits.
    pub fn nudge(&self) {
        if self.waiting.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Waits until `ready`, which depends on what is answered or running. Only for the connection's task.
    pub async fn until(&self, ready: impl Fn() -> bool) {
        loop {
            // First say that we wait, then look: who changes something looks whether we wait afterwards, so one sees the other.
            self.waiting.store(true, Ordering::SeqCst);
            if ready() {
                break;
            }
            self.wake.notified().await;
        }
        self.waiting.store(false, Ordering::SeqCst);
    }
}

/// Fills `slices` with what is left of the batch after `skip` bytes, as far as the first answer with something lent, of which only the head is
/// among them. Answers how many slices, and whether what is lent follows.
fn gather<'a>(batch: &'a Batch, mut skip: usize, slices: &mut [IoSlice<'a>; SLICES]) -> (usize, bool) {
    let mut count = 0;
    for outgoing in batch {
        for slice in outgoing.answer.slices() {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            if count == SLICES {
                return (count, false);
            }
            slices[count] = IoSlice::new(&slice[skip..]);
            skip = 0;
            count += 1;
        }
        if outgoing.answer.has_lent() {
            return (count, true);
        }
    }
    (count, false)
}
