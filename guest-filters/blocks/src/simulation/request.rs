//! The requests of clients.

use crate::host::ZeroFlags;

use super::random::Rng;
use super::settings::Settings;

#[derive(Clone, Copy, Debug)]
pub enum Request {
    Read { offset: u64, length: u32 },
    Write { offset: u64, length: u32, fua: bool },
    Zero { offset: u64, length: u64, flags: ZeroFlags },
    Trim { offset: u64, length: u64, fua: bool },
    Extents { offset: u64, length: u64, one: bool },
    Cache { offset: u64, length: u64 },
    Flush,
}

/// A random request of any kind, of up to four blocks. Half of the requests are aligned to blocks.
pub fn any_request(rng: &mut Rng, settings: &Settings) -> Request {
    let block = 1 << settings.bits;
    let mut offset = rng.below(settings.size);
    let mut length = 1 + rng.below((settings.size - offset).min(4 * block));
    if rng.permille(500) {
        offset -= offset % block;
        length = (1 + rng.below(3)) * block;
    }
    length = length.min(settings.size - offset);
    let fua = rng.permille(150);
    match rng.below(100) {
        0..32 => Request::Read { offset, length: length as u32 },
        32..64 => Request::Write { offset, length: length as u32, fua },
        64..74 => {
            let flags = ZeroFlags { fua, may_trim: rng.permille(700), fast: rng.permille(200) };
            Request::Zero { offset, length, flags }
        }
        74..82 => Request::Trim { offset, length, fua },
        82..89 => Request::Extents { offset, length, one: rng.permille(300) },
        89..95 => Request::Cache { offset, length },
        _ => Request::Flush,
    }
}
