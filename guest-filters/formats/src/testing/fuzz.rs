//! Fuzzing of a decoder with mutated images.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rbdkit_filter_sdk::image::{Error, ExtentList, Source};

/// A small seeded random generator (splitmix64).
pub struct Rng(u64);

impl Rng {
    /// Starts the sequence of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}

/// Values at the limits of what decoders check.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    512,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    i64::MAX as u64,
    u64::MAX - 511,
    u64::MAX,
];

/// An image must not make a decoder read more often than this for one target. A decoder that does
/// is in a loop, or does work that grows with a number of the image.
const MOST_READS: u32 = 100_000;

/// The mutated image. It counts how often it is read.
struct Fuzzed {
    bytes: Vec<u8>,
    reads: Cell<u32>,
}

impl Source for Fuzzed {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() <= MOST_READS, "the image was read {MOST_READS} times");
        self.bytes.read(offset, into)
    }
}

/// Opens mutated images with `open`, and reads them and asks for their extents. It goes on for 3
/// seconds, or for `RBDKIT_FUZZ_SECONDS`. `RBDKIT_SEED` repeats a run.
///
/// # Panics
/// If a decoder panics, reads without end, or gives a list of extents that breaks the rules. The
/// input is then in a file that the message names.
pub fn fuzz(name: &str, seeds: &[Vec<u8>], open: impl Fn(Rc<dyn Source>) -> crate::Opened) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("RBDKIT_FUZZ_SECONDS").unwrap_or(3);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let seed = number("RBDKIT_SEED").unwrap_or(now);
    println!("fuzz {name}: RBDKIT_SEED={seed}");
    let mut rng = Rng::new(seed);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut rounds, mut opened) = (0u64, 0u64);
    while Instant::now() < until || rounds < 20 {
        rounds += 1;
        let mut bytes = seeds[rng.below(seeds.len() as u64) as usize].clone();
        // Of the first rounds some leave the image as it is: the target has to read it then.
        for _ in 0..rng.below(6) {
            mutate(&mut bytes, &mut rng);
        }
        let questions = rng.next_u64();
        let image = Rc::new(Fuzzed { bytes, reads: Cell::new(0) });
        let began = Instant::now();
        let run = catch_unwind(AssertUnwindSafe(|| {
            let Ok(decoded) = open(Rc::clone(&image) as Rc<dyn Source>) else { return false };
            use_image(&*decoded, &mut Rng::new(questions));
            true
        }));
        let took = began.elapsed();
        match run {
            Ok(was_opened) if took < Duration::from_secs(20) => opened += u64::from(was_opened),
            run => {
                let file = std::env::temp_dir().join(format!("rbdkit-fuzz-{name}-{seed}"));
                std::fs::write(&file, &image.bytes).expect("a file for the input");
                let why = if run.is_err() { "panicked" } else { "took more than 20 seconds" };
                panic!("fuzz {name}: round {rounds} of RBDKIT_SEED={seed} {why}; the input is {}", file.display());
            }
        }
    }
    println!("fuzz {name}: {rounds} images, of which {opened} were opened");
    assert!(opened > 0, "no image could be opened: the seeds are not images");
}

/// Reads at the start, the end and random places, and asks for extents.
fn use_image(image: &dyn Source, rng: &mut Rng) {
    let size = image.size();
    let mut bytes = vec![0; 70_000];
    for n in 0..6 {
        let length = 1 + rng.below(bytes.len() as u64);
        let offset = match n {
            0 => 0,
            1 => size.saturating_sub(length),
            _ => rng.below(size.max(1)),
        };
        let length = length.min(size.saturating_sub(offset));
        let _ = image.read(offset, &mut bytes[..length as usize]);
        if length == 0 {
            continue;
        }
        let wanted = length.max(rng.below(size - offset));
        let mut list = ExtentList::new(offset, wanted).only_one(n % 2 == 0);
        if image.extents(&mut list).is_ok() {
            let answer = list.into_answer().expect("extents of a range that is not empty");
            let mut at = offset;
            for extent in answer {
                assert!(extent.offset == at && extent.length > 0, "extents are contiguous");
                at = at.saturating_add(extent.length);
            }
        }
    }
    assert!(image.read(size, &mut [0]).is_err(), "a read beyond the end");
    let _ = image.description();
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let len = bytes.len() as u64;
    if len < 16 {
        return bytes.push(rng.next_u64() as u8);
    }
    // Headers are at the start and at the end.
    let at = match rng.below(4) {
        0 => rng.below(len.min(128)),
        1 => rng.below(len.min(4096)),
        2 => len - 1 - rng.below(len.min(4096)),
        _ => rng.below(len),
    } as usize;
    match rng.below(10) {
        0..=1 => bytes[at] ^= 1 << rng.below(8),
        2..=6 => {
            // A number in the place of another, aligned as most are.
            let width = 1 << rng.below(4);
            let at = at / width * width;
            let value = match rng.below(3) {
                0 => EDGES[rng.below(EDGES.len() as u64) as usize],
                1 => len.wrapping_add(rng.below(1024)).wrapping_sub(512),
                _ => rng.next_u64() >> rng.below(64),
            };
            let number = if rng.below(2) == 0 {
                value.to_le_bytes()[..width].to_vec()
            } else {
                value.to_be_bytes()[8 - width..].to_vec()
            };
            if let Some(place) = bytes.get_mut(at..at + width) {
                place.copy_from_slice(&number);
            }
        }
        7 => bytes.truncate(at.max(1)),
        8 => {
            let from = rng.below(len) as usize;
            let length = (1 + rng.below(64)).min(len - from as u64).min(len - at as u64) as usize;
            bytes.copy_within(from..from + length, at);
        }
        _ => {
            let end = (at + 1 + rng.below(64) as usize).min(bytes.len());
            bytes[at..end].fill(if rng.below(2) == 0 { 0 } else { 0xff });
        }
    }
}
