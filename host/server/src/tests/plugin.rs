//! A plugin for tests: a disk in a vector, with operations that wait, fail or panic on demand. It
//! logs what happened.

use std::sync::{Arc, Mutex, MutexGuard};

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, ConfigError, Done, Errno, Error, ExportEntry, Extents, Flags,
    Handle, Op, OpenArgs, Param, Plugin, Result, Span, Support, lock,
};
use tokio::sync::Semaphore;

/// Reads that begin here panic.
pub const PANICS: u64 = 1 << 20;
/// Reads that begin here panic after they have waited.
pub const PANICS_LATER: u64 = PANICS + 4096;
/// Reads that begin here fail with ENOSPC and a message.
pub const FAILS: u64 = PANICS + 2 * 4096;
/// Reads that begin here wait for [`Disk::gate`].
pub const WAITS: u64 = PANICS + 3 * 4096;
/// Reads that begin here fail once their client has gone.
pub const WAITS_FOR_CLIENT: u64 = PANICS + 4 * 4096;
/// The first page after the special ones.
pub const PLAIN: u64 = PANICS + 5 * 4096;
/// Reads that begin here are spliced if they are long enough.
pub const SPLICED: u64 = 5 << 20;

pub struct Disk {
    pub bytes: Mutex<Vec<u8>>,
    /// What happened, in order.
    diary: Mutex<Vec<String>>,
    /// Waiting reads take one permit each.
    pub gate: Semaphore,
    pub reads: std::sync::atomic::AtomicUsize,
    pub can: Capabilities,
}

impl Disk {
    pub fn new(size: usize) -> Arc<Disk> {
        let can = Capabilities {
            trim: true,
            extents: true,
            multi_conn: true,
            cache: Support::Native,
            fua: Support::Native,
            ..Capabilities::READ_WRITE_FLUSH
        };
        Disk::with(size, can)
    }

    pub fn with(size: usize, can: Capabilities) -> Arc<Disk> {
        Arc::new(Disk {
            bytes: Mutex::new(vec![0; size]),
            diary: Mutex::default(),
            gate: Semaphore::new(0),
            reads: Default::default(),
            can,
        })
    }

    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.bytes)
    }

    pub fn note(&self, what: impl Into<String>) {
        self.diary.lock().unwrap().push(what.into());
    }

    pub fn diary(&self) -> Vec<String> {
        self.diary.lock().unwrap().clone()
    }
}

pub struct TestPlugin(pub Arc<Disk>);

impl Plugin for TestPlugin {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        Err(param.unknown("test"))
    }

    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        let entry = |name: &str, text: &str| ExportEntry { name: name.into(), description: Some(text.into()) };
        Box::pin(async move { Ok(Some(vec![entry("", "the disk"), entry("other", "the same")])) })
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move {
            match args.exportname.as_str() {
                "absent" => Err(Error::new(Errno::Enoent, "there is no export 'absent'")),
                "panics" => panic!("open panics"),
                "hangs" => {
                    self.0.note("open hangs");
                    self.0.gate.acquire().await.unwrap().forget();
                    Ok(Arc::new(TestHandle(Arc::clone(&self.0), args.client)) as Arc<dyn Handle>)
                }
                name => {
                    self.0.note(format!("open '{name}'"));
                    Ok(Arc::new(TestHandle(Arc::clone(&self.0), args.client)) as Arc<dyn Handle>)
                }
            }
        })
    }
}

struct TestHandle(Arc<Disk>, Arc<Client>);

impl TestHandle {
    fn lend(disk: &Disk, buffer: &mut Buffer, offset: u64) -> Option<u32> {
        let file = rustix::fs::memfd_create("spliced", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(file);
        std::io::Write::write_all(&mut file, &disk.bytes()[offset as usize..][..buffer.len() as usize]).unwrap();
        let mut at = 0;
        buffer.splice_from(|pipe, wanted| {
            let flags = rustix::pipe::SpliceFlags::NONBLOCK;
            Ok(rustix::pipe::splice(&file, Some(&mut at), pipe, None, wanted, flags)?)
        })
    }

    fn read(disk: &Disk, mut buffer: Buffer, span: Span, offset: u64) -> Done {
        let bytes = disk.bytes();
        let from = offset as usize;
        // Pages of zeroes are marked as zero, not copied.
        let mut at = 0;
        while at < span.len {
            let len = (4096 - (offset + u64::from(at)) % 4096).min(u64::from(span.len - at)) as u32;
            let part = &bytes[from + at as usize..][..len as usize];
            match part.iter().all(|byte| *byte == 0) {
                true => buffer.set_zero(Span::new(span.at + at, len)),
                false => buffer.put(span.at + at, part),
            }
            at += len;
        }
        (buffer, Ok(()))
    }
}

impl Handle for TestHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.0.bytes().len() as u64))
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        self.0.note("block_size");
        Op::Ready(Ok(None))
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        self.0.note("export_description");
        Op::Ready(Ok(Some("a disk for tests".into())))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.0.can))
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.0.reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let disk = Arc::clone(&self.0);
        match offset {
            PANICS => panic!("a read panics"),
            PANICS_LATER => Op::later(async move {
                tokio::task::yield_now().await;
                panic!("a read panics later, with {} bytes", buffer.len())
            }),
            FAILS => Op::Ready((buffer, Err(Error::new(Errno::Enospc, "the read failed as ordered")))),
            WAITS => Op::later(async move {
                disk.note("read waits");
                disk.gate.acquire().await.unwrap().forget();
                disk.note("read goes on");
                TestHandle::read(&disk, buffer, span, offset)
            }),
            WAITS_FOR_CLIENT => {
                let client = Arc::clone(&self.1);
                Op::later(async move {
                    disk.note("read waits");
                    client.until_gone().await;
                    (buffer, Err(Errno::Eshutdown.into()))
                })
            }
            SPLICED => {
                let mut buffer = buffer;
                match TestHandle::lend(&disk, &mut buffer, offset) {
                    Some(spliced) if spliced == span.len => Op::Ready((buffer, Ok(()))),
                    _ => Op::Ready(TestHandle::read(&disk, buffer, span, offset)),
                }
            }
            _ => Op::Ready(TestHandle::read(&disk, buffer, span, offset)),
        }
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        self.0.bytes()[offset as usize..][..span.len as usize].copy_from_slice(buffer.data(span));
        Op::Ready((buffer, Ok(())))
    }

    fn flush(&self) -> Op<Result<()>> {
        self.0.note("flush");
        Op::Ready(Ok(()))
    }

    fn trim(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        self.0.bytes()[offset as usize..][..length as usize].fill(0);
        Op::Ready(Ok(()))
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.0.note(format!("cache {offset} {length}"));
        Op::Ready(Ok(()))
    }

    fn extents(&self, offset: u64, length: u64, _: Flags) -> Op<Result<Extents>> {
        let mut extents = Extents::new(offset, length);
        let bytes = self.0.bytes();
        for page in bytes[offset as usize..(offset + length) as usize].chunks(4096) {
            let zero = page.iter().all(|byte| *byte == 0);
            extents.push(page.len() as u64, zero, zero);
        }
        Op::Ready(Ok(extents))
    }

    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        self.0.note("finalize");
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.note("close");
        Box::pin(async {})
    }
}
