//! Serves a file inside an ISO 9660 file system, read-only.

use std::rc::Rc;

use rbdkit_filter_formats::iso9660::{File, open_file};
use rbdkit_filter_formats::paths::check_choice;
use rbdkit_filter_sdk::image::{Error, FileChoice, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The path of the file, which begins with /; exportname takes the path from the client.
        #[param(check = check_choice)]
        iso9660_file: String,
    }
}

/// The filter.
pub struct Iso9660 {
    file: FileChoice,
    images: Images<File>,
}

impl Filter for Iso9660 {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("iso9660", env!("CARGO_PKG_VERSION"), "serves a file inside an ISO 9660 file system")
            .help("It reads Rock Ridge, Joliet and plain names.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let file = FileChoice::new(settings.iso9660_file);
        Ok(Iso9660 { file, images: Images::default() })
    }
}

impl Format for Iso9660 {
    type Image = File;

    fn open_image(&self) -> Result<File, Error> {
        open_file(Rc::new(Next::new()?), self.file.name(&request::exportname()))
    }
    fn images(&self) -> &Images<File> {
        &self.images
    }
    fn open_next(&self, readonly: bool, exportname: &str) -> Result<u64, Errno> {
        self.file.open_next(readonly, exportname).map(|()| 0)
    }
}

impl Names for Iso9660 {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        self.file.list_exports(readonly, Vec::new())
    }
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        self.file.default_export(readonly)
    }
}

rbdkit_filter_sdk::export_image!(Iso9660, names);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::{Dir, run};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_file_is_served_by_the_parameter_and_by_the_exports_name() {
        let dir = Dir::new("iso9660-filter");
        std::fs::create_dir(dir.path("tree")).unwrap();
        std::fs::write(dir.path("tree/file.txt"), b"hello").unwrap();
        run("genisoimage", &["-quiet", "-R", "-o", &dir.path("image"), &dir.path("tree")]);
        let image = std::fs::read(dir.path("image")).unwrap();
        let serve = |word: &str| Host::new(Disk::new(image.clone())).serve::<Iso9660>(&[word]);
        let host = serve("iso9660-file=/file.txt").unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.pread(0, 5).unwrap(), client.can().write), (b"hello".to_vec(), false));
        let host = serve("iso9660-file=exportname").unwrap();
        assert_eq!(host.list_exports().unwrap(), []);
        assert_eq!(host.connect_to("/file.txt").unwrap().size(), 5);
        host.take_log();
        assert!(host.connect().is_err());
        let line = "error: the file '' is not a path: it has to begin with /, for example /disks/disk.img";
        assert_eq!(host.take_log(), [line]);
        assert!(serve("iso9660-file=x").is_err());
    }
}
