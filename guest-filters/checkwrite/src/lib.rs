//! Checks that what is written is what is there. Nothing is ever written.

use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::compare;

/// The filter.
pub struct Checkwrite;

/// Success if the disk has already what the request would make it have.
fn answer(operation: &str, offset: u64, length: u64, same: bool) -> Result<(), Errno> {
    if same {
        return Ok(());
    }
    error!("{operation} of {length} bytes at {offset} differs from what is on the disk");
    Err(Errno::Eio)
}

impl Filter for Checkwrite {
    type Params = ();

    fn describe() -> Description {
        Description::new("checkwrite", env!("CARGO_PKG_VERSION"), "checks that what is written is what is there")
            .help("A write, zero or trim that would change the disk fails with EIO. To test programs that copy.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(_: ()) -> Result<Self, String> {
        Ok(Checkwrite)
    }
}

impl Connection for Checkwrite {
    fn open(&self, _readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(true, exportname).map(|()| 0)
    }
}

impl Features for Checkwrite {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities {
            write: true,
            flush: true,
            trim: true,
            fast_zero: true,
            multi_conn: true,
            zero: Support::Native,
            fua: Support::Native,
            ..below
        })
    }
}

impl Writes for Checkwrite {
    fn pwrite(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        answer("a write", offset, length.into(), compare::has_payload(offset, length, 0)?)
    }
}

impl Flushes for Checkwrite {
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

impl Trims for Checkwrite {
    fn trim(&self, offset: u64, length: u64, _flags: CommandFlags) -> Result<(), Errno> {
        answer("a trim", offset, length, compare::has_zeroes(offset, length)?)
    }
}

impl Zeroes for Checkwrite {
    /// A fast request is one that need not read the disk.
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        if flags.contains(CommandFlags::FAST_ZERO) {
            return if compare::is_known_zero(offset, length)? { Ok(()) } else { Err(Errno::Enotsup) };
        }
        answer("a zero request", offset, length, compare::has_zeroes(offset, length)?)
    }
}

rbdkit_filter_sdk::export!(Checkwrite: connection, features, writes, flushes, trims, zeroes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn what_is_there_can_be_written_and_nothing_else() {
        let mut bytes = vec![7; 3 << 20];
        bytes[..8192].fill(0);
        let host = Host::new(Disk::new(bytes.clone()).read_only()).serve::<Checkwrite>(&[]).unwrap();
        let client = host.connect().unwrap();
        client.pwrite(0, &bytes[..10000], CommandFlags::FUA).unwrap();
        client.zero(0, 8192, CommandFlags::FAST_ZERO).unwrap();
        assert_eq!(client.zero(0, 8193, CommandFlags::FAST_ZERO), Err(Errno::Enotsup));
        client.trim(1, 8191, NONE).unwrap();
        client.flush().unwrap();
        assert_eq!(client.zero(0, 8193, NONE), Err(Errno::Eio));
        assert_eq!(client.zero(0, 3 << 20, NONE), Err(Errno::Eio));
        assert_eq!(client.trim(8192, 1, NONE), Err(Errno::Eio));
        bytes[(2 << 20) + 5] ^= 1;
        assert_eq!(client.pwrite(5, &bytes[5..], NONE), Err(Errno::Eio));
        client.pwrite(5, &bytes[5..2 << 20], NONE).unwrap();
        assert_eq!(host.take_log()[0], "error: a zero request of 8193 bytes at 0 differs from what is on the disk");
        let calls = host.take_calls();
        assert!(
            calls.iter().all(|call| call.starts_with("pread")
                || call.starts_with("extents")
                || call == "open"
                || call.starts_with("open")),
            "{calls:?}"
        );
    }
}
