//! The filters that the project builds, in the real host. Random requests are compared byte by byte
//! with a plain copy of the disk, and no byte of payload may enter a guest. The filters are in
//! `target/filters` (`make filters`).

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{SystemTime, UNIX_EPOCH};

use rbdkit_plugin_api::{Flags, Support};

use super::support::{Disk, Stack, host, read, value, write};
use crate::FilterLimits;
use rbdkit_chain::Hop;

/// Filters with their parameters. The first is nearest the client.
type Filters<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];

/// The folder beside this file with components that older rbdkits built.
const ARCHIVE: &str = "archive/";

/// The size is not a multiple of any block size.
const SIZE: usize = (1 << 20) - 1000;

async fn stack(filters: Filters<'_>) -> Stack {
    let host = host();
    let layers = filters
        .iter()
        .map(|(name, params)| {
            let place = if name.starts_with(ARCHIVE) { "src/tests" } else { "../../target/filters" };
            let path = format!("{}/{place}/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
            let component = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e} (make filters builds it)"));
            let params = params.iter().map(|(name, text)| (name.to_string(), value(text))).collect();
            host.load(name, &component).unwrap().configure(params, FilterLimits::default()).unwrap()
        })
        .collect();
    let disk = Disk::default();
    disk.bytes.lock().unwrap().truncate(SIZE);
    Stack::of(host, layers, disk).await
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % n
    }

    /// A random range. Half of the ranges have whole blocks, half are short.
    fn range(&mut self, size: u64) -> (u64, u64) {
        let mut offset = self.below(size);
        let mut length = 1 + self.below(200_000);
        if self.below(2) == 0 {
            offset &= !0xffff;
            length = 65536 * (1 + self.below(3));
        }
        if self.below(2) == 0 {
            length = length.min(4096);
        }
        (offset, length.min(size - offset))
    }
}

/// Sends requests of three connections, one after another and now and then many at once.
async fn exercise(filters: Filters<'_>, requests: u64) -> Stack {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    println!("{filters:?}: seed {seed}");
    let mut rng = Rng(seed);
    let stack = stack(filters).await;
    let hops = [stack.open().await, stack.open().await, stack.open().await];
    let size = hops[0].size();
    let mut model = read(&hops[0], 0, size as u32).await.unwrap();
    for n in 0..requests {
        let hop = &hops[rng.below(3) as usize];
        one(hop, &mut rng, &mut model).await;
        if n % 10 == 0 {
            at_once(&hops, &mut rng, &mut model).await;
        }
    }
    assert!(read(&hops[1], 0, size as u32).await.unwrap() == model, "the disk differs in the end");
    for (name, counters) in stack.host.statistics() {
        assert_eq!((counters.bytes_crossed(), counters.faults.load(SeqCst)), (0, 0), "{name}");
        assert!(counters.calls.load(SeqCst) > 1, "{name} was never entered");
    }
    for hop in hops {
        hop.finalize().await.unwrap();
        hop.close().await;
    }
    stack
}

async fn one(hop: &Arc<Hop>, rng: &mut Rng, model: &mut [u8]) {
    let (offset, length) = rng.range(hop.size());
    let part = &mut model[offset as usize..][..length as usize];
    let fua = rng.below(10) == 0 && hop.can().fua != Support::None;
    let flags = Flags { fua, may_trim: rng.below(2) == 0, ..Flags::NONE };
    match rng.below(12) {
        0..4 => {
            let bytes = read(hop, offset, length as u32).await.unwrap();
            let differs = bytes.iter().zip(&*part).position(|(a, b)| a != b);
            assert_eq!(differs, None, "in a read of {offset}+{length}");
        }
        4..7 => {
            part.iter_mut().enumerate().for_each(|(n, byte)| *byte = (rng.0 as usize ^ n) as u8);
            write(hop, offset, part, Flags { may_trim: false, ..flags }).await.unwrap();
        }
        7 => {
            hop.zero(offset, length, flags).await.unwrap();
            part.fill(0);
        }
        8 => {
            hop.trim(offset, length, Flags { may_trim: false, ..flags }).await.unwrap();
            for (byte, was) in read(hop, offset, length as u32).await.unwrap().into_iter().zip(part) {
                assert!(byte == 0 || byte == *was, "something else came to light under a trim");
                *was = byte;
            }
        }
        9 => hop.cache(offset, length).await.unwrap(),
        10 => assert!(!hop.extents(offset, length, Flags::NONE).await.unwrap().as_slice().is_empty()),
        _ => hop.flush().await.unwrap(),
    }
}

/// Concurrent writes to neighbouring bytes that share blocks.
async fn at_once(hops: &[Arc<Hop>], rng: &mut Rng, model: &mut [u8]) {
    let step = 3000;
    let start = rng.below(hops[0].size() - 16 * step);
    let mut writes = Vec::new();
    for n in 0..16 {
        let at = start + n * step;
        let part = &mut model[at as usize..][..step as usize];
        part.iter_mut().for_each(|byte| *byte = byte.wrapping_add(n as u8 + 1));
        let (hop, bytes) = (Arc::clone(&hops[rng.below(3) as usize]), part.to_vec());
        writes.push(tokio::spawn(async move { write(&hop, at, &bytes, Flags::NONE).await.unwrap() }));
    }
    for write in writes {
        write.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_that_keep_nothing_lose_nothing() {
    for name in ["nofilter", "readahead", "delay", "error"] {
        exercise(&[(name, &[])], 300).await;
    }
    exercise(&[("offset", &[("offset", "5000"), ("range", "800001")])], 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cow_loses_nothing_and_writes_nothing_below() {
    for params in [&[][..], &[("cow-on-read", "true"), ("cow-block-size", "4096")], &[("cow-on-cache", "true")]] {
        let stack = exercise(&[("cow", params)], 1000).await;
        assert!(stack.disk.bytes.lock().unwrap()[..] == Disk::default().bytes.lock().unwrap()[..SIZE]);
        let writes = |line: &String| ["pwrite", "zero", "trim", "flush"].iter().any(|op| line.starts_with(op));
        assert!(!stack.disk.seen().iter().any(writes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_loses_nothing_however_small_it_is() {
    for params in [
        &[][..],
        &[("cache", "writethrough")],
        &[("cache-on-read", "true"), ("cache-max-size", "262144")],
        &[("cache", "unsafe"), ("cache-max-size", "262144")],
        &[("cache-min-block-size", "4096"), ("cache-max-size", "65536"), ("cache-on-read", "true")],
    ] {
        exercise(&[("cache", params)], 1000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_an_older_rbdkit_built_loses_nothing() {
    exercise(&[("archive/cache", &[("cache-max-size", "262144")])], 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_of_filters_loses_nothing() {
    let cow: &[_] = &[("cow-on-cache", "true")];
    let cache: &[_] = &[("cache-max-size", "262144")];
    exercise(&[("readahead", &[]), ("cow", cow), ("cache", cache), ("offset", &[("offset", "4096")])], 1000).await;
    exercise(&[("readahead", &[]), ("cache", cache), ("offset", &[("offset", "1")])], 1000).await;
}
