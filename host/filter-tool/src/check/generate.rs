//! Random steps.

use rbdkit_plugin_api::{BlockSizes, Capabilities, Flags, Support};

use super::content::Random;
use super::script::ERRORS;
use super::steps::{Below, CONNECTIONS, Fault, Request, Step};

/// What the steps have to suit.
#[derive(Clone, Copy, Debug)]
pub struct Export {
    /// The bytes that are tested, from the beginning of the export.
    pub size: u64,
    pub can: Capabilities,
    pub block_sizes: Option<BlockSizes>,
    /// How many connections may be open at once and see each other's writes.
    pub connections: u8,
}

/// What the steps are to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Whether the disk below fails and delays operations.
    pub faults: Faults,
    /// The longest request, in bytes.
    pub largest: u32,
}

/// Whether the disk below fails and delays operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    None,
    Some,
}

/// Most operations are near the beginning, in this many bytes, so that they meet.
const BUSY: u64 = 256 << 10;

/// The steps of a test with this number of operations.
pub fn steps(random: &mut Random, export: &Export, mix: Mix, count: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    for number in 0..count {
        if mix.faults == Faults::Some && random.chance(12) {
            steps.push(fault(random));
        }
        match random.below(300) {
            0..5 => steps.push(Step::Reconnect(connection(random, export))),
            5 => steps.push(Step::Restart),
            6..9 => steps.push(Step::Instances),
            _ => {}
        }
        if export.can.write && number % NEIGHBOURS == NEIGHBOURS - 1 {
            steps.extend(neighbours(random, export));
        }
        // Three of the longest requests, spread over the test. Each is alone: together they could
        // reach the limit of the time that a filter may compute, on a machine with few processors.
        let place = number % (count / 3).max(1);
        let operation = operation(random, export, mix, if place == 20 { Length::Longest } else { Length::Any });
        let joins = random.chance(40) && !matches!(place, 20 | 21);
        steps.push(Step::Operation { connection: connection(random, export), joins, operation });
    }
    steps
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Any,
    Longest,
}

fn connection(random: &mut Random, export: &Export) -> u8 {
    1 + random.below(u64::from(export.connections.min(CONNECTIONS))) as u8
}

/// After this many operations come two writes of neighbours.
const NEIGHBOURS: u32 = 40;

/// Two writes side by side that begin together while the disk below is slow, and a read of both.
/// What a filter reads, changes and writes back without a lock is lost here.
fn neighbours(random: &mut Random, export: &Export) -> Vec<Step> {
    let unit = export.block_sizes.map_or(1, |sizes| u64::from(sizes.minimum));
    let length = (1 + random.below(200)).next_multiple_of(unit);
    let Some(last) = export.size.checked_sub(2 * length) else { return Vec::new() };
    let offset = random.below(last.min(BUSY) + 1) / unit * unit;
    let connection = connection(random, export);
    let step = |joins, operation| Step::Operation { connection, joins, operation };
    let mut write = |offset| {
        let fill = 1 + random.below(1 << 20);
        Request::Pwrite { offset, length: length as u32, fill, flags: Flags::NONE }
    };
    let (first, second) = (write(offset), write(offset + length));
    vec![
        Step::Fault(Below::Pread, Fault::Delay(2)),
        step(false, first),
        step(true, second),
        step(false, Request::Pread { offset, length: 2 * length as u32 }),
    ]
}

fn fault(random: &mut Random) -> Step {
    let below = Below::ALL[random.below(Below::ALL.len() as u64) as usize].0;
    let fault = match random.below(10) {
        0..4 => Fault::Error(ERRORS[random.below(ERRORS.len() as u64) as usize]),
        _ if below == Below::Extents => Fault::Short,
        _ => Fault::Delay(1 + random.below(5) as u16),
    };
    Step::Fault(below, fault)
}

fn operation(random: &mut Random, export: &Export, mix: Mix, length: Length) -> Request {
    let can = export.can;
    let (offset, length) = range(random, export, mix.largest, length);
    let short = length as u32;
    let fua = can.fua != Support::None && random.chance(12);
    match random.below(100) {
        0..30 if can.write => {
            // Fill 0 is all zeroes.
            let fill = if random.chance(8) { 0 } else { 1 + random.below(1 << 20) };
            Request::Pwrite { offset, length: short, fill, flags: Flags { fua, ..Flags::NONE } }
        }
        30..36 if can.zero != Support::None => {
            let fast_zero = can.fast_zero && random.chance(20);
            let flags = Flags { fua, may_trim: random.chance(50), fast_zero, ..Flags::NONE };
            Request::Zero { offset, length, flags }
        }
        36..40 if can.trim => Request::Trim { offset, length },
        40..44 if can.flush => Request::Flush,
        44..47 if can.cache != Support::None => Request::Cache { offset, length },
        47..53 if can.extents => Request::Extents { offset, length },
        _ => Request::Pread { offset, length: short },
    }
}

/// A range within the export that keeps to its block sizes.
fn range(random: &mut Random, export: &Export, largest: u32, kind: Length) -> (u64, u64) {
    let minimum = export.block_sizes.map_or(1, |sizes| u64::from(sizes.minimum));
    let maximum = export.block_sizes.map_or(u64::MAX, |sizes| u64::from(sizes.maximum));
    let size = export.size / minimum * minimum;
    let most = u64::from(largest).min(maximum).min(size).max(1);
    let length = match (kind, random.below(100)) {
        (Length::Longest, _) => most,
        (_, 0..25) => 1 + random.below(40),
        (_, 25..50) => 512 * (1 + random.below(16)),
        (_, 50..75) => 4096 * (1 + random.below(8)),
        (_, 75..95) => 1 + random.below(64 << 10),
        (_, 95..99) => 1 + random.below(512 << 10),
        _ => 1 + random.below(4 << 20),
    };
    let length = length.next_multiple_of(minimum).min(most / minimum * minimum).max(minimum.min(size));
    let last = size.saturating_sub(length);
    let offset = match random.below(100) {
        0..70 => random.below(BUSY.min(last + 1)),
        70..80 => last - random.below(BUSY.min(last + 1)),
        _ => random.below(last + 1),
    };
    let unit = match random.below(4) {
        0 => 1,
        1 => 512,
        _ => 4096,
    };
    (offset / unit.max(minimum) * unit.max(minimum), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_within_the_export_and_its_block_sizes() {
        let can = Capabilities { trim: true, extents: true, ..Capabilities::READ_WRITE_FLUSH };
        let sizes = BlockSizes { minimum: 4096, preferred: 4096, maximum: 1 << 20 };
        for (size, block_sizes) in [(1, None), (1000, None), (48 << 20, None), (1 << 20, Some(sizes))] {
            let export = Export { size, can, block_sizes, connections: 3 };
            let mix = Mix { faults: Faults::Some, largest: 32 << 20 };
            for step in steps(&mut Random::new(size), &export, mix, 1000) {
                let Step::Operation { operation, .. } = step else { continue };
                let Some((offset, length)) = operation.range() else { continue };
                assert!(length > 0 && offset + length <= size, "{operation:?} in {size}");
                if let Some(sizes) = block_sizes {
                    let unit = u64::from(sizes.minimum);
                    assert!(offset % unit == 0 && length % unit == 0 && length <= u64::from(sizes.maximum));
                }
            }
        }
    }
}
