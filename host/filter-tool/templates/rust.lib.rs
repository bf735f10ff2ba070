//! @NAME@: XORs every byte with a key. This example changes data in both directions.
//!
//! The contract (wit/filter.wit of rbdkit) says what each function does. `cargo doc --open` shows
//! the SDK.

use rbdkit_filter_sdk::prelude::*;

/// Data goes through the guest in pieces of this size, so that no request needs much memory.
const PIECE: u32 = 64 * 1024;

pub struct Mine {
    key: u8,
}

impl Filter for Mine {
    fn describe() -> Description {
        Description::new("@NAME@", env!("CARGO_PKG_VERSION"), "exclusive-or with a key")
            .help("Changes every byte on its way in and out.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
            .param(Param::int("key").default("255").help("The key, 0 to 255."))
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let key = params.int("key")?.unwrap_or(255);
        Ok(Mine { key: key.try_into().map_err(|_| format!("key={key}: is not from 0 to 255"))? })
    }
}

impl Mine {
    fn change(&self, length: u32) {
        for at in (0..length).step_by(PIECE as usize) {
            let mut bytes = buffer::read(PAYLOAD, at, PIECE.min(length - at));
            bytes.iter_mut().for_each(|byte| *byte ^= self.key);
            buffer::write(PAYLOAD, at, &bytes);
        }
    }
}

impl Reads for Mine {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)?;
        self.change(length);
        Ok(())
    }
}

impl Writes for Mine {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.change(length);
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

// Only the interfaces named here are exported. The host takes care of the rest (zero, trim,
// extents, ...) without calling the filter.
rbdkit_filter_sdk::export!(Mine: reads, writes);
