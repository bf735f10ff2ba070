//! The overlay with many requests at once and with faults, compared with a model.

use rbdkit_filter_blocks::simulation::{
    Call, Request, Settings, SimError, Simulation, Stats, Subject, Writes, any_request, seeds,
};
use rbdkit_filter_blocks::{Extent, Host, ZeroFlags};
use rbdkit_filter_sdk::CommandFlags;
use rbdkit_filter_sdk::testing::{Disk, Host as TestHost, Record};

use crate::overlay::{AbsentReads, CacheRequests, Overlay};

struct Cow {
    bits: u32,
    absent: AbsentReads,
    caching: CacheRequests,
}

impl Subject for Cow {
    fn serve(&self, host: &Call<'_>, request: Request) -> Result<Vec<Extent>, SimError> {
        let overlay = Overlay::new(host, self.bits);
        match request {
            Request::Read { offset, length } => overlay.read(offset, length, self.absent)?,
            Request::Write { offset, length, .. } => overlay.write(offset, length)?,
            Request::Zero { offset, length, flags } => overlay.zero(offset, length, flags)?,
            Request::Trim { offset, length, .. } => overlay.zero(offset, length, ZeroFlags::default())?,
            Request::Cache { offset, length } => overlay.cache(offset, length, self.caching)?,
            Request::Extents { offset, length, one } => {
                if let Some(limit) = overlay.as_next_until(offset, length)? {
                    return host.next_extents(offset, length, limit, one);
                }
                return overlay.extents(offset, length, one);
            }
            Request::Flush => {}
        }
        Ok(vec![])
    }
}

/// The flags of a fast zero request.
const FAST: ZeroFlags = ZeroFlags { fast: true, fua: false, may_trim: false };

fn settings(seed: u64) -> Settings {
    Settings::small(seed, Writes::Kept, true)
}

fn run(settings: Settings) -> Stats {
    let caching = [CacheRequests::Ignore, CacheRequests::Forward, CacheRequests::CopyUp][settings.seed as usize % 3];
    let absent = [AbsentReads::Read, AbsentReads::Join, AbsentReads::CopyUp][settings.seed as usize / 3 % 3];
    let cow = Cow { bits: settings.bits, absent, caching };
    Simulation::new(settings).run(&cow, any_request)
}

#[test]
fn a_single_client_reads_what_it_wrote() {
    for seed in seeds(50) {
        let stats = run(Settings { clients: 1, ..settings(seed) });
        assert_eq!(stats.waits, 0);
    }
}

#[test]
fn clients_that_write_the_same_blocks_at_once_lose_nothing() {
    let waits: u64 = seeds(100).map(|seed| run(settings(seed)).waits).sum();
    assert!(waits > 0, "no request ever waited for another");
}

#[test]
fn clients_that_compete_for_two_blocks_lose_nothing() {
    for seed in seeds(100) {
        run(Settings { size: 20, clients: 6, ..settings(seed) });
    }
}

#[test]
fn next_that_takes_only_short_requests_is_read_in_parts() {
    for seed in seeds(50) {
        // A client's requests are never longer than next accepts, so these are short as well.
        run(Settings { next_max: 64, ..settings(seed) });
    }
}

#[test]
fn faults_fail_the_request_and_nothing_else() {
    let mut total = Stats::default();
    for seed in seeds(100) {
        let stats = run(Settings { next_fails: 50, scratch_full: 50, no_memory: 30, traps: 40, ..settings(seed) });
        total.traps += stats.traps;
        total.full += stats.full;
        total.failed += stats.failed;
    }
    assert!(total.traps > 0 && total.full > 0 && total.failed > 0, "{total:?}");
}

#[test]
fn a_full_scratch_fails_writes_but_no_reads() {
    for seed in seeds(50) {
        let stats = run(Settings { quota: 4, ..settings(seed) });
        assert!(stats.full > 0 && stats.peak <= 4);
    }
}

/// What one client does. The function that it receives ends a request.
type Steps = fn(&Overlay<'_, Call<'_>>, &dyn Fn()) -> Result<(), SimError>;

/// Some requests of one client, one after another.
struct Script(Steps);

impl Subject for Script {
    fn serve(&self, host: &Call<'_>, _request: Request) -> Result<Vec<Extent>, SimError> {
        (self.0)(&Overlay::new(host, 4), &|| host.answered())?;
        Ok(vec![])
    }
}

fn script(steps: Steps) -> Stats {
    let simulation = Simulation::new(Settings { clients: 1, requests: 1, ..settings(1) });
    let stats = simulation.run(&Script(steps), |_, _| Request::Write { offset: 0, length: 64, fua: false });
    assert_eq!(stats.failed, 0);
    stats
}

#[test]
fn a_cache_request_is_ignored_forwarded_or_copies_up() {
    assert_eq!(script(|o, _| o.cache(0, 64, CacheRequests::Ignore)).next_reads, 0);
    let forwarded = script(|o, _| o.cache(0, 64, CacheRequests::Forward));
    assert_eq!((forwarded.next_reads, forwarded.next_caches), (0, 1));
    let copied = script(|o, _| o.cache(0, 64, CacheRequests::CopyUp));
    assert_eq!((copied.next_reads, copied.next_caches, copied.peak), (1, 0, 4));
}

#[test]
fn blocks_in_the_overlay_are_not_fetched_from_next_again() {
    let stats = script(|o, answered| {
        o.write(0, 64)?;
        answered();
        o.cache(0, 64, CacheRequests::Forward)?;
        o.read(0, 64, AbsentReads::Read)
    });
    assert_eq!((stats.next_reads, stats.next_caches), (0, 0));
    let stats = script(|o, answered| {
        o.read(3, 20, AbsentReads::CopyUp)?;
        answered();
        o.read(0, 32, AbsentReads::Read)
    });
    assert_eq!(stats.next_reads, 1);
}

#[test]
fn a_read_joins_a_copy_of_its_blocks_that_is_in_progress() {
    // Each of four clients either prefetches all of the disk or reads it. A client that reads while
    // another one copies need not read next as well.
    let reads = |absent| -> u64 {
        let one = |seed| {
            let cow = Cow { bits: 4, absent, caching: CacheRequests::CopyUp };
            let simulation = Simulation::new(Settings { requests: 1, size: 64, ..settings(seed) });
            let stats = simulation.run(&cow, |rng, _| match rng.below(2) {
                0 => Request::Cache { offset: 0, length: 64 },
                _ => Request::Read { offset: 0, length: 64 },
            });
            assert_eq!(stats.failed, 0);
            stats.next_reads
        };
        seeds(100).map(one).sum()
    };
    let (joining, not) = (reads(AbsentReads::Join), reads(AbsentReads::Read));
    assert!(joining < not, "{joining} reads below, {not} without");
}

#[test]
fn extents_come_from_the_overlay_or_from_next() {
    script(|o, answered| {
        o.write(16, 16)?;
        answered();
        o.zero(32, 16, FAST)?;
        answered();
        let list = o.extents(16, 32, false)?;
        assert_eq!(
            list,
            [
                Extent { offset: 16, length: 16, hole: false, zero: false },
                Extent { offset: 32, length: 16, hole: true, zero: true },
            ]
        );
        assert_eq!(o.extents(16, 32, true)?.len(), 1);
        assert!(o.as_next_until(48, 64)?.is_some() && o.as_next_until(40, 64)?.is_none());
        Ok(())
    });
}

#[test]
fn a_fast_zero_request_that_would_have_to_copy_is_refused() {
    script(|o, answered| {
        assert_eq!(o.zero(3, 5, FAST), Err(SimError::NotSupported));
        answered();
        o.zero(3, 5, ZeroFlags::default())
    });
}

#[test]
fn the_filter_serves_its_overlay_and_the_disk_below_stays_as_it_was() {
    let disk = Disk::pattern(20_000);
    let host = TestHost::new(disk).serve::<super::Cow>(&["cow-block-size=4k"]).unwrap();
    let before = host.disk().to_vec();
    let (one, two) = (host.connect().unwrap(), host.connect().unwrap());
    one.pwrite(4000, &[7; 5000], CommandFlags::empty()).unwrap();
    one.zero(12_288, 4096, CommandFlags::empty()).unwrap();
    let mut expected = before.clone();
    expected[4000..9000].fill(7);
    expected[12_288..16_384].fill(0);
    assert_eq!(two.pread(0, 20_000).unwrap(), expected);
    assert_eq!(*host.disk(), *before);
    let hole = |extent: &&rbdkit_filter_sdk::Extent| extent.kind.contains(rbdkit_filter_sdk::ExtentType::HOLE);
    let extents = two.extents(0, 20_000, CommandFlags::empty()).unwrap();
    assert_eq!(extents.iter().find(hole).map(|e| (e.offset, e.length)), Some((12_288, 4096)));
}

/// `sdk/tests/record/README.md` says how the record was made.
#[test]
fn the_answers_are_those_of_a_recorded_session() {
    let record = Record::read("tests/session.rec").unwrap();
    let replayed = TestHost::from_record(&record).unwrap().replay::<super::Cow>(&record, &[]).unwrap();
    replayed.assert_same();
    assert!(replayed.compared > 25 && replayed.guesses == 0, "{replayed:?}");
}
