//! Serves a file inside a FAT file system, read-only.

use std::rc::Rc;

use rbdkit_filter_formats::fat::{File, open_file};
use rbdkit_filter_formats::paths::check_choice;
use rbdkit_filter_sdk::image::{Error, FileChoice, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The path of the file, which begins with /; exportname takes the path from the client.
        #[param(check = check_choice)]
        fat_file: String,
    }
}

/// The filter.
pub struct Fat {
    file: FileChoice,
    images: Images<File>,
}

impl Filter for Fat {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("fat", env!("CARGO_PKG_VERSION"), "serves a file inside a FAT file system")
            .help("It reads FAT12, FAT16 and FAT32.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        let file = FileChoice::new(settings.fat_file);
        Ok(Fat { file, images: Images::default() })
    }
}

impl Format for Fat {
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

impl Names for Fat {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        self.file.list_exports(readonly, Vec::new())
    }
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        self.file.default_export(readonly)
    }
}

rbdkit_filter_sdk::export_image!(Fat, names);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::{Dir, run};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_file_is_served_by_the_parameter_and_by_the_exports_name() {
        let dir = Dir::new("fat-filter");
        let (image, file) = (dir.path("image"), dir.file("file", b"hello"));
        run("truncate", &["-s", "1440K", &image]);
        run("/sbin/mkfs.fat", &[&image]);
        run("mcopy", &["-i", &image, &file, "::/A long name.txt"]);
        let image = std::fs::read(image).unwrap();
        let serve = |word: &str| Host::new(Disk::new(image.clone())).serve::<Fat>(&[word]);
        let host = serve("fat-file=/a long name.txt").unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.pread(0, 5).unwrap(), client.can().write), (b"hello".to_vec(), false));
        let host = serve("fat-file=exportname").unwrap();
        assert_eq!(host.list_exports().unwrap(), []);
        assert_eq!(host.connect_to("/A long name.txt").unwrap().size(), 5);
        host.take_log();
        assert!(host.connect_to("/none").is_err());
        assert_eq!(host.take_log(), ["error: there is no file '/none': '/' has no 'none'"]);
        assert!(serve("fat-file=x").is_err());
    }
}
