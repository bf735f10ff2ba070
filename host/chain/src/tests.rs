//! Tests of the gate and of emulation, over a plugin that logs every call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rbdkit_plugin_api::{
    BlockSizes, BoxFuture, Buffer, Capabilities, Client, Done, Errno, Extent, Extents, Flags, Handle, Op, OpenArgs,
    Param, Peer, Plugin, Pool, Result, Span, Support, ThreadModel,
};
use tokio::sync::Semaphore;

use super::{Chain, Hop};

/// How a probe describes itself and answers.
#[derive(Clone)]
struct Script {
    size: u64,
    can: Capabilities,
    block_sizes: Option<BlockSizes>,
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
            block_sizes: None,
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
        Op::Ready(Ok(self.0.block_sizes))
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
        let mut list = Extents::new(self.0.extents.first().map_or(offset, |first| first.offset));
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
    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle: Arc<dyn Handle> = Arc::new(Probe(self.0.clone(), self.1.clone()));
        Box::pin(async move { Ok(handle) })
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

    async fn open(&self, readonly: bool) -> Result<Arc<Hop>> {
        self.chain.top(Arc::new(Client::new(1, Peer::Unknown, None, false))).open(readonly, "").await
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
async fn requests_keep_to_the_block_sizes() {
    let block_sizes = Some(BlockSizes { minimum: 512, preferred: 4096, maximum: 8192 });
    let bench = Bench::new(Script { size: 10 * 512 + 100, block_sizes, ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    assert_eq!(errno(read(&hop, 1, 511).await), Errno::Einval);
    assert_eq!(errno(read(&hop, 0, 100).await), Errno::Einval);
    read(&hop, 512, 1024).await.unwrap();
    // The tail, which no aligned request reaches.
    read(&hop, 10 * 512, 100).await.unwrap();
    let wide = Bench::new(Script { block_sizes, ..Script::default() });
    let hop = wide.open(false).await.unwrap();
    assert_eq!(errno(read(&hop, 0, 16384).await), Errno::Einval);
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
async fn extents_are_checked_and_cut() {
    let long = Extent { offset: 100, length: 1 << 40, hole: true, zero: true };
    let bench = Bench::new(Script { extents: vec![long], ..Script::default() });
    let hop = bench.open(false).await.unwrap();
    let answer = hop.extents(100, 50, Flags::NONE).await.unwrap();
    assert_eq!(answer.as_slice(), [Extent { length: 50, ..long }]);
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
    assert_eq!(answer.as_slice(), [Extent { offset: 7, length: 50, hole: false, zero: false }]);
    assert_eq!(bench.log(), [""; 0]);
}

#[tokio::test]
async fn impossible_descriptions_are_refused_when_opening() {
    let huge = Bench::new(Script { size: 1 << 63, ..Script::default() });
    assert_eq!(errno(huge.open(false).await.map(|_| ())), Errno::Eio);
    let block_sizes = Some(BlockSizes { minimum: 3, preferred: 4096, maximum: 8192 });
    let odd = Bench::new(Script { block_sizes, ..Script::default() });
    assert_eq!(errno(odd.open(false).await.map(|_| ())), Errno::Eio);
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
