//! One connection in the plugin's process: its threads, and the requests that they serve.
//!
//! A thread takes requests from the ring, one after the other, and sleeps when there are none. A
//! second thread helps only if calls take long: waking a thread costs more than a call that copies
//! 4 KiB from memory. So the server wakes a thread if none is awake. The
//! [sentinel](super::sentinel) looks every two milliseconds whether requests wait behind a call
//! that takes long, and then wakes or starts another thread. If most calls take long, each request
//! wakes a thread at once.
#![allow(unsafe_code, reason = "the plugin's handle is a pointer, and threads wait on shared memory")]

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::lock;
use rustix::thread::futex;

use super::context::Context;
use super::plugin::{Errno, Plugin};
use super::sentinel::{self, Watched, Worker};
use super::server_link;
use crate::can;
use crate::memory::{Memory, SLOTS, Slot, op};
use crate::wire::{Fields, Packet};

/// A call of this time is long. Waking a thread takes about half of it.
const LONG: Duration = Duration::from_micros(30);

/// If this many of the last 32 calls were long, each request wakes a thread. Single calls are long
/// because the system has given the processor to another process.
const MANY_LONG: u32 = 20;

/// How long a thread looks for a request before it sleeps: less than waking it takes.
const SPIN: Duration = Duration::from_micros(25);

/// After this many times in vain it looks only each 16th time.
const MAX_VAIN_SPINS: u32 = 8;

/// A connection.
pub(super) struct Connection {
    memory: Memory,
    /// Tells the server of answers.
    signal: OwnedFd,
    plugin: &'static Plugin,
    context: Arc<Context>,
    ring: Mutex<Ring>,
    /// How many answers were given.
    answered: Mutex<u32>,
    /// The plugin's handle; null before it is opened and after it is closed.
    handle: AtomicPtr<std::ffi::c_void>,
    readonly: AtomicBool,
    /// Requests that run, and what is notified when one ends.
    running: Mutex<u32>,
    ended_one: Condvar,
    is_closed: AtomicBool,
    /// The most threads.
    limit: u32,
    /// How often in a row a thread has looked for a request in vain.
    vain_spins: AtomicU32,
    /// A bit for each of the last calls: whether it was long.
    long_calls: AtomicU32,
    /// How many requests were taken from the ring.
    taken: AtomicU32,
}

struct Ring {
    /// How many requests were taken.
    taken: u32,
    threads: Vec<Arc<Worker>>,
}

/// What the answer to a request is.
type Outcome = Result<(i64, u32), Errno>;

impl Connection {
    /// Starts the first thread.
    pub(super) fn start(
        memory: Memory,
        signal: OwnedFd,
        plugin: &'static Plugin,
        context: Context,
        limit: u32,
    ) -> std::io::Result<()> {
        let connection = Arc::new(Connection {
            memory,
            signal,
            plugin,
            context: Arc::new(context),
            ring: Mutex::new(Ring { taken: 0, threads: Vec::new() }),
            answered: Mutex::new(0),
            handle: AtomicPtr::default(),
            readonly: AtomicBool::new(false),
            running: Mutex::new(0),
            ended_one: Condvar::new(),
            is_closed: AtomicBool::new(false),
            limit: limit.max(1),
            vain_spins: AtomicU32::new(0),
            long_calls: AtomicU32::new(0),
            taken: AtomicU32::new(0),
        });
        let watched: Weak<dyn Watched> = Arc::downgrade(&connection) as _;
        sentinel::watch(watched);
        let mut ring = lock(&connection.ring);
        connection.add_thread(&mut ring)
    }

    fn add_thread(self: &Arc<Self>, ring: &mut Ring) -> std::io::Result<()> {
        let (connection, worker) = (Arc::clone(self), Arc::<Worker>::default());
        let theirs = Arc::clone(&worker);
        self.memory.head().awake.0.fetch_add(1, SeqCst);
        let started = std::thread::Builder::new().name("plugin".into()).spawn(move || connection.work(&theirs));
        match started {
            Ok(_) => ring.threads.push(worker),
            Err(_) => drop(self.memory.head().awake.0.fetch_sub(1, SeqCst)),
        }
        started.map(drop)
    }

    fn work(self: &Arc<Self>, worker: &Worker) {
        self.context.enter();
        while let Some(slot) = self.take() {
            *lock(&self.running) += 1;
            let began = Instant::now();
            worker.calls.fetch_add(1, Relaxed);
            sentinel::wake();
            let answer = self.serve(self.memory.slot(slot), slot);
            worker.calls.fetch_add(1, Relaxed);
            if worker.is_stuck.swap(false, SeqCst) {
                self.memory.head().awake.0.fetch_add(1, SeqCst);
            }
            self.measure(began);
            *lock(&self.running) -= 1;
            self.ended_one.notify_all();
            self.answer(slot, answer);
        }
    }

    /// The next request. Waits for one. None: the connection has ended.
    fn take(self: &Arc<Self>) -> Option<usize> {
        let head = self.memory.head();
        let mut has_spun = false;
        loop {
            let asked = {
                let mut ring = lock(&self.ring);
                if self.is_closed.load(SeqCst) {
                    return None;
                }
                let asked = head.asked.0.load(SeqCst);
                if ring.taken != asked {
                    let slot = head.asks[ring.taken as usize % SLOTS].load(SeqCst) as usize % SLOTS;
                    ring.taken = ring.taken.wrapping_add(1);
                    self.taken.store(ring.taken, Relaxed);
                    if ring.taken != asked && head.eager.0.load(Relaxed) != 0 {
                        self.help(&mut ring);
                    }
                    return Some(slot);
                }
                if !std::mem::replace(&mut has_spun, true) && self.may_spin() {
                    drop(ring);
                    self.spin(asked);
                    continue;
                }
                head.awake.0.fetch_sub(1, SeqCst);
                head.sleeping.0.fetch_add(1, SeqCst);
                asked
            };
            let slept = futex::wait(&head.asked.0, futex::Flags::empty(), asked, None);
            head.awake.0.fetch_add(1, SeqCst);
            head.sleeping.0.fetch_sub(1, SeqCst);
            if slept.is_ok() {
                head.waking.0.store(0, SeqCst);
            }
        }
    }

    /// Whether to look for a request for a moment before sleeping, because waking a thread takes
    /// longer. Seldom if it was in vain.
    fn may_spin(&self) -> bool {
        let vain = self.vain_spins.fetch_add(1, Relaxed);
        self.memory.head().eager.0.load(Relaxed) == 0 && (vain < MAX_VAIN_SPINS || vain.is_multiple_of(16))
    }

    fn spin(&self, asked: u32) {
        let head = self.memory.head();
        let began = Instant::now();
        while began.elapsed() < SPIN {
            for _ in 0..20 {
                if head.asked.0.load(SeqCst) != asked {
                    self.vain_spins.store(0, Relaxed);
                    return;
                }
                std::hint::spin_loop();
            }
        }
    }

    /// Wakes a thread, or starts one if none sleeps.
    fn help(self: &Arc<Self>, ring: &mut Ring) {
        let head = self.memory.head();
        if head.sleeping.0.load(SeqCst) > 0 {
            head.wake();
        } else if (ring.threads.len() as u32) < self.limit {
            // Without it the others go on.
            let _ = self.add_thread(ring);
        }
    }

    fn measure(&self, began: Instant) {
        let calls = self.long_calls.load(Relaxed) << 1 | u32::from(began.elapsed() >= LONG);
        self.long_calls.store(calls, Relaxed);
        let eager = u32::from(calls.count_ones() >= MANY_LONG && self.limit > 1);
        if self.memory.head().eager.0.load(Relaxed) != eager {
            self.memory.head().eager.0.store(eager, Relaxed);
        }
    }

    fn answer(&self, slot: usize, answer: Outcome) {
        let head = self.memory.head();
        let place = self.memory.slot(slot);
        let (result, errno, length) = match answer {
            Ok((result, length)) => (result, 0, length),
            Err(errno) => (-1, errno, 0),
        };
        place.result.store(result, Relaxed);
        place.errno.store(errno, Relaxed);
        place.length.store(length, Relaxed);
        {
            let mut answered = lock(&self.answered);
            head.answers[*answered as usize % SLOTS].store(slot as u32, SeqCst);
            *answered = answered.wrapping_add(1);
            head.answered.0.store(*answered, SeqCst);
        }
        if head.listening.0.load(SeqCst) != 0 && head.listening.0.swap(0, SeqCst) != 0 {
            let _ = rustix::io::write(&self.signal, &1_u64.to_ne_bytes());
        }
    }

    fn serve(&self, request: &Slot, slot: usize) -> Outcome {
        let (flags, offset, count) =
            (request.flags.load(Relaxed), request.offset.load(Relaxed), request.count.load(Relaxed));
        let room = request.room.load(Relaxed);
        let handle = self.handle.load(SeqCst);
        let plugin = self.plugin;
        let plain = |answer: Result<i64, Errno>| answer.map(|answer| (answer, 0));
        let bytes = |bytes: &[u8]| {
            let fitting = bytes.len() <= room as usize;
            if fitting {
                self.memory.write(slot, bytes);
            }
            if fitting { Ok((0, bytes.len() as u32)) } else { Err(libc::EOVERFLOW) }
        };
        let which = request.op.load(Relaxed);
        match which {
            op::PRECONNECT => return plain(plugin.preconnect(flags != 0)),
            op::LIST_EXPORTS => return self.list_exports(flags != 0).and_then(|list| bytes(list.bytes())),
            op::DEFAULT_EXPORT => {
                return bytes(plugin.default_export(flags != 0, self.context.peer.tls)?.as_bytes());
            }
            op::OPEN => return self.open(flags != 0, slot, count),
            op::CLOSE => {
                self.close();
                return Ok((0, 0));
            }
            _ if handle.is_null() => return Err(libc::EINVAL),
            _ => {}
        }
        let place = self.memory.place(slot);
        // SAFETY: the handle is open. It is closed only when no other request runs. The server
        // never asks for more than a place has. Nobody else uses the place until the answer.
        unsafe {
            match which {
                op::GET_SIZE => plain(plugin.get_size(handle)),
                op::CAN => bytes(&can::encode(&plugin.can(handle, self.readonly.load(Relaxed))?)),
                op::BLOCK_SIZE => {
                    let sizes = plugin.block_size(handle)?;
                    let packet = sizes.iter().fold(Packet::fields(), |packet, size| packet.number((*size).into()));
                    bytes(packet.bytes())
                }
                op::DESCRIPTION => {
                    let description = plugin.export_description(handle)?;
                    bytes(Packet::fields().optional(description.as_ref().map(String::as_bytes)).bytes())
                }
                op::PREAD => plain(plugin.pread(handle, place, count, offset)),
                op::PWRITE => plain(plugin.pwrite(handle, place, count, offset, flags)),
                op::FLUSH => plain(plugin.flush(handle)),
                op::TRIM => plain(plugin.trim(handle, count, offset, flags)),
                op::ZERO => plain(plugin.zero(handle, count, offset, flags)),
                op::CACHE => plain(plugin.cache(handle, count, offset)),
                op::EXTENTS => bytes(plugin.extents(handle, count, offset, flags)?.packet(room as usize).bytes()),
                _ => Err(libc::EINVAL),
            }
        }
    }

    fn list_exports(&self, readonly: bool) -> Result<Packet, Errno> {
        let mut exports = self.plugin.list_exports(readonly, self.context.peer.tls)?;
        if exports.use_default {
            let name = self.plugin.default_export(readonly, self.context.peer.tls)?;
            exports.add(name.as_bytes(), None).map_err(|wrong| wrong.errno)?;
        }
        Ok(exports.packet())
    }

    fn open(&self, readonly: bool, slot: usize, count: u32) -> Outcome {
        let mut name = vec![0; count.min(MAX_NAME) as usize];
        self.memory.read(slot, &mut name);
        let name = Fields::new(&name).text().unwrap_or_default().to_vec();
        let _ = self.context.export_name.set(CString::new(name).unwrap_or_default());
        self.readonly.store(readonly, Relaxed);
        let handle = self.plugin.open(readonly)?;
        self.handle.store(handle, SeqCst);
        Ok((0, 0))
    }

    /// Waits until no other request runs, closes, and ends the threads.
    fn close(&self) {
        let mut running = lock(&self.running);
        while *running > 1 {
            running = self.ended_one.wait(running).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        drop(running);
        let handle = self.handle.swap(std::ptr::null_mut(), SeqCst);
        if !handle.is_null() {
            // SAFETY: it is open, and no other request runs.
            unsafe { self.plugin.close(handle) };
        }
        self.is_closed.store(true, SeqCst);
        let asked = &self.memory.head().asked.0;
        // A thread that is about to wait sees another number.
        asked.fetch_add(1, SeqCst);
        let _ = futex::wake(asked, futex::Flags::empty(), i32::MAX as u32);
    }
}

impl Watched for Connection {
    fn taken(&self) -> u32 {
        self.taken.load(Relaxed)
    }

    fn has_waiting(&self) -> bool {
        !self.is_closed.load(SeqCst) && self.taken.load(Relaxed) != self.memory.head().asked.0.load(SeqCst)
    }

    fn help_waiting(self: Arc<Self>) {
        let mut ring = lock(&self.ring);
        if self.has_waiting() {
            self.help(&mut ring);
        }
    }

    fn threads(&self) -> Vec<Arc<Worker>> {
        lock(&self.ring).threads.clone()
    }

    fn set_stuck(&self, worker: &Worker, call: u64) {
        worker.is_stuck.store(true, SeqCst);
        self.memory.head().awake.0.fetch_sub(1, SeqCst);
        // The call may have ended meanwhile, before it saw the mark.
        if worker.calls.load(SeqCst) != call && worker.is_stuck.swap(false, SeqCst) {
            self.memory.head().awake.0.fetch_add(1, SeqCst);
        }
    }
}

/// Bytes of the longest name of an export with its length.
const MAX_NAME: u32 = 4096 + 8;

/// Tells the server that a connection cannot be served: it has no thread.
pub(super) fn refuse(error: &std::io::Error) {
    server_link::error(&format!("cannot serve a connection: {error}"));
}
