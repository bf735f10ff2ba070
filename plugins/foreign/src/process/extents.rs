//! The lists that a plugin fills: extents and exports.

use std::ffi::c_int;

use crate::wire::Packet;

/// nbdkit's limit on the extents of one answer. More are not taken; the client asks again.
const MAX_EXTENTS: usize = 1 << 20;

/// nbdkit's limit on a list of exports.
const MAX_EXPORTS: usize = 10_000;

/// nbdkit's limit on a name or a description, in bytes.
const MAX_STRING: usize = 4096;

/// `struct nbdkit_extents`: runs without gaps from `start` on.
pub(super) struct Extents {
    start: u64,
    end: u64,
    /// Where the next one has to begin; none before the first.
    next: Option<u64>,
    /// Offset, length and type.
    list: Vec<(u64, u64, u32)>,
}

/// Why an extent is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) errno: c_int,
    pub(super) message: String,
}

impl Extents {
    /// An empty list for a range.
    pub(super) fn new(start: u64, end: u64) -> Extents {
        Extents { start, end, next: None, list: Vec::new() }
    }

    /// What `nbdkit_add_extent` does: bytes outside of the range are left out, and neighbours of
    /// one type are merged.
    pub(super) fn add(&mut self, offset: u64, length: u64, kind: u32) -> Result<(), Wrong> {
        let wrong = |errno, message| Err(Wrong { errno, message });
        if length == 0 {
            return Ok(());
        }
        if let Some(next) = self.next.filter(|next| *next != offset) {
            let message = format!(
                "nbdkit_add_extent: extents must be added in ascending order and must be contiguous \
                 (offset {offset}, expected {next})"
            );
            return wrong(libc::ERANGE, message);
        }
        let Some(end) = offset.checked_add(length) else {
            return wrong(libc::ERANGE, format!("nbdkit_add_extent: offset {offset} and length {length} overflow"));
        };
        self.next = Some(end);
        if self.list.len() >= MAX_EXTENTS || offset >= self.end {
            return Ok(());
        }
        let (from, to) = (offset.max(self.start), end.min(self.end));
        if end <= self.start {
            return Ok(());
        }
        if self.list.is_empty() && from > self.start {
            let message = format!("nbdkit_add_extent: first extent must not be > start ({offset} > {})", self.start);
            return wrong(libc::ERANGE, message);
        }
        match self.list.last_mut() {
            Some((_, last, same)) if *same == kind => *last += to - from,
            _ => self.list.push((from, to - from, kind)),
        }
        Ok(())
    }

    pub(super) fn as_slice(&self) -> &[(u64, u64, u32)] {
        &self.list
    }

    /// The answer: as many as fit into `room` bytes.
    pub(super) fn packet(&self, room: usize) -> Packet {
        let fitting = self.list.iter().take(room / ENTRY);
        fitting.fold(Packet::fields(), |packet, (_, length, kind)| packet.number(*length).number((*kind).into()))
    }
}

/// Bytes of an extent in an answer.
const ENTRY: usize = 16;

/// `struct nbdkit_exports`.
#[derive(Default)]
pub(super) struct Exports {
    pub(super) list: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The plugin wants its default export listed.
    pub(super) use_default: bool,
}

impl Exports {
    /// What `nbdkit_add_export` does.
    pub(super) fn add(&mut self, name: &[u8], description: Option<&[u8]>) -> Result<(), Wrong> {
        let wrong = |errno, message: String| Err(Wrong { errno, message });
        if self.list.len() >= MAX_EXPORTS {
            return wrong(libc::EINVAL, "nbdkit_add_export: too many exports".into());
        }
        if name.len() > MAX_STRING || description.is_some_and(|text| text.len() > MAX_STRING) {
            return wrong(libc::EINVAL, "nbdkit_add_export: string too long".into());
        }
        self.list.push((name.to_vec(), description.map(<[u8]>::to_vec)));
        Ok(())
    }

    pub(super) fn packet(&self) -> Packet {
        let begin = Packet::fields().number(self.list.len() as u64);
        self.list.iter().fold(begin, |packet, (name, description)| packet.text(name).optional(description.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_the_range_and_merged() {
        let mut extents = Extents::new(10, 30);
        for (offset, length, kind) in [(0, 5, 3), (5, 10, 0), (15, 5, 0), (20, 5, 3), (25, 100, 0), (125, 1, 3)] {
            extents.add(offset, length, kind).unwrap();
        }
        assert_eq!(extents.as_slice(), [(10, 10, 0), (20, 5, 3), (25, 5, 0)]);
    }

    #[test]
    fn extents_with_gaps_are_refused() {
        let mut extents = Extents::new(10, 30);
        assert_eq!(extents.add(11, 1, 0).unwrap_err().errno, libc::ERANGE);
        let mut extents = Extents::new(10, 30);
        extents.add(10, 5, 0).unwrap();
        assert!(extents.add(14, 5, 0).is_err() && extents.add(16, 5, 0).is_err());
        assert!(extents.add(15, u64::MAX, 0).is_err());
    }
}
