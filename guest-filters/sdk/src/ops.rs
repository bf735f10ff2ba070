//! The exports of the contract as traits. What a default method does is what happens without the export.

use crate::{
    BlockSizes, Capabilities, CommandFlags, Description, Errno, ExportEntry, Extent, Params, ThreadModel, next,
    next_open,
};

/// Every filter. The value is made once for each instance and serves one call at a time; what `self` may be used for depends on the
/// thread model (use `Cell` and `RefCell`).
pub trait Filter: Sized + 'static {
    /// What the filter is. Always the same; may only log.
    fn describe() -> Description;

    /// Takes the parameters. Always the same for the same parameters, without side effects.
    ///
    /// # Errors
    /// One line for the user that names the parameter and what would be right.
    fn configure(params: &Params) -> Result<Self, String>;
}

/// `threading`.
pub trait Threading: Filter {
    /// The thread model in place of the described one.
    fn thread_model(&self) -> ThreadModel;
}

/// `lifecycle`: once a server.
pub trait Lifecycle: Filter {
    /// Before the server listens. An error (a line for the user) ends it.
    fn get_ready(&self) -> Result<(), String> {
        Ok(())
    }
    /// In the process that serves.
    fn after_fork(&self) -> Result<(), String> {
        Ok(())
    }
    /// After the last connection.
    fn cleanup(&self) {}
}

/// `admission`.
pub trait Admission: Filter {
    /// Who may connect: an error drops the connection.
    fn preconnect(&self, readonly: bool) -> Result<(), Errno>;
}

/// `names`: which exports there are.
pub trait Names: Filter {
    /// The exports.
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        next_open::list_exports(readonly)
    }
    /// What the empty name stands for.
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        next_open::default_export(readonly)
    }
}

/// `connection`: the life of a connection in this layer.
pub trait Connection: Filter {
    /// Opens next and answers the handle.
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
    /// Next is open; no request was made yet.
    fn prepare(&self) -> Result<(), Errno> {
        Ok(())
    }
    /// After the last request; next still works.
    fn finalize(&self) -> Result<(), Errno> {
        Ok(())
    }
    /// Next is gone.
    fn close(&self) {}
}

/// `info`: what the export is.
pub trait Info: Filter {
    /// Bytes.
    fn get_size(&self) -> Result<u64, Errno> {
        next::get_size()
    }
    /// `Errno::Enotsup`: nothing to name.
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        next::block_size()
    }
    /// For people.
    fn export_description(&self) -> Option<String> {
        next::export_description()
    }
}

/// `features`.
pub trait Features: Filter {
    /// What this layer can, from what next can.
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno>;
}

/// `reads`.
pub trait Reads: Filter {
    /// Fills the payload.
    fn pread(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno>;
}

/// `writes`.
pub trait Writes: Filter {
    /// Writes the payload.
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno>;
}

/// `flushes`.
pub trait Flushes: Filter {
    /// Makes what was answered before durable.
    fn flush(&self) -> Result<(), Errno>;
}

/// `trims`.
pub trait Trims: Filter {
    /// Discards.
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno>;
}

/// `zeroes`.
pub trait Zeroes: Filter {
    /// Makes the range read as zero.
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno>;
}

/// `mapping`.
pub trait Mapping: Filter {
    /// What a client would read now.
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno>;
}

/// `caching`.
pub trait Caching: Filter {
    /// Brings the range nearer.
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno>;
}

/// `background`: ranges that the host prefetches when it has nothing else to do.
pub trait Background: Filter {
    /// Offset and length of the next one.
    fn next_range(&self) -> Option<(u64, u64)>;
}
