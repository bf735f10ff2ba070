//! [`ReplyQueue`]: replies on their way to the client.
//!
//! A connection has at most one writer at a time. A thread that queues replies and finds no writer
//! becomes the writer. It takes the whole queue as a batch and writes it. The writer owns its
//! batch, so no lock is held over a system call. When the socket is full, the batch moves to a task
//! that waits for the socket, and the thread that wrote goes on. A request stops counting as in
//! flight as soon as its reply is written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rbdkit_nbd::reply::Reply;
use rbdkit_plugin_api::idle::Activity;
use rbdkit_plugin_api::lock;
use tokio::sync::Notify;

use super::budget::{ConnectionBudget, Pages};
use super::socket::{MoreToCome, Output};
use super::stall::StallWatch;
use super::tls::TlsStream;

/// A reply, and what its request gives back once it is written.
#[derive(Debug)]
pub(super) struct QueuedReply {
    pub reply: Reply,
    pub pages: Pages,
}

type Batch = VecDeque<QueuedReply>;

#[derive(Debug, Default)]
struct State {
    queue: Batch,
    /// There is a writer. It checks the queue again before it stops.
    writing: bool,
    /// An empty queue that keeps its memory for the next batch.
    spare: Batch,
}

/// The most slices in one system call: 64 replies of a header and a payload. Their payloads fill
/// any socket buffer, and the array still fits on the stack.
const MAX_SLICES: usize = 128;

/// System calls that a writer makes before it lets other tasks run.
const MAX_CALLS: usize = 16;

/// How long a client's thread waits for the client to take replies. After that a task writes them
/// and the thread reads on, because some clients send everything before they read anything.
///
/// A client that reads makes room as soon as it gets a processor. On a busy machine that takes some
/// milliseconds. Waiting on this thread saves two thread switches, and requests that it could read
/// in the meantime would only wait as well.
const MAX_WRITE_WAIT: Duration = Duration::from_millis(50);

/// Who calls [`ReplyQueue::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteFrom {
    /// A task: it must not block.
    Task,
    /// The thread of this client: it may block for [`MAX_WRITE_WAIT`].
    ClientThread,
}

/// The outgoing side of a connection, and the count of the requests that are done.
#[derive(Debug)]
pub(super) struct ReplyQueue {
    output: Arc<Output>,
    budget: ConnectionBudget,
    /// After this time the writer disconnects a client that takes too little while others wait for
    /// the bytes that it holds.
    stall: Duration,
    state: Mutex<State>,
    broken: AtomicBool,
    break_waiting_writer: Notify,
    /// Requests given back since the beginning. The reader counts what it admitted.
    requests_done: AtomicU64,
    /// Bytes written since the beginning.
    written: AtomicU64,
    /// The connection's own task waits for `wake`.
    waiting: AtomicBool,
    wake: Notify,
    /// Tells the server that requests have left memory behind that it may free later.
    activity: Arc<Activity>,
}

enum Progress {
    /// The queue is empty, and the caller is no longer the writer.
    Done,
    /// The socket is full.
    Full,
    /// [`MAX_CALLS`] calls were made.
    TurnOver,
}

impl ReplyQueue {
    pub fn new(output: Arc<Output>, budget: ConnectionBudget, activity: Arc<Activity>, stall: Duration) -> ReplyQueue {
        ReplyQueue {
            output,
            budget,
            stall,
            state: Mutex::default(),
            broken: AtomicBool::new(false),
            break_waiting_writer: Notify::new(),
            requests_done: AtomicU64::new(0),
            written: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            wake: Notify::new(),
            activity,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Queues replies, and writes what can be written without waiting, or on a client's thread with
    /// a short wait.
    pub fn send(self: &Arc<Self>, replies: &mut Vec<QueuedReply>, from: WriteFrom) {
        if replies.is_empty() {
            return;
        }
        let batch = {
            let mut state = self.state();
            state.queue.extend(replies.drain(..));
            if state.writing {
                return;
            }
            state.writing = true;
            let spare = std::mem::take(&mut state.spare);
            std::mem::replace(&mut state.queue, spare)
        };
        self.write(batch, from);
    }

    fn write(self: &Arc<Self>, mut batch: Batch, from: WriteFrom) {
        let may_block = from == WriteFrom::ClientThread;
        let mut partial = 0;
        loop {
            let progress = self.write_turn(&mut batch, &mut partial);
            let again = match progress {
                Ok(Progress::Done) => return,
                Ok(Progress::TurnOver) => may_block,
                Ok(Progress::Full) => may_block && self.output.block_until_writable(MAX_WRITE_WAIT).unwrap_or(false),
                Err(error) => return self.fail(&error, batch),
            };
            if !again {
                tokio::spawn(Arc::clone(self).write_later(batch, partial));
                return;
            }
        }
    }

    async fn write_later(self: Arc<Self>, mut batch: Batch, mut partial: usize) {
        // The client has stopped taking replies now.
        let mut watch = StallWatch::new(self.stall, self.budget.held_bytes());
        loop {
            if self.is_broken() {
                return self.discard(batch);
            }
            let ready = tokio::select! {
                ready = self.output.writable() => ready,
                () = self.break_waiting_writer.notified() => continue,
                () = watch.until_in_the_way(&self.budget) => {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "takes no replies while others wait");
                    return self.fail(&error, batch);
                }
            };
            if let Err(error) = ready {
                return self.fail(&error, batch);
            }
            let before = self.written();
            match self.write_turn(&mut batch, &mut partial) {
                Ok(Progress::Done) => return,
                Ok(Progress::Full) => {}
                Ok(Progress::TurnOver) => tokio::task::yield_now().await,
                Err(error) => return self.fail(&error, batch),
            }
            watch.moved(self.written() - before, self.budget.held_bytes());
        }
    }

    /// Writes the batch and what is queued in the meantime. `partial` counts the bytes of the first
    /// reply that are written already.
    fn write_turn(&self, batch: &mut Batch, partial: &mut usize) -> io::Result<Progress> {
        for _ in 0..MAX_CALLS {
            if batch.is_empty() && !self.refill(batch) {
                return Ok(Progress::Done);
            }
            let written = match batch.front_mut() {
                Some(first) if first.reply.has_spliced() && first.reply.head_is_out(*partial) => {
                    self.write_spliced(&mut first.reply)?
                }
                _ => match self.output.tls() {
                    Some(tls) => write_encrypted(tls, batch, *partial)?,
                    None => self.write_slices(batch, *partial)?,
                },
            };
            let Some(written) = written else { return Ok(Progress::Full) };
            self.written.fetch_add(written as u64, Ordering::Relaxed);
            self.account(batch, partial, written);
        }
        Ok(Progress::TurnOver)
    }

    fn write_slices(&self, batch: &Batch, partial: usize) -> io::Result<Option<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (count, more) = gather(batch, partial, &mut slices);
        self.output.try_write(&slices[..count], more)
    }

    /// Sends the spliced bytes of a reply whose head is written.
    fn write_spliced(&self, reply: &mut Reply) -> io::Result<Option<usize>> {
        let Some(buffer) = reply.spliced() else { return Ok(Some(0)) };
        let all_is_left = buffer.spliced() == buffer.len();
        match self.output.try_splice(buffer) {
            // The output is neither a socket nor a pipe.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && all_is_left => {
                reply.copy_spliced();
                Ok(Some(0))
            }
            other => other,
        }
    }

    /// Exchanges the empty batch for the queue. False: the queue is empty, and the caller is no
    /// longer the writer.
    fn refill(&self, batch: &mut Batch) -> bool {
        let mut state = self.state();
        if state.queue.is_empty() {
            state.writing = false;
            // An idle connection does not keep the memory of a burst.
            if batch.capacity() <= MAX_SLICES {
                state.spare = std::mem::take(batch);
            }
            return false;
        }
        std::mem::swap(&mut state.queue, batch);
        true
    }

    /// Drops the replies that are written now.
    fn account(&self, batch: &mut Batch, partial: &mut usize, written: usize) {
        *partial += written;
        let (mut requests, mut pages) = (0, 0);
        while let Some(first) = batch.front() {
            let length = first.reply.length();
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
        self.requests_done.fetch_add(requests, Ordering::SeqCst);
        self.activity.signal();
        self.nudge();
    }

    fn fail(&self, error: &io::Error, batch: Batch) {
        tracing::debug!("writing to the client: {error}");
        self.break_off();
        self.discard(batch);
    }

    /// Drops the writer's batch and the queue; after that there is no writer. The next thread that
    /// queues a reply becomes the writer, fails at once and calls this again.
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
        let pages = batch.iter().map(|reply| u64::from(reply.pages.0)).sum();
        let requests = batch.len() as u64;
        drop(batch);
        self.release(requests, pages);
    }

    /// Stops writing for good. The reader notices by the end of its input.
    pub fn break_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.output.shut_down();
        self.break_waiting_writer.notify_one();
        self.nudge();
    }

    /// Whether writing has stopped for good.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Requests whose reply was written or dropped, since the beginning.
    #[inline]
    pub fn requests_done(&self) -> u64 {
        self.requests_done.load(Ordering::SeqCst)
    }

    /// What the connection holds of the server's budget.
    #[inline]
    pub fn budget(&self) -> &ConnectionBudget {
        &self.budget
    }

    /// Bytes that the client's socket took, since the beginning.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Makes the connection's task check again what it waits for in [`ReplyQueue::until`].
    pub fn nudge(&self) {
        if self.waiting.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Waits until `ready`, which may depend on which requests are done or still run. Only the
    /// connection's task calls it.
    pub async fn until(&self, ready: impl Fn() -> bool) {
        loop {
            // First announce the wait, then check. Other threads first make their change, and then
            // check for a waiter. So one side always sees the other.
            self.waiting.store(true, Ordering::SeqCst);
            if ready() {
                break;
            }
            self.wake.notified().await;
        }
        self.waiting.store(false, Ordering::SeqCst);
    }
}

/// Encrypts what is left of the batch after `skip` bytes, and writes what fits. The bytes belong to
/// the replies alone, so they are encrypted where they are.
fn write_encrypted(tls: &TlsStream, batch: &mut Batch, mut skip: usize) -> io::Result<Option<usize>> {
    let mut slices: [&mut [u8]; MAX_SLICES] = std::array::from_fn(|_| Default::default());
    let mut count = 0;
    'batch: for queued in batch {
        let has_spliced = queued.reply.has_spliced();
        for slice in queued.reply.slices_mut() {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            if skipped == slice.len() {
                continue;
            }
            if count == MAX_SLICES {
                break 'batch;
            }
            slices[count] = &mut slice[skipped..];
            count += 1;
        }
        if has_spliced {
            break;
        }
    }
    tls.try_write_in_place(&mut slices[..count])
}

/// Fills `slices` with what is left of the batch after `skip` bytes. It stops after the head of the
/// first reply with a spliced payload. Returns the number of slices, and whether spliced bytes
/// follow.
fn gather<'a>(batch: &'a Batch, mut skip: usize, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> (usize, MoreToCome) {
    let mut count = 0;
    for queued in batch {
        for slice in queued.reply.slices() {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            if count == MAX_SLICES {
                return (count, MoreToCome::No);
            }
            slices[count] = IoSlice::new(&slice[skip..]);
            skip = 0;
            count += 1;
        }
        if queued.reply.has_spliced() {
            return (count, MoreToCome::Yes);
        }
    }
    (count, MoreToCome::No)
}
