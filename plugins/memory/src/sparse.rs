//! Sparse storage: a tree of pages that exist only where something other than zero was written.
//!
//! The tree scales because descending it takes no lock: a node is never removed, and is published
//! by a [`OnceLock`], which takes one load to read. Each page has a lock of its own, so two
//! requests wait for each other only if they use the same page.
//!
//! The disk can be huge because the tree is only as high as the size needs (two levels for 8 GiB,
//! six for 2^63 bytes), and because nodes are made by the first write below them. Nodes are not
//! freed with their pages. A leaf takes 12 KiB for 16 MiB of disk, so a client that writes one page
//! in each 16 MiB pays 12 KiB of leaf for 32 KiB of page.

use std::ops::ControlFlow;
use std::sync::{OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rbdkit_plugin_api::{Buffer, Extents, Flags, Result, Span, is_all_zero, read_lock, write_lock};
use rbdkit_ram_disk::{PAGE, Page, Pages, Storage, Zero};

/// The logarithm of the number of children of a node. With 2^9 a node takes 8 to 12 KiB, and the
/// tree is low.
const FANOUT_BITS: u32 = 9;
const FANOUT: usize = 1 << FANOUT_BITS;

/// How many pages, or runs without pages, an extents request looks at beyond its range: 16 MiB of
/// pages, which takes some 10 us.
const PIECES_BEYOND: u32 = 512;

/// A place for a page. It reads as zero if there is none.
struct Slot(RwLock<Option<Page>>);

impl Slot {
    fn read(&self) -> RwLockReadGuard<'_, Option<Page>> {
        // A panic during a copy breaks no invariant: the bytes are those written so far.
        read_lock(&self.0)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Page>> {
        write_lock(&self.0)
    }
}

#[expect(clippy::large_enum_variant, reason = "always boxed, and there is one branch to 512 leaves")]
enum Node {
    Branch([OnceLock<Box<Node>>; FANOUT]),
    Leaf([Slot; FANOUT]),
}

impl Node {
    /// A node with `below` levels of nodes below it.
    fn new(below: u32) -> Box<Node> {
        Box::new(match below {
            0 => Node::Leaf(std::array::from_fn(|_| Slot(RwLock::new(None)))),
            _ => Node::Branch(std::array::from_fn(|_| OnceLock::new())),
        })
    }
}

/// The storage. The gate in front of the plugin has checked that all offsets and lengths lie within
/// the size.
pub(crate) struct Sparse {
    root: Box<Node>,
    /// Levels of nodes below the root.
    height: u32,
    pages: Pages,
}

impl Sparse {
    pub(crate) fn new(size: u64, pages: Pages) -> Sparse {
        let count = size.div_ceil(PAGE as u64);
        let mut height = 0;
        while (count.saturating_sub(1) >> (FANOUT_BITS * height)) >= FANOUT as u64 {
            height += 1;
        }
        Sparse { root: Node::new(height), height, pages }
    }

    /// The length of the run at `offset` (at most `length`) that is all holes or all pages, and
    /// whether it is pages.
    fn run(&self, offset: u64, length: u64) -> (u64, bool) {
        let (mut run, mut kind) = (0, None);
        self.each_piece(offset, length, |_, length, slot| {
            let present = slot.is_some_and(|slot| slot.read().is_some());
            if *kind.get_or_insert(present) != present {
                return ControlFlow::Break(());
            }
            run += length;
            ControlFlow::Continue(())
        });
        (run, kind == Some(true))
    }

    /// Copies what is stored at `offset` into all of `bytes`.
    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let mut result = Ok(());
        self.each_piece(offset, bytes.len() as u64, |at, length, slot| {
            let from = (at - offset) as usize;
            let to = &mut bytes[from..from + length as usize];
            match slot.map(Slot::read).as_deref() {
                Some(Some(page)) => result = self.pages.read(page, within(at), to),
                _ => to.fill(0),
            }
            go_on(&result)
        });
        result
    }

    fn write_in_page(&self, piece: &[u8], at: u64) -> Result<()> {
        let number = at / PAGE as u64;
        let slot = match self.slot(number) {
            Some(slot) => slot,
            None if is_all_zero(piece) => return Ok(()),
            None => self.make_slot(number),
        };
        match &mut *slot.write() {
            Some(page) => self.pages.write(page, within(at), piece)?,
            None if is_all_zero(piece) => {}
            place => {
                let write = |bytes: &mut [u8]| bytes[within(at)..][..piece.len()].copy_from_slice(piece);
                *place = Some(self.pages.create(write)?);
            }
        }
        Ok(())
    }

    /// Zeroes a part of a page. Removes and returns the page if it is all zero afterwards.
    fn zero_in_page(&self, place: &mut Option<Page>, from: usize, length: usize) -> Result<Option<Page>> {
        let Some(page) = place.as_mut() else { return Ok(None) };
        let zero = match length {
            PAGE => Zero::All,
            _ => self.pages.change(page, |bytes| bytes[from..from + length].fill(0))?,
        };
        Ok(if zero == Zero::All { place.take() } else { None })
    }

    /// Calls `piece` with (offset, length, slot) for the range's pieces in ascending order: one for
    /// each page that lies in a node that exists, one for each whole run for which there is no
    /// node.
    fn each_piece(&self, offset: u64, length: u64, mut piece: impl FnMut(u64, u64, Option<&Slot>) -> ControlFlow<()>) {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (first, slots) = match self.leaf_from(at / PAGE as u64) {
                Some((first, slots)) if first * (PAGE as u64) < end => (first, slots),
                _ => {
                    let _ = piece(at, end - at, None);
                    return;
                }
            };
            let begin = first * PAGE as u64;
            if begin > at {
                if piece(at, begin - at, None).is_break() {
                    return;
                }
                at = begin;
            }
            for slot in &slots[(at / PAGE as u64) as usize % FANOUT..] {
                if at >= end {
                    return;
                }
                let length = (PAGE - within(at)) as u64;
                let length = length.min(end - at);
                if piece(at, length, Some(slot)).is_break() {
                    return;
                }
                at += length;
            }
        }
    }

    fn slot(&self, page: u64) -> Option<&Slot> {
        let mut node = &self.root;
        let mut level = self.height;
        loop {
            match &**node {
                Node::Leaf(slots) => return Some(&slots[child(page, 0)]),
                Node::Branch(children) => node = children[child(page, level)].get()?,
            }
            level -= 1;
        }
    }

    fn make_slot(&self, page: u64) -> &Slot {
        let mut node = &self.root;
        let mut level = self.height;
        loop {
            match &**node {
                Node::Leaf(slots) => return &slots[child(page, 0)],
                Node::Branch(children) => {
                    node = children[child(page, level)].get_or_init(|| Node::new(level - 1));
                }
            }
            level -= 1;
        }
    }

    /// The leaf of `page`, or the first leaf after it, and the number of its first page.
    fn leaf_from(&self, page: u64) -> Option<(u64, &[Slot; FANOUT])> {
        leaf_from(&self.root, self.height, 0, page)
    }
}

impl Storage for Sparse {
    fn skips_holes(&self) -> bool {
        true
    }

    fn preferred_block(&self) -> u32 {
        PAGE as u32
    }

    /// Reads run by run, so that holes are known as such all the way to the reply.
    fn pread(&self, buffer: &mut Buffer, span: Span, offset: u64) -> Result<()> {
        let mut done = 0;
        while done < span.len {
            let at = offset + u64::from(done);
            let (run, present) = self.run(at, u64::from(span.len - done));
            let part = Span::new(span.at + done, run as u32);
            if present {
                buffer.fill_with(part, |bytes| self.read(bytes, at))?;
            } else {
                buffer.set_zero(part);
            }
            done += part.len;
        }
        Ok(())
    }

    /// Zeroes written where there is no page stay a hole.
    fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(PAGE - within(at)));
            self.write_in_page(piece, at)?;
            at += piece.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// Frees every page that is all zeroes afterwards.
    fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let mut result = Ok(());
        self.each_piece(offset, length, |at, length, slot| {
            if let Some(slot) = slot {
                // The page is freed after its lock is released.
                let freed = self.zero_in_page(&mut slot.write(), within(at), length as usize);
                result = freed.map(drop);
            }
            go_on(&result)
        });
        result
    }

    /// In whole pages.
    fn extents(&self, offset: u64, length: u64, limit: u64, flags: Flags) -> Extents {
        let end = offset + length;
        let mut extents = Extents::new(offset, length);
        let mut beyond = 0;
        self.each_piece(offset, limit - offset, |at, length, slot| {
            let hole = slot.is_none_or(|slot| slot.read().is_none());
            if at >= end {
                beyond += 1;
                if beyond > PIECES_BEYOND || extents.as_slice().last().is_some_and(|last| last.hole != hole) {
                    return ControlFlow::Break(());
                }
            }
            let kept = extents.push(length, hole, hole);
            if !kept || (flags.req_one && extents.as_slice().len() > 1) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        extents
    }
}

/// `first` is the number of the first page under `node`, which has `level` levels below it.
fn leaf_from(node: &Node, level: u32, first: u64, page: u64) -> Option<(u64, &[Slot; FANOUT])> {
    let children = match node {
        Node::Leaf(slots) => return Some((first, slots)),
        Node::Branch(children) => children,
    };
    let from = if page > first { child(page, level) } else { 0 };
    children[from..].iter().zip(from as u64..).find_map(|(node, index)| {
        let first = first + (index << (FANOUT_BITS * level));
        leaf_from(node.get()?, level - 1, first, page)
    })
}

/// The index of the child, of a node with `level` levels below it, that leads to `page`.
fn child(page: u64, level: u32) -> usize {
    (page >> (FANOUT_BITS * level)) as usize % FANOUT
}

/// The position of an offset within its page.
fn within(offset: u64) -> usize {
    (offset % PAGE as u64) as usize
}

/// Ends a walk over pages with the first error.
fn go_on(result: &Result<()>) -> ControlFlow<()> {
    if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sparse {
        fn pages(&self, size: u64) -> usize {
            let mut pages = 0;
            self.each_piece(0, size, |_, _, slot| {
                pages += usize::from(slot.is_some_and(|slot| slot.read().is_some()));
                ControlFlow::Continue(())
            });
            pages
        }
    }

    const MAX: u64 = i64::MAX as u64;

    #[test]
    fn the_tree_is_as_high_as_the_size_needs() {
        let page = PAGE as u64;
        for (size, height) in
            [(0, 0), (1, 0), (512 * page, 0), (512 * page + 1, 1), (8 << 30, 1), (8 << 31, 2), (MAX, 5)]
        {
            assert_eq!(Sparse::new(size, Pages::plain()).height, height, "{size}");
        }
    }

    #[test]
    fn the_last_byte_of_the_largest_disk_can_be_written() {
        let disk = Sparse::new(MAX, Pages::plain());
        disk.pwrite(&[1], MAX - 1).unwrap();
        disk.pwrite(&[2], 0).unwrap();
        disk.pwrite(&[3], 1 << 40).unwrap();
        let mut bytes = [9; 2];
        disk.read(&mut bytes, MAX - 2).unwrap();
        assert_eq!(bytes, [0, 1]);
        let extents = disk.extents(0, MAX, MAX, Flags::NONE);
        let data: Vec<u64> =
            extents.as_slice().iter().filter(|extent| !extent.hole).map(|extent| extent.offset).collect();
        assert_eq!(data, [0, 1 << 40, (MAX - 1) / PAGE as u64 * PAGE as u64]);
        assert_eq!(extents.next_offset(), MAX);
        disk.zero(0, MAX).unwrap();
        assert_eq!(disk.pages(MAX), 0);
        assert_eq!(disk.extents(0, MAX, MAX, Flags::NONE).as_slice().len(), 1);
    }

    #[test]
    fn the_last_extent_runs_on_beyond_the_request_but_not_for_ever() {
        let disk = Sparse::new(1 << 40, Pages::plain());
        let size = 1 << 40;
        let one = |offset| {
            let answer = disk.extents(offset, 512, size, Flags::NONE);
            let [extent] = answer.as_slice() else { panic!("{answer:?}") };
            (extent.hole, extent.end())
        };
        assert_eq!(one(4096), (true, size));
        disk.pwrite(&vec![7; 1024 * PAGE], 1 << 30).unwrap();
        assert_eq!(one(4096), (true, 1 << 30));
        let (hole, end) = one(1 << 30);
        assert!(!hole && end > (1 << 30) + 512 && end <= (1 << 30) + (PIECES_BEYOND as u64 + 1) * PAGE as u64);
        // In the middle of the written pages the answer ends where they end.
        assert_eq!(one((1 << 30) + 800 * PAGE as u64), (false, (1 << 30) + 1024 * PAGE as u64));
    }

    #[test]
    fn zeroed_pages_are_given_back() {
        let disk = Sparse::new(1 << 20, Pages::plain());
        disk.pwrite(&vec![7; 4 * PAGE], 0).unwrap();
        assert_eq!(disk.pages(1 << 20), 4);
        disk.zero(100, 2 * PAGE as u64).unwrap();
        assert_eq!(disk.pages(1 << 20), 3);
        disk.zero(0, 100).unwrap();
        assert_eq!(disk.pages(1 << 20), 2);
        disk.zero(0, 1 << 20).unwrap();
        assert_eq!(disk.pages(1 << 20), 0);
    }

    #[test]
    fn zeroes_written_to_a_hole_take_no_memory() {
        let disk = Sparse::new(1 << 20, Pages::plain());
        disk.pwrite(&vec![0; 4 * PAGE], 0).unwrap();
        assert_eq!(disk.pages(1 << 20), 0);
        disk.pwrite(&[1], 5).unwrap();
        disk.pwrite(&[0; 100], 0).unwrap();
        let mut bytes = [9; 10];
        disk.read(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 10]);
    }
}
