//! Which file of an image is served.

use crate::{Errno, ExportEntry, next_open};

/// Which file of an archive or a file system a filter serves: the one that a parameter names, or
/// the one that each client names.
///
/// The layer below has one export then, and is opened under the empty name. It is not open yet when
/// exports are listed, so nobody can read which files there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChoice {
    /// The file of this name.
    Named(String),
    /// The client's export name is the file's name.
    ByExportName,
}

impl FileChoice {
    /// The value of the parameter with which the client chooses, as in nbdkit's filters.
    pub const BY_EXPORT_NAME: &str = "exportname";

    /// What the parameter's value chooses.
    pub fn new(value: String) -> FileChoice {
        if value == FileChoice::BY_EXPORT_NAME { FileChoice::ByExportName } else { FileChoice::Named(value) }
    }

    /// The file's name for a client that opened this export.
    pub fn name<'a>(&'a self, exportname: &'a str) -> &'a str {
        match self {
            FileChoice::Named(name) => name,
            FileChoice::ByExportName => exportname,
        }
    }

    /// Opens next for a client that opens this export.
    ///
    /// # Errors
    /// Those of next.
    pub fn open_next(&self, readonly: bool, exportname: &str) -> Result<(), Errno> {
        next_open::open(readonly, if *self == FileChoice::ByExportName { "" } else { exportname })
    }

    /// The exports: those of next, or `chosen` if the client chooses the file.
    ///
    /// # Errors
    /// Those of next.
    pub fn list_exports(&self, readonly: bool, chosen: Vec<ExportEntry>) -> Result<Vec<ExportEntry>, Errno> {
        if *self == FileChoice::ByExportName { Ok(chosen) } else { next_open::list_exports(readonly) }
    }

    /// The default export: that of next, or the empty name if the client chooses the file.
    ///
    /// # Errors
    /// Those of next.
    pub fn default_export(&self, readonly: bool) -> Result<String, Errno> {
        if *self == FileChoice::ByExportName { Ok(String::new()) } else { next_open::default_export(readonly) }
    }
}
