//! VHDX images, the format of Hyper-V: fixed, dynamic and differencing disks.
//!
//! An image begins with an identifier, two headers and two region tables. The regions are the table
//! of the blocks and the metadata. A header says where the log is: if a program did not close the
//! image, the log has what is still to be written to the tables. It is never written: the image is
//! read through an overlay of what the log has.

mod header;
mod locator;
mod log;
mod map;
mod metadata;
mod overlay;
mod regions;
mod report;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source};

use crate::FormatInfo;
use crate::block_map::MappedImage;
use header::VhdxHeader;
use locator::ParentLocator;
use map::VhdxDisk;
use metadata::VhdxMetadata;
use regions::Regions;

/// What `auto` and `rbdkit-filter image` know of the format.
pub const INFO: FormatInfo = FormatInfo {
    name: "vhdx",
    probe: header::has_identifier,
    report: report::report,
    open: |image| Ok(Rc::new(open(image, || Ok(None))?)),
};

/// An opened image.
pub type Image = MappedImage<VhdxDisk>;

/// The tables of an image that were read.
struct Tables {
    /// The image with what its log has.
    image: Rc<dyn Source>,
    header: VhdxHeader,
    regions: Regions,
    metadata: VhdxMetadata,
}

impl Tables {
    fn read(image: Rc<dyn Source>) -> Result<Tables, Error> {
        let header = VhdxHeader::find(&*image)?;
        let image = match log::replay(&image, &header)? {
            Some((overlay, _)) => Rc::new(overlay),
            None => image,
        };
        let regions = Regions::read(&*image, &header.log)?;
        let metadata = VhdxMetadata::read(&*image, &regions.metadata)?;
        Ok(Tables { image, header, regions, metadata })
    }

    fn disk(self, parent: Option<Rc<dyn Source>>) -> Result<Image, Error> {
        Ok(MappedImage(VhdxDisk::new(self.image, parent, self.metadata, &self.regions, self.header.log)?))
    }
}

/// Opens an image. `parent` gives the parent, if there is one; it is called for differencing disks
/// only. It is a raw disk, or a VHDX image that is not a differencing one.
///
/// # Errors
/// Those of the image and of `parent`. A line if the image is wrong, or needs a parent.
pub fn open(
    image: Rc<dyn Source>,
    parent: impl FnOnce() -> Result<Option<Rc<dyn Source>>, Error>,
) -> Result<Image, Error> {
    let tables = Tables::read(image)?;
    let Some(locator) = &tables.metadata.locator else { return tables.disk(None) };
    let locator = ParentLocator::read(&*tables.image, locator)?;
    let Some(given) = parent()? else {
        return Err(Error::image(format!(
            "the image is a differencing disk and names the parent {}: no file is opened by its name, give the parent \
             with vhdx-parent=",
            locator.names()
        )));
    };
    tables.disk(Some(opened_parent(given, &locator)?))
}

/// The disk of the parent that the operator gave.
///
/// A raw disk may begin as a VHDX image does: whoever writes to the disk decides what its bytes
/// are. It is taken for one only if it has the identifier that the child names, and refused
/// otherwise.
fn opened_parent(given: Rc<dyn Source>, locator: &ParentLocator) -> Result<Rc<dyn Source>, Error> {
    if !header::has_identifier(&*given)? {
        return Ok(given);
    }
    let about = |error| match error {
        Error::Image(line) => Error::Image(format!("vhdx-parent=: {line}")),
        failed => failed,
    };
    locator.check(VhdxHeader::find(&*given).map_err(about)?.data_write)?;
    let tables = Tables::read(given).map_err(about)?;
    if tables.metadata.locator.is_some() {
        return Err(Error::image(
            "vhdx-parent= is a differencing disk itself: give it as a chain with the filter vhdx and its own parent",
        ));
    }
    Ok(Rc::new(tables.disk(None).map_err(about)?))
}
