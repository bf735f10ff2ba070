//! Serves a file of a tar archive, and writes it in place.

use std::rc::Rc;

use rbdkit_filter_formats::tar::{Content, Limits, find, member_at, only, open_member};
use rbdkit_filter_sdk::image::{Error, FileChoice, Format, Images, InPlace, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The file in the archive, exactly as `tar tf` prints it, or `exportname`: the client's
        /// export name is the file's name.
        tar_entry: Option<String>,
        /// How far to look for the file, in bytes. By default to the end of the archive.
        tar_limit: Option<Size>,
        /// Ignored. nbdkit's filter runs this program.
        tar: Option<String>,
    }
}

/// The filter.
pub struct Tar {
    entry: FileChoice,
    limits: Limits,
    /// The program that nbdkit's filter would run.
    program: Option<String>,
    images: Images<Content>,
}

impl Tar {
    /// Finds the member for a new connection. The offset of its header is the connection's handle,
    /// so that no other instance has to look for it.
    fn find_header(&self, exportname: &str) -> Result<u64, Error> {
        let below: Rc<dyn Source> = Rc::new(Next::new()?);
        let member = match self.entry.name(exportname) {
            "" => only(&below, self.limits)?,
            name => find(&below, name.as_bytes(), self.limits)?,
        };
        Ok(member.header)
    }
}

impl Filter for Tar {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("tar", env!("CARGO_PKG_VERSION"), "serves a file of a tar archive")
            .help("tar-entry is needed. OVA files are tar archives.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let entry = settings.tar_entry.filter(|entry| !entry.is_empty());
        let entry = entry.ok_or("tar-entry= is missing: the name of a file in the archive, or exportname")?;
        let bytes = settings.tar_limit.map_or(u64::MAX, |limit| limit.0);
        let limits = Limits { bytes, ..Limits::default() };
        Ok(Tar { entry: FileChoice::new(entry), limits, program: settings.tar, images: Images::default() })
    }
}

impl Lifecycle for Tar {
    fn get_ready(&self) -> Result<(), String> {
        if let Some(program) = &self.program {
            info!("tar={program} is ignored: this filter reads the archive itself");
        }
        Ok(())
    }
}

impl Names for Tar {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        // The empty name opens the only file.
        self.entry.list_exports(readonly, vec![ExportEntry { name: String::new(), description: None }])
    }

    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        self.entry.default_export(readonly)
    }
}

impl Format for Tar {
    type Image = Content;

    fn open_image(&self) -> Result<Content, Error> {
        let below: Rc<dyn Source> = Rc::new(Next::new()?);
        let member = member_at(&below, request::handle())?;
        open_member(below, member)
    }

    fn images(&self) -> &Images<Content> {
        &self.images
    }

    fn open_next(&self, readonly: bool, exportname: &str) -> Result<u64, Errno> {
        self.entry.open_next(readonly, exportname)?;
        self.find_header(exportname).map_err(Error::log)
    }
}

impl InPlace for Tar {
    fn start(image: &Content) -> Option<u64> {
        image.start()
    }
}

rbdkit_filter_sdk::export_image_in_place!(Tar, lifecycle, names);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::{Dir, run, sample};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    const NONE: CommandFlags = CommandFlags::empty();

    fn archive(options: &[&str], name: &str) -> Vec<u8> {
        let dir = Dir::new(name);
        dir.file("other", b"other");
        dir.file("a.img", &sample(10_000, 1));
        let (path, at) = (dir.path("a.tar"), dir.path(""));
        run("tar", &[&["-cf", &path, "-C", &at][..], options, &["other", "a.img"]].concat());
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_member_is_read_and_written_in_place() {
        let archive = archive(&[], "tar-filter-write");
        let host = Host::new(Disk::new(archive.clone())).serve::<Tar>(&["tar-entry=a.img"]).unwrap();
        let client = host.connect().unwrap();
        assert!(client.pread(0, 10_000).unwrap() == sample(10_000, 1));
        client.pwrite(10, b"written", NONE).unwrap();
        // "other" takes a header and a block, then comes the header of the file.
        let mut expected = archive;
        expected[1536 + 10..][..7].copy_from_slice(b"written");
        assert!(host.disk()[..] == expected[..], "nothing else has changed");
        assert_eq!(client.pwrite(9_999, b"12", NONE), Err(Errno::Einval));
    }

    #[test]
    fn the_export_name_chooses_a_member() {
        let host = Host::new(Disk::new(archive(&[], "tar-filter-names")));
        let host = host.serve::<Tar>(&["tar-entry=exportname", "tar=gtar"]).unwrap();
        assert_eq!(host.take_log(), ["info: tar=gtar is ignored: this filter reads the archive itself"]);
        assert_eq!(host.connect_to("other").unwrap().pread(0, 5).unwrap(), b"other");
        assert_eq!(host.connect_to("a.img").unwrap().size(), 10_000);
        assert_eq!(host.connect_to("b.img").err(), Some(Errno::Eio));
        assert_eq!(host.take_log(), ["error: the archive has no member 'b.img'; it has 'other', 'a.img'"]);
        assert_eq!(host.connect().err(), Some(Errno::Eio));
        let line =
            "error: the archive has 2 files, and none is the only disk: choose with tar-entry=: 'other', 'a.img'";
        assert_eq!(host.take_log(), [line]);
    }

    #[test]
    fn an_entry_is_needed_and_the_limit_holds() {
        let start = |words: &[&str]| Host::new(Disk::new(archive(&[], "tar-filter-limit"))).serve::<Tar>(words);
        let missing = "tar: tar-entry= is missing: the name of a file in the archive, or exportname";
        assert_eq!(start(&[]).err().as_deref(), Some(missing));
        assert_eq!(start(&["tar-entry="]).err().as_deref(), Some(missing));
        let host = start(&["tar-entry=a.img", "tar-limit=1k"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eio));
        let line = "error: looking for 'a.img': the first 1024 bytes of the archive do not have it, and tar-limit \
                    allows \
                    no more";
        assert_eq!(host.take_log(), [line]);
        assert!(start(&["tar-entry=a.img", "tar-limit=1025"]).unwrap().connect().is_ok());
    }
}
