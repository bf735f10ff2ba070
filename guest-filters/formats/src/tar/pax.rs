//! Records of extended headers: `LENGTH KEY=VALUE`, each with a newline.

use rbdkit_filter_sdk::image::{Error, quoted};

use super::header::decimal;
use super::sparse::{MOST_RUNS, Run};

/// What an extended header says about the member that follows it.
#[derive(Default, Clone)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub sparse_name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`: the size with the holes.
    pub real_size: Option<u64>,
    /// `GNU.sparse.major` and `minor`. Version 1.0 has the map before the data.
    pub version: (u64, u64),
    /// The map of the versions 0.0 and 0.1.
    pub runs: Vec<Run>,
    /// `GNU.sparse.numblocks`.
    pub count: Option<u64>,
    /// Whether any record is about a sparse member.
    pub is_sparse: bool,
    /// An offset of version 0.0 whose length has not come yet.
    offset: Option<u64>,
}

impl Pax {
    /// Reads the records of one extended header. A later record replaces an earlier one.
    ///
    /// # Errors
    /// A line if a record is wrong. `at` is where the header is.
    pub fn parse(mut records: &[u8], at: u64) -> Result<Pax, Error> {
        let wrong = |why: String| Error::image(format!("the extended header at {at} is wrong: {why}"));
        let mut pax = Pax::default();
        // Some programs pad with zeroes.
        while !records.is_empty() && records[0] != 0 {
            let space = records.iter().take(21).position(|byte| *byte == b' ');
            let length = space.and_then(|space| decimal(&records[..space])).unwrap_or(0);
            let record = usize::try_from(length).ok().and_then(|length| records.get(..length));
            let (Some(space), Some(record)) = (space, record) else {
                return Err(wrong(format!(
                    "a record has no length that fits: {}",
                    quoted(&records[..records.len().min(40)])
                )));
            };
            let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n"));
            let Some((key, value)) = body.and_then(|body| {
                let equals = body.iter().position(|byte| *byte == b'=')?;
                Some((&body[..equals], &body[equals + 1..]))
            }) else {
                return Err(wrong(format!("a record is not KEY=VALUE: {}", quoted(&record[..record.len().min(40)]))));
            };
            pax.record(key, value).map_err(wrong)?;
            records = &records[record.len()..];
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = || decimal(value).ok_or_else(|| format!("{}={} is not a number", quoted(key), quoted(value)));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = Some(number()?),
            b"GNU.sparse.major" => self.version.0 = number()?,
            b"GNU.sparse.minor" => self.version.1 = number()?,
            b"GNU.sparse.numblocks" => self.count = Some(number()?),
            b"GNU.sparse.offset" => self.offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = self.offset.take().ok_or("GNU.sparse.numbytes without an offset before it")?;
                self.run(offset, number()?)?;
            }
            b"GNU.sparse.map" => {
                self.runs.clear();
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or("GNU.sparse.map has an odd number of numbers")?;
                    let (Some(offset), Some(length)) = (decimal(offset), decimal(length)) else {
                        return Err("GNU.sparse.map has something that is not a number".into());
                    };
                    self.run(offset, length)?;
                }
            }
            _ => return Ok(()),
        }
        self.is_sparse |= key.starts_with(b"GNU.sparse.");
        Ok(())
    }

    fn run(&mut self, offset: u64, length: u64) -> Result<(), String> {
        if self.runs.len() == MOST_RUNS {
            return Err(format!("the map has more than {MOST_RUNS} runs of data"));
        }
        self.runs.push(Run { offset, length });
        Ok(())
    }

    /// Whether the header has what must not hold for all members that follow.
    pub fn decides(&self) -> bool {
        self.path.is_some() || self.link.is_some() || self.size.is_some() || self.is_sparse
    }
}
