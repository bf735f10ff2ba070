//! Serves a file inside an ext2, ext3 or ext4 file system.
//!
//! Reads and writes go to the blocks of the file in the layer below. A write changes no metadata,
//! so any number of connections can write at once.

use std::rc::Rc;

use rbdkit_filter_formats::ext2::{File, Journal};
use rbdkit_filter_formats::mapped::{Place, Run};
use rbdkit_filter_formats::paths::check_choice;
use rbdkit_filter_sdk::image::{Error, FileChoice, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The path of the file, which begins with /; exportname takes the path from the client.
        #[param(check = check_choice)]
        ext2file: String,
        /// An open journal: refuse, or ignore it and serve read-only.
        ext2_journal: Unreplayed = Unreplayed(Journal::Refuse),
    }
}

/// The parameter `ext2-journal`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unreplayed(Journal);

impl Choice for Unreplayed {
    const CHOICES: &'static [(&'static str, Unreplayed)] =
        &[("refuse", Unreplayed(Journal::Refuse)), ("ignore", Unreplayed(Journal::Ignore))];
}

/// The filter.
pub struct Ext2 {
    file: FileChoice,
    journal: Journal,
    images: Images<File>,
}

impl Filter for Ext2 {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("ext2", env!("CARGO_PKG_VERSION"), "serves a file inside an ext2, ext3 or ext4 file system")
            .help("A write changes data that the file has. It cannot fill holes.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let file = FileChoice::new(settings.ext2file);
        Ok(Ext2 { file, journal: settings.ext2_journal.0, images: Images::default() })
    }
}

impl Format for Ext2 {
    type Image = File;

    fn open_image(&self) -> Result<File, Error> {
        File::open(Rc::new(Next::new()?), self.file.name(&request::exportname()), self.journal)
    }
    fn images(&self) -> &Images<File> {
        &self.images
    }
    fn open_next(&self, readonly: bool, exportname: &str) -> Result<u64, Errno> {
        self.file.open_next(readonly, exportname).map(|()| 0)
    }
}

impl Names for Ext2 {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        self.file.list_exports(readonly, Vec::new())
    }
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        self.file.default_export(readonly)
    }
}

rbdkit_filter_sdk::image_connection!(Ext2);
rbdkit_filter_sdk::image_reads!(Ext2);

impl Features for Ext2 {
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno> {
        let read_only = self.image_can(below);
        // A write goes below as it is: a part of a block there cannot be written.
        let whole_blocks = next::block_size().is_ok_and(|sizes| sizes.minimum > 1);
        if !below.write || whole_blocks || !self.image()?.is_writable() {
            return Ok(read_only);
        }
        Ok(Capabilities {
            write: true,
            flush: below.flush,
            fua: below.fua,
            // The host writes zeroes through this layer.
            zero: Support::Emulate,
            multi_conn: below.multi_conn,
            ..read_only
        })
    }
}

impl Writes for Ext2 {
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno> {
        let file = self.image()?;
        // Nothing is written unless all of it can be. Zeroes are in a hole already.
        let fits = |at: u64, run: Run| {
            let start = (at - offset) as u32;
            if matches!(run.place, Place::At(_)) || Payload.is_zero(start..start + run.length as u32) {
                return Ok(());
            }
            debug!(
                "a write of {} bytes at {at} of the file: it has no data there, and blocks cannot be added",
                run.length
            );
            Err(Error::Failed(Errno::Enospc))
        };
        file.each(offset, length.into(), fits).map_err(Error::log)?;
        let write = |at: u64, run: Run| match run.place {
            Place::At(below) => Ok(next::pwrite(below, run.length as u32, PAYLOAD, (at - offset) as u32, flags)?),
            _ => Ok(()),
        };
        file.each(offset, length.into(), write).map_err(Error::log)
    }
}

impl Flushes for Ext2 {
    fn flush(&self) -> Result<(), Errno> {
        next::flush()
    }
}

rbdkit_filter_sdk::export!(Ext2: names, connection, info, features, reads, writes, flushes, mapping, caching);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::{Dir, run, sample};
    use rbdkit_filter_sdk::testing::{Disk, Host, Served};

    fn image() -> Vec<u8> {
        let dir = Dir::new(&format!("ext2-filter-{:?}", std::thread::current().id()));
        let tree = dir.path("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut data = sample(10_000, 3);
        data[4096..8192].fill(0);
        data[..4].copy_from_slice(b"head");
        data[9000] = 1;
        std::fs::write(format!("{tree}/file"), &data).unwrap();
        let image = dir.path("image");
        run("truncate", &["-s", "2M", &image]);
        run("/sbin/mke2fs", &["-q", "-F", "-t", "ext4", "-b", "1024", "-d", &tree, &image]);
        std::fs::read(&image).unwrap()
    }

    fn serve(words: &[&str]) -> Served<Ext2> {
        Host::new(Disk::new(image())).serve::<Ext2>(words).unwrap()
    }

    #[test]
    fn data_of_the_file_is_written_in_place_and_holes_refuse_it() {
        let host = serve(&["ext2file=/file"]);
        let before = host.disk().to_vec();
        let client = host.connect().unwrap();
        assert_eq!((client.size(), client.pread(0, 4).unwrap()), (10_000, b"head".to_vec()));
        client.pwrite(1000, b"new data", CommandFlags::FUA).unwrap();
        assert_eq!(client.pread(1000, 8).unwrap(), b"new data");
        let changed = before.iter().zip(host.disk().iter()).filter(|(a, b)| a != b).count();
        assert!((1..=8).contains(&changed), "{changed} bytes of the disk changed");
        host.take_calls();
        assert_eq!(client.pwrite(4000, &[1; 200], CommandFlags::empty()), Err(Errno::Enospc));
        assert!(!host.take_calls().iter().any(|call| call.starts_with("pwrite")), "a part was written");
        client.pwrite(5000, &[0; 100], CommandFlags::empty()).unwrap();
        client.flush().unwrap();
    }

    #[test]
    fn a_path_that_the_client_chooses_is_opened_and_what_is_wrong_is_said() {
        let host = serve(&["ext2file=exportname"]);
        assert_eq!(host.list_exports().unwrap(), []);
        assert_eq!(host.connect_to("/file").unwrap().size(), 10_000);
        host.take_log();
        assert!(host.connect_to("/none").is_err());
        assert_eq!(host.take_log(), ["error: there is no file '/none': '/' has no 'none'"]);
        let refused = Host::new(Disk::new(image())).serve::<Ext2>(&["ext2file=file"]).err().unwrap();
        let line = "ext2: ext2file=file: is not a path: it has to begin with /, for example /disks/disk.img";
        assert_eq!(refused, line);
    }

    #[test]
    fn a_disk_that_cannot_be_written_or_has_an_open_journal_is_served_read_only() {
        let host = Host::new(Disk::new(image()).read_only()).serve::<Ext2>(&["ext2file=/file"]).unwrap();
        assert!(!host.connect().unwrap().can().write);
        let mut open = image();
        open[1024 + 96] |= 4;
        let host = Host::new(Disk::new(open)).serve::<Ext2>(&["ext2file=/file", "ext2-journal=ignore"]).unwrap();
        assert!(!host.connect().unwrap().can().write);
    }
}
