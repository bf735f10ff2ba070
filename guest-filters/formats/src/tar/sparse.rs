//! Members with holes: their maps, and reading.

use std::rc::Rc;

use rbdkit_filter_sdk::buffer::Bytes;
use rbdkit_filter_sdk::image::{self, Error, ExtentList, Fields, Source};

use super::header::{BLOCK, decimal, number};

/// A map has at most this many runs. It takes 24 bytes of memory for each, and an instance keeps
/// four members open: 19 MB.
pub const MOST_RUNS: usize = 200_000;

/// How much of a map is read at once, in bytes.
const PIECE: u64 = 32 << 10;

/// A run of data as a map has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub offset: u64,
    pub length: u64,
}

/// Appends the runs of one table in a header of GNU tar: pairs of 12 bytes each, up to an empty
/// one.
///
/// # Errors
/// A line for a number that is wrong, or for too many runs. `at` is where the header is.
pub fn push_table(runs: &mut Vec<Run>, table: &[u8], at: u64) -> Result<(), Error> {
    for pair in table.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let (Some(offset), Some(length)) = (number(&pair[..12]), number(&pair[12..])) else {
            return Err(Error::image(format!(
                "the map of the sparse member at {at} has something that is not a number"
            )));
        };
        if runs.len() == MOST_RUNS {
            return Err(too_many(at));
        }
        runs.push(Run { offset, length });
    }
    Ok(())
}

fn too_many(at: u64) -> Error {
    Error::image(format!("the map of the sparse member at {at} has more than {MOST_RUNS} runs of data"))
}

/// Reads the map of version 1.0: lines of decimal numbers before the data, first how many runs.
/// Returns the runs, and how many bytes the map takes with its padding.
///
/// # Errors
/// A line for a map that is wrong. `at` is where the member's header is.
pub fn read_map(stored: &dyn Source, at: u64) -> Result<(Vec<Run>, u64), Error> {
    let mut lines = Lines { stored, piece: Vec::new(), from: 0, used: 0, at };
    let count = lines.number()?;
    if count > MOST_RUNS as u64 {
        return Err(too_many(at));
    }
    let mut runs = Vec::new();
    for _ in 0..count {
        runs.push(Run { offset: lines.number()?, length: lines.number()? });
    }
    let end = lines.from + lines.used as u64;
    Ok((runs, end.next_multiple_of(BLOCK)))
}

/// Lines of numbers.
struct Lines<'a> {
    stored: &'a dyn Source,
    piece: Vec<u8>,
    /// Where the piece begins.
    from: u64,
    used: usize,
    at: u64,
}

impl Lines<'_> {
    fn number(&mut self) -> Result<u64, Error> {
        // A number of 64 bits has at most 20 digits.
        if self.piece.len() - self.used < 21 {
            self.from += self.used as u64;
            let length = PIECE.min(self.stored.size() - self.from);
            self.piece = image::read(self.stored, self.from, length as usize)?;
            self.used = 0;
        }
        let rest = &self.piece[self.used..];
        let line = rest.iter().take(21).position(|byte| *byte == b'\n').map(|end| &rest[..end]);
        let value = line.and_then(decimal).ok_or_else(|| {
            Error::image(format!("the map of the sparse member at {} has a line that is not a number", self.at))
        })?;
        self.used += line.map_or(0, <[u8]>::len) + 1;
        Ok(value)
    }
}

/// A member with holes.
pub struct Sparse {
    stored: Rc<dyn Source>,
    size: u64,
    /// Runs of data in order, and where each begins in `stored`.
    runs: Vec<(Run, u64)>,
}

impl Sparse {
    /// # Errors
    /// A line if the runs are not in order, overlap, lie beyond the size, or are not as long as
    /// what is stored.
    pub fn new(stored: Rc<dyn Source>, size: u64, map: &[Run], at: u64) -> Result<Sparse, Error> {
        let wrong = |why: String| Error::image(format!("the map of the sparse member at {at} is wrong: {why}"));
        let mut runs = Vec::new();
        let (mut end, mut place) = (0, 0u64);
        for run in map {
            if run.offset < end {
                return Err(wrong(format!(
                    "data at {} begins before the data in front of it ends, at {end}",
                    run.offset
                )));
            }
            end = run.offset.checked_add(run.length).filter(|end| *end <= size).ok_or_else(|| {
                wrong(format!("data of {} bytes at {} ends beyond its size, {size}", run.length, run.offset))
            })?;
            if run.length > 0 {
                runs.push((*run, place));
            }
            place += run.length;
        }
        if place != stored.size() {
            return Err(wrong(format!("it has {place} bytes of data, and {} are stored", stored.size())));
        }
        Ok(Sparse { stored, size, runs })
    }

    /// Calls `data` with (position in the range, offset in what is stored, length) or `hole` with
    /// (position, length) for each piece of a range.
    fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, Option<u64>, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size).ok_or_else(|| {
            Error::image(format!("{length} bytes at {offset} are beyond the member's end, {}", self.size))
        })?;
        let mut at = offset;
        let mut next = self.runs.partition_point(|(run, _)| run.offset + run.length <= offset);
        while at < end {
            let (until, place) = match self.runs.get(next) {
                Some((run, place)) if run.offset <= at => {
                    next += 1;
                    (run.offset + run.length, Some(place + (at - run.offset)))
                }
                Some((run, _)) => (run.offset, None),
                None => (self.size, None),
            };
            let until = until.min(end);
            each(at - offset, place, until - at)?;
            at = until;
        }
        Ok(())
    }
}

impl Source for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.pieces(offset, into.len() as u64, |at, place, length| {
            let part = &mut into[at as usize..(at + length) as usize];
            match place {
                Some(place) => self.stored.read(place, part)?,
                None => part.fill(0),
            }
            Ok(())
        })
    }

    fn read_buffer(&self, offset: u64, length: u32, buffer: &Bytes, at: u32) -> Result<(), Error> {
        self.pieces(offset, length.into(), |skip, place, length| {
            let (at, length) = (at + skip as u32, length as u32);
            match place {
                Some(place) => self.stored.read_buffer(place, length, buffer, at)?,
                None => buffer.fill(at..at + length, 0),
            }
            Ok(())
        })
    }

    fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
        while !list.is_full() {
            let at = list.at();
            let next = self.runs.partition_point(|(run, _)| run.offset + run.length <= at);
            match self.runs.get(next) {
                Some((run, place)) if run.offset <= at => {
                    let skip = at - run.offset;
                    list.push_from(&*self.stored, place + skip, run.length - skip)?;
                }
                Some((run, _)) => list.push_hole(run.offset - at),
                None => list.push_hole(self.size - at),
            }
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.pieces(offset, length, |_, place, length| match place {
            Some(place) => self.stored.cache(place, length),
            None => Ok(()),
        })
    }
}

/// The map and the size of a sparse member in GNU tar's old form: `header` is its block, `more`
/// reads the block after the one that was read last.
///
/// # Errors
/// A line for a number that is wrong. Those of `more`.
pub fn old_map(
    header: &[u8],
    at: u64,
    mut more: impl FnMut() -> Result<Vec<u8>, Error>,
) -> Result<(Vec<Run>, u64), Error> {
    let fields = Fields::big(header, "the header of a sparse member");
    let mut runs = Vec::new();
    push_table(&mut runs, fields.bytes(386, 4 * 24)?, at)?;
    let size = number(fields.bytes(483, 12)?)
        .ok_or_else(|| Error::image(format!("the sparse member at {at} has a size that is not a number")))?;
    let mut goes_on = fields.u8(482)? != 0;
    for _ in 0..=MOST_RUNS / 21 {
        if !goes_on {
            return Ok((runs, size));
        }
        let block = more()?;
        let fields = Fields::big(&block, "the map of a sparse member");
        push_table(&mut runs, fields.bytes(0, 21 * 24)?, at)?;
        goes_on = fields.u8(504)? != 0;
    }
    Err(too_many(at))
}
