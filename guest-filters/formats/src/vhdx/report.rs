//! What is known of an image before anybody reads it.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, quoted};

use super::header::{self, VhdxHeader};
use super::locator::ParentLocator;
use super::log;
use super::metadata::VhdxMetadata;
use super::regions::Regions;
use crate::Report;

/// Describes an image. Of one that is wrong it describes what comes before the fault, and the fault
/// is a danger.
pub fn report(image: &Rc<dyn Source>) -> Result<Report, Error> {
    let mut report = Report::default();
    match describe(image, &mut report) {
        Err(Error::Image(line)) => report.danger(line),
        result => result?,
    }
    Ok(report)
}

fn describe(image: &Rc<dyn Source>, report: &mut Report) -> Result<(), Error> {
    let creator = header::creator(&**image)?;
    if !creator.is_empty() {
        report.fact("creator", quoted(creator.as_bytes()));
    }
    let header = VhdxHeader::find(&**image)?;
    report.fact("log size", header.log.end - header.log.start);
    let mut replayed = Rc::clone(image);
    match log::replay(image, &header)? {
        None => report.fact("log", "empty"),
        Some((overlay, log)) => {
            report.fact("log", format!("{} entries, from {} to {}", log.entries, log.first, log.last));
            report.danger("the log is not empty: the image was not closed. It is read as if the log were replayed");
            replayed = Rc::new(overlay);
        }
    }
    let regions = Regions::read(&*replayed, &header.log)?;
    if regions.copies_differ {
        report.danger("the two region tables say different things: the first one is read");
    }
    let metadata = VhdxMetadata::read(&*replayed, &regions.metadata)?;
    report.size = Some(metadata.size);
    report.fact("type", metadata.disk_type.name());
    report.fact("block size", metadata.block);
    report.fact("logical sector size", metadata.sector);
    report.fact("physical sector size", metadata.physical_sector);
    report.fact("leaves blocks allocated", if metadata.leaves_blocks { "yes" } else { "no" });
    report.fact("disk id", metadata.id);
    report.fact("data write id", header.data_write);
    if let Some(locator) = &metadata.locator {
        let locator = ParentLocator::read(&*replayed, locator)?;
        for linkage in &locator.linkages {
            report.fact("parent id", quoted(linkage.as_bytes()));
        }
        for path in &locator.paths {
            report.danger(format!("it names a parent: {}", quoted(path.as_bytes())));
        }
        if locator.paths.is_empty() {
            report.danger("it has a parent and does not name it");
        }
    }
    Ok(())
}
