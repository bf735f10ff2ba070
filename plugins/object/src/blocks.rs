//! A disk of many objects, in the layout of nbdkit's S3 plugin: block N is the object
//! `KEY/%016x`. A block without an object is a hole, and so is one whose object is empty.
//!
//! Every write is at the store when it is answered, so a flush has only to look whether there is a
//! newer writer ([`Generation`]).

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use rbdkit_plugin_api::{Errno, Error, Extents, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::erase::Erase;
use crate::generation::{Generation, SUFFIX};
use crate::locks::BlockLocks;
use crate::pieces::{pieces, whole_blocks};
use crate::store::{Failure, Object, Purpose, Store};
use crate::tags::{Clock, Known, Tags};

/// The blocks of one operation that are read or written at a time.
pub(crate) const AT_A_TIME: usize = 16;

/// The memory for blocks that are written, in bytes, if one block does not need more.
const WRITE_MEMORY: u64 = 64 << 20;

/// The unit in which that memory is given out.
const UNIT: u64 = 512;

/// The lists under way at a time.
const MAX_LISTS: usize = 8;

/// The objects that are listed for one answer. They need about 200 bytes each.
const MAX_LISTED: usize = 1000;

/// The sizes that the object of a block can have, besides 0.
pub(crate) const fn sizes(block_size: u64) -> [u64; 2] {
    [block_size, block_size + SUFFIX]
}

/// A disk of many objects.
pub(crate) struct Blocks {
    pub(crate) store: Arc<Store>,
    pub(crate) size: u64,
    pub(crate) block_size: u64,
    /// The disk, for messages.
    pub(crate) disk: String,
    pub(crate) generation: Generation,
    pub(crate) tags: Tags,
    pub(crate) clock: Arc<Clock>,
    pub(crate) locks: BlockLocks,
    prefix: Path,
    memory: Semaphore,
    /// Turns of those that list: a page of a list is 400 KB of text.
    lists: Semaphore,
    /// The units of one block.
    charge: u32,
}

impl Blocks {
    pub(crate) fn new(store: Arc<Store>, disk: String, prefix: Path, size: u64, block_size: u64) -> Blocks {
        let clock = Arc::new(Clock::default());
        let generation = Generation::new(Arc::clone(&store), Arc::clone(&clock), disk.clone(), &prefix, block_size);
        // A block that is changed is there twice: as it was read, and as it is compared.
        let one = 2 * block_size.div_ceil(UNIT);
        Blocks {
            store,
            size,
            block_size,
            disk,
            generation,
            tags: Tags::default(),
            clock,
            locks: BlockLocks::new(),
            prefix,
            memory: Semaphore::new((WRITE_MEMORY / UNIT).max(one) as usize),
            lists: Semaphore::new(MAX_LISTS),
            charge: u32::try_from(one).unwrap_or(u32::MAX),
        }
    }

    /// What is wrong with the disk as it is given.
    pub(crate) async fn check(&self) -> Result<()> {
        self.generation.check_layout(&self.prefix).await
    }

    pub(crate) fn key(&self, block: u64) -> Path {
        self.prefix.clone().join(format!("{block:016x}"))
    }

    pub(crate) fn error(&self, failure: Failure, what: &str, block: u64) -> Error {
        failure.into_error(&format!("{what} block {block} of {}", self.disk))
    }

    /// Room for a block in memory.
    pub(crate) async fn room(&self) -> Result<SemaphorePermit<'_>> {
        let room = self.memory.acquire_many(self.charge).await;
        room.map_err(|error| Error::new(Errno::Enomem, format!("object: {error}")))
    }

    /// Learns what the store says of a block.
    pub(crate) fn learn(&self, block: u64, object: Option<&Object>) -> Known {
        let known = Known { tag: object.map(|object| object.tag.clone()), learnt: self.clock.now() };
        self.tags.set(block, known.clone());
        known
    }

    fn learn_for(&self, purpose: Purpose, block: u64, object: Option<&Object>) -> Known {
        match purpose {
            Purpose::Write => self.learn(block, object),
            Purpose::Read => Known { tag: object.map(|object| object.tag.clone()), learnt: 0 },
        }
    }

    /// Reads the part `within` of a block. None: the block is a hole. `take` gets the bytes with
    /// their place in the part. Only those who hold the block's lock learn from it, because an
    /// answer to anybody else may be older than what is known.
    pub(crate) async fn read_block(
        &self,
        purpose: Purpose,
        block: u64,
        within: std::ops::Range<u64>,
        take: &(dyn Fn(u64, &[u8]) + Send + Sync),
    ) -> Result<Option<Known>> {
        let key = self.key(block);
        match self.store.read(purpose, &key, within, (sizes(self.block_size), None), take).await {
            Ok(object) => Ok(Some(self.learn_for(purpose, block, Some(&object)))),
            Err(Failure::Missing) => {
                self.learn_for(purpose, block, None);
                Ok(None)
            }
            // An empty object has no bytes at all.
            Err(Failure::NoSuchRange | Failure::Changed) => {
                let object = match self.store.head(purpose, &key).await {
                    Ok(object) => object,
                    Err(Failure::Missing) => {
                        self.learn_for(purpose, block, None);
                        return Ok(None);
                    }
                    Err(failure) => return Err(self.error(failure, "reading", block)),
                };
                match object.size {
                    0 => {
                        self.learn_for(purpose, block, Some(&object));
                        Ok(None)
                    }
                    size if sizes(self.block_size).contains(&size) => {
                        Err(self.error(Failure::Changed, "reading", block))
                    }
                    size => {
                        let text = format!("the object has {size} bytes instead of {}", self.block_size);
                        Err(self.error(Failure::Final(Errno::Eio, text), "reading", block))
                    }
                }
            }
            Err(failure) => Err(self.error(failure, "reading", block)),
        }
    }

    /// The extents of a range, and what follows it as far as the store's answer goes.
    pub(crate) async fn extents(&self, offset: u64, length: u64) -> Result<Extents> {
        let first = offset / self.block_size;
        let last = (offset + length - 1) / self.block_size;
        let (present, known_until) = self.present(Purpose::Read, first, last).await?;
        let mut extents = Extents::new(offset, length);
        let mut push = |until: u64, hole: bool| {
            let until = until.min(self.size);
            until <= extents.next_offset() || extents.push(until - extents.next_offset(), hole, hole)
        };
        for (block, object) in present {
            let begin = block.saturating_mul(self.block_size);
            let end = begin.saturating_add(self.block_size);
            if !push(begin, true) || (begin < self.size && !push(end, object.size == 0)) {
                return Ok(extents);
            }
        }
        push(known_until, true);
        match extents.as_slice().is_empty() {
            true => Ok(Extents::all_data(offset, length)),
            false => Ok(extents),
        }
    }

    /// The blocks from `first` on that have objects, at least up to `last`, and the byte up to
    /// which others have none. Long lists are cut.
    async fn present(&self, purpose: Purpose, first: u64, last: u64) -> Result<(Vec<(u64, Object)>, u64)> {
        let _turn = self.lists.acquire().await;
        // The last name that comes before that of the first block.
        let after = first.checked_sub(1).map(|before| self.key(before));
        let end = self.key(last);
        let list = self.store.list(purpose, &self.prefix, after.as_ref(), end.as_ref(), MAX_LISTED).await;
        let list = list.map_err(|failure| failure.into_error(&format!("listing {}", self.disk)))?;
        let is_cut = list.len() >= MAX_LISTED;
        let (mut present, mut expected) = (Vec::new(), first);
        // Without another name after them, no block follows.
        let mut until = self.size;
        for (name, object) in list {
            let Some(block) = self.block(&name) else {
                // Something else is among the blocks. What follows it was not listed.
                if name.as_str() > end.as_ref() && name.as_str() < self.after_blocks().as_ref() {
                    until = last.saturating_add(1).saturating_mul(self.block_size);
                }
                continue;
            };
            if block < expected {
                let text = format!("object: listing {}: the store's list is not in order", self.disk);
                return Err(Error::new(Errno::Eio, text));
            }
            expected = block.saturating_add(1);
            if block > last {
                until = block.saturating_mul(self.block_size);
            }
            present.push((block, object));
        }
        if is_cut {
            until = expected.saturating_mul(self.block_size);
        }
        Ok((present, until))
    }

    /// A name after those of all blocks.
    fn after_blocks(&self) -> Path {
        self.prefix.clone().join("g")
    }

    /// The block whose object has this name.
    fn block(&self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix.as_ref())?.strip_prefix('/')?;
        let is_hex = digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex { u64::from_str_radix(digits, 16).ok() } else { None }
    }

    /// Deletes the objects of the blocks that the range covers whole.
    pub(crate) async fn trim(&self, offset: u64, length: u64) -> Result<()> {
        let mut blocks = whole_blocks(offset, length, self.block_size);
        while !blocks.is_empty() {
            let (present, _) = self.present(Purpose::Write, blocks.start, blocks.end - 1).await?;
            let is_cut = present.len() >= MAX_LISTED;
            let within: Vec<u64> =
                present.iter().map(|(block, _)| *block).filter(|block| blocks.contains(block)).collect();
            let next = within.last().map_or(blocks.end, |last| last + 1);
            let erased = stream::iter(within).map(|block| self.erase(block, Erase::Trim));
            erased.buffer_unordered(AT_A_TIME).try_collect::<()>().await?;
            if !is_cut {
                break;
            }
            blocks.start = next;
        }
        Ok(())
    }

    /// Makes the range read as zero.
    pub(crate) async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        // A list could leave out an object, which would then not be zero. So each block is asked
        // for.
        let zeroed = stream::iter(pieces(offset, length, self.block_size)).map(|piece| async move {
            match piece.length() == self.block_size {
                true => self.erase(piece.block, Erase::Zero).await,
                false => self.write_block(piece.block, piece.within.clone(), None).await,
            }
        });
        zeroed.buffer_unordered(AT_A_TIME).try_collect().await
    }

    /// Writes bytes.
    pub(crate) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = stream::iter(pieces(offset, bytes.len() as u64, self.block_size)).map(|piece| async move {
            let part = &bytes[piece.at as usize..][..piece.length() as usize];
            self.write_block(piece.block, piece.within.clone(), Some(part)).await
        });
        written.buffer_unordered(AT_A_TIME).try_collect().await
    }

    /// All that was written is at the store already.
    pub(crate) async fn flush(&self) -> Result<()> {
        match self.generation.is_taken() {
            true => self.generation.verify(self.clock.now()).await,
            false => Ok(()),
        }
    }
}
