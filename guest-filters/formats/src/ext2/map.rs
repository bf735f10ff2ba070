//! Where the blocks of a file are: a tree of extents, or block numbers with up to three levels of
//! blocks of numbers.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Fields, TableCache};

use crate::mapped::{Place, Run, Runs};

/// The tree is at most this deep, as Linux has it.
const MOST_DEPTH: u16 = 5;

/// Bytes of nodes of the tree that are kept.
const KEPT: usize = 1 << 20;

/// An extent of more blocks than this is one in which nothing was written, with 32768 more.
const MOST_BLOCKS: u16 = 32768;

/// The map of a file.
pub struct Map {
    pub inode: u32,
    pub size: u64,
    pub block_size: u64,
    /// Blocks of the file system.
    pub blocks: u64,
    pub cache: Rc<BlockCache>,
    pub tree: Tree,
}

/// The kind of the map.
pub enum Tree {
    Extents {
        root: Rc<Node>,
        nodes: TableCache<u64, Node>,
    },
    /// The fifteen numbers of the inode.
    Blocks([u32; 15]),
}

/// A node of the tree of extents.
pub struct Node {
    depth: u16,
    /// By their first block in the file.
    entries: Vec<Entry>,
}

struct Entry {
    first: u64,
    /// Blocks. It says nothing in a node whose entries are nodes.
    count: u64,
    written: bool,
    /// The block in the file system.
    block: u64,
}

impl Tree {
    /// The map that is in an inode.
    pub fn of_inode(in_inode: &[u8], has_extents: bool, inode: u32, blocks: u64) -> Result<Tree, Error> {
        if has_extents {
            let root = Rc::new(Node::parse(in_inode, inode, blocks)?);
            return Ok(Tree::Extents { root, nodes: TableCache::new(KEPT) });
        }
        let fields = Fields::little(in_inode, "the inode's block map");
        let mut numbers = [0; 15];
        for (n, number) in numbers.iter_mut().enumerate() {
            *number = fields.u32(4 * n)?;
        }
        Ok(Tree::Blocks(numbers))
    }
}

impl Node {
    fn parse(bytes: &[u8], inode: u32, blocks: u64) -> Result<Node, Error> {
        let fail = |line: String| Err(Error::image(format!("inode {inode}: {line}")));
        let fields = Fields::little(bytes, "a node of the extents");
        let (magic, count, depth) = (fields.u16(0)?, fields.u16(2)?, fields.u16(6)?);
        if magic != 0xf30a {
            return fail(format!("a node of its extents begins with {magic:#x}, not with 0xf30a"));
        }
        if depth > MOST_DEPTH {
            return fail(format!("the tree of its extents has a depth of {depth}, and at most {MOST_DEPTH} is right"));
        }
        let room = (bytes.len() - 12) / 12;
        if usize::from(count) > room {
            return fail(format!("a node of its extents has {count} entries, and room for {room}"));
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(count.into());
        for n in 0..usize::from(count) {
            let at = 12 + 12 * n;
            let first = u64::from(fields.u32(at)?);
            let (count, written, block) = if depth > 0 {
                (1, true, u64::from(fields.u16(at + 8)?) << 32 | u64::from(fields.u32(at + 4)?))
            } else {
                let (length, high) = (fields.u16(at + 4)?, fields.u16(at + 6)?);
                let written = length <= MOST_BLOCKS;
                let count = if written { length } else { length - MOST_BLOCKS };
                (u64::from(count), written, u64::from(high) << 32 | u64::from(fields.u32(at + 8)?))
            };
            if entries.last().is_some_and(|before| before.first + before.count > first) {
                return fail(format!("its extents overlap at block {first} of the file"));
            }
            if count == 0 {
                return fail(format!("the extent at block {first} of the file has no blocks"));
            }
            check_block(inode, first, block, count, blocks)?;
            entries.push(Entry { first, count, written, block });
        }
        Ok(Node { depth, entries })
    }
}

/// # Errors
/// A line if blocks that a map names are not within the file system.
fn check_block(inode: u32, first: u64, block: u64, count: u64, blocks: u64) -> Result<(), Error> {
    if block == 0 || block.checked_add(count).is_none_or(|end| end > blocks) {
        return Err(Error::image(format!(
            "inode {inode}: {count} blocks from block {first} of the file on are at block {block}, and the file system \
             has {blocks} blocks"
        )));
    }
    Ok(())
}

/// Some blocks of a file: how many, and the first one's number in the file system.
struct Blocks {
    count: u64,
    at: Option<u64>,
    written: bool,
}

impl Blocks {
    fn hole(count: u64) -> Blocks {
        Blocks { count, at: None, written: false }
    }
}

impl Map {
    fn of_extents(&self, wanted: u64, root: &Rc<Node>, nodes: &TableCache<u64, Node>) -> Result<Blocks, Error> {
        let mut node = Rc::clone(root);
        // The subtree has blocks before this one.
        let mut end = 1 << 32;
        loop {
            let after = node.entries.partition_point(|entry| entry.first <= wanted);
            end = node.entries.get(after).map_or(end, |entry| entry.first.min(end));
            let Some(entry) = after.checked_sub(1).and_then(|at| node.entries.get(at)) else {
                return Ok(Blocks::hole(end.saturating_sub(wanted).max(1)));
            };
            if node.depth == 0 {
                let skip = wanted - entry.first;
                if skip >= entry.count {
                    return Ok(Blocks::hole(end.saturating_sub(wanted).max(1)));
                }
                let count = entry.count - skip;
                return Ok(Blocks { count, at: Some(entry.block + skip), written: entry.written });
            }
            let (block, depth) = (entry.block, node.depth - 1);
            node = nodes.get_or(block, || {
                let mut bytes = vec![0; self.block_size as usize];
                self.cache.read(block * self.block_size, &mut bytes)?;
                let node = Node::parse(&bytes, self.inode, self.blocks)?;
                let weight = 64 + node.entries.len() * size_of::<Entry>();
                Ok::<_, Error>((node, weight))
            })?;
            if node.depth != depth {
                let line = format!("a node of its extents has the depth {}, and its place {depth}", node.depth);
                return Err(Error::image(format!("inode {}: {line}", self.inode)));
            }
        }
    }

    fn of_blocks(&self, wanted: u64, numbers: &[u32; 15]) -> Result<Blocks, Error> {
        let in_block = self.block_size / 4;
        if let Some(rest) = numbers[..12].get(wanted as usize..).filter(|_| wanted < 12) {
            return self.merged(wanted, rest.iter().copied());
        }
        let mut index = wanted - 12;
        let mut span = 1;
        for number in &numbers[12..] {
            // `span` is the number of blocks that one number of this block stands for.
            if index < span * in_block {
                return self.of_indirect(wanted, index, span, *number);
            }
            index -= span * in_block;
            span *= in_block;
        }
        let most = 12 + in_block + in_block.pow(2) + in_block.pow(3);
        Err(Error::image(format!("inode {}: a block map has {most} blocks, and the file is longer", self.inode)))
    }

    fn of_indirect(&self, wanted: u64, mut index: u64, mut span: u64, mut number: u32) -> Result<Blocks, Error> {
        let in_block = self.block_size / 4;
        loop {
            if number == 0 {
                return Ok(Blocks::hole(span * in_block - index));
            }
            check_block(self.inode, wanted, number.into(), 1, self.blocks)?;
            let nth = index / span;
            let place = u64::from(number) * self.block_size + 4 * nth;
            if span == 1 {
                let numbers = self.cache.from(place)?;
                let (numbers, _) = numbers.as_chunks::<4>();
                return self.merged(wanted, numbers.iter().map(|number| u32::from_le_bytes(*number)));
            }
            number = u32::from_le_bytes(self.cache.array(place)?);
            index %= span;
            span /= in_block;
        }
    }

    /// How many of the first numbers are blocks that follow each other, or holes.
    fn merged(&self, wanted: u64, mut numbers: impl Iterator<Item = u32>) -> Result<Blocks, Error> {
        let Some(first) = numbers.next() else {
            return Err(Error::image(format!("inode {}: its block map is cut at the end of the image", self.inode)));
        };
        if first == 0 {
            return Ok(Blocks::hole(1 + numbers.take_while(|number| *number == 0).count() as u64));
        }
        check_block(self.inode, wanted, first.into(), 1, self.blocks)?;
        let mut count = 1;
        // A number that is not within the file system ends the piece, and is refused when it is
        // wanted.
        for number in numbers {
            let next = u64::from(first) + count;
            if u64::from(number) != next || next >= self.blocks {
                break;
            }
            count += 1;
        }
        Ok(Blocks { count, at: Some(first.into()), written: true })
    }
}

impl Runs for Map {
    fn size(&self) -> u64 {
        self.size
    }

    fn run(&self, offset: u64) -> Result<Run, Error> {
        let (wanted, skip) = (offset / self.block_size, offset % self.block_size);
        let blocks = match &self.tree {
            Tree::Extents { root, nodes } => self.of_extents(wanted, root, nodes)?,
            Tree::Blocks(numbers) => self.of_blocks(wanted, numbers)?,
        };
        let length = blocks.count.saturating_mul(self.block_size) - skip;
        // Block numbers were checked against the number of blocks, whose bytes fit into 64 bits.
        let place = match blocks.at {
            None => Place::Hole,
            Some(_) if !blocks.written => Place::Unwritten,
            Some(at) => Place::At(at * self.block_size + skip),
        };
        Ok(Run { length, place })
    }
}
