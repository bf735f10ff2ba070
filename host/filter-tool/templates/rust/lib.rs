//! @NAME@: XORs every byte with a number, in both directions.
//!
//! The contract (wit/filter.wit) says what each function does. `cargo doc --open` shows
//! the SDK, and `cargo test` runs the tests below against a simulated host.

use rbdkit_filter_sdk::prelude::*;

params! {
    /// The filter's parameters.
    pub struct Settings {
        /// The number, 0 to 255.
        key: u8 = 255,
    }
}

pub struct Mine {
    key: u8,
}

impl Filter for Mine {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("@NAME@", env!("CARGO_PKG_VERSION"), "exclusive-or with a number")
            .help("Changes every byte on its way in and out.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Mine { key: settings.key })
    }
}

impl Reads for Mine {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        next::pread(offset, length, PAYLOAD, 0)?;
        // The host does the work. In the guest it would be:
        // Payload.modify(..length, |_, bytes| bytes.iter_mut().for_each(|byte| *byte ^= self.key));
        Payload.xor(..length, &[self.key], 0);
        Ok(())
    }
}

impl Writes for Mine {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        Payload.xor(..length, &[self.key], 0);
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

// Only the interfaces named here are exported. The host takes care of the rest (zero, trim,
// extents, ...) without calling the filter.
rbdkit_filter_sdk::export!(Mine: reads, writes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn what_was_written_is_read_back_and_the_disk_below_holds_it_changed() {
        let host = Host::new(Disk::zeroes(4096)).serve::<Mine>(&["key=32"]).unwrap();
        let client = host.connect().unwrap();
        client.pwrite(0, b"Hello", CommandFlags::empty()).unwrap();
        assert_eq!(client.pread(0, 6).unwrap(), b"Hello ");
        assert_eq!(host.disk()[..6], *b"hELLO\0");
    }

    // What real clients did is a test too. Record it, and put the file beside Cargo.toml:
    //     rbdkit --wasm-filter NAME.wasm --record=session.rec --record-payloads file disk.img
    // Then, with `use rbdkit_filter_sdk::testing::Record`:
    //     let record = Record::read("session.rec").unwrap();
    //     Host::from_record(&record).unwrap().replay::<Mine>(&record, &[]).unwrap().assert_same();

    #[test]
    fn a_key_that_is_no_byte_is_refused() {
        let refused = Host::new(Disk::zeroes(4096)).serve::<Mine>(&["key=256"]).err();
        assert_eq!(refused.as_deref(), Some("@NAME@: key=256: is not from 0 to 255"));
    }
}
