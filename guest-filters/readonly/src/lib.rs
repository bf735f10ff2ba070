//! Makes the disk read-only, always or while a file exists.

use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The disk is read-only only while this file exists.
        readonly_file: Option<Watch>,
    }
}

/// The filter.
pub struct Readonly {
    settings: Settings,
}

impl Readonly {
    /// Fails while the disk is read-only.
    fn check(&self) -> Result<(), Errno> {
        match &self.settings.readonly_file {
            Some(file) if !file.holds() => Ok(()),
            _ => Err(Errno::Eperm),
        }
    }
}

impl Filter for Readonly {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("readonly", env!("CARGO_PKG_VERSION"), "makes the disk read-only")
            .help("With readonly-file the disk can be made read-only, and writable again, while the server runs.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Readonly { settings })
    }
}

impl Features for Readonly {
    /// With a file the disk is offered as writable, because the file may come and go while the
    /// client is connected.
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { write: below.write && self.settings.readonly_file.is_some(), ..below })
    }
}

impl Writes for Readonly {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        self.check()?;
        next::pwrite(offset, length, PAYLOAD, 0, flags)
    }
}

impl Trims for Readonly {
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check()?;
        next::trim(offset, length, flags)
    }
}

impl Zeroes for Readonly {
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno> {
        self.check()?;
        next::zero(offset, length, flags)
    }
}

rbdkit_filter_sdk::export!(Readonly: features, writes, trims, zeroes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    #[test]
    fn without_a_file_the_disk_cannot_be_written() {
        let host = Host::new(Disk::zeroes(512)).serve::<Readonly>(&[]).unwrap();
        let client = host.connect().unwrap();
        assert!(!client.can().write && !client.can().trim && client.can().extents);
    }

    #[test]
    fn writes_fail_while_the_file_exists() {
        let host = Host::new(Disk::zeroes(512)).serve::<Readonly>(&["readonly-file=/ro"]).unwrap();
        let client = host.connect().unwrap();
        let writes = || [client.pwrite(0, b"x", NONE), client.zero(0, 1, NONE), client.trim(0, 1, NONE)];
        assert_eq!(writes(), [Ok(()); 3]);
        host.set_file("/ro", Some(b""));
        assert_eq!(writes(), [Err(Errno::Eperm); 3]);
        assert!(client.pread(0, 512).is_ok() && client.flush().is_ok());
        host.set_file("/ro", None);
        assert_eq!(writes(), [Ok(()); 3]);
    }
}
