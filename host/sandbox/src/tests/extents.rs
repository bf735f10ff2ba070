//! Extents through the project's filters: every answer is right whatever parts the plugin gives its
//! own in, and what the plugin knows beyond the request reaches the client.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use rbdkit_chain::{Chain, Hop, Layer};
use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, Client, ConfigError, Done, Extent, Extents, Flags, Handle, Op, OpenArgs, Param,
    Peer, Plugin, Pool, Result, Span, Support, ThreadModel,
};

use super::support::{Guest, READS, Stack, read, value, write};
use crate::{FilterLimits, Host, Options};

/// The filters that extents pass, with parameters that make them do something.
const FILTERS: &[(&str, &[(&str, &str)])] = &[
    ("blocksize", &[("minblock", "4096"), ("maxdata", "65536")]),
    ("blocksize-policy", &[("blocksize-preferred", "4096")]),
    ("cache", &[("cache-min-block-size", "4096")]),
    ("cacheextents", &[]),
    ("cow", &[("cow-block-size", "4096")]),
    ("delay", &[]),
    ("error", &[]),
    ("exportname", &[]),
    ("multi-conn", &[]),
    ("nofilter", &[]),
    ("offset", &[("offset", "5000")]),
    ("rate", &[]),
    ("readahead", &[]),
    ("retry", &[]),
    ("retry-request", &[]),
    ("scan", &[]),
    ("spinning", &[("min-seek-time", "0"), ("half-seek-time", "0"), ("max-seek-time", "0")]),
];

/// The size of the disk. It is not a multiple of any block size.
const SIZE: usize = 300_001;

struct Rng(u64);

impl Rng {
    fn seeded() -> Rng {
        let seed = std::env::var("RBDKIT_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
        println!("RBDKIT_SEED={seed}");
        Rng(seed | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % n
    }
}

/// A disk whose bytes have types, and how it answers.
struct Bytes {
    data: Vec<u8>,
    /// Bit 0: a hole. Bit 1: zero.
    kinds: Vec<u8>,
    rng: Rng,
    asked: u32,
    /// It answers in random parts instead of telling all it knows.
    is_terse: bool,
}

#[derive(Clone)]
struct TypedDisk(Arc<Mutex<Bytes>>);

impl TypedDisk {
    fn with_holes(mut rng: Rng) -> TypedDisk {
        let (mut data, mut kinds) = (Vec::new(), Vec::new());
        while data.len() < SIZE {
            // Short runs, runs of about a block, and long ones; half of them end at a block.
            let longest = [600, 9000, 60_000][rng.below(3) as usize];
            let length = 1 + rng.below(longest) as usize;
            let mut end = data.len() + length;
            if rng.below(2) == 0 {
                end = end.next_multiple_of(4096);
            }
            let kind = rng.below(4) as u8;
            let byte = if kind & 2 != 0 { 0 } else { 1 + rng.below(255) as u8 };
            data.resize(end.min(SIZE), byte);
            kinds.resize(end.min(SIZE), kind);
        }
        TypedDisk(Arc::new(Mutex::new(Bytes { data, kinds, rng, asked: 0, is_terse: true })))
    }

    fn one_hole() -> TypedDisk {
        let bytes = Bytes { data: vec![0; SIZE], kinds: vec![3; SIZE], rng: Rng(1), asked: 0, is_terse: false };
        TypedDisk(Arc::new(Mutex::new(bytes)))
    }
}

impl Bytes {
    fn answer(&mut self, offset: u64, length: u64, flags: Flags) -> Extents {
        self.asked += 1;
        let end = (offset + length) as usize;
        let (mut most, mut limit) = (usize::MAX, SIZE);
        if self.is_terse {
            most = [1, 1, 2, 5, usize::MAX][self.rng.below(5) as usize];
            let lengths = [SIZE as u64, SIZE as u64, length, 1 + self.rng.below(700), 1 + self.rng.below(length)];
            limit = SIZE.min((offset + lengths[self.rng.below(5) as usize]) as usize);
        }
        if flags.req_one {
            (most, limit) = (1, limit.min(end));
        }
        let mut list = Extents::new(offset, length);
        let mut at = offset as usize;
        while at < limit {
            let kind = self.kinds[at];
            let run = self.kinds[at..limit].iter().take_while(|other| **other == kind).count();
            if list.as_slice().len() == most || (at >= end && at > offset as usize) {
                break;
            }
            list.push(run as u64, kind & 1 != 0, kind & 2 != 0);
            at += run;
        }
        list
    }
}

impl Handle for TypedDisk {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(SIZE as u64))
    }
    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities {
            extents: true,
            zero: Support::Native,
            cache: Support::Native,
            ..Capabilities::READ_WRITE_FLUSH
        }))
    }
    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        buffer.put(span.at, &self.0.lock().unwrap().data[offset as usize..][..span.len as usize]);
        Op::Ready((buffer, Ok(())))
    }
    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, _: Flags) -> Op<Done> {
        let mut bytes = self.0.lock().unwrap();
        bytes.data[offset as usize..][..span.len as usize].copy_from_slice(buffer.data(span));
        bytes.kinds[offset as usize..][..span.len as usize].fill(0);
        Op::Ready((buffer, Ok(())))
    }
    fn flush(&self) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }
    fn zero(&self, offset: u64, length: u64, _: Flags) -> Op<Result<()>> {
        let mut bytes = self.0.lock().unwrap();
        bytes.data[offset as usize..][..length as usize].fill(0);
        bytes.kinds[offset as usize..][..length as usize].fill(2);
        Op::Ready(Ok(()))
    }
    fn cache(&self, _: u64, _: u64) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }
    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        Op::Ready(Ok(self.0.lock().unwrap().answer(offset, length, flags)))
    }
}

impl Plugin for TypedDisk {
    fn config(&mut self, param: Param<'_>) -> std::result::Result<(), ConfigError> {
        Err(param.unknown("typed"))
    }
    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }
    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let disk = self.clone();
        Box::pin(async move { Ok(Arc::new(disk) as Arc<dyn Handle>) })
    }
}

/// The built filters. Each chain loads its own, and all but the first take the compiled code from
/// the cache.
struct Built {
    host: Arc<Host>,
    components: Vec<Vec<u8>>,
    _cache: tempfile::TempDir,
}

impl Built {
    fn read() -> Built {
        let cache = tempfile::tempdir().unwrap();
        let host = Host::new(Options { cache_dir: Some(cache.path().into()), ..Options::default() }).unwrap();
        let read = |(name, _): &(&str, _)| {
            let path = format!("{}/../../target/filters/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e} (make filters builds it)"))
        };
        Built { host, components: FILTERS.iter().map(read).collect(), _cache: cache }
    }

    async fn open(&self, chain: &[usize], disk: &TypedDisk) -> Arc<Hop> {
        let layer = |(depth, n): (usize, &usize)| -> Arc<dyn Layer> {
            let (name, params) = FILTERS[*n];
            let mut params: Vec<_> = params.iter().map(|(name, text)| (name.to_string(), value(text))).collect();
            if name == "offset" {
                // One offset filter over another has a smaller part.
                params.push(("range".into(), value(["100001", "200001"][depth + 2 - chain.len()])));
            }
            let module = self.host.load(name, &self.components[*n]).unwrap();
            module.configure(params, FilterLimits::default()).unwrap()
        };
        let chain =
            Chain::new(chain.iter().enumerate().map(layer).collect(), "typed", Box::new(disk.clone()), Pool::new());
        chain.get_ready().await.unwrap();
        chain.after_fork().await.unwrap();
        chain.top(Arc::new(Client::new(1, Peer::Unix, None, false))).open(false, "").await.unwrap()
    }
}

/// How many pairs of filters a test takes at random. With `RBDKIT_ALL_PAIRS` it takes all of them,
/// which takes a minute.
const PAIRS: usize = 8;

/// Each filter alone, and pairs of filters, by their places in `FILTERS`.
fn chains(rng: &mut Rng) -> Vec<Vec<usize>> {
    let count = FILTERS.len();
    let mut chains: Vec<Vec<usize>> = (0..count).map(|n| vec![n]).collect();
    if std::env::var_os("RBDKIT_ALL_PAIRS").is_some() {
        chains.extend((0..count * count).map(|n| vec![n / count, n % count]));
    } else {
        let mut any = || rng.below(count as u64) as usize;
        chains.extend((0..PAIRS).map(|_| vec![any(), any()]));
    }
    chains
}

fn names(chain: &[usize]) -> Vec<&'static str> {
    chain.iter().map(|n| FILTERS[*n].0).collect()
}

/// Checks an answer's form, and that what it calls zero is zero.
fn check(list: &[Extent], model: &[u8], offset: u64, length: u64, one: bool) {
    let (end, size) = (offset + length, model.len() as u64);
    let mut at = offset;
    for extent in list {
        assert!(extent.offset == at && extent.length > 0 && at < end, "{list:?} for {offset}+{length}");
        at = extent.end();
    }
    assert!(at > offset && at <= size, "{list:?} for {offset}+{length} of {size}");
    assert!(!one || (list.len() == 1 && at <= end), "{list:?} for one in {offset}+{length}");
    for extent in list.iter().filter(|extent| extent.zero) {
        let bytes = &model[extent.offset as usize..extent.end() as usize];
        assert!(bytes.iter().all(|byte| *byte == 0), "{extent:?} is not zero");
    }
}

async fn ask_and_change(top: &Arc<Hop>, rng: &mut Rng) {
    let size = top.size();
    let mut model = read(top, 0, size as u32).await.unwrap();
    for _ in 0..25 {
        let offset = match rng.below(4) {
            0 => size - 1 - rng.below(5000),
            _ => rng.below(size),
        };
        let offset = if rng.below(3) == 0 { offset & !0xfff } else { offset };
        let longest = [20, 5000, 300_000][rng.below(3) as usize];
        let length = (1 + rng.below(longest)).min(size - offset);
        let part = offset as usize..(offset + length.min(9000)) as usize;
        match rng.below(8) {
            0 => {
                model[part.clone()].fill(7);
                write(top, offset, &model[part], Flags::NONE).await.unwrap();
            }
            1 => {
                model[part.clone()].fill(0);
                top.zero(offset, part.len() as u64, Flags { may_trim: true, ..Flags::NONE }).await.unwrap();
            }
            2 => top.flush().await.unwrap(),
            _ => {
                let req_one = rng.below(3) == 0;
                let list = top.extents(offset, length, Flags { req_one, ..Flags::NONE }).await.unwrap();
                check(list.as_slice(), &model, offset, length, req_one);
            }
        }
    }
    // A client that asks on and on reaches the end.
    let mut at = 0;
    while at < size {
        let list = top.extents(at, size - at, Flags::NONE).await.unwrap();
        check(list.as_slice(), &model, at, size - at, false);
        at = list.next_offset();
    }
    assert!(read(top, 0, size as u32).await.unwrap() == model, "the disk differs in the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extents_are_right_through_filters_and_pairs_in_whatever_parts_the_plugin_answers() {
    let built = Built::read();
    let mut rng = Rng::seeded();
    for chain in chains(&mut rng) {
        let disk = TypedDisk::with_holes(Rng(rng.below(u64::MAX) | 1));
        println!("{:?}", names(&chain));
        let top = built.open(&chain, &disk).await;
        ask_and_change(&top, &mut rng).await;
        top.finalize().await.unwrap();
        top.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_plugin_knows_beyond_a_request_passes_filters_and_pairs_with_one_question() {
    let built = Built::read();
    for chain in chains(&mut Rng::seeded()) {
        let disk = TypedDisk::one_hole();
        let top = built.open(&chain, &disk).await;
        let size = top.size();
        let asked = |disk: &TypedDisk| disk.0.lock().unwrap().asked;
        let before = asked(&disk);
        let list = top.extents(8192, 512, Flags::NONE).await.unwrap();
        let all = Extent { offset: 8192, length: size - 8192, hole: true, zero: true };
        assert_eq!(list.as_slice(), [all], "{:?}", names(&chain));
        // The background workers of scan ask as well.
        if !names(&chain).contains(&"scan") {
            assert_eq!(asked(&disk) - before, 1, "{:?}", names(&chain));
        }
        let list = top.extents(8192, 512, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
        assert_eq!(list.as_slice(), [Extent { length: 512, ..all }], "{:?}", names(&chain));
        top.finalize().await.unwrap();
        top.close().await;
    }
}

/// A guest whose `mapping.extents` is this import, called with these parameters before the flags.
fn maps_by(import: &str, types: &str, parameters: &str, forwards: bool) -> Guest {
    // The import's result has the layout of the export's: a list, or nothing if it forwarded.
    let nothing = "(i64.store (i32.const 2048) (i64.const 0)) (i64.store (i32.const 2056) (i64.const 0))";
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "{import}" (func $ask (param {types} i32 i32)))
    {READS}
    (func (export "rbdkit:filter/mapping@0.1.0#extents") (param i64 i64 i32) (result i32)
        (call $ask {parameters} (local.get 2) (i32.const 2048))
        (if (i32.load8_u (i32.const 2048)) (then (unreachable)))
        {}
        (i32.const 2048))
"#,
        if forwards { nothing } else { "" }
    );
    Guest::new(&["reads", "mapping"], &body)
}

#[tokio::test]
async fn functions_without_a_limit_cut_to_the_range_and_those_with_one_cut_there() {
    let range = "(local.get 0) (local.get 1)";
    let limit = "(i64.const 10000)";
    for (import, types, parameters, forwards, end) in [
        ("extents", "i64 i64", range.to_string(), false, 9216),
        ("extents-forward", "i64 i64 i64", format!("{range} (local.get 0)"), true, 9216),
        ("extents-until", "i64 i64 i64", format!("{range} {limit}"), false, 10_000),
        ("extents-until", "i64 i64 i64", format!("{range} (i64.const 5)"), false, 9216),
        ("extents-until", "i64 i64 i64", format!("{range} (i64.const -1)"), false, 12288),
        ("extents-forward-until", "i64 i64 i64 i64", format!("{range} {limit} (local.get 0)"), true, 10_000),
        ("extents-forward-until", "i64 i64 i64 i64", format!("{range} (i64.const -1) (local.get 0)"), true, 12288),
    ] {
        let stack = Stack::new(&[maps_by(import, types, &parameters, forwards)]).await;
        let top = stack.open().await;
        // Every other 4 KiB of the disk is a hole.
        let list = top.extents(1024, 8192, Flags::NONE).await.unwrap();
        let runs: Vec<_> = list.as_slice().iter().map(|e| (e.offset, e.end(), e.hole)).collect();
        assert_eq!(runs, [(1024, 4096, false), (4096, 8192, true), (8192, end, false)], "{import} {parameters}");
        let one = top.extents(1024, 512, Flags { req_one: true, ..Flags::NONE }).await.unwrap();
        assert_eq!(one.next_offset(), 1536, "{import} {parameters}");
    }
}
