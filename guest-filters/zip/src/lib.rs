//! Serves a file of a zip archive, read-only.

use std::rc::Rc;
use std::time::Duration;

use rbdkit_filter_formats::unpack::Storage;
use rbdkit_filter_formats::zip::{entry_at, find, only, open_entry};
use rbdkit_filter_sdk::image::{Error, FileChoice, Format, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The file in the archive, exactly as `unzip -l` prints it, or `exportname`: the client's
        /// export name is the file's name. By default the only file of the archive.
        zip_entry: Option<String>,
    }
}

/// The filter.
pub struct Zip {
    entry: FileChoice,
    images: Images<Rc<dyn Source>>,
}

impl Filter for Zip {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("zip", env!("CARGO_PKG_VERSION"), "serves a file of a zip archive")
            .help("Without zip-entry the archive must have only one file, beside short texts.")
            // An instance for each connection: the decoder that runs continues with the next
            // request.
            .thread_model(ThreadModel::SerializeRequests)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Zip { entry: FileChoice::new(settings.zip_entry.unwrap_or_default()), images: Images::default() })
    }
}

impl Wishes for Zip {
    fn limits() -> Vec<Wish> {
        vec![Wish::Setup(Duration::from_secs(600)), Wish::Scratch(64 << 30)]
    }
}

impl Names for Zip {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        // The empty name opens the only file.
        self.entry.list_exports(readonly, vec![ExportEntry { name: String::new(), description: None }])
    }

    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        self.entry.default_export(readonly)
    }
}

impl Format for Zip {
    type Image = Rc<dyn Source>;

    /// The handle is the place of the member's entry in the central directory.
    fn open_image(&self) -> Result<Rc<dyn Source>, Error> {
        let below: Rc<dyn Source> = Rc::new(Next::new()?);
        let entry = entry_at(&below, request::handle())?;
        open_entry(below, &entry, &Storage::Host)
    }

    fn images(&self) -> &Images<Rc<dyn Source>> {
        &self.images
    }

    fn open_next(&self, readonly: bool, exportname: &str) -> Result<u64, Errno> {
        self.entry.open_next(readonly, exportname)?;
        let name = self.entry.name(exportname);
        let below: Rc<dyn Source> = Rc::new(Next::new()?);
        let entry = if name.is_empty() { only(&below) } else { find(&below, name.as_bytes()) };
        entry.map(|entry| entry.at).map_err(Error::log)
    }
}

rbdkit_filter_sdk::export_image!(Zip, names, wishes);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::{Dir, run, sample};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    fn archive(name: &str) -> Vec<u8> {
        let dir = Dir::new(name);
        dir.file("other", b"other");
        dir.file("a.img", &sample(1_000_000, 1));
        run("sh", &["-c", &format!("cd {} && zip -q a.zip other a.img", dir.path(""))]);
        std::fs::read(dir.path("a.zip")).unwrap()
    }

    #[test]
    fn stored_and_deflated_members_are_read() {
        let disk = || Host::new(Disk::new(archive("zip-filter-read")));
        let host = disk().serve::<Zip>(&["zip-entry=a.img"]).unwrap();
        let client = host.connect().unwrap();
        assert!(client.pread(400_000, 300_000).unwrap() == sample(1_000_000, 1)[400_000..700_000]);
        assert!(!client.can().write);
        // It is known for whole chunks of 256 KiB.
        let data = Extent { offset: 5, length: (256 << 10) - 5, kind: ExtentType::empty() };
        assert_eq!(client.extents(5, 10, CommandFlags::empty()).unwrap(), [data]);
        let host = disk().serve::<Zip>(&["zip-entry=other"]).unwrap();
        let client = host.connect().unwrap();
        host.take_calls();
        assert_eq!(client.pread(1, 3).unwrap(), b"the");
        assert_eq!(host.take_calls().len(), 1, "a stored member is one read below");
    }

    #[test]
    fn the_export_name_chooses_a_member() {
        let host = Host::new(Disk::new(archive("zip-filter-names"))).serve::<Zip>(&["zip-entry=exportname"]).unwrap();
        assert_eq!(host.connect_to("other").unwrap().pread(0, 5).unwrap(), b"other");
        assert_eq!(host.connect_to("a.img").unwrap().size(), 1_000_000);
        assert_eq!(host.connect_to("b.img").err(), Some(Errno::Eio));
        assert_eq!(host.take_log(), ["error: the archive has no member 'b.img'; it has 'other', 'a.img'"]);
        assert_eq!(host.connect().err(), Some(Errno::Eio));
        let line =
            "error: the archive has 2 files, and none is the only disk: choose with zip-entry=: 'other', 'a.img'";
        assert_eq!(host.take_log(), [line]);
    }
}
