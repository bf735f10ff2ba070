//! Tests of the gate and of emulation, over a plugin that logs every call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, Done, Errno, ExportEntry, Extent, Extents, Flags, Handle, Op,
    OpenArgs, Param, Peer, Plugin, Pool, Result, Span, Support, ThreadModel,
};
use tokio::sync::Semaphore;

use super::{Chain, Hop, Layer, NextLayer};

mod disks;

/// How a probe describes itself and answers.
#[derive(Clone)]
struct Script {
    size: u64,
    can: Capabilities,
    block_sizes: Result<Option<BlockSizes>, Errno>,
    description: Result<Option<String>, Errno>,
    /// None: the default export alone.
    exports: Option<Vec<ExportEntry>>,
    /// The default export's name begins with it and ends with the number of the question.
    default_export: Result<String, Errno>,
    model: ThreadModel,
    /// The error of every zero, if there is one, and the answer to every request for extents.
    zero: Option<Errno>,
    extents: Vec<Extent>,
    /// If there is a semaphore, each operation waits for one of its permits.
    hold: Option<Arc<Semaphore>>,
}

impl Default for Script {
    fn default() -> Script {
        let can = Capabilities { trim: true, cache: Support::Emulate, extents: true, ..Capabilities::READ_WRITE_FLUSH };
        Script {
            size: 1 << 20,
            can,
            block_sizes: Ok(None),
            description: Ok(None),
            exports: None,
            default_export: Ok(String::new()),
            model: ThreadModel::Parallel,
            zero: None,
            extents: Vec::new(),
            hold: None,
        }
    }
}

#[derive(Clone, Default)]
struct Seen {
    log: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// What is optional and was asked for.
    asked: Arc<Mutex<Vec<&'static str>>>,
    /// How often the default export was asked for, and the names that were opened.
    defaults: Arc<AtomicUsize>,
    opened: Arc<Mutex<Vec<String>>>,
}

struct Probe(Script, Seen);

impl Probe {
    fn note<T: Send + 'static>(&self, line: String, answer: T) -> Op<T> {
        self.1.log.lock().unwrap().push(line);
        let Some(hold) = self.0.hold.clone() else { return Op::Ready(answer) };
        let seen = self.1.clone();
        Op::later(async move {
            let running = seen.running.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(running, Ordering::SeqCst);
            hold.acquire().await.unwrap().forget();
            seen.running.fetch_sub(1, Ordering::SeqCst);
            answer
        })
    }
}

impl Handle for Probe {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.0.size))
    }
    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        self.1.asked.lock().unwrap().push("block_size");
        Op::Ready(self.0.block_sizes.map_err(Into::into))
    }
    fn export_description(&self) -> Op<Result<Option<String>>> {
        self.1.asked.lock().unwrap().push("export_description");
        Op::Ready(self.0.description.clone().map_err(Into::into))
    }
    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.0.can))
    }
    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.note(format!("pread {offset} {}", span.len), (buffer, Ok(())))
    }
    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        let zeroes = buffer.data(span).iter().all(|byte| *byte == 0);
        let what = if zeroes { " zeroes" } else { "" };
        self.note(format!("pwrite {offset} {}{}{what}", span.len, fua(flags)), (buffer, Ok(())))
    }
    fn flush(&self) -> Op<Result<()>> {
        self.note("flush".into(), Ok(()))
    }
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.note(format!("trim {offset} {length}{}", fua(flags)), Ok(()))
    }
    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        let answer = self.0.zero.map_or(Ok(()), |errno| Err(errno.into()));
        self.note(format!("zero {offset} {length}{}", fua(flags)), answer)
    }
    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.note(format!("cache {offset} {length}"), Ok(()))
    }
    fn extents(&self, offset: u64, length: u64, _: Flags) -> Op<Result<Extents>> {
        let mut list = Extents::new(self.0.extents.first().map_or(offset, |first| first.offset), length);
        for extent in &self.0.extents {
            list.push(extent.length, extent.hole, extent.zero);
        }
        self.note(format!("extents {offset} {length}"), Ok(list))
    }
}

fn fua(flags: Flags) -> &'static str {
    if flags.fua { " fua" } else { "" }
}

impl Plugin for Probe {
    fn config(&mut self, param: Param<'_>) -> std::result::Result<(), rbdkit_plugin_api::ConfigError> {
        Err(param.unknown("probe"))
    }
    fn thread_model(&self) -> ThreadModel {
        self.0.model
    }
    fn list_exports(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<Option<Vec<ExportEntry>>>> {
        Box::pin(async { Ok(self.0.exports.clone()) })
    }
    fn default_export(&self, _: &Arc<Client>, _: bool) -> BoxFuture<'_, Result<String>> {
        Box::pin(async {
            let name = self.0.default_export.clone()?;
            Ok(format!("{name}{}", self.1.defaults.fetch_add(1, Ordering::SeqCst)))
        })
    }
    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        self.1.opened.lock().unwrap().push(args.exportname);
        let handle: Arc<dyn Handle> = Arc::new(Probe(self.0.clone(), self.1.clone()));
        Box::pin(async move { Ok(handle) })
    }
}

/// A filter that passes everything on.
struct Thin(ThreadModel);

impl Layer for Thin {
    fn name(&self) -> &str {
        "thin"
    }
    fn thread_model(&self) -> ThreadModel {
        self.0
    }
    fn open(&self, args: OpenArgs, next: NextLayer) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        Box::pin(async move { Ok(Arc::new(ThinHandle(next.open(args.readonly, &args.exportname).await?)) as _) })
    }
}

struct ThinHandle(Arc<Hop>);

impl Handle for ThinHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.0.size()))
    }
    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(self.0.can()))
    }
    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.0.pread(buffer, span, offset)
    }
}

struct Bench {
    chain: Arc<Chain>,
    seen: Seen,
}

impl Bench {
    fn new(script: Script) -> Bench {
        let seen = Seen::default();
        let plugin = Box::new(Probe(script, seen.clone()));
        Bench { chain: Chain::new(vec![], "probe", plugin, Pool::new()), seen }
    }

    /// With filters of these thread models, nearest the client first.
    fn with_layers(script: Script, models: &[ThreadModel]) -> Bench {
        let seen = Seen::default();
        let plugin = Box::new(Probe(script, seen.clone()));
        let layers = models.iter().map(|model| Arc::new(Thin(*model)) as Arc<dyn Layer>).collect();
        Bench { chain: Chain::new(layers, "probe", plugin, Pool::new()), seen }
    }

    /// What a new client sees.
    fn top(&self) -> NextLayer {
        self.chain.top(Arc::new(Client::new(1, Peer::Unknown, None, false)))
    }

    async fn open(&self, readonly: bool) -> Result<Arc<Hop>> {
        self.top().open(readonly, "").await
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.seen.asked.lock().unwrap())
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.log.lock().unwrap())
    }
}

/// Awaits something that should happen at once. A timeout makes a test fail instead of hang.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}

async fn read(hop: &Arc<Hop>, offset: u64, length: u32) -> Result<Buffer> {
    let (buffer, result) = hop.pread(Buffer::new(length), Span::new(0, length), offset).await;
    result.map(|()| buffer)
}

async fn write(hop: &Arc<Hop>, offset: u64, length: u32, flags: Flags) -> Result<()> {
    hop.pwrite(Buffer::from_vec(vec![1; length as usize]), Span::new(0, length), offset, flags).await.1
}

#[tokio::test]
async fn ranges_outside_of_the_export_never_reach_the_layer() {
    let bench = Bench::new(Script::default());
    let hop = bench.open(false).await.unwrap();
    let size = hop.size();
    for offset in [size, size - 1, u64::MAX, u64::MAX - 1] {
        assert_eq!(errno(read(&hop, offset, 2).await), Errno::Einval);
        assert_eq!(errno(write(&hop, offset, 2, Flags::NONE).await), Errno::Einval);
        assert_eq!(errno(hop.trim(offset, 2, Flags::NONE).await), Errno::Einval);
        assert_eq!(errno(hop.zero(offset, 2, Flags::NONE).await), Errno::Einval);
        assert_eq!(errno(hop.cache(offset, 2).await), Errno::Einval);
        assert_eq!(errno(hop.extents(offset, 2, Flags::NONE).await), Errno::Einval);
    }
    assert_eq!(errno(hop.trim(0, 0, Flags::NONE).await), Errno::Einval);
    assert_eq!(errno(hop.trim(1, u64::MAX, Flags::NONE).await), Errno::Einval);
    assert_eq!(bench.log(), [""; 0]);
}

#[tokio::test]
async fn what_a_layer_leaves_unfilled_reads_as_zero() {
    let bench = Bench::new(Script::default());
    let hop = bench.open(false).await.unwrap();
    let mut buffer = read(&hop, 0, 512).await.unwrap();
    let all = buffer.span();
    assert!(buffer.bytes(all).iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_read_only_hop_refuses_every_change() {
    let bench = Bench::new(Script::default());
    let hop = bench.open(true).await.unwrap();
    assert_eq!(hop.can().zero, Support::None);
    assert!(!hop.can().trim);
    assert_eq!(errno(write(&hop, 0, 1, Flags::NONE).await), Errno::Erofs);
    assert_eq!(errno(hop.trim(0, 1, Flags::NONE).await), Errno::Erofs);
    assert_eq!(errno(hop.zero(0, 1, Flags::NONE).await), Errno::Erofs);
    assert_eq!(bench.log(), [""; 0]);
}

#[tokio::test]
async fn requests_that_do_not_keep_to_the_block_sizes_reach_the_layer() {
    let block_sizes = Ok(Some(BlockSizes { minimum: 512, preferred: 4096, maximum: 8192 }));
    let bench = Bench::new(Script { block_sizes, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    read(&hop, 1, 16384).await.unwrap();
    write(&hop, 7, 3, Flags::NONE).await.unwrap();
    hop.trim(7, 3, Flags::NONE).await.unwrap();
    hop.extents(7, 3, Flags::NONE).await.unwrap_err();
    // Nobody had to know the block sizes for that.
    assert_eq!(bench.asked(), [""; 0]);
    assert_eq!(bench.log(), ["pread 1 16384", "pwrite 7 3", "trim 7 3", "extents 7 3"]);
    // Emulation keeps to the longest request of the layer.
    hop.zero(0, 20000, Flags::NONE).await.unwrap();
    hop.cache(0, 10000).await.unwrap();
    let expected = [
        "pwrite 0 8192 zeroes",
        "pwrite 8192 8192 zeroes",
        "pwrite 16384 3616 zeroes",
        "pread 0 8192",
        "pread 8192 1808",
    ];
    assert_eq!(bench.log(), expected);
    assert_eq!(bench.asked(), ["block_size"]);
}

#[tokio::test]
async fn what_is_optional_is_asked_when_it_is_wanted_and_a_failure_is_none() {
    let bench = Bench::new(Script { description: Ok(Some("text".into())), ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    assert_eq!(bench.asked(), [""; 0]);
    assert_eq!(hop.block_sizes().await, None);
    assert_eq!(hop.block_sizes().await, None);
    assert_eq!(hop.description().await.as_deref(), Some("text"));
    assert_eq!(bench.asked(), ["block_size", "export_description"]);

    let odd = Ok(Some(BlockSizes { minimum: 3, preferred: 4096, maximum: 8192 }));
    for block_sizes in [Err(Errno::Eio), odd] {
        let bench = Bench::new(Script { block_sizes, description: Err(Errno::Eio), ..Script::default() });
        let hop = bench.open(false).await.unwrap();
        assert_eq!(hop.block_sizes().await, None);
        assert_eq!(hop.block_sizes().await, None);
        assert_eq!(hop.description().await, None);
        hop.zero(0, 512, Flags::NONE).await.unwrap();
        assert_eq!(bench.asked(), ["block_size", "export_description"]);
        assert_eq!(bench.log(), ["pwrite 0 512 zeroes"]);
    }
}

#[tokio::test]
async fn a_chain_that_serves_one_connection_at_a_time_has_no_multi_conn() {
    use ThreadModel::{Parallel, SerializeAllRequests, SerializeConnections, SerializeRequests};
    let can = Capabilities { multi_conn: true, ..Script::default().can };
    for (plugin, layers, expected) in [
        (Parallel, &[][..], true),
        (SerializeAllRequests, &[SerializeRequests], true),
        (SerializeConnections, &[], false),
        (SerializeConnections, &[Parallel, Parallel], false),
        (Parallel, &[SerializeConnections, Parallel], false),
        (Parallel, &[Parallel, SerializeConnections], false),
    ] {
        let bench = Bench::with_layers(Script { can, model: plugin, ..Script::default() }, layers);
        assert_eq!(bench.open(false).await.unwrap().can().multi_conn, expected, "{plugin} under {layers:?}");
    }
}

#[tokio::test]
async fn the_default_export_is_asked_once_for_each_connection() {
    let bench =
        Bench::with_layers(Script { default_export: Ok("n".into()), ..Script::default() }, &[ThreadModel::Parallel]);
    for client in 0..2 {
        let name = format!("n{client}");
        let top = bench.top();
        assert_eq!(top.default_export(false).await.unwrap(), name);
        let listed = top.list_exports(false).await.unwrap();
        assert_eq!(listed, [ExportEntry { name: name.clone(), description: None }]);
        top.open(false, "").await.unwrap();
        assert_eq!(top.default_export(false).await.unwrap(), name);
        assert_eq!(bench.seen.opened.lock().unwrap().pop(), Some(name));
    }
    assert_eq!(bench.seen.defaults.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_plugin_whose_default_export_fails_has_no_exports_to_list() {
    let failing = || Script { default_export: Err(Errno::Eio), ..Script::default() };
    let bench = Bench::new(failing());
    assert_eq!(bench.top().list_exports(false).await.unwrap(), []);
    assert_eq!(errno(bench.open(false).await.map(|_| ())), Errno::Eio);
    // A list of its own does not need it.
    let exports = vec![ExportEntry { name: "a".into(), description: None }];
    let bench = Bench::new(Script { exports: Some(exports.clone()), ..failing() });
    assert_eq!(bench.top().list_exports(false).await.unwrap(), exports);
}

#[tokio::test]
async fn a_list_that_the_protocol_cannot_carry_fails_and_names_the_export() {
    let entry = |name: String, text: &str| ExportEntry { name, description: Some(text.to_string()) };
    let long = |length: usize| "x".repeat(length);
    let list = async |exports: Vec<ExportEntry>| {
        let bench =
            Bench::with_layers(Script { exports: Some(exports), ..Script::default() }, &[ThreadModel::Parallel]);
        bench.top().list_exports(false).await.map_err(|error| error.context().unwrap_or_default().to_string())
    };
    let good = vec![entry(long(4096), &long(4096)), entry(String::new(), ""), entry("\n".into(), "a")];
    assert_eq!(list(good.clone()).await, Ok(good));
    let shown = format!("'{}'...", long(60));
    assert_eq!(
        list(vec![entry("a".into(), ""), entry(long(4097), "")]).await,
        Err(format!("probe: the name of an export has 4097 bytes, which is more than 4096: {shown}"))
    );
    assert_eq!(
        list(vec![entry("a'b".into(), &long(5000))]).await,
        Err("probe: the description of an export has 5000 bytes, which is more than 4096: 'a\\'b'".into())
    );
    // No client can ask for a name with a zero byte.
    assert_eq!(list(vec![entry("a\0b".into(), ""), entry("c".into(), "")]).await, Ok(vec![entry("c".into(), "")]));
    let many = vec![entry(long(4096), ""); 4200];
    assert!(list(many).await.unwrap_err().starts_with("probe: 4200 exports take"));
    let many: Vec<ExportEntry> = (0..100_000).map(|i| entry(format!("export {i}"), "")).collect();
    assert_eq!(list(many.clone()).await, Ok(many));
    let default = Bench::new(Script { default_export: Ok(long(4096)), ..Script::default() });
    assert_eq!(errno(default.open(false).await.map(|_| ())), Errno::Eio);
}

#[tokio::test]
async fn fua_is_a_flush_where_the_layer_only_flushes() {
    let bench = Bench::new(Script::default());
    let hop = bench.open(false).await.unwrap();
    write(&hop, 0, 16, Flags::FUA).await.unwrap();
    assert_eq!(bench.log(), ["pwrite 0 16", "flush"]);
    hop.trim(0, 16, Flags::FUA).await.unwrap();
    assert_eq!(bench.log(), ["trim 0 16", "flush"]);
}

#[tokio::test]
async fn fua_reaches_the_layer_that_has_it() {
    let can = Capabilities { fua: Support::Native, ..Script::default().can };
    let bench = Bench::new(Script { can, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    write(&hop, 0, 16, Flags::FUA).await.unwrap();
    hop.zero(0, 16, Flags::FUA).await.unwrap();
    assert_eq!(bench.log(), ["pwrite 0 16 fua", "pwrite 0 16 fua zeroes"]);
}

#[tokio::test]
async fn fua_is_refused_where_nothing_could_make_it_true() {
    let can = Capabilities { flush: false, ..Script::default().can };
    let bench = Bench::new(Script { can, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    assert_eq!(hop.can().fua, Support::None);
    assert_eq!(errno(write(&hop, 0, 16, Flags::FUA).await), Errno::Einval);
    assert_eq!(bench.log(), [""; 0]);
}

#[tokio::test]
async fn zero_is_written_in_steps_where_the_layer_cannot() {
    let bench = Bench::new(Script { size: 4 << 20, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    hop.zero(512, (2 << 20) + 7, Flags::FUA).await.unwrap();
    assert_eq!(
        bench.log(),
        ["pwrite 512 1048576 zeroes", "pwrite 1049088 1048576 zeroes", "pwrite 2097664 7 zeroes", "flush"]
    );
    let fast = Flags { fast_zero: true, ..Flags::NONE };
    assert_eq!(errno(hop.zero(0, 512, fast).await), Errno::Enotsup);
    assert_eq!(bench.log(), [""; 0]);
}

#[tokio::test]
async fn a_native_zero_that_is_refused_is_written() {
    let can = Capabilities { zero: Support::Native, fast_zero: true, ..Script::default().can };
    let bench = Bench::new(Script { can, zero: Some(Errno::Enotsup), ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    hop.zero(0, 100, Flags::NONE).await.unwrap();
    assert_eq!(bench.log(), ["zero 0 100", "pwrite 0 100 zeroes"]);
    let fast = Flags { fast_zero: true, ..Flags::NONE };
    assert_eq!(errno(hop.zero(0, 100, fast).await), Errno::Enotsup);
    assert_eq!(bench.log(), ["zero 0 100"]);
    let failing = Bench::new(Script { can, zero: Some(Errno::Eio), ..Script::default() });
    let hop = failing.open(false).await.unwrap();
    assert_eq!(errno(hop.zero(0, 100, Flags::NONE).await), Errno::Eio);
    assert_eq!(failing.log(), ["zero 0 100"]);
}

#[tokio::test]
async fn cache_is_read_where_the_layer_cannot() {
    let bench = Bench::new(Script::default());
    let hop = bench.open(false).await.unwrap();
    hop.cache(4096, 8192).await.unwrap();
    assert_eq!(bench.log(), ["pread 4096 8192"]);
    let can = Capabilities { cache: Support::None, ..Script::default().can };
    let bench = Bench::new(Script { can, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    assert_eq!(errno(hop.cache(0, 512).await), Errno::Einval);
}

#[tokio::test]
async fn extents_are_checked_and_cut_at_the_size() {
    let long = Extent { offset: 100, length: 1 << 40, hole: true, zero: true };
    let bench = Bench::new(Script { extents: vec![long], ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    let answer = hop.extents(100, 50, Flags::NONE).await.unwrap();
    assert_eq!(answer.as_slice(), [Extent { length: hop.size() - 100, ..long }]);
    let one = hop.extents(100, 50, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
    assert_eq!(one.as_slice(), [Extent { length: 50, ..long }]);
    // The layer's answer begins at another offset.
    assert_eq!(errno(hop.extents(101, 50, Flags::NONE).await), Errno::Eio);
    let silent = Bench::new(Script::default());
    let hop = silent.open(false).await.unwrap();
    assert_eq!(errno(hop.extents(0, 50, Flags::NONE).await), Errno::Eio);
}

#[tokio::test]
async fn a_layer_without_extents_is_all_data() {
    let can = Capabilities { extents: false, ..Script::default().can };
    let bench = Bench::new(Script { can, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    let answer = hop.extents(7, 50, Flags::NONE).await.unwrap();
    let data = |length| Extent { offset: 7, length, hole: false, zero: false };
    assert_eq!(answer.as_slice(), [data(hop.size() - 7)]);
    let one = hop.extents(7, 50, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
    assert_eq!(one.as_slice(), [data(50)]);
    assert_eq!(bench.log(), [""; 0]);
}

#[tokio::test]
async fn an_impossible_size_is_refused_when_opening() {
    let huge = Bench::new(Script { size: 1 << 63, ..Script::default() });
    assert_eq!(errno(huge.open(false).await.map(|_| ())), Errno::Eio);
}

/// Starts three reads on each of two connections over a plugin of this thread model, and lets one
/// after the other end. Returns the most reads that ran at once.
async fn most_at_once(model: ThreadModel) -> usize {
    let hold = Arc::new(Semaphore::new(0));
    let bench = Bench::new(Script { model, hold: Some(Arc::clone(&hold)), ..Script::default() });
    let hops = [bench.open(false).await.unwrap(), bench.open(false).await.unwrap()];
    let mut tasks = Vec::new();
    for i in 0..6u64 {
        let hop = Arc::clone(&hops[i as usize % 2]);
        tasks.push(tokio::spawn(async move { read(&hop, i * 512, 512).await }));
    }
    // Every task runs as far as it can before a read may end, because this runtime has one thread
    // and is fair.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    hold.add_permits(6);
    for task in tasks {
        soon("a read ends", task).await.unwrap().unwrap();
    }
    assert_eq!(bench.log().len(), 6);
    bench.seen.most.load(Ordering::SeqCst)
}

#[tokio::test]
async fn the_thread_model_says_how_many_run_at_once() {
    assert_eq!(most_at_once(ThreadModel::Parallel).await, 6);
    assert_eq!(most_at_once(ThreadModel::SerializeRequests).await, 2);
    assert_eq!(most_at_once(ThreadModel::SerializeAllRequests).await, 1);
}

#[tokio::test]
async fn a_second_connection_waits_where_connections_are_serialized() {
    let bench = Bench::new(Script { model: ThreadModel::SerializeConnections, ..Script::default() });
    let first = bench.open(false).await.unwrap();
    let mut second = Box::pin(bench.open(false));
    let early = tokio::select! {
        biased;
        _ = &mut second => true,
        () = tokio::task::yield_now() => false,
    };
    assert!(!early, "opened while the first was open");
    first.close().await;
    drop(first);
    soon("the second connection is opened", second).await.unwrap();
}

#[tokio::test]
async fn writes_of_the_plugin_are_counted_while_they_are_under_way_and_while_the_server_stops() {
    let hold = Arc::new(Semaphore::new(0));
    let bench = Bench::new(Script {
        hold: Some(Arc::clone(&hold)),
        model: ThreadModel::SerializeRequests,
        ..Script::default()
    });
    let hop = bench.open(false).await.unwrap();
    let writes = Arc::clone(bench.chain.writes());
    let start = |write: bool| {
        let hop = Arc::clone(&hop);
        tokio::spawn(async move {
            match write {
                true => self::write(&hop, 0, 512, Flags::NONE).await,
                false => read(&hop, 0, 512).await.map(drop),
            }
        })
    };
    let reading = start(false);
    tokio::task::yield_now().await;
    let writing = start(true);
    tokio::task::yield_now().await;
    assert!(!writes.is_under_way(), "the write waits for its turn behind a read");
    hold.add_permits(1);
    soon("the read", reading).await.unwrap().unwrap();
    while !writes.is_under_way() {
        tokio::task::yield_now().await;
    }
    hold.add_permits(1);
    soon("the write", writing).await.unwrap().unwrap();
    assert_eq!((writes.is_under_way(), writes.ended()), (false, 1));

    let bench = Bench::new(Script::default());
    let hop = bench.open(false).await.unwrap();
    self::write(&hop, 0, 512, Flags::NONE).await.unwrap();
    assert_eq!(bench.chain.writes().ended(), 0, "it completed at once");
    bench.chain.begin_stop();
    self::write(&hop, 0, 512, Flags::NONE).await.unwrap();
    hop.flush().await.unwrap();
    read(&hop, 0, 512).await.unwrap();
    assert_eq!(bench.chain.writes().ended(), 2, "the write, and the flush after it");
}

#[tokio::test]
async fn requests_of_4_gib_and_more_reach_the_layer_in_pieces() {
    const GIB: u64 = 1 << 30;
    let fua = Capabilities { fua: Support::Native, ..Script::default().can };
    let can = Capabilities { zero: Support::Native, cache: Support::Native, ..Script::default().can };
    let extents = vec![Extent { offset: 0, length: 8 * GIB, hole: true, zero: true }];
    let bench = Bench::new(Script { size: 8 * GIB, can, extents, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    // What 32 bits can say is passed on whole.
    hop.trim(0, u32::MAX.into(), Flags::NONE).await.unwrap();
    assert_eq!(bench.log(), ["trim 0 4294967295"]);
    hop.trim(512, 4 * GIB, Flags::NONE).await.unwrap();
    assert_eq!(bench.log(), ["trim 512 2147483136", "trim 2147483648 2147483648", "trim 4294967296 512"]);
    hop.zero(0, 4 * GIB, Flags::NONE).await.unwrap();
    assert_eq!(bench.log(), ["zero 0 2147483648", "zero 2147483648 2147483648"]);
    hop.cache(0, 4 * GIB).await.unwrap();
    assert_eq!(bench.log(), ["cache 0 2147483648", "cache 2147483648 2147483648"]);
    // An emulated FUA is one flush at the end.
    hop.trim(0, 4 * GIB, Flags::FUA).await.unwrap();
    hop.zero(0, 4 * GIB, Flags::FUA).await.unwrap();
    let expected = [
        "trim 0 2147483648",
        "trim 2147483648 2147483648",
        "flush",
        "zero 0 2147483648",
        "zero 2147483648 2147483648",
        "flush",
    ];
    assert_eq!(bench.log(), expected);
    // An answer may cover less than the request, or more than what the layer was asked.
    let answer = hop.extents(0, 8 * GIB, Flags::NONE).await.unwrap();
    assert_eq!(answer.as_slice(), [Extent { offset: 0, length: 8 * GIB, hole: true, zero: true }]);
    assert_eq!(bench.log(), ["extents 0 2147483648"]);

    let bench = Bench::new(Script { size: 8 * GIB, can: fua, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    hop.trim(0, 4 * GIB, Flags::FUA).await.unwrap();
    assert_eq!(bench.log(), ["trim 0 2147483648 fua", "trim 2147483648 2147483648 fua"]);
}

#[tokio::test]
async fn long_requests_that_are_emulated_end_when_their_client_has_gone() {
    let size = i64::MAX as u64;
    let refuses = Capabilities { zero: Support::Native, ..Script::default().can };
    for (can, zero) in [(Script::default().can, None), (refuses, Some(Errno::Enotsup))] {
        let bench = Bench::new(Script { size, can, zero, ..Script::default() });
        let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
        let hop = bench.chain.top(Arc::clone(&client)).open(false, "").await.unwrap();
        let (zeroing, caching) = (Arc::clone(&hop), Arc::clone(&hop));
        let zero = tokio::spawn(async move { zeroing.zero(0, size, Flags::NONE).await });
        let cache = tokio::spawn(async move { caching.cache(0, size).await });
        // Both have begun, and other tasks run in between.
        let begun = |log: &[String]| ["pwrite", "pread"].iter().all(|op| log.iter().any(|line| line.starts_with(op)));
        soon("both have begun", async {
            let mut log = Vec::new();
            while !begun(&log) {
                tokio::task::yield_now().await;
                log.extend(bench.log());
            }
        })
        .await;
        assert!(!zero.is_finished() && !cache.is_finished());
        client.set_gone();
        assert_eq!(errno(soon("the zeroing ends", zero).await.unwrap()), Errno::Eshutdown);
        assert_eq!(errno(soon("the caching ends", cache).await.unwrap()), Errno::Eshutdown);
        // A shorter request, which changes data, runs to its end.
        bench.log();
        hop.zero(0, 4 << 20, Flags::NONE).await.unwrap();
        assert_eq!(bench.log().iter().filter(|line| line.starts_with("pwrite")).count(), 4);
    }
}
