//! What writing takes from the host: the layer below.

use std::rc::Rc;

use rbdkit_filter_formats::qcow2::Image;
use rbdkit_filter_formats::qcow2::write::{Below, HostState, Verdict, Writer};
use rbdkit_filter_sdk::image::Error;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::luks;

/// The state belongs to the export. The slots of the module [`luks`] in that scope come first.
const STATE: HostState = HostState { scope: Scope::Exportname, first_slot: luks::SLOTS };

/// Zeroes are written in pieces of so many bytes where next cannot zero.
const ZEROES: u64 = 1 << 20;

/// The layer below of the connection that is being served.
struct Host {
    can: Capabilities,
}

impl Below for Host {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(data.len()).map_err(|_| Errno::Eoverflow)?;
        let buffer = Buffer::new(length)?;
        buffer.write(0, data);
        next::pwrite(offset, length, buffer.id(), 0, CommandFlags::empty())
    }

    fn write_buffer(&self, offset: u64, length: u32, buffer: &buffer::Bytes, at: u32) -> Result<(), Errno> {
        next::pwrite(offset, length, buffer.id(), at, CommandFlags::empty())
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let mut done = 0;
        while self.can.zero != Support::None && done < length {
            let n = (length - done).min(1 << 30);
            match next::zero(offset + done, n, CommandFlags::MAY_TRIM) {
                Err(Errno::Enotsup) => break,
                zeroed => zeroed?,
            }
            done += n;
        }
        if done == length {
            return Ok(());
        }
        let zeroes = Buffer::new(ZEROES.min(length - done) as u32)?;
        while done < length {
            let n = ZEROES.min(length - done);
            next::pwrite(offset + done, n as u32, zeroes.id(), 0, CommandFlags::empty())?;
            done += n;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), Errno> {
        if self.can.trim { next::trim(offset, length, CommandFlags::empty()) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Errno> {
        match (self.can.flush, self.can.multi_conn) {
            (false, _) => Ok(()),
            (true, true) => next::flush(),
            // What other connections wrote has to be durable too.
            (true, false) => next::flush_all(STATE.scope),
        }
    }
}

/// What a connection can do that writes. `can` is what one can do that only reads.
pub fn can(can: Capabilities, below: Capabilities) -> Capabilities {
    let fua = if below.flush { Support::Emulate } else { Support::None };
    Capabilities { write: true, flush: below.flush, trim: true, zero: Support::Native, fua, ..can }
}

/// Writes to an image for which [`prepare`] said true.
///
/// # Errors
/// Those of next.
pub fn writer(image: Image) -> Result<Writer, Errno> {
    Ok(Writer::new(image, host()?, Rc::new(STATE)))
}

fn host() -> Result<Rc<dyn Below>, Errno> {
    Ok(Rc::new(Host { can: next::can()? }))
}

/// Prepares writing for the connection that is being opened. False if the image can only be read;
/// then a line in the log says why.
///
/// # Errors
/// Those of next.
pub fn prepare(open: impl Fn() -> Result<Image, Error>) -> Result<bool, Error> {
    Ok(match STATE.prepare(&host()?, open, refusal().as_deref())? {
        Verdict::Written => true,
        Verdict::ReadOnly(line) => {
            if let Some(line) = line {
                warn!("the disk is read-only: {line}");
            }
            false
        }
    })
}

/// Why next cannot have an image that is written.
fn refusal() -> Option<String> {
    let block = next::block_size().map_or(1, |sizes| sizes.minimum.max(1));
    (block > 1)
        .then(|| format!("the layer below writes blocks of {block} bytes: put --filter=blocksize after --filter=qcow2"))
}
