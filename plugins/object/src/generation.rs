//! Who may write: the generation of a disk.
//!
//! A disk of many objects has an object `KEY/generation` that names its writer. A writer takes it
//! before its first write: it puts the next number there, under the condition that nobody else does
//! so at the same time. From then on an older writer is found out:
//!
//! * What it wants to replace has another tag, if the newer one has written it. The condition of
//!   the request fails, and the older one looks at the generation.
//! * What it does not know it asks for. After the answer it looks at the generation once more, and
//!   writes only if that is still its own: so the answer was given before the newer writer began.
//! * Each flush looks at the generation, and so does a write if nothing has for a second.
//!
//! The older writer writes nothing more, and says in a line who the newer one is.
//!
//! The object's name comes after those of all blocks, which are hexadecimal numbers, and nbdkit's
//! S3 plugin leaves it alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use rbdkit_plugin_api::text::one_line_within;
use rbdkit_plugin_api::{Errno, Error, Result, lock};

use crate::store::{Condition, Failure, Object, Purpose, Store, Tag};
use crate::tags::Clock;

/// The longest object that is read, in bytes. Ours have about 200.
const LONGEST: u64 = 4096;

/// The bytes that follow a block in some objects.
pub(crate) const SUFFIX: u64 = 16;

/// How often to take the generation if others do so at the same time.
const ATTEMPTS: u32 = 8;

/// A write looks at the generation if nothing has for so long.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the first line says.
const MAGIC: &str = "rbdkit object disk";

/// What an object `KEY/generation` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    number: u64,
    object_size: u64,
    writer: String,
    /// Tells writers apart that have the same number, host and process.
    id: String,
}

impl Claim {
    fn text(&self) -> String {
        let Claim { number, object_size, writer, id } = self;
        format!("{MAGIC}\ngeneration {number}\nobject-size {object_size}\nwriter {writer}\nid {id}\n")
    }

    fn parse(bytes: &[u8]) -> Option<Claim> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        if lines.next()? != MAGIC {
            return None;
        }
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        Some(Claim {
            number: value("generation")?.parse().ok()?,
            object_size: value("object-size")?.parse().ok()?,
            writer: one_line_within(value("writer")?, 200),
            id: value("id")?.to_owned(),
        })
    }
}

/// The generation of one disk.
pub(crate) struct Generation {
    store: Arc<Store>,
    clock: Arc<Clock>,
    /// The disk, for messages.
    disk: String,
    key: Path,
    probe: Path,
    object_size: u64,
    /// What we have taken.
    held: tokio::sync::Mutex<Option<Claim>>,
    /// Set once it is taken: whether a DELETE of this store keeps to its condition.
    taken: OnceLock<bool>,
    /// The generation was ours at this time.
    verified: AtomicU64,
    /// The same by the machine's clock.
    looked: Mutex<Option<Instant>>,
    /// The line about the newer writer, once there is one.
    lost: OnceLock<String>,
}

impl Generation {
    pub(crate) fn new(
        store: Arc<Store>,
        clock: Arc<Clock>,
        disk: String,
        prefix: &Path,
        object_size: u64,
    ) -> Generation {
        Generation {
            store,
            clock,
            disk,
            key: prefix.clone().join("generation"),
            probe: prefix.clone().join("generation-probe"),
            object_size,
            held: tokio::sync::Mutex::default(),
            taken: OnceLock::new(),
            verified: AtomicU64::new(0),
            looked: Mutex::default(),
            lost: OnceLock::new(),
        }
    }

    /// Checks when the disk is opened that its objects have the size that was given.
    pub(crate) async fn check_layout(&self, prefix: &Path) -> Result<()> {
        let wrong = |size: u64| {
            let given = self.object_size;
            Err(Error::new(
                Errno::Einval,
                format!("object: {}: its objects have {size} bytes, which object-size={given} does not fit", self.disk),
            ))
        };
        match self.read(Purpose::Read).await? {
            Some((_, claim)) if claim.object_size != self.object_size => wrong(claim.object_size),
            Some(_) => Ok(()),
            None => {
                // nbdkit's plugin writes no generation. Its first object shows the size.
                let sizes = [self.object_size, self.object_size + SUFFIX];
                let first = self.store.list(Purpose::Read, prefix, None, prefix.as_ref(), 1).await;
                let first = first.map_err(|failure| failure.into_error(&format!("listing {}", self.disk)))?;
                match first.first() {
                    Some((name, object)) if is_block(name) && !sizes.contains(&object.size) && object.size != 0 => {
                        wrong(object.size)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// What the store says now.
    async fn read(&self, purpose: Purpose) -> Result<Option<(Object, Claim)>> {
        match self.store.read_whole(purpose, &self.key, LONGEST).await {
            Ok((object, bytes)) => match Claim::parse(&bytes) {
                Some(claim) => Ok(Some((object, claim))),
                None => Err(Error::new(
                    Errno::Eio,
                    format!("object: {}: the object {} is not one of rbdkit's", self.disk, self.key),
                )),
            },
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.into_error(&format!("reading the generation of {}", self.disk))),
        }
    }

    /// Takes the generation, if this process has not yet. Returns whether a DELETE keeps to its
    /// condition.
    pub(crate) async fn take(&self) -> Result<bool> {
        self.not_lost()?;
        if let Some(deletes) = self.taken.get() {
            return Ok(*deletes);
        }
        let mut held = self.held.lock().await;
        if let Some(deletes) = self.taken.get() {
            return Ok(*deletes);
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| Error::new(Errno::Eio, format!("object: no random number: {error}")))?;
        let id = rbdkit_plugin_api::hex::encode(id);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let writer = format!("host {} process {}", one_line_within(&host, 100), std::process::id());
        for _ in 0..ATTEMPTS {
            let started = self.clock.now();
            let before = self.read(Purpose::Write).await?;
            let (number, condition) = match before {
                // Our own, if the answer to an earlier attempt was lost.
                Some((_, claim)) if claim.id == id => return self.taken(&mut held, claim, started).await,
                Some((object, claim)) => (claim.number.saturating_add(1), Condition::Is(object.tag)),
                None => (1, Condition::Absent),
            };
            let claim = Claim { number, object_size: self.object_size, writer: writer.clone(), id: id.clone() };
            match self.store.put(&self.key, Bytes::from(claim.text()), &condition).await.result {
                Ok(_) => return self.taken(&mut held, claim, started).await,
                Err(Failure::Changed | Failure::Missing) => {}
                Err(failure) => return Err(failure.into_error(&format!("taking the generation of {}", self.disk))),
            }
        }
        let text = format!("object: {}: other writers take its generation again and again", self.disk);
        Err(Error::new(Errno::Eio, text))
    }

    async fn taken(&self, held: &mut Option<Claim>, claim: Claim, started: u64) -> Result<bool> {
        let deletes = self.deletes_keep_to_conditions().await?;
        tracing::debug!(
            "object: {}: this is generation {}; a DELETE {} to its condition",
            self.disk,
            claim.number,
            if deletes { "keeps" } else { "does not keep" }
        );
        *held = Some(claim);
        self.is_ours(started);
        let _ = self.taken.set(deletes);
        Ok(deletes)
    }

    /// Tries it with an object of its own. A store that does not know the condition deletes it.
    async fn deletes_keep_to_conditions(&self) -> Result<bool> {
        let failed = |failure: Failure| failure.into_error(&format!("trying a DELETE beside {}", self.disk));
        let tag = match self.store.put(&self.probe, Bytes::from_static(b"x"), &Condition::Absent).await.result {
            Ok(tag) => tag,
            // A writer that was killed has left it.
            Err(Failure::Changed) => match self.store.head(Purpose::Write, &self.probe).await {
                Ok(object) => object.tag,
                Err(Failure::Missing) => return Ok(false),
                Err(failure) => return Err(failed(failure)),
            },
            Err(failure) => return Err(failed(failure)),
        };
        let other = |text: &Option<String>, other: &str| text.as_ref().map(|_| other.to_owned());
        let wrong =
            Tag { e_tag: other(&tag.e_tag, "\"00000000000000000000000000000000\""), version: other(&tag.version, "1") };
        let keeps = matches!(self.store.delete(&self.probe, &wrong).await.result, Err(Failure::Changed));
        if keeps {
            // If this fails the next writer finds it.
            let _ = self.store.delete(&self.probe, &tag).await.result;
        }
        Ok(keeps)
    }

    /// Whether the generation was ours at a time after `since`. Asks the store if that is not
    /// known.
    ///
    /// # Errors
    /// There is a newer writer, or the store does not answer.
    pub(crate) async fn verify(&self, since: u64) -> Result<()> {
        self.not_lost()?;
        let is_old = lock(&self.looked).is_some_and(|looked| looked.elapsed() > INTERVAL);
        let since = if is_old { since.max(self.verified.load(Ordering::SeqCst)) } else { since };
        if self.verified.load(Ordering::SeqCst) > since {
            return Ok(());
        }
        let held = self.held.lock().await;
        // Somebody else has asked meanwhile.
        if self.verified.load(Ordering::SeqCst) > since {
            return Ok(());
        }
        let Some(own) = &*held else { return Ok(()) };
        let started = self.clock.now();
        match self.read(Purpose::Write).await? {
            Some((_, claim)) if claim.id == own.id => {
                self.is_ours(started);
                Ok(())
            }
            Some((object, newer)) => {
                let line = format!(
                    "object: {}: a newer writer has taken it: generation {} of {}, at {}; this one, generation {}, \
                     writes nothing more",
                    self.disk, newer.number, newer.writer, object.modified, own.number,
                );
                tracing::error!("{line}");
                let _ = self.lost.set(line);
                self.not_lost()
            }
            None => Err(Error::new(
                Errno::Eio,
                format!("object: {}: somebody has deleted its object {}", self.disk, self.key),
            )),
        }
    }

    /// The generation was ours at this time.
    fn is_ours(&self, started: u64) {
        self.verified.fetch_max(started, Ordering::SeqCst);
        *lock(&self.looked) = Some(Instant::now());
    }

    /// Whether this process has taken the generation.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken.get().is_some()
    }

    fn not_lost(&self) -> Result<()> {
        match self.lost.get() {
            Some(line) => Err(Error::new(Errno::Eio, line.clone())),
            None => Ok(()),
        }
    }
}

/// Whether a name ends as that of a block does.
fn is_block(name: &str) -> bool {
    let digits = name.rsplit('/').next().unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_back_and_anything_else_is_none() {
        let claim = Claim { number: 7, object_size: 4096, writer: "host a process 1".into(), id: "ab".into() };
        let text = claim.text();
        assert_eq!(Claim::parse(text.as_bytes()), Some(claim));
        for end in 0..text.len() - 3 {
            assert_eq!(Claim::parse(&text.as_bytes()[..end]), None, "{end}");
        }
        assert_eq!(Claim::parse(text.replace("generation 7", "generation -7").as_bytes()), None);
        assert_eq!(Claim::parse(&[0xff; 100]), None);
    }
}
