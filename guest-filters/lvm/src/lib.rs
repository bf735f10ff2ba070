//! Serves a logical volume of LVM2, read-only.

use std::rc::Rc;

use rbdkit_filter_formats::lvm::open_volume;
use rbdkit_filter_sdk::image::{Error, Format, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The logical volume, as `GROUP/VOLUME` or `VOLUME`. By default the only one.
        lvm_volume: Option<String>,
    }
}

/// The filter.
pub struct Lvm {
    volume: Option<String>,
    images: Images<Rc<dyn Source>>,
}

impl Filter for Lvm {
    type Params = Settings;

    fn describe() -> Description {
        Description::new("lvm", env!("CARGO_PKG_VERSION"), "serves a logical volume of LVM2")
            .help("The layer below is one physical volume; put the filter partition below if it is in a partition.")
            .thread_model(ThreadModel::Parallel)
            .recovery(Recovery::Stateless)
    }

    fn configure(settings: Settings) -> Result<Self, String> {
        Ok(Lvm { volume: settings.lvm_volume, images: Images::default() })
    }
}

impl Format for Lvm {
    type Image = Rc<dyn Source>;

    fn open_image(&self) -> Result<Rc<dyn Source>, Error> {
        open_volume(Rc::new(Next::new()?), self.volume.as_deref())
    }

    fn images(&self) -> &Images<Rc<dyn Source>> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Lvm);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::lvm::{EXTENT, FIRST, metadata, physical, segment};
    use rbdkit_filter_sdk::testing::{Disk, Host};

    #[test]
    fn a_volume_is_read_where_its_segments_are() {
        let (one, two) = (segment(0, 1, 1, "\"pv0\", 7"), segment(1, 1, 1, "\"pv0\", 3"));
        let image = physical(&metadata(1, &[("root", &[&one, &two])]));
        let host = Host::new(Disk::new(image.clone())).serve::<Lvm>(&["lvm-volume=vg0/root"]).unwrap();
        let client = host.connect().unwrap();
        assert_eq!((client.size(), client.can().write), (2 * EXTENT as u64, false));
        let (end, start) = (FIRST + 8 * EXTENT, FIRST + 3 * EXTENT);
        let expected = [&image[end - 100..end], &image[start..start + 100]].concat();
        assert!(client.pread(EXTENT as u64 - 100, 200).unwrap() == expected);
        let calls = [format!("pread {} 100", end - 100), format!("pread {start} 100")];
        assert!(host.take_calls().ends_with(&calls), "one read for each segment");
    }

    #[test]
    fn a_volume_that_does_not_exist_fails_the_connection_with_a_line() {
        let image = physical(&metadata(1, &[("root", &[&segment(0, 1, 1, "\"pv0\", 7")])]));
        let host = Host::new(Disk::new(image)).serve::<Lvm>(&["lvm-volume=home"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eio));
        assert_eq!(host.take_log(), ["error: there is no volume 'home'; the volume group 'vg0' has 'root'"]);
    }
}
