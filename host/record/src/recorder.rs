//! Writes a record: a queue, and a thread that writes it to the file.
//!
//! Calls put their entries into the queue in the order of the events. A call that finds no room in
//! the queue waits for it, so a record has no gaps, and a disk that is slower than the clients
//! slows them down. Three things bound the wait: a file that takes nothing for [`PATIENCE`] ends
//! the record, so does a file that fails, and once the server stops a call waits at most
//! [`STOP_PATIENCE`]. After the record's end nothing waits: entries are counted and dropped.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rbdkit_plugin_api::text::plain;
use rbdkit_plugin_api::{Flag, MAX_REQUEST, lock};
use tokio::sync::Semaphore;

use crate::encode::Frame;
use crate::entry::{Entry, Finish, GivenParameter, Reason, Session};
use crate::payload::Keep;

/// The most bytes of entries in the queue: room for one of the longest requests.
const QUEUE: u32 = MAX_REQUEST;

/// How long a call waits for room. A disk that takes nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a call waits for room once the server stops.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Entries are collected to writes of this many bytes. A longer entry is a write of its own.
const WRITE: usize = 256 << 10;

/// The bytes of the last entry.
const FINISH: u64 = 64;

/// What is recorded, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// For messages: the path of the file.
    pub file: String,
    /// The version of the program.
    pub program: String,
    /// The recorded layer's name.
    pub layer: String,
    /// Whether it is a filter.
    pub is_filter: bool,
    /// Whether payloads are kept whole, and not only their digests.
    pub with_payloads: bool,
    /// The parameters of the layer, if they are known. None of the values is secret.
    pub parameters: Vec<GivenParameter>,
    /// The most bytes of the file.
    pub limit: u64,
}

/// A record that is being written. It is made before the file is open: [`Recorder::start`].
pub struct Recorder {
    options: Options,
    began: Instant,
    next_call: AtomicU64,
    next_handle: AtomicU32,
    room: Arc<Semaphore>,
    stopping: Flag,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Entries that wait to be written.
struct Queue {
    frames: Vec<(Frame, u32)>,
    /// The size of the file when all of them are written.
    size: u64,
    lost: u64,
    /// Why the record has ended.
    ended: Option<Reason>,
    /// The thread ends when the queue is empty.
    is_closed: bool,
    has_thread: bool,
}

/// Room for an entry in the queue.
pub(crate) struct Room(u32);

/// Whether there is room for an entry.
pub(crate) enum Reserved {
    Now(Room),
    /// Not before the thread has written something.
    Later,
    /// The record has ended.
    Never,
}

impl Recorder {
    /// A record whose file is not open yet.
    pub fn new(options: Options) -> Arc<Recorder> {
        Arc::new(Recorder {
            options,
            began: Instant::now(),
            next_call: AtomicU64::new(1),
            next_handle: AtomicU32::new(1),
            room: Arc::new(Semaphore::new(QUEUE as usize)),
            stopping: Flag::default(),
            queue: Mutex::new(Queue {
                frames: Vec::new(),
                size: 0,
                lost: 0,
                ended: None,
                is_closed: false,
                has_thread: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// Begins to write to this file, which is empty. `confine` is called in the thread that writes,
    /// before each of its writes.
    ///
    /// # Errors
    /// The system has no thread left, or the file cannot be written.
    pub fn start(self: &Arc<Self>, mut file: File, confine: fn()) -> io::Result<()> {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let session = Frame::new(Entry::Session(Session {
            program: self.options.program.clone(),
            layer: self.options.layer.clone(),
            is_filter: self.options.is_filter,
            has_payloads: self.options.with_payloads,
            began: began.as_nanos() as u64,
            parameters: self.options.parameters.clone(),
        }));
        let header = Frame::file_header();
        for part in header.parts().into_iter().chain(session.parts()) {
            file.write_all(part)?;
        }
        let recorder = Arc::clone(self);
        let mut queue = lock(&self.queue);
        queue.size = header.size() + session.size();
        let run = move || recorder.write_all(file, confine);
        std::thread::Builder::new().name("rbdkit-record".into()).stack_size(128 << 10).spawn(run)?;
        queue.has_thread = true;
        Ok(())
    }

    /// The server stops: no call waits for long any more.
    pub(crate) fn begin_stop(&self) {
        self.stopping.set();
    }

    /// Writes what is in the queue and the last entry, and waits for that, but not longer than
    /// `patience`. Then the file is whole. The log says if the record is not.
    pub fn finish(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = lock(&self.queue);
        let reason = *queue.ended.get_or_insert(Reason::Whole);
        let lost = queue.lost;
        queue.is_closed = true;
        self.room.close();
        if queue.has_thread {
            let last = Frame::new(Entry::Finish(Finish { time: self.time(), lost, reason }));
            queue.frames.push((last, 0));
            self.changed.notify_all();
        }
        while queue.has_thread {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                tracing::warn!("--record: {}: the end of the record is not written in time", self.options.file);
                return;
            };
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if lost > 0 {
            tracing::warn!("--record: {}: {lost} entries are missing: {}", self.options.file, reason.why());
        }
    }

    pub(crate) fn keep(&self) -> Keep {
        if self.options.with_payloads { Keep::Bytes } else { Keep::Digests }
    }

    pub(crate) fn time(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    pub(crate) fn next_call(&self) -> u64 {
        self.next_call.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn next_handle(&self) -> u32 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes room for an entry of at most this many bytes, if there is any.
    pub(crate) fn reserve_now(&self, bytes: u32) -> Reserved {
        let bytes = bytes.min(QUEUE);
        match self.room.try_acquire_many(bytes) {
            Ok(permits) => {
                permits.forget();
                Reserved::Now(Room(bytes))
            }
            Err(tokio::sync::TryAcquireError::NoPermits) => Reserved::Later,
            Err(tokio::sync::TryAcquireError::Closed) => Reserved::Never,
        }
    }

    /// Waits for room. None: the record has ended.
    pub(crate) async fn reserve(&self, bytes: u32) -> Option<Room> {
        let bytes = bytes.min(QUEUE);
        let late = async {
            tokio::select! {
                () = tokio::time::sleep(PATIENCE) => {}
                () = async { self.stopping.wait().await; tokio::time::sleep(STOP_PATIENCE).await } => {}
            }
        };
        tokio::select! {
            biased;
            permits = self.room.acquire_many(bytes) => {
                permits.ok()?.forget();
                Some(Room(bytes))
            }
            () = late => {
                self.end(&mut lock(&self.queue), Reason::Slow);
                None
            }
        }
    }

    /// Puts an entry into the queue. Without room the entry is lost.
    pub(crate) fn push(&self, room: Option<Room>, entry: Entry<'_>) {
        let frame = room.as_ref().map(|_| Frame::new(entry));
        let mut queue = lock(&self.queue);
        let (Some(frame), Some(Room(bytes)), None) = (frame, room, queue.ended) else {
            queue.lost += u64::from(!queue.is_closed);
            return;
        };
        if queue.size + frame.size() + FINISH > self.options.limit {
            queue.lost += 1;
            return self.end(&mut queue, Reason::Limit);
        }
        queue.size += frame.size();
        let was_empty = queue.frames.is_empty();
        queue.frames.push((frame, bytes));
        drop(queue);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Puts an entry into the queue that cannot wait: that of a call which is being dropped.
    pub(crate) fn push_small(&self, entry: Entry<'_>) {
        self.push(Some(Room(0)), entry);
    }

    fn end(&self, queue: &mut Queue, reason: Reason) {
        if queue.ended.is_none() {
            queue.ended = Some(reason);
            self.room.close();
            let file = &self.options.file;
            tracing::warn!("--record: {file}: the record ends here, and the server serves on: {}", reason.why());
        }
    }

    /// The thread: writes until the queue is closed.
    fn write_all(&self, file: File, confine: fn()) {
        let mut file = BufWriter::with_capacity(WRITE, file);
        while let Some(frames) = self.next_frames() {
            confine();
            let mut room = 0;
            let mut written = Ok(());
            for (frame, bytes) in frames {
                written = written.and_then(|()| frame.parts().into_iter().try_for_each(|part| file.write_all(part)));
                room += bytes as usize;
            }
            written = written.and_then(|()| file.flush());
            if let Err(error) = written {
                tracing::error!("--record: {}: {}", self.options.file, plain(&error));
                self.end(&mut lock(&self.queue), Reason::File);
                break;
            }
            self.room.add_permits(room);
        }
        // What could not be written must not be tried again when the writer is dropped.
        let _ = file.into_parts();
        let mut queue = lock(&self.queue);
        queue.lost += queue.frames.drain(..).count() as u64;
        queue.has_thread = false;
        drop(queue);
        self.changed.notify_all();
    }

    fn next_frames(&self) -> Option<Vec<(Frame, u32)>> {
        let mut queue = lock(&self.queue);
        loop {
            if !queue.frames.is_empty() {
                return Some(std::mem::take(&mut queue.frames));
            }
            if queue.is_closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
