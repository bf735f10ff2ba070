//! What an image is.

use crate::Report;

/// A format that was found.
pub struct Layer {
    /// Its name.
    pub name: &'static str,
    /// What its headers say.
    pub report: Report,
}

/// What an image is.
#[derive(Default)]
pub struct Found {
    /// The formats, from the outermost to the innermost. None for a raw disk.
    pub layers: Vec<Layer>,
    /// What the disk within begins with, if that is known: a partition table, a file system.
    pub content: Vec<Layer>,
    /// The size of the disk within, in bytes.
    pub size: Option<u64>,
    /// Why it is not served.
    pub refused: Option<String>,
}

impl Found {
    /// All dangers, with the format that each is about.
    pub fn dangers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let layers = self.layers.iter().chain(&self.content);
        layers.flat_map(|layer| layer.report.dangers.iter().map(|danger| (layer.name, danger.as_str())))
    }

    /// "qcow2 in gzip", or "raw".
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.layers.iter().rev().map(|layer| layer.name).collect();
        if names.is_empty() { "raw".into() } else { names.join(" in ") }
    }
}
