//! Reads and writes disks that are encrypted with LUKS.
//!
//! `open` reads the header, derives the key and keeps it in the host for all connections to the
//! disk. What a request needs of the header is in two slots of its connection. The data, the
//! passphrase and the volume key stay in the host.
//!
//! A sector is encrypted as a whole. A request that changes a part of one reads it, changes it and
//! writes it. A read that saw half of such a write would decrypt rubbish, also beside the bytes
//! that changed. So writes lock their sectors, and reads lock theirs against writes.

mod sectors;

use locks::{Held, Mode};
use rbdkit_filter_sdk::image::Next;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::luks::{KEYS, SECTOR, Unlocked, unlock};
use sectors::{Part, Whole};
use slots::Slot;

params! {
    /// The parameters.
    pub struct Settings {
        /// The passphrase; +FILENAME reads it from a file, -FD from a descriptor, - asks for it.
        passphrase: Secret,
    }
}

/// The filter.
pub struct Luks {
    passphrase: Secret,
}

/// What requests need of the header. It is in these two slots of the connection.
struct Layout {
    /// Where the data begins below, in bytes.
    offset: u64,
    /// Bytes of data.
    size: u64,
    /// The key's number.
    key: u32,
    /// Bytes of a sector.
    sector: u32,
    /// The number of the first sector for the IV.
    first_iv: u64,
}

const MAIN: Slot = Slot { scope: Scope::Connection, index: 0 };
const IV: Slot = Slot { scope: Scope::Connection, index: 1 };

/// Marks that the second slot is not 0.
const HAS_IV: u64 = 1 << 63;

impl Layout {
    fn keep(&self) {
        let more = if self.first_iv > 0 { HAS_IV } else { 0 };
        let packed = u64::from(self.key) | u64::from(self.sector) << 32 | more;
        MAIN.replace(MAIN.get(), [self.offset, self.size, packed, 0]);
        IV.replace(IV.get(), [self.first_iv, 0, 0, 0]);
    }

    fn kept() -> Layout {
        let words = MAIN.get();
        let first_iv = if words.c & HAS_IV > 0 { IV.get().a } else { 0 };
        let sector = (words.c >> 32) as u32 & 0xffff;
        Layout { offset: words.a, size: words.b, key: words.c as u32, sector, first_iv }
    }

    /// The number of the sector at `offset`, and by how much the numbers grow: LUKS counts in units
    /// of 512 bytes, whatever the size of a sector is.
    fn iv(&self, offset: u64) -> (u64, u32) {
        (self.first_iv.wrapping_add(offset / SECTOR), self.sector / SECTOR as u32)
    }

    fn decrypt(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        let (first, step) = self.iv(offset);
        crypto::decrypt(KEYS, self.key, buf, at, length, self.sector, first, step)
    }

    fn encrypt(&self, offset: u64, length: u32, buf: u32, at: u32) -> Result<(), Errno> {
        let (first, step) = self.iv(offset);
        crypto::encrypt(KEYS, self.key, buf, at, length, self.sector, first, step)
    }

    /// Locks the sectors of a request until the end of the call.
    fn lock(&self, offset: u64, length: u32, mode: Mode) -> Result<(), Errno> {
        let (start, length) = sectors::around(offset, length, self.sector);
        let _until_the_end = Held::new(KEYS, start, length, mode)?;
        Ok(())
    }

    /// Reads and decrypts the sector of a part.
    fn read_sector(&self, part: Part) -> Result<Buffer, Errno> {
        let buffer = Buffer::new(self.sector)?;
        next::pread(self.offset + part.sector, self.sector, buffer.id(), 0)?;
        self.decrypt(part.sector, self.sector, buffer.id(), 0)?;
        Ok(buffer)
    }

    fn read_part(&self, part: Part) -> Result<(), Errno> {
        let sector = self.read_sector(part)?;
        Payload.copy(part.at, &sector, part.skip..part.skip + part.length);
        Ok(())
    }

    fn write_part(&self, part: Part, flags: CommandFlags) -> Result<(), Errno> {
        let sector = self.read_sector(part)?;
        sector.copy(part.skip, &Payload, part.at..part.at + part.length);
        self.encrypt(part.sector, self.sector, sector.id(), 0)?;
        next::pwrite(self.offset + part.sector, self.sector, sector.id(), 0, flags)
    }
}

impl Filter for Luks {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("luks", env!("CARGO_PKG_VERSION"), "reads and writes disks that are encrypted with LUKS")
            .help("It reads LUKS1 and LUKS2 with AES. It cannot create disks or change passphrases.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Luks { passphrase: settings.passphrase })
    }
}

impl Connection for Luks {
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        let Unlocked { volume, key } = unlock(&Next::new()?, &self.passphrase, "luks").map_err(|refusal| {
            if let Some(line) = &refusal.line {
                error!("{line}");
            }
            refusal.errno
        })?;
        let there =
            next::get_size()?.saturating_sub(volume.offset) / u64::from(volume.sector) * u64::from(volume.sector);
        let size = volume.size.unwrap_or(there);
        if size > there {
            error!("the header is damaged: it has {size} bytes of data, and the disk has room for {there}");
            return Err(Errno::Eio);
        }
        Layout { offset: volume.offset, size, key, sector: volume.sector, first_iv: volume.first_iv }.keep();
        Ok(0)
    }
}

impl Info for Luks {
    fn get_size(&self) -> Result<u64, Errno> {
        Ok(Layout::kept().size)
    }

    /// Shorter requests work, but read a whole sector.
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        let sector = Layout::kept().sector;
        match next::block_size() {
            // A layer that needs longer blocks than a sector gets them only from whole blocks.
            Ok(below) => Ok(BlockSizes {
                minimum: if below.minimum > sector { below.minimum } else { 1 },
                preferred: below.preferred.max(sector),
                ..below
            }),
            Err(_) => Ok(BlockSizes { minimum: 1, preferred: sector.max(4096), maximum: u32::MAX }),
        }
    }
}

impl Reads for Luks {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let layout = Layout::kept();
        layout.lock(offset, length, Mode::Shared)?;
        let pieces = sectors::cut(offset, length, layout.sector);
        if let Some(Whole { offset, length, at }) = pieces.middle {
            next::pread(layout.offset + offset, length, PAYLOAD, at)?;
            layout.decrypt(offset, length, PAYLOAD, at)?;
        }
        [pieces.head, pieces.tail].into_iter().flatten().try_for_each(|part| layout.read_part(part))
    }
}

impl Writes for Luks {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        let layout = Layout::kept();
        layout.lock(offset, length, Mode::Exclusive)?;
        let pieces = sectors::cut(offset, length, layout.sector);
        // The parts first: their bytes are not encrypted in place.
        [pieces.head, pieces.tail].into_iter().flatten().try_for_each(|part| layout.write_part(part, flags))?;
        if let Some(Whole { offset, length, at }) = pieces.middle {
            layout.encrypt(offset, length, PAYLOAD, at)?;
            next::pwrite(layout.offset + offset, length, PAYLOAD, at, flags)?;
        }
        Ok(())
    }
}

rbdkit_filter_sdk::export!(Luks: connection, info, reads, writes);

#[cfg(test)]
mod tests;
