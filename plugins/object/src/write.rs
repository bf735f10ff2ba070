//! Changing one block of a disk of many objects.
//!
//! The condition of each request is what was known of the block before it, at a time at which this
//! process was the disk's writer. If the store says that it is not so, there are three reasons,
//! which are looked for in this order: the object is the one that we wanted to write, because the
//! answer to an earlier attempt was lost; there is a newer writer, and this one has to end; or
//! something else has changed the object, and it is read anew.
//!
//! The tag of S3 is a hash of the content, so a content that comes back brings its tag back. Then a
//! request that was given up long ago, and which the store carries out only now, would find its
//! condition true. So after an attempt that may still be under way the block is *doubtful*: its
//! objects get some random bytes behind the block, which give each a tag of its own, and they are
//! no longer deleted. Whoever reads the block's range, as nbdkit's plugin does, does not see them.

use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;
use rbdkit_plugin_api::{Errno, Error, Result, lock};

use crate::blocks::Blocks;
use crate::erase::Erase;
use crate::generation::SUFFIX;
use crate::store::{Condition, Failure, Purpose, Tag};
use crate::tags::Known;

/// How often a block is read anew because something else changes it.
const ATTEMPTS: u32 = 8;

impl Blocks {
    /// Writes the part `within` of a block; without bytes, zeroes.
    pub(crate) async fn write_block(&self, block: u64, within: Range<u64>, bytes: Option<&[u8]>) -> Result<()> {
        let _room = self.room().await?;
        self.generation.take().await?;
        let _lock = self.locks.lock(block).await;
        let is_whole = within.end - within.start == self.block_size;
        let at = within.start as usize..within.end as usize;
        for _ in 0..ATTEMPTS {
            let (known, before) = match is_whole {
                true => (self.known(block).await?, None),
                false => self.read_whole_block(block).await?,
            };
            let mut content = match (before, bytes) {
                // Nothing is there, and zeroes change nothing.
                (None, None) => {
                    self.generation.verify(known.learnt).await?;
                    return Ok(());
                }
                (None, Some(bytes)) if is_whole => bytes.to_vec(),
                (None, Some(_)) => vec![0; self.block_size as usize],
                (Some(content), _) => content,
            };
            match bytes {
                Some(bytes) => content[at.clone()].copy_from_slice(bytes),
                None => content[at.clone()].fill(0),
            }
            if self.put(block, known, content).await? {
                return Ok(());
            }
        }
        Err(self.contended(block))
    }

    /// Takes the data of a whole block away.
    pub(crate) async fn erase(&self, block: u64, why: Erase) -> Result<()> {
        let deletes = self.generation.take().await?;
        let _lock = self.locks.lock(block).await;
        for _ in 0..ATTEMPTS {
            let known = self.known(block).await?;
            let Some(tag) = known.tag.clone() else {
                return self.generation.verify(known.learnt).await;
            };
            let done = match (deletes, self.tags.is_doubtful(block), why) {
                (_, true, Erase::Trim) => return Ok(()),
                (_, true, Erase::Zero) => {
                    let _room = self.room().await?;
                    self.put(block, known, vec![0; self.block_size as usize]).await?
                }
                (true, false, _) => self.delete(block, known, &tag).await?,
                (false, false, _) => self.put(block, known, Vec::new()).await?,
            };
            if done {
                return Ok(());
            }
        }
        Err(self.contended(block))
    }

    fn contended(&self, block: u64) -> Error {
        let text = "something else changes the object again and again".to_owned();
        self.error(Failure::Final(Errno::Eio, text), "writing", block)
    }

    /// What is known of a block; asks the store if nothing is.
    async fn known(&self, block: u64) -> Result<Known> {
        if let Some(known) = self.tags.get(block) {
            return Ok(known);
        }
        match self.store.head(Purpose::Write, &self.key(block)).await {
            Ok(object) => Ok(self.learn(block, Some(&object))),
            Err(Failure::Missing) => Ok(self.learn(block, None)),
            Err(failure) => Err(self.error(failure, "reading", block)),
        }
    }

    /// A block and its content; none for a hole.
    async fn read_whole_block(&self, block: u64) -> Result<(Known, Option<Vec<u8>>)> {
        if let Some(known) = self.tags.get(block).filter(|known| known.tag.is_none()) {
            return Ok((known, None));
        }
        let content = Mutex::new(vec![0; self.block_size as usize]);
        let take = |at: u64, part: &[u8]| {
            if let Some(to) = lock(&content).get_mut(at as usize..).and_then(|to| to.get_mut(..part.len())) {
                to.copy_from_slice(part);
            }
        };
        match self.read_block(Purpose::Write, block, 0..self.block_size, &take).await? {
            Some(known) => Ok((known, Some(content.into_inner().unwrap_or_else(|lost| lost.into_inner())))),
            // Read as a hole just now, so something is known of it.
            None => Ok((self.known(block).await?, None)),
        }
    }

    /// Puts the content of a block. False: the block was not as it was known, and is to be read
    /// anew.
    async fn put(&self, block: u64, known: Known, mut content: Vec<u8>) -> Result<bool> {
        self.generation.verify(known.learnt).await?;
        if !content.is_empty() && self.tags.is_doubtful(block) {
            let mut suffix = [0; SUFFIX as usize];
            getrandom::fill(&mut suffix)
                .map_err(|error| Error::new(Errno::Eio, format!("object: no random number: {error}")))?;
            content.extend_from_slice(&suffix);
        }
        let content = Bytes::from(content);
        let condition = Condition::from(known.tag);
        let attempted = self.store.put(&self.key(block), content.clone(), &condition).await;
        if attempted.unsure {
            self.tags.set_doubtful(block);
        }
        match attempted.result {
            Ok(tag) => {
                self.tags.set(block, Known { tag: Some(tag), learnt: 0 });
                Ok(true)
            }
            Err(Failure::Changed | Failure::Missing) => {
                self.tags.forget(block);
                if attempted.unsure && self.is_ours(block, &content).await? {
                    return Ok(true);
                }
                self.generation.verify(self.clock.now()).await?;
                Ok(false)
            }
            Err(failure) => {
                // Nobody knows what is there now.
                self.tags.forget(block);
                Err(self.error(failure, "writing", block))
            }
        }
    }

    /// Whether the object is what we wanted to put.
    async fn is_ours(&self, block: u64, content: &Bytes) -> Result<bool> {
        let same = Mutex::new(true);
        let take = |at: u64, part: &[u8]| {
            let ours = content.get(at as usize..).and_then(|rest| rest.get(..part.len()));
            if at == 0 {
                // An attempt begins anew.
                *lock(&same) = true;
            }
            *lock(&same) &= ours == Some(part);
        };
        let read = self.read_block(Purpose::Write, block, 0..self.block_size, &take).await?;
        match (read, content.is_empty()) {
            (Some(_), false) => Ok(*lock(&same)),
            (None, true) => Ok(self.tags.get(block).is_some_and(|known| known.tag.is_some())),
            _ => Ok(false),
        }
    }

    /// Deletes the object of a block. False: as for [`Blocks::put`].
    async fn delete(&self, block: u64, known: Known, tag: &Tag) -> Result<bool> {
        self.generation.verify(known.learnt).await?;
        match self.store.delete(&self.key(block), tag).await.result {
            // There is none, perhaps by an attempt whose answer was lost.
            Ok(()) | Err(Failure::Missing) => {
                self.tags.set(block, Known { tag: None, learnt: 0 });
                Ok(true)
            }
            Err(Failure::Changed) => {
                self.tags.forget(block);
                self.generation.verify(self.clock.now()).await?;
                Ok(false)
            }
            Err(failure) => {
                self.tags.forget(block);
                Err(self.error(failure, "erasing", block))
            }
        }
    }
}
