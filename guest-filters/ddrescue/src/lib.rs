//! Makes the areas fail that ddrescue could not rescue.

mod mapfile;

use mapfile::{Reader, first_bad};
use rbdkit_filter_sdk::params::ReadFile;
use rbdkit_filter_sdk::prelude::*;
use rbdkit_filter_shared::lines::ListFile;

params! {
    /// The parameters.
    pub struct Settings {
        /// The mapfile of GNU ddrescue.
        ddrescue_mapfile: ReadFile,
    }
}

/// The filter.
pub struct Ddrescue {
    areas: ListFile<Reader>,
}

impl Filter for Ddrescue {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("ddrescue", env!("CARGO_PKG_VERSION"), "makes the areas fail that ddrescue could not rescue")
            .help("Reads of areas that the mapfile does not call rescued fail with EIO. The disk is read-only.")
            .thread_model(ThreadModel::Parallel)
            .transparent()
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Ddrescue { areas: ListFile::new(settings.ddrescue_mapfile) })
    }
}

impl Lifecycle for Ddrescue {
    fn get_ready(&self) -> Result<(), String> {
        self.areas.list().map(drop)
    }
}

impl Features for Ddrescue {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        Ok(Capabilities { write: false, cache: Support::None, ..below })
    }
}

impl Reads for Ddrescue {
    fn pread(&self, offset: u64, length: u32, _flags: CommandFlags) -> Result<(), Errno> {
        let areas = self.areas.list().map_err(|message| {
            error!("the mapfile has changed since the start: {message}");
            Errno::Eio
        })?;
        if let Some((offset, length)) = first_bad(areas, offset, length.into()) {
            debug!("{length} bytes at {offset} were not rescued");
            return Err(Errno::Eio);
        }
        next::pread(offset, length, PAYLOAD, 0)
    }
}

rbdkit_filter_sdk::export!(Ddrescue: lifecycle, features, reads);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn reads_of_what_was_not_rescued_fail() {
        let map = b"# comment\n0 + 1\n0 0x200 +\n0x200 0x200 -\n0x400 0x200 +\n";
        let disk = Disk::pattern(4096);
        let host = Host::new(disk).file("/map", map).serve::<Ddrescue>(&["ddrescue-mapfile=/map"]).unwrap();
        let client = host.connect().unwrap();
        assert!(!client.can().write && client.can().cache == Support::None && client.can().extents);
        assert_eq!(client.pread(0, 512).unwrap(), host.disk()[..512]);
        assert_eq!(client.pread(0, 513), Err(Errno::Eio));
        assert_eq!(client.pread(1024, 512).unwrap(), host.disk()[1024..1536]);
        assert_eq!(client.pread(2000, 1), Err(Errno::Eio));
    }

    #[test]
    fn a_file_that_is_no_mapfile_ends_the_start() {
        let start = |text: &[u8]| {
            Host::new(Disk::zeroes(10)).file("/m", text).serve::<Ddrescue>(&["ddrescue-mapfile=/m"]).err()
        };
        let wrong = "ddrescue-mapfile: line 1: 'not a mapfile at all' is not the status line, POSITION STATUS [PASS]";
        assert_eq!(start(b"not a mapfile at all").as_deref(), Some(wrong));
        assert_eq!(start(b"0 +\n"), None);
    }
}
