//! The values that each byte may have when a client reads it.
//!
//! After a write, a byte has the value that was written. If several writes ran at the same time, it
//! has the value of one of them. If a write failed, it has the value written or the one before,
//! until a client has read one of the two; from then on it must keep that one. The same rules say
//! what must be durable after a flush.

/// The value that a writing request with this number gives to a position.
pub type Value = fn(id: u64, position: usize) -> u8;

/// The value of a write request. It is never zero.
pub fn data(id: u64, position: usize) -> u8 {
    ((id.wrapping_mul(31) + position as u64 * 7) % 255 + 1) as u8
}

/// The value of a zero or trim request.
pub fn zeroes(_id: u64, _position: usize) -> u8 {
    0
}

/// A set of byte values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values([u64; 4]);

impl Values {
    fn one(value: u8) -> Values {
        let mut set = Values::default();
        set.add(value);
        set
    }

    pub fn add(&mut self, value: u8) {
        self.0[usize::from(value >> 6)] |= 1 << (value & 63);
    }

    fn merge(&mut self, other: Values) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a |= b;
        }
    }

    pub fn has(&self, value: u8) -> bool {
        self.0[usize::from(value >> 6)] >> (value & 63) & 1 == 1
    }
}

/// What a request that does not write looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// The content that clients read.
    AtContent,
    /// What is durable in next.
    AtDurable,
}

/// Whether a request has done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Certainly.
    Done,
    /// Perhaps, wholly or in part.
    Unknown,
}

/// A request that is being served.
pub struct Active {
    pub id: u64,
    /// The time at which it began.
    since: u64,
    offset: usize,
    end: usize,
    /// For a request that changes bytes: their new values.
    pub writes: Option<Value>,
    /// For each byte: the values of writes at the same time and, for a request that does not write,
    /// also the values from before it.
    pub seen: Vec<Values>,
}

/// The model of the disk.
pub struct Model {
    /// The values that each byte may have now.
    possible: Vec<Values>,
    /// The value that a client has read since the last write. It must not change without a write.
    read: Vec<Option<u8>>,
    /// Counts the beginnings and ends of requests.
    time: u64,
    /// The time at which the last write to each byte ended.
    written: Vec<u64>,
    active: Vec<Active>,
    issued: u64,
}

impl Model {
    /// The model of a disk with this content.
    pub fn new(content: &[u8]) -> Model {
        Model {
            possible: content.iter().map(|value| Values::one(*value)).collect(),
            read: vec![None; content.len()],
            time: 0,
            written: vec![0; content.len()],
            active: Vec::new(),
            issued: 0,
        }
    }

    /// Whether the byte at `position` may have this value.
    pub fn allows(&self, position: usize, value: u8) -> bool {
        self.possible[position].has(value)
    }

    /// A request on `offset..end` begins. Returns its number.
    pub fn begin(&mut self, offset: usize, end: usize, writes: Option<Value>, looks: Looks) -> u64 {
        self.issued += 1;
        self.time += 1;
        let id = self.issued;
        let mut seen = vec![Values::default(); end - offset];
        for (n, set) in seen.iter_mut().enumerate() {
            if writes.is_none() {
                match self.read[offset + n] {
                    Some(value) if looks == Looks::AtContent => set.add(value),
                    _ => set.merge(self.possible[offset + n]),
                }
            }
        }
        for other in &mut self.active {
            for position in other.offset.max(offset)..other.end.min(end) {
                if let Some(value) = writes {
                    other.seen[position - other.offset].add(value(id, position));
                }
                if let Some(value) = other.writes {
                    seen[position - offset].add(value(other.id, position));
                }
            }
        }
        self.active.push(Active { id, since: self.time, offset, end, writes, seen });
        id
    }

    /// A request ends.
    pub fn end(&mut self, id: u64, effect: Effect) -> Active {
        let n = self.active.iter().position(|active| active.id == id).expect("the request began before");
        let active = self.active.swap_remove(n);
        self.time += 1;
        if let Some(value) = active.writes {
            for position in active.offset..active.end {
                let mut values = active.seen[position - active.offset];
                values.add(value(id, position));
                if effect == Effect::Unknown {
                    values.merge(self.possible[position]);
                }
                self.possible[position] = values;
                self.read[position] = None;
                self.written[position] = self.time;
            }
        }
        active
    }

    /// A client has read this value. From now on the byte has it, unless a write was in progress.
    pub fn pin(&mut self, reader: &Active, position: usize, value: u8) {
        let writes = |other: &Active| other.writes.is_some() && (other.offset..other.end).contains(&position);
        if self.written[position] < reader.since && !self.active.iter().any(writes) {
            self.read[position] = Some(value);
        }
    }
}
