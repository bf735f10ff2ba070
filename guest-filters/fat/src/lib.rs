//! Serves a file inside a FAT file system, read-only.

use std::rc::Rc;

use rbdkit_filter_formats::fat::{File, open_file};
use rbdkit_filter_formats::paths::check_path;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The path of the file, which begins with /; exportname takes the path from the client.
        #[param(check = is_path)]
        fat_file: String,
    }
}

fn is_path(given: &String) -> Result<(), String> {
    if given == "exportname" { Ok(()) } else { check_path(given) }
}

/// The filter.
pub struct Fat {
    /// None: the client's export name is the path.
    path: Option<String>,
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
        let path = Some(settings.fat_file).filter(|path| path != "exportname");
        Ok(Fat { path, images: Images::default() })
    }
}

impl Format for Fat {
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

impl Names for Fat {
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        // The layer below is not open yet, so nobody can read which files there are. Its own
        // exports are no files.
        if self.path.is_none() { Ok(Vec::new()) } else { next_open::list_exports(readonly) }
    }
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        if self.path.is_none() { Ok(String::new()) } else { next_open::default_export(readonly) }
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
