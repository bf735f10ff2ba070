//! Flips bits of what is read, to test checksums. What is written is right.

mod chance;
mod corruption;

use std::cell::Cell;
use std::ops::Range;

use chance::{limit_chance, parse_chance};
use corruption::{Corruption, Mode, Wrong};
use rbdkit_filter_sdk::prelude::*;

/// How many bytes of a read are in the guest at once.
const PIECE: u64 = 64 << 10;

/// The slots of the filter: the seed (`a` is 1 once there is one, `b` is the seed), and the number
/// of reads.
const SEED: u32 = 0;
const READS: u32 = 1;

impl Choice for Mode {
    const CHOICES: &'static [(&'static str, Mode)] = &[
        ("stuck-bits", Mode::StuckBits),
        ("stuck-bit", Mode::StuckBits),
        ("stuck", Mode::StuckBits),
        ("stuck-wires", Mode::StuckWires),
        ("stuck-wire", Mode::StuckWires),
        ("cosmic-rays", Mode::CosmicRays),
        ("cosmic", Mode::CosmicRays),
    ];
}

params! {
    /// The parameters.
    pub struct Settings {
        /// How bits go wrong.
        evil: Mode = Mode::StuckBits,
        /// The chance of each bit. By default 1e-8, and 1e-6 for stuck-wires.
        evil_probability: Option<String>,
        /// The chance that a stuck bit is stuck in one read.
        evil_stuck_probability: String = "100%".to_string(),
        /// The seed of the random numbers. By default it is chosen at random.
        evil_seed: Option<u32>,
    }
}

/// The filter.
pub struct Evil {
    corruption: Corruption,
    /// The seed that was given, or a copy of the one that the host keeps for all instances.
    seed: Cell<Option<u64>>,
}

impl Evil {
    /// The seed. All instances need the same one, so the first read decides on it.
    fn seed(&self) -> u64 {
        if let Some(seed) = self.seed.get() {
            return seed;
        }
        let slot = slots::Slot { scope: Scope::Server, index: SEED };
        let mut words = slot.get();
        if words.a == 0 && slot.replace(words, [1, clock::random(), 0, 0]) {
            debug!("the seed is random");
        }
        words = slot.get();
        self.seed.set(Some(words.b));
        words.b
    }

    /// Corrupts what the payload holds of a read.
    fn corrupt(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let seed = self.seed();
        let read = if self.corruption.varies() { slots::add(Scope::Server, READS, 1) } else { 0 };
        if self.corruption.is_frequent() {
            let data = data_of(offset, length)?;
            for range in data {
                Payload.modify(range.start as u32..range.end as u32, |at, bytes| {
                    self.corruption.corrupt(seed, read, offset, at.into(), bytes);
                });
            }
            return Ok(());
        }
        let mut wrong = self.corruption.of_read(seed, read, offset, length).peekable();
        if wrong.peek().is_none() {
            return Ok(());
        }
        let mut data = data_of(offset, length)?.into_iter().peekable();
        let mut in_data = |wrong: &Wrong| {
            while data.next_if(|range| range.end <= wrong.at).is_some() {}
            data.peek().is_some_and(|range| range.start <= wrong.at)
        };
        while let Some(first) = wrong.next() {
            let end = first.at - first.at % PIECE + PIECE;
            let mut of_piece = vec![first];
            while let Some(next) = wrong.next_if(|next| next.at < end) {
                of_piece.push(next);
            }
            of_piece.retain(&mut in_data);
            let (Some(first), Some(last)) = (of_piece.first(), of_piece.last()) else { continue };
            Payload.modify(first.at as u32..=last.at as u32, |from, bytes| {
                for wrong in &of_piece {
                    if let Some(byte) = bytes.get_mut((wrong.at - u64::from(from)) as usize) {
                        wrong.effect.apply(byte, wrong.bit);
                    }
                }
            });
        }
        Ok(())
    }
}

/// The parts of a read that are no holes, relative to its offset.
fn data_of(offset: u64, length: u64) -> Result<Vec<Range<u64>>, Errno> {
    if !next::can()?.extents {
        let whole = 0..length;
        return Ok(vec![whole]);
    }
    let mut data: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < length {
        for extent in next::extents(offset + at, length - at, CommandFlags::empty())? {
            if !extent.kind.contains(ExtentType::HOLE) {
                match data.last_mut() {
                    Some(last) if last.end == at => last.end += extent.length,
                    _ => data.push(at..at + extent.length),
                }
            }
            at += extent.length;
        }
    }
    Ok(data)
}

impl Filter for Evil {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("evil", env!("CARGO_PKG_VERSION"), "flips bits of what is read, for tests")
            .help("Holes are left as they are. What is written is right.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let chance = |name: &str, text: &str| parse_chance(text).map_err(|wrong| format!("{name}={text}: {wrong}"));
        let default = if settings.evil == Mode::StuckWires { "1e-6" } else { "1e-8" };
        let probability = chance("evil-probability", settings.evil_probability.as_deref().unwrap_or(default))?;
        let stuck = chance("evil-stuck-probability", &settings.evil_stuck_probability)?;
        let corruption = Corruption::new(settings.evil, limit_chance(probability), stuck);
        Ok(Evil { corruption, seed: Cell::new(settings.evil_seed.map(u64::from)) })
    }
}

impl Reads for Evil {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)?;
        self.corrupt(offset, length.into())
    }
}

rbdkit_filter_sdk::export!(Evil: reads);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    fn differing_bits(a: &[u8], b: &[u8]) -> u32 {
        a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    /// A disk of a MiB, of which the second half is a hole.
    fn disk() -> Disk {
        let mut bytes = vec![0x55; 1 << 20];
        bytes[1 << 19..].fill(0);
        Disk::new(bytes)
    }

    #[test]
    fn bits_of_data_are_wrong_and_holes_and_the_disk_are_right() {
        for mode in ["stuck-bits", "stuck-wires", "cosmic-rays", "stuck", "stuck-bit", "stuck-wire", "cosmic"] {
            let words = [&format!("evil={mode}"), "evil-probability=1:1000", "evil-seed=1"];
            let host = Host::new(disk()).serve::<Evil>(&words).unwrap();
            let client = host.connect().unwrap();
            let before = host.disk().to_vec();
            let (first, second) = (client.pread(0, 1 << 20).unwrap(), client.pread(0, 1 << 20).unwrap());
            let wrong = differing_bits(&first, &before);
            // A stuck bit is wrong if it is stuck at the other value.
            let expected = if mode.starts_with("cosmic") { 4194 } else { 2097 };
            assert!(wrong.abs_diff(expected) < 300, "{mode}: {wrong}");
            assert_eq!(first[1 << 19..], before[1 << 19..], "{mode}");
            assert_eq!(first == second, !mode.starts_with("cosmic"), "{mode}");
            assert_eq!(*host.disk(), *before);
        }
    }

    #[test]
    fn without_a_seed_all_instances_choose_the_same_one() {
        let host = Host::new(disk()).serve::<Evil>(&["evil-probability=1%"]).unwrap();
        let client = host.connect().unwrap();
        let first = client.pread(0, 100_000).unwrap();
        assert_eq!((client.pread(0, 100_000).unwrap(), client.pread(0, 100_000).unwrap()), (first.clone(), first));
    }

    #[test]
    fn a_large_chance_makes_all_bits_wrong_and_a_small_one_none() {
        let read = |words: &[&str]| {
            let host = Host::new(disk()).serve::<Evil>(words).unwrap();
            host.connect().unwrap().pread(1 << 18, 1 << 19).unwrap()
        };
        let all = read(&["evil=cosmic-rays", "evil-probability=13%"]);
        assert!(all[..1 << 18].iter().all(|byte| *byte == 0xaa) && all[1 << 18..].iter().all(|byte| *byte == 0));
        let none = read(&["evil=cosmic-rays", "evil-probability=1e-13"]);
        assert!(none[..1 << 18].iter().all(|byte| *byte == 0x55));
    }

    #[test]
    fn a_wrong_chance_is_named() {
        let wrong = |word: &str| Host::new(disk()).serve::<Evil>(&[word]).err().unwrap();
        assert_eq!(wrong("evil-probability=2"), "evil: evil-probability=2: is a chance of more than 1");
        assert!(wrong("evil-stuck-probability=x").starts_with("evil: evil-stuck-probability=x: is not a chance"));
        assert!(wrong("evil=good").contains("is not one of"));
    }
}
