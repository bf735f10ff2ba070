//! What a partition table says.

use crate::guid::Guid;

/// Which kind of table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Mbr,
    Gpt,
    Apm,
}

/// What a table says a partition is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Mbr(u8),
    Gpt(Guid),
    Apm(Vec<u8>),
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Counted from 1; logical partitions of an MBR from 5.
    pub number: u32,
    /// In bytes.
    pub start: u64,
    pub size: u64,
    pub kind: Type,
    /// Empty in an MBR.
    pub label: String,
    pub guid: Option<Guid>,
}

impl Partition {
    /// Whether it only holds other partitions.
    pub(super) fn is_extended(&self) -> bool {
        matches!(self.kind, Type::Mbr(kind) if is_extended(kind))
    }

    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// A partition table.
#[derive(Clone, Debug)]
pub struct Table {
    pub scheme: Scheme,
    /// The bytes of a sector.
    pub sector: u32,
    pub partitions: Vec<Partition>,
    /// What is wrong with the table, though it can be read.
    pub dangers: Vec<String>,
}

/// Whether partitions of this type hold others.
pub fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}
