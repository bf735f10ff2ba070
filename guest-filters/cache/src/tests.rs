//! The cache with many requests at once and with faults, compared with a model.

use rbdkit_filter_blocks::simulation::{
    Call, Request, Settings, SimError, Simulation, Stats, Subject, Writes, any_request, seeds,
};
use rbdkit_filter_blocks::{Extent, ZeroFlags};
use rbdkit_filter_sdk::testing::{Disk, Host};
use rbdkit_filter_sdk::{CommandFlags, Errno};

use crate::cache::{BlockLimit, Cache, NextCapabilities, Policy};
use crate::read::AbsentReads;

struct Cached {
    bits: u32,
    absent: AbsentReads,
    policy: Policy,
    limit: Option<BlockLimit>,
    next: NextCapabilities,
}

impl Cached {
    fn new(settings: &Settings, policy: Policy, limit: Option<BlockLimit>) -> Cached {
        // The seed decides what next can do.
        let seed = settings.seed;
        let next = NextCapabilities {
            write: true,
            flush: true,
            fua: seed & 2 == 0,
            trim: true,
            zero: seed & 4 == 0,
            multi_conn: settings.multi_conn,
        };
        let absent = if seed & 1 == 0 { AbsentReads::Keep } else { AbsentReads::Read };
        Cached { bits: settings.bits, absent, policy, limit, next }
    }

    fn cache<'h, 's>(&self, host: &'h Call<'s>) -> Cache<'h, Call<'s>> {
        Cache::new(host, self.bits, self.policy, self.limit, self.next)
    }
}

impl Subject for Cached {
    fn serve(&self, host: &Call<'_>, request: Request) -> Result<Vec<Extent>, SimError> {
        let cache = self.cache(host);
        match request {
            Request::Read { offset, length } => cache.read(offset, length, self.absent)?,
            Request::Write { offset, length, fua } => cache.write(offset, length, fua)?,
            Request::Zero { offset, length, flags } => cache.zero(offset, length, flags)?,
            Request::Trim { offset, length, fua } => cache.trim(offset, length, fua)?,
            Request::Cache { offset, length } => cache.prefetch(offset, length)?,
            Request::Extents { offset, length, one } => return cache.extents(offset, length, one),
            Request::Flush => cache.flush()?,
        }
        Ok(vec![])
    }

    fn finalize(&self, host: &Call<'_>) -> Result<(), SimError> {
        assert_eq!(self.cache(host).finalize()?, 0);
        Ok(())
    }
}

fn settings(seed: u64) -> Settings {
    Settings::small(seed, Writes::Durable, seed & 8 == 0)
}

const POLICIES: [(Policy, Writes); 3] =
    [(Policy::Writeback, Writes::Durable), (Policy::Writethrough, Writes::Durable), (Policy::Unsafe, Writes::Unsafe)];

fn run(settings: Settings, limit: Option<BlockLimit>) -> Stats {
    let mut total = Stats::default();
    for (policy, writes) in POLICIES {
        // With writethrough, a flush only covers the writes of other connections if next's flush
        // does.
        let multi_conn = settings.multi_conn || policy == Policy::Writethrough;
        let settings = Settings { writes, multi_conn, ..settings };
        let cached = Cached::new(&settings, policy, limit);
        let simulation = Simulation::new(settings);
        let stats = simulation.run(&cached, any_request);
        if settings.next_fails == 0 && settings.traps == 0 && settings.no_memory == 0 {
            assert_eq!(stats.failed, stats.refused, "seed {}: requests failed without a fault", settings.seed);
            simulation.finalize(&cached).unwrap();
        }
        total.failed += stats.failed;
        total.traps += stats.traps;
        total.full += stats.full;
        total.waits += stats.waits;
        total.peak = total.peak.max(stats.peak);
    }
    total
}

#[test]
fn a_single_client_reads_what_it_wrote() {
    for seed in seeds(20) {
        run(Settings { clients: 1, ..settings(seed) }, None);
    }
}

#[test]
fn clients_that_write_the_same_blocks_at_once_lose_nothing() {
    for seed in seeds(40) {
        run(settings(seed), None);
    }
}

#[test]
fn clients_that_compete_for_two_blocks_lose_nothing() {
    for seed in seeds(40) {
        run(Settings { size: 20, clients: 6, ..settings(seed) }, None);
    }
}

#[test]
fn a_cache_that_reclaims_all_the_time_loses_nothing_and_stays_small() {
    for seed in seeds(30) {
        run(settings(seed), Some(BlockLimit { high: 3, low: 2 }));
        let stats = run(Settings { size: 16 * 60 + 5, ..settings(seed) }, Some(BlockLimit { high: 3, low: 2 }));
        // Each of four clients adds up to five blocks before it reclaims.
        assert!(stats.peak <= 3 + 4 * 5, "{} blocks", stats.peak);
    }
    for seed in seeds(30) {
        let stats = run(Settings { clients: 1, size: 16 * 40, ..settings(seed) }, Some(BlockLimit { high: 6, low: 4 }));
        assert!(stats.peak <= 6 + 5, "{} blocks", stats.peak);
    }
}

#[test]
fn a_full_disk_fails_nothing() {
    for seed in seeds(20) {
        let stats = run(Settings { quota: 3, ..settings(seed) }, None);
        assert!(stats.full > 0 && stats.peak <= 3);
        run(Settings { scratch_full: 200, ..settings(seed) }, Some(BlockLimit { high: 6, low: 4 }));
        run(Settings { quota: 0, ..settings(seed) }, None);
    }
}

#[test]
fn faults_fail_the_request_and_nothing_else() {
    let mut total = Stats::default();
    for seed in seeds(40) {
        for limit in [None, Some(BlockLimit { high: 4, low: 2 })] {
            let faults = Settings { next_fails: 50, scratch_full: 50, no_memory: 30, traps: 40, ..settings(seed) };
            let stats = run(faults, limit);
            total.traps += stats.traps;
            total.full += stats.full;
            total.failed += stats.failed;
        }
    }
    assert!(total.traps > 0 && total.full > 0 && total.failed > 0, "{total:?}");
}

#[test]
fn next_that_takes_only_short_requests_is_written_in_parts() {
    for seed in seeds(20) {
        run(Settings { next_max: 64, ..settings(seed) }, None);
    }
}

/// What one client does. The function that it receives ends a request.
type Steps = fn(&Cache<'_, Call<'_>>, &dyn Fn()) -> Result<(), SimError>;

/// Some requests of one client, one after another.
struct Script(Policy, Option<BlockLimit>, Steps);

impl Subject for Script {
    fn serve(&self, host: &Call<'_>, _request: Request) -> Result<Vec<Extent>, SimError> {
        let next = NextCapabilities { write: true, flush: true, fua: true, trim: true, zero: true, multi_conn: true };
        (self.2)(&Cache::new(host, 4, self.0, self.1, next), &|| host.answered())?;
        Ok(vec![])
    }
}

fn script(policy: Policy, limit: Option<BlockLimit>, steps: Steps) -> Stats {
    let simulation = Simulation::new(Settings { clients: 1, requests: 1, writes: Writes::Unsafe, ..settings(1) });
    let stats =
        simulation.run(&Script(policy, limit, steps), |_, _| Request::Write { offset: 0, length: 64, fua: false });
    assert_eq!(stats.failed, 0);
    stats
}

#[test]
fn writeback_writes_with_a_flush_and_only_once() {
    let stats = script(Policy::Writeback, None, |cache, answered| {
        cache.write(0, 64, false)?;
        answered();
        cache.write(0, 64, false)
    });
    assert_eq!(stats.next_writes, 0);
    let stats = script(Policy::Writeback, None, |cache, answered| {
        cache.write(0, 64, false)?;
        answered();
        cache.flush()?;
        answered();
        cache.flush()
    });
    assert_eq!(stats.next_writes, 1);
}

#[test]
fn writethrough_writes_at_once_and_unsafe_not_even_with_a_flush() {
    assert_eq!(script(Policy::Writethrough, None, |cache, _| cache.write(0, 64, false)).next_writes, 1);
    let stats = script(Policy::Unsafe, None, |cache, answered| {
        cache.write(0, 64, true)?;
        answered();
        cache.flush()?;
        cache.finalize().map(|_| ())
    });
    assert_eq!(stats.next_writes, 0);
}

#[test]
fn prefetched_or_kept_blocks_are_not_read_again() {
    for steps in [
        (|cache, answered| {
            cache.prefetch(3, 50)?;
            answered();
            cache.read(0, 64, AbsentReads::Read)
        }) as Steps,
        |cache, answered| {
            cache.read(0, 64, AbsentReads::Keep)?;
            answered();
            cache.read(3, 20, AbsentReads::Read)
        },
    ] {
        assert_eq!(script(Policy::Writeback, None, steps).next_reads, 1);
    }
    let stats = script(Policy::Writeback, None, |cache, answered| {
        cache.read(0, 64, AbsentReads::Read)?;
        answered();
        cache.read(0, 64, AbsentReads::Read)
    });
    assert_eq!(stats.next_reads, 2, "by default reads are not kept");
}

#[test]
fn extents_show_what_was_written_and_not_flushed() {
    script(Policy::Writeback, None, |cache, answered| {
        // Next is zero from 40 to 80.
        cache.write(48, 16, false)?;
        answered();
        cache.zero(16, 16, ZeroFlags { may_trim: true, ..Default::default() })?;
        answered();
        assert_eq!((cache.as_next_until(0, 20), cache.as_next_until(0, 16)), (None, Some(16)));
        let data = |offset, length| Extent { offset, length, hole: false, zero: false };
        let hole = |offset, length| Extent { offset, length, hole: true, zero: true };
        assert_eq!(cache.extents(16, 16, false)?, [hole(16, 16)]);
        assert_eq!(cache.extents(48, 16, false)?, [data(48, 16)]);
        Ok(())
    });
}

#[test]
fn the_least_recently_used_blocks_are_reclaimed_first() {
    let limit = Some(BlockLimit { high: 4, low: 3 });
    let stats = script(Policy::Writeback, limit, |cache, answered| {
        for block in 0..4 {
            cache.read(block * 16, 16, AbsentReads::Keep)?;
            answered();
        }
        cache.read(0, 16, AbsentReads::Keep)?;
        answered();
        // This block is one too many. One or two others are reclaimed, but not the first.
        cache.read(64, 16, AbsentReads::Keep)?;
        answered();
        cache.read(0, 16, AbsentReads::Keep)
    });
    assert_eq!(stats.next_reads, 5, "the first block was reclaimed");
}

#[test]
fn a_write_reaches_the_disk_below_with_a_flush_or_when_the_client_leaves() {
    let host = Host::new(Disk::pattern(20_000)).serve::<super::CacheFilter>(&["cache-min-block-size=4k"]).unwrap();
    let before = host.disk().to_vec();
    let client = host.connect().unwrap();
    client.pwrite(5000, &[7; 100], CommandFlags::empty()).unwrap();
    assert_eq!((client.pread(5000, 100).unwrap(), *host.disk() == *before), (vec![7; 100], true));
    host.fail_next("pwrite", Errno::Enospc);
    assert_eq!(client.flush(), Err(Errno::Enospc));
    client.flush().unwrap();
    assert_eq!(host.disk()[5000..5100], [7; 100]);
    client.pwrite(0, &[8; 100], CommandFlags::empty()).unwrap();
    client.close().unwrap();
    assert_eq!(host.disk()[..100], [8; 100]);
}

#[test]
fn a_cache_that_writes_through_keeps_nothing_back() {
    let host = Host::new(Disk::pattern(20_000)).serve::<super::CacheFilter>(&["cache=writethrough"]).unwrap();
    host.connect().unwrap().pwrite(5000, &[7; 100], CommandFlags::empty()).unwrap();
    assert_eq!(host.disk()[5000..5100], [7; 100]);
}
