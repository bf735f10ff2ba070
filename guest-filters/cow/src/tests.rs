//! The overlay under many requests at once, with faults, against a model.

use rbdkit_filter_blocks::simulation::{
    Call, Request, Settings, SimError, Simulation, Stats, Subject, Writes, any_request, seeds,
};
use rbdkit_filter_blocks::{Extent, Host};

use crate::overlay::{Caching, Missing, Overlay};

struct Cow {
    bits: u32,
    missing: Missing,
    caching: Caching,
}

impl Subject for Cow {
    fn serve(&self, host: &Call<'_>, request: Request) -> Result<Vec<Extent>, SimError> {
        let overlay = Overlay::new(host, self.bits);
        match request {
            Request::Read { offset, length } => overlay.read(offset, length, self.missing)?,
            Request::Write { offset, length, .. } => overlay.write(offset, length)?,
            Request::Zero { offset, length, how } => overlay.zero(offset, length, how.fast)?,
            Request::Trim { offset, length, .. } => overlay.zero(offset, length, false)?,
            Request::Cache { offset, length } => overlay.cache(offset, length, self.caching)?,
            Request::Extents { offset, length, one } => {
                if overlay.untouched(offset, length) {
                    return host.next_extents(offset, length, one);
                }
                return overlay.extents(offset, length, one);
            }
            Request::Flush => {}
        }
        Ok(vec![])
    }
}

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        bits: 4,
        // The last block is a short one.
        size: 16 * 12 + 5,
        clients: 4,
        requests: 100,
        quota: u64::MAX,
        next_fails: 0,
        scratch_full: 0,
        no_memory: 0,
        traps: 0,
        next_max: 1000,
        writes: Writes::Kept,
        multi_conn: true,
    }
}

fn run(settings: Settings) -> Stats {
    let caching = [Caching::Ignore, Caching::Pass, Caching::CopyUp][settings.seed as usize % 3];
    let missing = [Missing::Read, Missing::Join, Missing::Keep][settings.seed as usize / 3 % 3];
    let cow = Cow { bits: settings.bits, missing, caching };
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
    assert!(waits > 0, "they never met");
}

#[test]
fn clients_that_fight_for_two_blocks_lose_nothing() {
    for seed in seeds(100) {
        run(Settings { size: 20, clients: 6, ..settings(seed) });
    }
}

#[test]
fn next_that_takes_only_short_requests_is_read_in_parts() {
    for seed in seeds(50) {
        // Requests of clients are never longer than next bears, so they are short here as well.
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

/// What one client does; the function it is given ends a request.
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
fn a_cache_request_is_ignored_passed_on_or_copied_up() {
    assert_eq!(script(|o, _| o.cache(0, 64, Caching::Ignore)).next_reads, 0);
    let passed = script(|o, _| o.cache(0, 64, Caching::Pass));
    assert_eq!((passed.next_reads, passed.next_caches), (0, 1));
    let copied = script(|o, _| o.cache(0, 64, Caching::CopyUp));
    assert_eq!((copied.next_reads, copied.next_caches, copied.peak), (1, 0, 4));
}

#[test]
fn what_is_in_the_overlay_is_not_asked_of_next_again() {
    let stats = script(|o, answered| {
        o.write(0, 64)?;
        answered();
        o.cache(0, 64, Caching::Pass)?;
        o.read(0, 64, Missing::Read)
    });
    assert_eq!((stats.next_reads, stats.next_caches), (0, 0));
    let stats = script(|o, answered| {
        o.read(3, 20, Missing::Keep)?;
        answered();
        o.read(0, 32, Missing::Read)
    });
    assert_eq!(stats.next_reads, 1);
}

#[test]
fn a_read_joins_a_copy_of_its_blocks_that_is_under_way() {
    // Of four clients each prefetches all of the disk or reads it: whoever reads while another copies need not ask next as well.
    let reads = |missing| -> u64 {
        let one = |seed| {
            let cow = Cow { bits: 4, missing, caching: Caching::CopyUp };
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
    let (joining, not) = (reads(Missing::Join), reads(Missing::Read));
    assert!(joining < not, "{joining} reads below, {not} without");
}

#[test]
fn extents_tell_the_overlay_from_next() {
    script(|o, answered| {
        o.write(16, 16)?;
        answered();
        o.zero(32, 16, true)?;
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
        assert!(o.untouched(48, 64) && !o.untouched(40, 64));
        Ok(())
    });
}

#[test]
fn a_fast_zero_that_would_have_to_copy_is_refused() {
    script(|o, answered| {
        assert_eq!(o.zero(3, 5, true), Err(SimError::NotSupported));
        answered();
        o.zero(3, 5, false)
    });
}
