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
    /// The formats whose signatures the innermost image has, if these contradict each other.
    pub ambiguous: Vec<&'static str>,
    /// Why it is not served.
    pub refused: Option<String>,
}

impl Found {
    /// All dangers, with the format that each is about.
    pub fn dangers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let layers = self.layers.iter().chain(&self.content);
        layers.flat_map(|layer| layer.report.dangers.iter().map(|danger| (layer.name, danger.as_str())))
    }

    /// "qcow2 in gzip". "raw" if nothing else was found; for a refused image that is "not known" or
    /// "ambiguous (qcow2 or partition)".
    pub fn names(&self) -> String {
        let innermost = match self.refused {
            Some(_) if !self.ambiguous.is_empty() => Some(format!("ambiguous ({})", self.ambiguous.join(" or "))),
            Some(_) if self.layers.is_empty() => Some("not known".into()),
            None if self.layers.is_empty() => Some("raw".into()),
            _ => None,
        };
        let layers = self.layers.iter().rev().map(|layer| layer.name.to_string());
        innermost.into_iter().chain(layers).collect::<Vec<_>>().join(" in ")
    }

    /// What is looked at, for a message: the image, or what the layers so far have in them.
    pub(super) fn inside(&self) -> String {
        if self.layers.is_empty() { "the image".into() } else { format!("the content of {}", self.names()) }
    }
}
