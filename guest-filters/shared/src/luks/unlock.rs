//! From a disk and a passphrase to a key in the host.

use locks::{Held, Mode};
use rbdkit_filter_sdk::image::{Error, Source};
use rbdkit_filter_sdk::prelude::*;
use slots::Slot;

use super::header::{self, Found};
use super::luks1;
use super::luks2::{self, Binary, Copy};
use super::volume::{HeaderError, Kdf, KeySlot, Volume};

/// The scope of the keys and of the locks of sectors: the disk.
pub const KEYS: Scope = Scope::Exportname;

/// Slots of the scope below this number are this module's.
pub const SLOTS: u32 = 1;

/// What is known of the disk: three words of the header's digest, and the number of the volume key
/// (0 if no key slot opens).
const KNOWN: Slot = Slot { scope: KEYS, index: 0 };

/// Held while the key is derived, so that it is derived once. No sector is at this offset.
const DERIVING: (u64, u64) = (1 << 63, 1);

/// A disk whose key is in the host.
pub struct Unlocked {
    /// What its header says.
    pub volume: Volume,
    /// The volume key's number.
    pub key: u32,
}

/// Why a disk cannot be unlocked.
pub struct Refusal {
    /// What the client gets.
    pub errno: Errno,
    /// For the log.
    pub line: Option<String>,
}

impl Refusal {
    fn new(errno: Errno, line: impl Into<String>) -> Refusal {
        Refusal { errno, line: Some(line.into()) }
    }
}

impl From<HeaderError> for Refusal {
    fn from(error: HeaderError) -> Refusal {
        let errno = match error {
            HeaderError::Unsupported(_) => Errno::Enotsup,
            HeaderError::Damaged(_) => Errno::Eio,
        };
        Refusal::new(errno, error.to_string())
    }
}

/// The layer below has logged it, or the client has gone.
impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal { errno, line: None }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::Failed(errno) => errno.into(),
            Error::Image(line) => Refusal::new(Errno::Eio, line),
        }
    }
}

/// What a key is made from.
struct Unlocking<'a> {
    source: &'a dyn Source,
    passphrase: &'a Secret,
    filter: &'a str,
}

/// A key that is freed unless it is kept.
struct Key(u32);

impl Key {
    fn keep(self) -> u32 {
        let number = self.0;
        std::mem::forget(self);
        number
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        crypto::free_key(KEYS, self.0);
    }
}

/// Reads the header at the start of `source` and makes the key, unless it is there from an earlier
/// connection. A server has one such key for each export name. `filter` is the filter's name, for
/// messages.
///
/// # Errors
/// The header is wrong or not supported, or the passphrase is.
pub fn unlock(source: &dyn Source, passphrase: &Secret, filter: &str) -> Result<Unlocked, Refusal> {
    let from = Unlocking { source, passphrase, filter };
    let (volume, digest) = read_header(source)?;
    check_cipher(&volume)?;
    let word = |n: usize| digest[n * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let print = [word(0), word(1), word(2)];
    let (offset, length) = DERIVING;
    let held = Held::new(KEYS, offset, length, Mode::Exclusive)?;
    let known = KNOWN.get();
    let key = match [known.a, known.b, known.c] == print {
        true if known.d > 0 => known.d as u32,
        true => return Err(no_slot_opens(&volume)),
        false => {
            // Another header is there now, or none was before.
            crypto::free_key(KEYS, known.d as u32);
            let found = try_slots(&volume, &from)?;
            KNOWN.replace(KNOWN.get(), [print[0], print[1], print[2], found.as_ref().map_or(0, |key| key.0.into())]);
            found.ok_or_else(|| no_slot_opens(&volume))?.keep()
        }
    };
    held.release();
    Ok(Unlocked { volume, key })
}

fn no_slot_opens(volume: &Volume) -> Refusal {
    let line = match &volume.slots[..] {
        [] => "no key slot is in use".to_string(),
        [slot] => format!("the passphrase does not open key slot {}, which is the only one", slot.number),
        slots => format!("the passphrase opens none of the {} key slots", slots.len()),
    };
    Refusal::new(Errno::Eperm, line)
}

/// Tries the key slots in their order. None if no slot opens.
fn try_slots(volume: &Volume, from: &Unlocking) -> Result<Option<Key>, Refusal> {
    let mut refused = None;
    for slot in &volume.slots {
        match try_slot(volume, slot, from) {
            Ok(Some(key)) => return Ok(Some(key)),
            Ok(None) => debug!("the passphrase does not open key slot {}", slot.number),
            // Another slot may need less.
            Err(refusal) if refusal.line.is_some() => {
                refused.get_or_insert(refusal);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    refused.map_or(Ok(None), Err)
}

fn try_slot(volume: &Volume, slot: &KeySlot, from: &Unlocking) -> Result<Option<Key>, Refusal> {
    let number = slot.number;
    let length = slot.material(volume).ok_or(Errno::Eio)?;
    let material = Buffer::new(length).map_err(|errno| {
        Refusal::new(errno, format!("key slot {number} has {length} bytes of key material: that is too much"))
    })?;
    from.source.read_buffer(slot.offset, length, &material, 0)?;
    let wrapping = Key(derive(slot, from.passphrase).map_err(|errno| derive_refused(slot, errno, from.filter))?);
    let (stripes, hash) = (slot.stripes, &slot.hash);
    let unwrapped = crypto::unwrap(KEYS, &volume.cipher, volume.key_bytes, wrapping.0, material.id(), 0, stripes, hash);
    let key = Key(unwrapped.map_err(|errno| match errno {
        Errno::Enotsup => {
            Refusal::new(errno, format!("key slot {number} uses the hash {hash}, which is not supported"))
        }
        Errno::Einval => Refusal::new(errno, format!("key slot {number} has more key material than is allowed")),
        errno => limit_refused(number, errno, from.filter),
    })?);
    let check = &slot.digest;
    let matches = crypto::matches(KEYS, key.0, &check.hash, &check.salt, check.iterations, &check.digest);
    let matches = matches.map_err(|errno| match errno {
        Errno::Enotsup => {
            Refusal::new(errno, format!("its digest uses the hash {}, which is not supported", check.hash))
        }
        Errno::Einval => Refusal::new(
            errno,
            format!(
                "its digest asks for {} iterations of PBKDF2: that is more than is allowed, or none",
                check.iterations
            ),
        ),
        errno => limit_refused(number, errno, from.filter),
    })?;
    Ok(matches.then_some(key))
}

fn derive(slot: &KeySlot, passphrase: &Secret) -> Result<u32, Errno> {
    let (cipher, length) = (&slot.cipher, slot.key_bytes);
    let (param, nth) = (passphrase.param(), passphrase.nth());
    match &slot.kdf {
        Kdf::Pbkdf2 { hash, salt, iterations } => {
            crypto::derive_pbkdf2(KEYS, cipher, length, param, nth, hash, salt, *iterations)
        }
        Kdf::Argon2 { kind, salt, iterations, memory, lanes } => {
            crypto::derive_argon2(KEYS, cipher, length, param, nth, kind, salt, *iterations, *memory, *lanes)
        }
    }
}

fn derive_refused(slot: &KeySlot, errno: Errno, filter: &str) -> Refusal {
    let number = slot.number;
    let line = match (&slot.kdf, errno) {
        (Kdf::Pbkdf2 { hash, .. }, Errno::Enotsup) => {
            format!("key slot {number} uses the hash {hash} or the cipher {}, which is not supported", slot.cipher)
        }
        (Kdf::Pbkdf2 { iterations, .. }, Errno::Einval) => {
            format!(
                "key slot {number} asks for {iterations} iterations of PBKDF2: that is more than is allowed, or none"
            )
        }
        (Kdf::Argon2 { .. }, Errno::Enotsup) => {
            format!("key slot {number} uses the cipher {}, which is not supported", slot.cipher)
        }
        (Kdf::Argon2 { memory, .. }, Errno::Enomem) => format!(
            "key slot {number} asks for {} MiB of memory for Argon2: that is more than the limit key-memory \
             (--filter-limit {filter}:key-memory=SIZE), or than is free",
            memory >> 10
        ),
        (Kdf::Argon2 { iterations, memory, lanes, .. }, Errno::Einval) => format!(
            "key slot {number} asks for {iterations} passes over {memory} KiB in {lanes} lanes of Argon2: that is more \
             than is allowed, or not enough"
        ),
        _ => return limit_refused(number, errno, filter),
    };
    Refusal::new(errno, line)
}

fn limit_refused(number: u32, errno: Errno, filter: &str) -> Refusal {
    match errno {
        Errno::Etimedout => Refusal::new(
            errno,
            format!(
                "key slot {number}: the keys took longer than the limit setup (--filter-limit {filter}:setup=TIME)"
            ),
        ),
        Errno::Eshutdown => errno.into(),
        _ => Refusal::new(errno, format!("key slot {number}: its key cannot be made ({})", errno.name())),
    }
}

/// Refuses an unknown cipher before any key is derived: the host is asked for a key of zeroes.
fn check_cipher(volume: &Volume) -> Result<(), Refusal> {
    let (cipher, length) = (&volume.cipher, volume.key_bytes);
    match crypto::make_key(Scope::Connection, cipher, &vec![0; length as usize]) {
        Ok(key) => {
            crypto::free_key(Scope::Connection, key);
            Ok(())
        }
        Err(errno @ Errno::Enotsup) => Err(Refusal::new(
            errno,
            format!("the cipher {cipher} is not supported: only AES in the modes XTS and CBC is"),
        )),
        Err(errno @ Errno::Einval) => {
            Err(Refusal::new(errno, format!("the header is damaged: {cipher} has no keys of {} bits", length * 8)))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// The header, and a digest of it.
fn read_header(source: &dyn Source) -> Result<(Volume, Vec<u8>), Refusal> {
    let size = source.size();
    let length = size.min(Binary::BYTES.into()) as u32;
    if (length as usize) < luks1::HEADER_BYTES {
        return Err(Refusal::new(Errno::Enotsup, format!("the disk has no LUKS header: it has only {size} bytes")));
    }
    let start = Buffer::new(length)?;
    source.read_buffer(0, length, &start, 0)?;
    let bytes = start.read(..);
    match header::first(&bytes) {
        Ok(Found::Luks1(volume)) => Ok((*volume, start.sha256(..luks1::HEADER_BYTES as u32))),
        Ok(Found::Luks2) => read_luks2(source, None),
        Err(error) => read_luks2(source, Some(error)),
    }
}

/// A copy of a header of LUKS2: its binary part, and all of it in the host.
type HeaderCopy = (Binary, Buffer);

/// Reads a header of LUKS2 from its newer copy that is whole. `not_primary`: there is no primary
/// copy.
fn read_luks2(source: &dyn Source, not_primary: Option<HeaderError>) -> Result<(Volume, Vec<u8>), Refusal> {
    let primary = match not_primary {
        Some(error) => Err(error),
        None => read_copy(source, Copy::Primary, 0)?,
    };
    let places: &[u64] = match &primary {
        Ok((binary, _)) => &[binary.size.into()],
        Err(_) => &Binary::PLACES,
    };
    let mut secondary = None;
    for place in places {
        if let Ok(copy) = read_copy(source, Copy::Secondary, *place)? {
            secondary = Some(copy);
            break;
        }
    }
    let (binary, whole) = match (primary, secondary) {
        (Ok(primary), Some(secondary)) if secondary.0.sequence > primary.0.sequence => {
            debug!("the secondary header is newer and is used");
            secondary
        }
        (Ok(primary), _) => primary,
        (Err(error), Some(secondary)) => {
            warn!("{error}; its secondary copy is whole and is used");
            secondary
        }
        (Err(error), None) => return Err(error.into()),
    };
    let end = whole.find(Binary::BYTES.., &[0]).map_or(binary.size, |zero| Binary::BYTES + zero);
    if end - Binary::BYTES > luks2::LONGEST {
        return Err(luks2::too_long().into());
    }
    Ok((luks2::json(&whole.read(Binary::BYTES..end))?, binary.checksum.to_vec()))
}

/// Reads one copy of a header of LUKS2 and checks its checksum.
fn read_copy(source: &dyn Source, copy: Copy, offset: u64) -> Result<Result<HeaderCopy, HeaderError>, Error> {
    let damaged = |what: &str| Ok(Err(HeaderError::Damaged(what.into())));
    if offset.saturating_add(Binary::BYTES.into()) > source.size() {
        return damaged("it is cut off");
    }
    let start = Buffer::new(Binary::BYTES)?;
    source.read_buffer(offset, Binary::BYTES, &start, 0)?;
    let binary = match Binary::parse(&start.read(..), copy, offset) {
        Ok(binary) => binary,
        Err(error) => return Ok(Err(error)),
    };
    if offset.saturating_add(binary.size.into()) > source.size() {
        return damaged("it is cut off");
    }
    let whole = Buffer::new(binary.size)?;
    source.read_buffer(offset, binary.size, &whole, 0)?;
    whole.fill(Binary::CHECKSUM, 0);
    if whole.sha256(..) != binary.checksum {
        return damaged("its checksum is wrong");
    }
    Ok(Ok((binary, whole)))
}
