//! Write-protects parts of the disk. A write into such a part succeeds if it would change nothing.
//!
//! The filter writes only outside of the protected parts, also when it lets a write pass. So no
//! request can change a protected part between the comparison and the answer.

mod ranges;

use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::compare;
use rbdkit_filter_shared::durable::Durable;
use rbdkit_filter_shared::segments::{Piece, Segments};

params! {
    /// The parameters.
    pub struct Settings {
        /// A range that cannot be changed, START-END with both bytes, or ~START-END for all bytes
        /// outside of it.
        protect: Vec<String>,
    }
}

/// The filter.
pub struct Protect {
    settings: Settings,
    protected: Segments<u32>,
}

impl Protect {
    /// Fails unless each protected piece `has` already what it would get.
    fn check(
        &self,
        operation: &str,
        offset: u64,
        length: u64,
        has: impl Fn(Piece<u32>) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        for piece in self.protected.pieces(offset, length) {
            if let Some(segment) = piece.segment
                && !has(piece)?
            {
                let text = &self.settings.protect[segment.value as usize];
                error!("{operation} of {length} bytes at {offset} would change the protected range {text}");
                return Err(Errno::Eperm);
            }
        }
        Ok(())
    }

    /// The pieces of a request that are not protected.
    fn free(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece<u32>> {
        self.protected.pieces(offset, length).filter(|piece| piece.segment.is_none())
    }
}

impl Filter for Protect {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("protect", env!("CARGO_PKG_VERSION"), "write-protects parts of the disk")
            .help("Writes that would change a protected byte fail. Reads pass.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let protected = ranges::parse(&settings.protect)?;
        Ok(Protect { settings, protected })
    }
}

impl Writes for Protect {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        if self.protected.is_gap(offset, length.into()) {
            return next::pwrite(offset, length, PAYLOAD, 0, flags);
        }
        let at = |piece: Piece<u32>| (piece.offset - offset) as u32;
        self.check("a write", offset, length.into(), |piece| {
            compare::has_payload(piece.offset, piece.length as u32, at(piece))
        })?;
        let durable = Durable::new(flags)?;
        for piece in self.free(offset, length.into()) {
            next::pwrite(piece.offset, piece.length as u32, PAYLOAD, at(piece), durable.flags)?;
        }
        durable.finish()
    }
}

impl Trims for Protect {
    /// What was trimmed may read as zero. So a protected part has to be zero already.
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check("a trim", offset, length, |piece| compare::has_zeroes(piece.offset, piece.length))?;
        let durable = Durable::new(flags)?;
        for piece in self.free(offset, length) {
            next::trim(piece.offset, piece.length, durable.flags)?;
        }
        durable.finish()
    }
}

impl Zeroes for Protect {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        if self.protected.is_gap(offset, length) {
            return next::zero(offset, length, flags);
        }
        // Comparing takes as long as reading, and a later piece could turn out to be slow.
        if flags.contains(CommandFlags::FAST_ZERO) {
            return Err(Errno::Enotsup);
        }
        self.check("a zero request", offset, length, |piece| compare::has_zeroes(piece.offset, piece.length))?;
        let durable = Durable::new(flags)?;
        for piece in self.free(offset, length) {
            next::zero(piece.offset, piece.length, durable.flags)?;
        }
        durable.finish()
    }
}

rbdkit_filter_sdk::export!(Protect: writes, trims, zeroes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn a_write_that_changes_a_protected_byte_fails_and_writes_nothing() {
        let host = Host::new(Disk::pattern(4096)).serve::<Protect>(&["protect=100-199", "protect=1000-1000"]).unwrap();
        let client = host.connect().unwrap();
        let before = host.disk().to_vec();
        host.take_calls();
        assert_eq!(client.pwrite(90, &[0; 20], NONE), Err(Errno::Eperm));
        assert_eq!(client.zero(199, 1, NONE), Err(Errno::Eperm));
        assert_eq!(client.trim(0, 4096, NONE), Err(Errno::Eperm));
        assert_eq!(*host.disk(), *before);
        assert_eq!(
            host.take_log(),
            [
                "error: a write of 20 bytes at 90 would change the protected range 100-199",
                "error: a zero request of 1 bytes at 199 would change the protected range 100-199",
                "error: a trim of 4096 bytes at 0 would change the protected range 100-199",
            ]
        );
        client.pwrite(200, &[1; 800], NONE).unwrap();
        client.pwrite(0, &[1; 100], NONE).unwrap();
    }

    #[test]
    fn a_write_of_what_is_there_passes_and_goes_down_only_outside_of_the_protected_part() {
        let host = Host::new(Disk::pattern(4096)).serve::<Protect>(&["protect=100-199"]).unwrap();
        let client = host.connect().unwrap();
        let mut data = host.disk()[90..220].to_vec();
        data[0] ^= 1;
        host.take_calls();
        client.pwrite(90, &data, CommandFlags::FUA).unwrap();
        assert_eq!(host.take_calls(), ["pread 100 100", "pwrite 90 10 fua", "pwrite 200 20 fua"]);
        assert_eq!(host.disk()[90..220], data);
    }

    #[test]
    fn zeroes_pass_where_the_protected_part_is_zero_but_not_as_fast_ones() {
        let disk = Disk::zeroes(4096).can(|can| can.fast_zero = true);
        let host = Host::new(disk).serve::<Protect>(&["protect=~100-199"]).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        client.zero(0, 300, NONE).unwrap();
        client.trim(0, 300, NONE).unwrap();
        let calls = ["pread 0 100", "pread 200 100", "zero 100 100", "pread 0 100", "pread 200 100", "trim 100 100"];
        assert_eq!(host.take_calls(), calls);
        assert_eq!(client.zero(0, 300, CommandFlags::FAST_ZERO), Err(Errno::Enotsup));
        client.zero(150, 50, CommandFlags::FAST_ZERO).unwrap();
    }

    #[test]
    fn a_long_range_of_zeroes_is_not_read_where_extents_say_so() {
        let host = Host::new(Disk::zeroes(4 << 20)).serve::<Protect>(&["protect=-"]).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        client.zero(0, 4 << 20, NONE).unwrap();
        assert_eq!(host.take_calls(), ["extents 0 4194304"]);
    }
}
