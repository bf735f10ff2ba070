//! Decoding a file once from begin to end, when it is opened.

use rbdkit_filter_sdk::image::{Error, Source};

use super::codec::{CHUNK, Codec, Index, MAX_POINTS, Point, Stream};
use super::storage::Region;

/// The most units of an index. It takes 16 MiB of memory.
pub const MAX_UNITS: usize = 1 << 20;

/// How often the log says how far it is.
const REPORT_INTERVAL_NS: u64 = 10_000_000_000;

/// Finds the points of a file: by its index, or by decoding all of it into the region.
pub fn find_points<C: Codec>(below: &dyn Source, codec: &C, region: &Region) -> Result<Index, Error> {
    let index = codec.index()?;
    if let Some(index) = &index
        && index.largest() <= C::MAX_UNIT
    {
        region.set_complete();
        return Ok(Index { units: index.units.clone(), size: index.size });
    }
    let declared = index.map(|index| index.size);
    let mut pass = Pass {
        stream: codec.stream(codec.start(), Vec::new())?,
        points: Points::new(codec.start(), C::SPACING),
        at: 0,
    };
    let mut reports = Reports::new(below.size());
    let mut chunk = 0;
    loop {
        let bytes = pass.chunk(region, declared)?;
        if !bytes.is_empty() {
            region.put(chunk, &bytes)?;
        }
        if (bytes.len() as u64) < CHUNK {
            break;
        }
        chunk += 1;
        reports.perhaps::<C>(region, pass.stream.consumed(), pass.at);
    }
    if let Some(declared) = declared.filter(|declared| *declared != pass.at) {
        return Err(Error::image(format!("the index says {declared} bytes, and the data has {}", pass.at)));
    }
    Ok(Index { units: pass.points.kept, size: pass.at })
}

struct Pass {
    stream: Box<dyn Stream>,
    points: Points,
    at: u64,
}

impl Pass {
    /// The next chunk. It is short at the end of the file.
    fn chunk(&mut self, region: &Region, declared: Option<u64>) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; CHUNK as usize];
        let mut done = 0;
        while done < bytes.len() {
            let got = self.stream.read(&mut bytes[done..])?;
            done += got;
            self.at += got as u64;
            if self.at > declared.unwrap_or(i64::MAX as u64) {
                return Err(match declared {
                    Some(declared) => Error::image(format!("the index says {declared} bytes, and the data has more")),
                    None => Error::image("the data has more than 2^63 bytes"),
                });
            }
            if got == 0 {
                let Some(at) = self.stream.next_unit()? else { break };
                if self.points.wants(self.at) {
                    self.points.push(Point { out: self.at, at }, &[], region)?;
                }
            } else if self.points.wants(self.at)
                && let Some((at, window)) = self.stream.resume()
            {
                self.points.push(Point { out: self.at, at }, &window, region)?;
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }
}

/// The points of a file, not too many.
struct Points {
    kept: Vec<Point>,
    spacing: u64,
}

impl Points {
    fn new(start: Point, spacing: u64) -> Points {
        Points { kept: vec![start], spacing }
    }

    fn wants(&self, out: u64) -> bool {
        self.kept.last().is_none_or(|last| out - last.out >= self.spacing)
    }

    fn push(&mut self, point: Point, window: &[u8], region: &Region) -> Result<(), Error> {
        if self.kept.len() == MAX_POINTS {
            // Every second point stays, with its window.
            for n in 1..MAX_POINTS / 2 {
                self.kept[n] = self.kept[2 * n];
                let window = region.window(2 * n)?;
                region.put_window(n, &window)?;
            }
            self.kept.truncate(MAX_POINTS / 2);
            self.spacing *= 2;
            if !self.wants(point.out) {
                return Ok(());
            }
        }
        // Without its window a point is of no use.
        if region.put_window(self.kept.len(), window)? {
            self.kept.push(point);
        }
        Ok(())
    }
}

/// Tells in the log how far the decoding is.
struct Reports {
    next: u64,
    size: u64,
}

impl Reports {
    fn new(size: u64) -> Reports {
        Reports { next: 0, size }
    }

    fn perhaps<C: Codec>(&mut self, region: &Region, consumed: u64, decoded: u64) {
        let Some(now) = region.time() else { return };
        if self.next == 0 {
            self.next = now + REPORT_INTERVAL_NS / 5;
        }
        if now >= self.next {
            self.next = now + REPORT_INTERVAL_NS;
            let percent = u128::from(consumed) * 100 / u128::from(self.size.max(1));
            rbdkit_filter_sdk::info!(
                "{}: decompressing the file once, to know its size: {percent} % done, {} MiB so far",
                C::NAME,
                decoded >> 20
            );
        }
    }
}
