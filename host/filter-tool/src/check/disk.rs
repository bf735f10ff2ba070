//! The disk below the filter: content in memory, with faults on request.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, ConfigError, Done, Errno, Error, Extents, Flags, Handle, Op, OpenArgs, Param,
    Plugin, PluginInfo, Result, Span, ThreadModel, is_all_zero, lock, read_lock, write_lock,
};

use super::content::{self, UNIT, units};
use super::promise::Promise;
use super::steps::{Below, Fault, Request};
use super::volatile::{Remainder, Volatile};

/// What the parameters of the disk are. The disk itself is made by [`Disk::plugin`].
pub const INFO: PluginInfo = PluginInfo {
    name: "disk",
    longname: "disk of rbdkit-filter check",
    description: "A disk in memory that fails on request",
    params: || vec![ParamSpec::size("size").help("Size of the disk")],
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(DiskPlugin { size: 0, disk: Arc::new(Disk::new(Access::Writable, 1)) }),
};

/// The largest disk. The test keeps its content in memory, and a model of the same size.
const MAX_SIZE: u64 = 1 << 30;

/// Whether the disk can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Writable,
    ReadOnly,
}

/// The bytes of a disk. A unit is made when it is used: a script that is short has to be quick.
struct Content {
    seed: u64,
    bytes: Vec<u8>,
    is_made: Vec<bool>,
}

impl Content {
    fn new(seed: u64, size: usize) -> Content {
        Content { seed, bytes: vec![0; size], is_made: vec![false; size.div_ceil(UNIT)] }
    }

    fn is_made(&self, offset: u64, length: u64) -> bool {
        self.is_made[units(offset, length)].iter().all(|made| *made)
    }

    fn make(&mut self, offset: u64, length: u64) {
        for unit in units(offset, length) {
            if !std::mem::replace(&mut self.is_made[unit], true) {
                let begin = unit * UNIT;
                let end = (begin + UNIT).min(self.bytes.len());
                content::initial(&mut self.bytes[begin..end], self.seed, begin as u64);
            }
        }
    }
}

/// A disk. It survives a restart of the server above it.
pub struct Disk {
    access: Access,
    seed: u64,
    bytes: OnceLock<RwLock<Content>>,
    faults: Mutex<VecDeque<(Below, Fault)>>,
    failures: AtomicU64,
    first_change: Mutex<Option<String>>,
    volatile: Mutex<Volatile>,
}

impl Disk {
    /// A disk whose content follows from a seed. Its size comes with its parameters.
    pub fn new(access: Access, seed: u64) -> Disk {
        Disk {
            access,
            seed,
            bytes: OnceLock::new(),
            faults: Mutex::default(),
            failures: AtomicU64::new(0),
            first_change: Mutex::default(),
            volatile: Mutex::default(),
        }
    }

    /// The plugin that serves the disk.
    pub fn plugin(self: &Arc<Disk>) -> Box<dyn Plugin> {
        Box::new(DiskPlugin { size: 0, disk: Arc::clone(self) })
    }

    /// Its size in bytes. 0 before the first plugin is ready.
    pub fn size(&self) -> u64 {
        self.bytes.get().map_or(0, |content| read_lock(content).bytes.len() as u64)
    }

    /// Calls `look` with the offset and bytes of each unit that was used or that `also` names.
    ///
    /// # Errors
    /// The first one of `look`.
    pub fn inspect<E>(
        &self,
        also: impl Fn(usize) -> bool,
        mut look: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(content) = self.bytes.get() else { return Ok(()) };
        let mut content = write_lock(content);
        for unit in 0..content.is_made.len() {
            if content.is_made[unit] || also(unit) {
                let begin = unit * UNIT;
                let end = (begin + UNIT).min(content.bytes.len());
                content.make(begin as u64, (end - begin) as u64);
                look(begin as u64, &content.bytes[begin..end])?;
            }
        }
        Ok(())
    }

    /// Lets the next operation of the kind fail.
    pub fn expect(&self, below: Below, fault: Fault) {
        lock(&self.faults).push_back((below, fault));
    }

    /// Forgets faults that have not happened yet.
    pub fn heal(&self) {
        lock(&self.faults).clear();
    }

    /// How many operations have failed on request.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// The first operation that was to change the content.
    pub fn first_change(&self) -> Option<String> {
        lock(&self.first_change).clone()
    }

    /// How many writes it has got.
    pub fn writes(&self) -> u64 {
        lock(&self.volatile).writes()
    }

    /// What an operation that has succeeded should have made durable and did not, as a line.
    /// `writes` is the number of writes before it.
    pub fn not_durable(&self, operation: &Request, writes: u64, promise: Promise) -> Option<String> {
        let volatile = lock(&self.volatile);
        let bytes = |left: &Remainder| format!("{} bytes at {}", left.range.end - left.range.start, left.range.start);
        match operation {
            Request::Flush => volatile.up_to(writes).next().map(|left| {
                let left = bytes(left);
                format!("flush succeeds, but the disk below got no flush after it was written ({left}): it may be lost")
            }),
            Request::Pwrite { offset, length, flags, .. } if flags.fua => {
                let length = u64::from(*length);
                // A filter that moves data keeps a write's length. Other writes may be its own.
                let is_of_it = |left: &&Remainder| match promise {
                    Promise::Identity => left.range.start < offset + length && *offset < left.range.end,
                    _ => left.written == length,
                };
                volatile.after(writes).find(is_of_it).map(|left| {
                    let (what, left) = (operation.describe(), bytes(left));
                    format!(
                        "{what} with FUA succeeds, but the disk below got its data ({left}) without FUA, and no flush \
                         after it: it may be lost"
                    )
                })
            }
            _ => None,
        }
    }

    fn content(&self) -> Result<&RwLock<Content>> {
        self.bytes.get().ok_or_else(|| Error::new(Errno::Enxio, "the disk is not ready"))
    }

    /// Calls `act` with the bytes, in which this range has its content.
    fn read<T>(&self, offset: u64, length: u64, act: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let content = self.content()?;
        if !read_lock(content).is_made(offset, length) {
            write_lock(content).make(offset, length);
        }
        Ok(act(&read_lock(content).bytes))
    }

    /// Lets `act` change this range.
    fn write(&self, offset: u64, length: u64, kept: Kept, act: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut content = write_lock(self.content()?);
        content.make(offset, length);
        act(&mut content.bytes[offset as usize..][..length as usize]);
        let range = offset..offset + length;
        match kept {
            Kept::AfterAFlush => lock(&self.volatile).written(range),
            Kept::Already | Kept::Never => lock(&self.volatile).replaced(&range),
        }
        Ok(())
    }

    fn changed(&self, what: &str, offset: u64, length: u64) {
        lock(&self.first_change).get_or_insert_with(|| format!("{what} of {length} bytes at {offset}"));
    }

    fn take(&self, below: Below) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let at = faults.iter().position(|(kind, _)| *kind == below)?;
        faults.remove(at).map(|(_, fault)| fault)
    }

    /// Answers an operation, after its fault if it has one. `act` gets the fault if it is neither
    /// an error nor a delay.
    fn answer<T: Send + 'static>(
        self: &Arc<Disk>,
        below: Below,
        act: impl FnOnce(&Disk, Result<Option<Fault>>) -> T + Send + 'static,
    ) -> Op<T> {
        match self.take(below) {
            Some(Fault::Delay(milliseconds)) => {
                let disk = Arc::clone(self);
                Op::later(async move {
                    tokio::time::sleep(Duration::from_millis(u64::from(milliseconds))).await;
                    act(&disk, Ok(None))
                })
            }
            Some(Fault::Error(errno)) => {
                self.failures.fetch_add(1, Ordering::SeqCst);
                Op::Ready(act(self, Err(Error::new(errno, "the test lets the disk below fail"))))
            }
            other => Op::Ready(act(self, Ok(other))),
        }
    }
}

/// When what is written becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    AfterAFlush,
    Already,
    /// It may be lost at any time.
    Never,
}

impl Kept {
    fn with(flags: Flags) -> Kept {
        if flags.fua { Kept::Already } else { Kept::AfterAFlush }
    }
}

struct DiskPlugin {
    size: u64,
    disk: Arc<Disk>,
}

impl Plugin for DiskPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = param.size()?,
            _ => return Err(param.unknown("disk")),
        }
        match self.size {
            1..=MAX_SIZE => Ok(()),
            _ => Err(param.error("the disk below the filter has at least one byte and at most 1G")),
        }
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        let content = || RwLock::new(Content::new(self.disk.seed, self.size as usize));
        self.disk.bytes.get_or_init(content);
        Ok(())
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let write = self.disk.access == Access::Writable && !args.readonly;
        let handle = DiskHandle { disk: Arc::clone(&self.disk), write };
        Box::pin(async move { Ok(Arc::new(handle) as Arc<dyn Handle>) })
    }
}

struct DiskHandle {
    disk: Arc<Disk>,
    write: bool,
}

impl Handle for DiskHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.disk.size()))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities { write: self.write, ..Capabilities::NATIVE }))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.disk.answer(Below::Pread, move |disk, fault| {
            let length = u64::from(span.len);
            let result = fault.and_then(|_| {
                disk.read(offset, length, |bytes| buffer.put(span.at, &bytes[offset as usize..][..span.len as usize]))
            });
            (buffer, result)
        })
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        self.disk.changed("pwrite", offset, u64::from(span.len));
        self.disk.answer(Below::Pwrite, move |disk, fault| {
            let length = u64::from(span.len);
            let write = |bytes: &mut [u8]| bytes.copy_from_slice(buffer.data(span));
            let result = fault.and_then(|_| disk.write(offset, length, Kept::with(flags), write));
            (buffer, result)
        })
    }

    fn flush(&self) -> Op<Result<()>> {
        self.disk.answer(Below::Flush, |disk, fault| fault.map(|_| lock(&disk.volatile).flushed()))
    }

    /// What was trimmed reads as something that nobody wrote: the contract allows anything.
    fn trim(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.disk.changed("trim", offset, length);
        self.disk.answer(Below::Trim, move |disk, fault| {
            fault.and_then(|_| disk.write(offset, length, Kept::Never, |bytes| bytes.fill(0xdb)))
        })
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.disk.changed("zero", offset, length);
        self.disk.answer(Below::Zero, move |disk, fault| {
            fault.and_then(|_| disk.write(offset, length, Kept::with(flags), |bytes| bytes.fill(0)))
        })
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.disk.answer(Below::Extents, move |disk, fault| {
            let short = fault? == Some(Fault::Short);
            disk.read(offset, length, |bytes| {
                let mut extents = Extents::new(offset, length);
                // A short answer is about a single byte.
                let end = if short { offset + 1 } else { offset + length };
                let mut at = offset;
                while at < end {
                    let unit_end = ((at / UNIT as u64 + 1) * UNIT as u64).min(bytes.len() as u64);
                    let zero = is_all_zero(&bytes[at as usize..unit_end as usize]);
                    let end = if short { end } else { unit_end };
                    if !extents.push(end - at, zero, zero) || (flags.req_one && extents.as_slice().len() > 1) {
                        break;
                    }
                    at = end;
                }
                extents
            })
        })
    }
}
