//! One connection as the server sees it: the requests that are in the process.
//!
//! A request takes a slot of the shared memory, which it gives back when its answer was read. If
//! nobody waits for the answer any more, the slot is given back when the answer comes. What the
//! process writes is checked: an answer has to be that of a request which it got.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::{Errno, Error, Result, StopScope, lock};
use rustix::event::{EventfdFlags, eventfd};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::watched::watched;
use crate::memory::{LAST_SLOT, Memory, PLACE, SLOTS, op};

/// See the module.
pub(crate) struct Channel {
    memory: Memory,
    signal: Signal,
    table: Mutex<SlotTable>,
    /// A permit for each free slot.
    permits: Semaphore,
    /// Wakes the task that reads answers, when the process has ended.
    over: Notify,
    /// How many answers were read.
    read: Mutex<u32>,
    /// Requests that do not look for their answer at once, because others did so in vain.
    no_spins: AtomicU32,
}

struct SlotTable {
    /// How many requests were put into the ring.
    asked: u32,
    /// Slots that are free. The one that was used last is taken first.
    free: Vec<usize>,
    entries: Vec<Entry>,
    end: Option<Why>,
    is_closing: bool,
}

/// A slot.
enum Entry {
    /// The process does not have it.
    Ours,
    /// The process has it.
    Theirs { op: u32, count: u32, room: u32, answer: Option<oneshot::Sender<Answer>> },
}

/// Why requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The process has ended.
    Ended,
    /// The server stops.
    Stopped(StopScope),
}

impl From<Why> for Error {
    fn from(why: Why) -> Error {
        match why {
            Why::Ended => Error::new(Errno::Eio, "the plugin's process has ended"),
            Why::Stopped(_) => Errno::Eshutdown.into(),
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) op: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
    /// The payload of the request.
    pub(crate) payload: &'a [u8],
    /// The most bytes of payload that the answer may have.
    pub(crate) room: u32,
}

/// An answer. It keeps its slot until it is dropped.
pub(crate) struct Answer {
    channel: Arc<Channel>,
    slot: usize,
    result: i64,
    errno: i32,
    length: usize,
    /// Bytes of the place that were used.
    used: usize,
}

impl Answer {
    /// The plugin's result.
    ///
    /// # Errors
    /// The plugin's.
    pub(crate) fn result(&self) -> Result<i64> {
        if self.result >= 0 { Ok(self.result) } else { Err(Errno::from_raw(self.errno).into()) }
    }

    /// The payload.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.channel.memory.read(self.slot, &mut bytes);
        bytes
    }

    /// Copies what the plugin has read.
    pub(crate) fn copy(&self, into: &mut [u8]) {
        self.channel.memory.read(self.slot, into);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.channel.memory.trim(self.slot, self.used);
        if self.slot != LAST_SLOT {
            lock(&self.channel.table).free.push(self.slot);
            self.channel.permits.add_permits(1);
        }
    }
}

struct Signal(OwnedFd);

impl AsRawFd for Signal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Channel {
    /// Makes the memory, and the task that reads answers. Needs a tokio runtime.
    ///
    /// # Errors
    /// There is no memory or no descriptor.
    pub(crate) fn new() -> io::Result<Arc<Channel>> {
        let signal = Signal(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let table = SlotTable {
            asked: 0,
            free: (0..LAST_SLOT).rev().collect(),
            entries: (0..SLOTS).map(|_| Entry::Ours).collect(),
            end: None,
            is_closing: false,
        };
        let (table, permits) = (Mutex::new(table), Semaphore::new(LAST_SLOT));
        let channel = Arc::new(Channel {
            memory: Memory::new()?,
            signal,
            table,
            permits,
            over: Notify::new(),
            read: Mutex::new(0),
            no_spins: AtomicU32::new(0),
        });
        let descriptor = watched(channel.signal.0.try_clone()?)?;
        tokio::spawn(Channel::read_answers(Arc::clone(&channel), descriptor));
        Ok(channel)
    }

    /// What the process needs: the memory and the descriptor that tells of answers.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.memory.file().as_fd(), self.signal.0.as_fd()]
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The process has ended or the server stops. The plugin's errors are in the answer.
    pub(crate) async fn ask(self: &Arc<Self>, request: Request<'_>) -> Result<Answer> {
        let receiver = match self.permits.try_acquire() {
            Ok(permit) => {
                permit.forget();
                self.submit(request)?
            }
            Err(_) => {
                self.permits.acquire().await.map_err(|_| Why::Ended)?.forget();
                self.submit(request)?
            }
        };
        receiver.await.map_err(|_| self.end().into())
    }

    /// Asks if there is a slot. None: there is none, or the request cannot be made.
    pub(crate) fn ask_at_once(self: &Arc<Self>, request: Request<'_>) -> Option<oneshot::Receiver<Answer>> {
        self.permits.try_acquire().ok()?.forget();
        self.submit(request).ok()
    }

    /// Waits for the answer to [`Channel::ask_at_once`].
    ///
    /// # Errors
    /// As [`Channel::ask`].
    pub(crate) async fn wait(self: &Arc<Self>, answer: oneshot::Receiver<Answer>) -> Result<Answer> {
        answer.await.map_err(|_| self.end().into())
    }

    /// Why requests fail now.
    fn end(&self) -> Why {
        lock(&self.table).end.unwrap_or(Why::Ended)
    }

    /// Puts a request into the ring. The caller has taken a permit.
    fn submit(self: &Arc<Self>, request: Request<'_>) -> Result<oneshot::Receiver<Answer>> {
        let slot = {
            let mut table = lock(&self.table);
            if let Some(why) = table.end.filter(|why| why.ends(request.op)) {
                self.permits.add_permits(1);
                return Err(why.into());
            }
            table.free.pop().ok_or(Why::Ended)?
        };
        self.memory.write(slot, request.payload);
        Ok(self.put(slot, request))
    }

    fn put(self: &Arc<Self>, slot: usize, request: Request<'_>) -> oneshot::Receiver<Answer> {
        let (place, head) = (self.memory.slot(slot), self.memory.head());
        place.op.store(request.op, Relaxed);
        place.flags.store(request.flags, Relaxed);
        place.offset.store(request.offset, Relaxed);
        place.count.store(request.count, Relaxed);
        place.room.store(request.room, Relaxed);
        let (answer, receiver) = oneshot::channel();
        {
            let mut table = lock(&self.table);
            // If it has ended meanwhile, nobody would take the answer's sender out.
            let answer = Some(answer).filter(|_| table.end.is_none_or(|why| !why.ends(request.op)));
            table.entries[slot] = Entry::Theirs { op: request.op, count: request.count, room: request.room, answer };
            head.asks[table.asked as usize % SLOTS].store(slot as u32, SeqCst);
            table.asked = table.asked.wrapping_add(1);
            head.asked.0.store(table.asked, SeqCst);
        }
        let is_idle = head.awake.0.load(SeqCst) == 0 || head.eager.0.load(Relaxed) != 0;
        if is_idle && head.sleeping.0.load(SeqCst) > 0 {
            head.wake();
        }
        receiver
    }

    /// Ends the connection, once. The answer comes when the plugin has closed it.
    pub(crate) fn close(self: &Arc<Self>) -> Option<oneshot::Receiver<Answer>> {
        {
            let mut table = lock(&self.table);
            if table.end == Some(Why::Ended) || std::mem::replace(&mut table.is_closing, true) {
                return None;
            }
        }
        Some(self.put(LAST_SLOT, Request { op: op::CLOSE, ..Request::default() }))
    }

    /// Requests of this scope end, and later ones too.
    pub(crate) fn stop(&self, why: Why) {
        let mut table = lock(&self.table);
        if table.end != Some(Why::Ended) {
            table.end = Some(why);
        }
        for entry in &mut table.entries {
            if let Entry::Theirs { op, answer, .. } = entry
                && why.ends(*op)
            {
                drop(answer.take());
            }
        }
        drop(table);
        if why == Why::Ended {
            self.permits.close();
            self.over.notify_one();
        }
    }

    /// Reads answers until the plugin has closed the connection or the process has ended.
    async fn read_answers(channel: Arc<Channel>, descriptor: AsyncFd<OwnedFd>) {
        let listening = &channel.memory.head().listening.0;
        loop {
            listening.store(0, SeqCst);
            while channel.has_answers() {
                if channel.take_answers() == More::DoNot {
                    return;
                }
                // The requests that have got an answer go on. Meanwhile more answers may come,
                // which then need no signal.
                tokio::task::yield_now().await;
            }
            listening.store(1, SeqCst);
            if channel.has_answers() {
                continue;
            }
            tokio::select! {
                ready = descriptor.readable() => {
                    let Ok(mut ready) = ready else { return };
                    let _ = rustix::io::read(descriptor.get_ref(), &mut [0; 8]);
                    ready.clear_ready();
                }
                () = channel.over.notified() => return,
            }
        }
    }

    /// Whether the ring has answers that nobody has read.
    fn has_answers(&self) -> bool {
        let read = *lock(&self.read);
        self.memory.head().answered.0.load(SeqCst) != read
    }

    /// Reads the answers that have come.
    fn take_answers(self: &Arc<Self>) -> More {
        let mut read = lock(&self.read);
        let taken = self.take_answers_from(&mut read);
        drop(read);
        taken.unwrap_or_else(|Nonsense| {
            tracing::error!("a foreign plugin's process gives answers that make no sense");
            self.stop(Why::Ended);
            More::DoNot
        })
    }

    /// Looks for the answer to a short request for a moment. It comes sooner than a task could be
    /// woken if the plugin answers from memory and its thread is awake.
    pub(crate) fn look_for(self: &Arc<Self>, answer: &mut oneshot::Receiver<Answer>) -> Option<Answer> {
        let head = self.memory.head();
        let is_quick = head.awake.0.load(Relaxed) > 0 && head.eager.0.load(Relaxed) == 0;
        let no_spins = self.no_spins.load(Relaxed);
        if !is_quick || no_spins > 0 {
            self.no_spins.store(no_spins.saturating_sub(1), Relaxed);
            return None;
        }
        head.listening.0.store(0, SeqCst);
        let began = Instant::now();
        let found = loop {
            if self.has_answers() {
                self.take_answers();
                if let Ok(found) = answer.try_recv() {
                    break Some(found);
                }
            }
            if began.elapsed() > SPIN {
                self.no_spins.store(SPINS_LEFT_OUT, Relaxed);
                break None;
            }
            std::hint::spin_loop();
        };
        head.listening.0.store(1, SeqCst);
        if self.has_answers() {
            self.take_answers();
        }
        found
    }

    fn take_answers_from(self: &Arc<Self>, read: &mut u32) -> std::result::Result<More, Nonsense> {
        let head = self.memory.head();
        let answered = head.answered.0.load(SeqCst);
        if answered.wrapping_sub(*read) as usize > SLOTS {
            return Err(Nonsense);
        }
        while *read != answered {
            let slot = head.answers[*read as usize % SLOTS].load(SeqCst) as usize;
            *read = read.wrapping_add(1);
            let (op, count, room, waiting) = {
                let mut table = lock(&self.table);
                let entry = table.entries.get_mut(slot).ok_or(Nonsense)?;
                match std::mem::replace(entry, Entry::Ours) {
                    Entry::Theirs { op, count, room, answer } => (op, count, room, answer),
                    Entry::Ours => return Err(Nonsense),
                }
            };
            let answer = self.checked(slot, op, count, room).ok_or(Nonsense)?;
            if let Some(waiting) = waiting {
                // If nobody waits the answer is dropped, which gives its slot back.
                let _ = waiting.send(answer);
            }
            if op == op::CLOSE {
                return Ok(More::DoNot);
            }
        }
        Ok(More::Come)
    }

    /// The answer in a slot that the process has given back.
    fn checked(self: &Arc<Self>, slot: usize, op: u32, count: u32, room: u32) -> Option<Answer> {
        let place = self.memory.slot(slot);
        let length = place.length.load(Relaxed);
        let used = if matches!(op, op::PREAD | op::PWRITE) { count } else { length };
        let answer = Answer {
            channel: Arc::clone(self),
            slot,
            result: place.result.load(Relaxed),
            errno: place.errno.load(Relaxed),
            length: length.min(room) as usize,
            used: (used as usize).min(PLACE),
        };
        (length <= room).then_some(answer)
    }
}

/// The longest payload of an answer that is not the data of a read, in bytes: a list of 10,000
/// exports has less.
pub(crate) const MAX_ANSWER: usize = 16 << 20;

/// How long a request looks for its answer.
const SPIN: Duration = Duration::from_micros(10);

/// After that was in vain so many requests do not look.
const SPINS_LEFT_OUT: u32 = 32;

/// Whether the task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Come,
    DoNot,
}

/// The process does not keep to the protocol.
#[derive(Debug)]
struct Nonsense;

impl Why {
    /// Whether it ends this request.
    fn ends(self, op: u32) -> bool {
        match self {
            Why::Ended | Why::Stopped(StopScope::Everything) => true,
            Why::Stopped(StopScope::Reads) => {
                !matches!(op, op::PWRITE | op::FLUSH | op::TRIM | op::ZERO | op::GET_SIZE | op::CAN | op::CLOSE)
            }
        }
    }
}

#[cfg(test)]
mod tests;
