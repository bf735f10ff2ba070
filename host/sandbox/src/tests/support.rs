//! Shared by the tests: guests written as core modules in text, a disk in memory that logs the
//! operations that reach it, and a chain of the two.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rbdkit_plugin_api::schema::ParamValue;
use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, Client, ConfigError, Done, Errno, Error, Extents, Fill, Flags, Handle, Op,
    OpenArgs, Param, Peer, Plugin, Pool, Result, Span, Support, ThreadModel,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use crate::{Counters, FilterLimits, Host, Module, Options, ServerLimits};
use rbdkit_chain::{Chain, Hop, Layer};

/// A guest's description of itself.
#[derive(Clone)]
pub struct Guest {
    pub name: &'static str,
    /// 0 serialize-connections, 1 serialize-all-requests, 2 serialize-requests, 3 parallel.
    pub model: u8,
    pub transparent: bool,
    /// 0 stateless, 1 replay, 2 lost.
    pub recovery: u8,
    /// The interfaces it exports besides `filter`.
    pub exports: &'static [&'static str],
    /// Its imports, exported functions and globals.
    pub body: String,
    /// The body of `configure`, which leaves a pointer to a result.
    pub configure: &'static str,
}

impl Guest {
    pub fn new(exports: &'static [&'static str], body: &str) -> Guest {
        let (body, configure) = (body.to_string(), "(i32.const 1200)");
        Guest { name: "guest", model: 3, transparent: false, recovery: 0, exports, body, configure }
    }

    pub fn transparent(self) -> Guest {
        Guest { transparent: true, ..self }
    }

    pub fn model(self, model: u8) -> Guest {
        Guest { model, ..self }
    }

    pub fn recovery(self, recovery: u8) -> Guest {
        Guest { recovery, ..self }
    }

    /// The guest as a core module. Its memory: a description at 1024, the name at 1100, a success
    /// at
    /// 1200. The guest may use 2048 to 4096; realloc uses 8192 and up.
    fn module(&self) -> String {
        let mut record = Vec::new();
        let mut word = |n: u32| record.extend(n.to_le_bytes());
        word(1100);
        word(self.name.len() as u32);
        for _ in 0..3 {
            word(0);
            word(0);
        }
        word(u32::from_le_bytes([self.model, u8::from(self.transparent), self.recovery, 0]));
        for _ in 0..3 {
            word(0);
        }
        let record: String = record.iter().map(|byte| format!("\\{byte:02x}")).collect();
        // Imports have to come first in a module. The order of the rest does not matter.
        let (imports, rest): (Vec<&str>, Vec<&str>) =
            self.body.lines().partition(|line| line.trim_start().starts_with("(import"));
        format!(
            r#"(module
            {imports}
            (memory (export "memory") 1)
            (global $top (mut i32) (i32.const 8192))
            (data (i32.const 1024) "{record}")
            (data (i32.const 1100) "{name}")
            (data (i32.const 1200) "\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
                (global.set $top (i32.add (local.get $at) (local.get 3)))
                (if (i32.gt_u (global.get $top) (i32.mul (memory.size) (i32.const 65536)))
                    (then (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))))))
                (local.get $at))
            (func (export "rbdkit:filter/filter@0.1.0#describe") (result i32) (i32.const 1024))
            (func (export "rbdkit:filter/filter@0.1.0#configure") (param i32 i32) (result i32) {configure})
            {rest})"#,
            imports = imports.join("\n"),
            configure = self.configure,
            name = self.name,
            rest = rest.join("\n"),
        )
    }

    /// The guest as a component.
    pub fn component(&self) -> Vec<u8> {
        let exports: String = self.exports.iter().map(|name| format!("export rbdkit:filter/{name}@0.1.0;\n")).collect();
        component_of(&self.module(), &exports)
    }
}

/// A component of a core module for a world with these exports.
pub fn component_of(module: &str, exports: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    resolve.push_file(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/filter.wit")).unwrap();
    let world = format!("package test:guest;\nworld guest {{\ninclude rbdkit:filter/host@0.1.0;\n{exports}}}");
    let package = resolve.push_str("guest.wit", &world).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    let mut module = wat::parse_str(module).unwrap_or_else(|e| panic!("{e}"));
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap_or_else(|e| panic!("{e:?}"))
}

/// A guest that passes reads on.
pub const READS: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (i32.const 2048))
"#;

/// A guest that passes writes on, with their flags.
pub const WRITES: &str = r#"
    (import "rbdkit:filter/next@0.1.0" "pwrite" (func $next_pwrite (param i64 i32 i32 i32 i32 i32)))
    (func (export "rbdkit:filter/writes@0.1.0#pwrite") (param i64 i32 i32) (result i32)
        (call $next_pwrite (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (local.get 2) (i32.const 2048))
        (i32.const 2048))
"#;

/// A disk in memory.
#[derive(Clone)]
pub struct Disk {
    pub can: Capabilities,
    pub model: ThreadModel,
    pub bytes: Arc<Mutex<Vec<u8>>>,
    pub log: Arc<Mutex<Vec<String>>>,
    /// If it is set, operations wait for a permit of this.
    pub hold: Option<Arc<Semaphore>>,
    /// Reads fail.
    pub broken: Arc<AtomicBool>,
    pub opened: Arc<AtomicU64>,
    /// It logs nothing and copies no bytes.
    pub silent: bool,
}

impl Default for Disk {
    fn default() -> Disk {
        let can = Capabilities {
            trim: true,
            extents: true,
            multi_conn: true,
            fast_zero: true,
            zero: Support::Native,
            fua: Support::Native,
            cache: Support::Native,
            ..Capabilities::READ_WRITE_FLUSH
        };
        let bytes = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        Disk {
            can,
            model: ThreadModel::Parallel,
            bytes: Arc::new(Mutex::new(bytes)),
            log: Arc::default(),
            hold: None,
            broken: Arc::default(),
            opened: Arc::default(),
            silent: false,
        }
    }
}

impl Disk {
    fn note<T: Send + 'static>(&self, line: String, answer: impl FnOnce(&Disk) -> T + Send + 'static) -> Op<T> {
        self.log.lock().unwrap().push(line);
        let disk = self.clone();
        match self.hold.clone() {
            None => Op::Ready(answer(&disk)),
            Some(hold) => Op::later(async move {
                hold.acquire().await.unwrap().forget();
                answer(&disk)
            }),
        }
    }

    /// Waits until this many operations have reached it since [`Disk::seen`].
    pub async fn reached(&self, operations: usize) {
        let seen = || self.log.lock().unwrap().len() >= operations;
        until(&format!("{operations} operations to reach the disk"), seen).await;
    }

    /// The operations that reached it since the last time.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Handle for Disk {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.bytes.lock().unwrap().len() as u64))
    }
    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.can))
    }
    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        if self.silent {
            buffer.mark(span, Fill::Data);
            return Op::Ready((buffer, Ok(())));
        }
        self.note(format!("pread {offset} {}", span.len), move |disk| {
            if disk.broken.load(Ordering::SeqCst) {
                return (buffer, Err(Error::new(Errno::Enospc, "the disk is broken")));
            }
            let at = offset as usize;
            buffer.put(span.at, &disk.bytes.lock().unwrap()[at..at + span.len as usize]);
            (buffer, Ok(()))
        })
    }
    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        if self.silent {
            return Op::Ready((buffer, Ok(())));
        }
        self.note(format!("pwrite {offset} {}{}", span.len, fua(flags)), move |disk| {
            let at = offset as usize;
            disk.bytes.lock().unwrap()[at..at + span.len as usize].copy_from_slice(buffer.data(span));
            (buffer, Ok(()))
        })
    }
    fn flush(&self) -> Op<Result<()>> {
        self.note("flush".into(), |_| Ok(()))
    }
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.note(format!("trim {offset} {length}{}", fua(flags)), |_| Ok(()))
    }
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.note(format!("zero {offset} {length}{}", fua(flags)), move |disk| {
            disk.bytes.lock().unwrap()[offset as usize..(offset + length) as usize].fill(0);
            Ok(())
        })
    }
    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.note(format!("cache {offset} {length}"), |_| Ok(()))
    }
    /// Every other 4 KiB is a hole.
    fn extents(&self, offset: u64, length: u64, _: Flags) -> Op<Result<Extents>> {
        let mut list = Extents::new(offset, length);
        let mut at = offset;
        while at < offset + length {
            let end = (at / 4096 + 1) * 4096;
            let hole = at / 4096 % 2 == 1;
            list.push(end - at, hole, hole);
            at = end;
        }
        self.note(format!("extents {offset} {length}"), |_| Ok(list))
    }
    fn finalize(&self) -> BoxFuture<'_, Result<()>> {
        self.log.lock().unwrap().push("finalize".into());
        Box::pin(async { Ok(()) })
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        self.log.lock().unwrap().push("close".into());
        Box::pin(async {})
    }
}

fn fua(flags: Flags) -> &'static str {
    if flags.fua { " fua" } else { "" }
}

impl Plugin for Disk {
    fn config(&mut self, param: Param<'_>) -> std::result::Result<(), ConfigError> {
        Err(param.unknown("disk"))
    }
    fn thread_model(&self) -> ThreadModel {
        self.model
    }
    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let mut disk = self.clone();
        Box::pin(async move {
            if args.exportname == "none" {
                return Err(Errno::Enoent.into());
            }
            disk.can.write &= !args.readonly;
            Ok(Arc::new(disk) as Arc<dyn Handle>)
        })
    }
}

/// A host without a cache of compiled code.
pub fn host() -> Arc<Host> {
    host_within(ServerLimits::default())
}

fn host_within(limits: ServerLimits) -> Arc<Host> {
    Host::new(Options { limits, cache_dir: Some("/proc/nowhere".into()), ..Options::default() }).unwrap()
}

pub fn load(guest: &Guest) -> std::result::Result<Module, String> {
    host().load("guest.wasm", &guest.component()).map_err(|e| e.to_string())
}

/// Filters over a disk.
pub struct Stack {
    pub disk: Disk,
    pub chain: Arc<Chain>,
    pub host: Arc<Host>,
    clients: AtomicU64,
}

impl Stack {
    pub async fn new(guests: &[Guest]) -> Stack {
        Stack::over(guests, Disk::default(), FilterLimits::default()).await
    }

    pub async fn over(guests: &[Guest], disk: Disk, limits: FilterLimits) -> Stack {
        Stack::within(guests, disk, limits, ServerLimits::default()).await
    }

    pub async fn within(guests: &[Guest], disk: Disk, limits: FilterLimits, all: ServerLimits) -> Stack {
        let host = host_within(all);
        let layers = guests
            .iter()
            .map(|guest| {
                let module = host.load("guest.wasm", &guest.component()).unwrap();
                module.configure(vec![], limits.clone()).unwrap()
            })
            .collect();
        Stack::of(host, layers, disk).await
    }

    pub async fn of(host: Arc<Host>, layers: Vec<Arc<dyn Layer>>, disk: Disk) -> Stack {
        let chain = Chain::new(layers, "disk", Box::new(disk.clone()), Pool::new());
        chain.get_ready().await.unwrap();
        chain.after_fork().await.unwrap();
        Stack { disk, chain, host, clients: AtomicU64::new(1) }
    }

    pub fn client(&self) -> Arc<Client> {
        Arc::new(Client::new(self.clients.fetch_add(1, Ordering::SeqCst), Peer::Unix, Some((1, 2, 3)), false))
    }

    pub async fn open(&self) -> Arc<Hop> {
        self.open_as(false, "").await.unwrap()
    }

    pub async fn open_as(&self, readonly: bool, name: &str) -> Result<Arc<Hop>> {
        self.chain.top(self.client()).open(readonly, name).await
    }

    /// The counters of the topmost filter.
    pub fn counters(&self) -> Arc<Counters> {
        self.host.statistics().remove(0).1
    }
}

/// How long a test waits for an event, on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `happened`.
///
/// # Panics
/// It has not happened before the deadline: `what` names the awaited event.
pub async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < DEADLINE, "still waiting for {what}");
        tokio::task::yield_now().await;
    }
}

/// Awaits a task's result.
///
/// # Panics
/// The task panicked, or has not ended before the deadline.
pub async fn ended<T>(task: JoinHandle<T>) -> T {
    let ended = tokio::time::timeout(DEADLINE, task).await;
    ended.expect("still waiting for a task to end").expect("a task panicked")
}

/// Reads through a hop.
pub async fn read(hop: &Arc<Hop>, offset: u64, length: u32) -> Result<Vec<u8>> {
    let buffer = Buffer::new(length);
    let (mut buffer, result) = hop.pread(buffer, Span::new(0, length), offset).await;
    let span = buffer.span();
    result.map(|()| buffer.bytes(span).to_vec())
}

/// Writes through a hop.
pub async fn write(hop: &Arc<Hop>, offset: u64, bytes: &[u8], flags: Flags) -> Result<()> {
    let buffer = Buffer::from_vec(bytes.to_vec());
    let span = buffer.span();
    let (mut buffer, result) = hop.pwrite(buffer, span, offset, flags).await;
    assert_eq!(buffer.bytes(span), bytes, "the payload is the caller's, whatever the layers below make of it");
    result
}

pub fn value(text: &str) -> ParamValue {
    ParamValue { text: text.into(), path: None }
}
