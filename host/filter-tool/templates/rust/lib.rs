//! @NAME@: XORs every byte with a number, in both directions.
//!
//! The contract (wit/filter.wit) says what each function does. `cargo doc --open` shows the SDK.

use rbdkit_filter_sdk::prelude::*;

pub struct Mine {
    key: u8,
}

impl Filter for Mine {
    fn describe() -> Description {
        Description::new("@NAME@", env!("CARGO_PKG_VERSION"), "exclusive-or with a number")
            .help("Changes every byte on its way in and out.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
            .param(Param::int("key").default("255").help("The number, 0 to 255."))
    }

    fn configure(params: &Params) -> Result<Self, String> {
        let key = params.int("key")?.unwrap_or(255);
        Ok(Mine { key: key.try_into().map_err(|_| format!("key={key}: is not from 0 to 255"))? })
    }
}

impl Reads for Mine {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        // The layer below fills the request's buffer, which stays in the host.
        next::pread(offset, length, PAYLOAD, 0)?;
        buffer::xor(PAYLOAD, 0, length, &[self.key], 0);
        Ok(())
    }
}

impl Writes for Mine {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        buffer::xor(PAYLOAD, 0, length, &[self.key], 0);
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

// Only the interfaces named here are exported. The host takes care of the rest (zero, trim,
// extents, ...) without calling the filter.
rbdkit_filter_sdk::export!(Mine: reads, writes);
