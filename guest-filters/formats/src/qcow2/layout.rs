//! How the tables of an image look: sizes, and what an entry says. Nothing here reads.

/// The bits of an entry that hold an offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster has a reference count of one.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zero. With subclusters the second word says that.
pub(super) const ZERO: u64 = 1;

/// With subclusters, a cluster has this many.
pub const SUBCLUSTERS: u32 = 32;

/// The sizes that an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    version: u32,
    cluster_bits: u32,
    has_subclusters: bool,
    has_data_file: bool,
}

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The offset and flags.
    pub word: u64,
    /// With subclusters: which of them are in the cluster (bits 0 to 31), and which read as zero.
    /// Otherwise 0.
    pub bitmap: u64,
}

/// Where the bytes of a cluster or subcluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the backing file. Without one they are zero.
    Unallocated,
    /// They are zero. A cluster may be reserved for them.
    Zero,
    /// In the cluster at this offset of the image or the data file.
    Data(u64),
    /// In a compressed cluster.
    Compressed(Packed),
}

/// A compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packed {
    /// Where it begins in the image, at any byte.
    pub offset: u64,
    /// It does not end after more than so many bytes: to the end of a block of 512 bytes, and at
    /// most twice the size of a cluster.
    pub length: u32,
}

/// What cannot be right in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The offset is not a multiple of the cluster size.
    Unaligned(u64),
    /// Version 2 has no clusters that read as zero.
    ZeroInVersion2,
    /// The clusters of a data file are not compressed.
    CompressedWithDataFile,
    /// A subcluster reads as zero and has bytes.
    ZeroAndAllocated(u32),
    /// A subcluster has bytes, and the cluster no offset.
    AllocatedNowhere(u32),
}

impl Layout {
    pub(super) fn new(version: u32, cluster_bits: u32, has_subclusters: bool, has_data_file: bool) -> Layout {
        Layout { version, cluster_bits, has_subclusters, has_data_file }
    }

    /// The size of a cluster in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether the entries of L2 tables have a second word.
    pub fn has_subclusters(&self) -> bool {
        self.has_subclusters
    }

    /// The size of what an entry tells of, in bytes: a cluster, or a subcluster.
    pub fn unit(&self) -> u64 {
        if self.has_subclusters { self.cluster_size() / u64::from(SUBCLUSTERS) } else { self.cluster_size() }
    }

    /// The size of an entry of an L2 table in bytes.
    pub fn entry_size(&self) -> u64 {
        if self.has_subclusters { 16 } else { 8 }
    }

    /// An L2 table maps two to this power bytes. It takes one cluster.
    pub fn table_shift(&self) -> u32 {
        2 * self.cluster_bits - self.entry_size().ilog2()
    }

    /// The index in the L1 table of the L2 table for an offset of the disk.
    pub fn l1_index(&self, offset: u64) -> u64 {
        offset >> self.table_shift()
    }

    /// The index of an offset's entry in its L2 table.
    pub fn l2_index(&self, offset: u64) -> u64 {
        (offset >> self.cluster_bits) & (self.cluster_size() / self.entry_size() - 1)
    }

    /// The offset of the L2 table of an L1 entry. `None`: nothing is allocated in its range.
    ///
    /// # Errors
    /// An offset that is not a multiple of the cluster size.
    pub fn table(&self, l1_entry: u64) -> Result<Option<u64>, Wrong> {
        match l1_entry & OFFSET {
            0 => Ok(None),
            offset => self.aligned(offset).map(Some),
        }
    }

    /// The entry at the start of `bytes`, which are at least [`entry_size`](Layout::entry_size).
    pub fn entry(&self, bytes: &[u8]) -> Entry {
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        Entry { word: word(0), bitmap: if self.has_subclusters { word(8) } else { 0 } }
    }

    /// Appends an entry to `bytes`, as a table has it.
    pub(super) fn put_entry(&self, entry: Entry, bytes: &mut Vec<u8>) {
        bytes.extend(entry.word.to_be_bytes());
        if self.has_subclusters {
            bytes.extend(entry.bitmap.to_be_bytes());
        }
    }

    /// Where the bytes of a subcluster are, and how many subclusters of the cluster have theirs in
    /// the same way from it on. Without subclusters `subcluster` is 0 and so many is 1.
    ///
    /// # Errors
    /// What cannot be right.
    pub fn place(&self, entry: Entry, subcluster: u32) -> Result<(Place, u32), Wrong> {
        let rest = if self.has_subclusters { SUBCLUSTERS - subcluster } else { 1 };
        if entry.word & COMPRESSED != 0 {
            if self.has_data_file {
                return Err(Wrong::CompressedWithDataFile);
            }
            return Ok((Place::Compressed(self.packed(entry.word)), rest));
        }
        let offset = self.aligned(entry.word & OFFSET)?;
        // A cluster at the start of a data file has offset 0. It has the flag, since no snapshot
        // can share it.
        let is_allocated = offset != 0 || (self.has_data_file && entry.word & COPIED != 0);
        if self.has_subclusters {
            return Self::place_of_subcluster(entry.bitmap, subcluster, is_allocated.then_some(offset));
        }
        if entry.word & ZERO != 0 {
            return if self.version < 3 { Err(Wrong::ZeroInVersion2) } else { Ok((Place::Zero, 1)) };
        }
        Ok((if is_allocated { Place::Data(offset) } else { Place::Unallocated }, 1))
    }

    fn place_of_subcluster(bitmap: u64, subcluster: u32, offset: Option<u64>) -> Result<(Place, u32), Wrong> {
        let (allocated, zero) = ((bitmap as u32) >> subcluster, ((bitmap >> 32) as u32) >> subcluster);
        let (is_allocated, is_zero) = (allocated & 1 != 0, zero & 1 != 0);
        // Bits that are as those of this subcluster are.
        let like_this = |bits: u32| if bits & 1 != 0 { bits } else { !bits };
        let count = (like_this(allocated) & like_this(zero)).trailing_ones().min(SUBCLUSTERS - subcluster);
        let place = match (is_allocated, is_zero, offset) {
            (true, true, _) => return Err(Wrong::ZeroAndAllocated(subcluster)),
            (true, false, None) => return Err(Wrong::AllocatedNowhere(subcluster)),
            (true, false, Some(offset)) => Place::Data(offset),
            (false, true, _) => Place::Zero,
            (false, false, _) => Place::Unallocated,
        };
        Ok((place, count))
    }

    /// The offset takes the lower bits, and the number of further blocks of 512 bytes the upper:
    /// `cluster_bits - 8` of 62.
    fn packed(&self, word: u64) -> Packed {
        let bits = 62 - (self.cluster_bits - 8);
        let offset = word & ((1 << bits) - 1);
        let blocks = ((word & (COMPRESSED - 1)) >> bits) + 1;
        Packed { offset, length: (blocks * 512 - offset % 512) as u32 }
    }

    pub(super) fn aligned(&self, offset: u64) -> Result<u64, Wrong> {
        if offset.is_multiple_of(self.cluster_size()) { Ok(offset) } else { Err(Wrong::Unaligned(offset)) }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wrong::Unaligned(offset) => write!(f, "the offset {offset} is not a multiple of a cluster's size"),
            Wrong::ZeroInVersion2 => f.write_str("the cluster reads as zero, which version 2 does not have"),
            Wrong::CompressedWithDataFile => f.write_str("the cluster is compressed, and the image has a data file"),
            Wrong::ZeroAndAllocated(n) => write!(f, "subcluster {n} has data and reads as zero"),
            Wrong::AllocatedNowhere(n) => write!(f, "subcluster {n} has data, and the cluster no offset"),
        }
    }
}
