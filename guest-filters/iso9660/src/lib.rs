//! Serves a file inside an ISO 9660 file system, read-only.

use std::rc::Rc;

use rbdkit_filter_formats::iso9660::{File, open_file};
use rbdkit_filter_formats::paths::check_path;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The path of the file, which begins with /; exportname takes the path from the client.
        #[param(check = is_path)]
        iso9660_file: String,
    }
}

fn is_path(given: &String) -> Result<(), String> {
    if given == "exportname" { Ok(()) } else { check_path(given) }
}

/// The filter.
pub struct Iso9660 {
    /// None: the client's export name is the path.
    path: Option<String>,
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
        let path = Some(settings.iso9660_file).filter(|path| path != "exportname");
        Ok(Iso9660 { path, images: Images::default() })
    }
}

impl Format for Iso9660 {
    type Image = File;

    fn open_image(&self) -> Result<File, Error> {
        open_file(Rc::new(Next::new()?), &self.path.clone().unwrap_or_else(request::exportname))
    }
    fn images(&self) -> &Images<File> {
        &self.images
    }
    fn open_next(&self, exportname: &str) -> Result<u64, Errno> {
        next_open::open(true, if self.path.is_none() { "" } else { exportname })?;
        Ok(0)
    }
}

impl Names for Iso9660 {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        // The layer below is not open yet, so nobody can read which files there are. Its own
        // exports are no files.
        if self.path.is_none() { Ok(Vec::new()) } else { next_open::list_exports(readonly) }
    }
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        if self.path.is_none() { Ok(String::new()) } else { next_open::default_export(readonly) }
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
        let line = "error: the file '' is no path: it has to begin with /, for example /disks/disk.img";
        assert_eq!(host.take_log(), [line]);
        assert!(serve("iso9660-file=x").is_err());
    }
}
