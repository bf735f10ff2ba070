//! Serves a logical volume of LVM2, read-only.

use std::rc::Rc;

use rbdkit_filter_formats::lvm::open_volume;
use rbdkit_filter_sdk::image::{Error, Format, GivenDisk, Images, Next, Source};
use rbdkit_filter_sdk::prelude::*;

params! {
    /// The parameters.
    pub struct Settings {
        /// The logical volume, as `GROUP/VOLUME` or `VOLUME`. By default the only one.
        lvm_volume: Option<String>,
        /// Another physical volume of the group, if the logical volume is on several; repeat it for
        /// each.
        lvm_pv: Vec<Disk>,
    }
}

/// The filter.
pub struct Lvm {
    settings: Settings,
    images: Images<Rc<dyn Source>>,
}

fn given(disk: &Disk) -> Result<Rc<dyn Source>, Errno> {
    Ok(Rc::new(GivenDisk::new(disk)?))
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
        Ok(Lvm { settings, images: Images::default() })
    }
}

impl Format for Lvm {
    type Image = Rc<dyn Source>;

    fn open_image(&self) -> Result<Rc<dyn Source>, Error> {
        let others = self.settings.lvm_pv.iter().map(given).collect::<Result<_, _>>()?;
        open_volume(Rc::new(Next::new()?), others, self.settings.lvm_volume.as_deref())
    }

    fn images(&self) -> &Images<Rc<dyn Source>> {
        &self.images
    }
}

rbdkit_filter_sdk::export_image!(Lvm);

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_filter_formats::testing::lvm::{EXTENT, FIRST, metadata, other_physical, physical, segment};
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
    fn other_physical_volumes_are_read_from_the_disks_that_are_given() {
        let (one, two) = (segment(0, 1, 1, "\"pv0\", 7"), segment(1, 1, 1, "\"pv1\", 3"));
        let (image, other) = (physical(&metadata(1, &[("root", &[&one, &two])])), other_physical(None));
        let host = || Host::new(Disk::new(image.clone())).with_disk("b.img", Disk::new(other.clone()));
        let served = host().serve::<Lvm>(&["lvm-pv=b.img"]).unwrap();
        let client = served.connect().unwrap();
        let (end, start) = (FIRST + 8 * EXTENT, FIRST + 3 * EXTENT);
        let expected = [&image[end - 100..end], &other[start..start + 100]].concat();
        assert!(client.pread(EXTENT as u64 - 100, 200).unwrap() == expected);
        let calls = [format!("pread {} 100", end - 100), format!("disk-pread b.img {start} 100")];
        assert!(served.take_calls().ends_with(&calls), "the bytes do not enter the filter");
        let served = host().serve::<Lvm>(&[]).unwrap();
        assert_eq!(served.connect().err(), Some(Errno::Eio));
        let line = "error: the volume 'root' is also on 1 other physical volume: give 'pv1' \
                    ('others-GHIJ-KLmn-opQR-STuv-wxYZ-012345') as lvm-pv=DISK";
        assert_eq!(served.take_log(), [line]);
    }

    #[test]
    fn a_volume_that_does_not_exist_fails_the_connection_with_a_line() {
        let image = physical(&metadata(1, &[("root", &[&segment(0, 1, 1, "\"pv0\", 7")])]));
        let host = Host::new(Disk::new(image)).serve::<Lvm>(&["lvm-volume=home"]).unwrap();
        assert_eq!(host.connect().err(), Some(Errno::Eio));
        assert_eq!(host.take_log(), ["error: there is no volume 'home'; the volume group 'vg0' has 'root'"]);
    }
}
