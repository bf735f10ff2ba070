//! What is known of an image from its header.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{BlockCache, Error, Source, quoted};

use super::features::{self, Word};
use super::header::{Compression, Encryption, Header};
use super::snapshots;
use crate::Report;

/// A report names at most so many snapshots.
const NAMED: usize = 16;

pub(super) fn report(source: &Rc<dyn Source>) -> Result<Report, Error> {
    let header = Header::read(source)?;
    let mut report = Report { size: Some(header.size), ..Report::default() };
    report.fact("version", header.version);
    report.fact("cluster size", header.cluster_size());
    if header.has(features::EXTENDED_L2) {
        report.fact("subcluster size", header.cluster_size() / 32);
    }
    report.fact(
        "compression",
        match header.compression {
            Compression::Zlib => "zlib".to_string(),
            Compression::Zstd => "zstd".to_string(),
            Compression::Unknown(kind) => format!("type {kind}"),
        },
    );
    report.fact(
        "encryption",
        match header.encryption {
            Encryption::None => "none".to_string(),
            Encryption::Aes => "aes".to_string(),
            Encryption::Luks => "luks".to_string(),
            Encryption::Unknown(method) => format!("method {method}"),
        },
    );
    let known: Vec<&str> = [
        (Word::Incompatible, header.incompatible),
        (Word::Compatible, header.compatible),
        (Word::Autoclear, header.autoclear),
    ]
    .into_iter()
    .flat_map(|(word, bits)| features::known(word, bits))
    .collect();
    if !known.is_empty() {
        report.fact("features", known.join(", "));
    }
    names_of_files(&header, &mut report);
    if let Err(Error::Image(line)) = list_snapshots(&header, source, &mut report) {
        report.danger(line);
    }
    if header.has(features::CORRUPT) {
        report.danger("it is marked as corrupt");
    }
    if let Err(Error::Image(line)) = header.check(&**source) {
        report.danger(format!("it cannot be served: {line}"));
    }
    Ok(report)
}

fn names_of_files(header: &Header, report: &mut Report) {
    if let Some(name) = &header.backing {
        report.fact("backing file", quoted(name));
        report.danger(format!("it names a backing file: {}", quoted(name)));
    }
    if let Some(format) = &header.backing_format {
        report.fact("backing format", quoted(format));
    }
    if header.has(features::EXTERNAL_DATA) {
        let name = header.data_file.as_deref().map(quoted);
        report.fact("data file", name.clone().unwrap_or_else(|| "without a name".into()));
        report.danger(match name {
            Some(name) => format!("it names a data file: {name}"),
            None => "it has its data in another file".into(),
        });
    } else if let Some(name) = &header.data_file {
        report.danger(format!("it names a data file, and does not say that it has one: {}", quoted(name)));
    }
}

fn list_snapshots(header: &Header, source: &Rc<dyn Source>, report: &mut Report) -> Result<(), Error> {
    if header.snapshots.count == 0 {
        return Ok(());
    }
    report.fact("snapshots", header.snapshots.count);
    let cache = BlockCache::new(Rc::clone(source), 4096, 16384);
    let mut left = NAMED;
    snapshots::each(header, &cache, |snapshot| {
        report.fact("snapshot", format!("{}, {} bytes", snapshot.label(), snapshot.size));
        left -= 1;
        left > 0
    })
    .map(drop)
}
