//! The exports of the contract as traits, one for each interface. A default method does what the
//! host does when the interface is not exported.

use crate::bindings::host::rbdkit::filter::types::{
    BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent, Scope, ThreadModel,
};
use crate::describe::Description;
use crate::host::{next, next_open};
use crate::params::Parameters;

/// Every filter implements this. Each instance makes one value, which serves one call at a time.
/// The thread model says what `self` may hold; use `Cell` and `RefCell` to change it.
pub trait Filter: Sized + 'static {
    /// The filter's parameters: a struct made by [`params!`](crate::params!), or `()`.
    type Params: Parameters;

    /// Describes the filter. It must always return the same, and may call nothing but `log`. The
    /// SDK adds the parameters.
    fn describe() -> Description;

    /// Makes the filter from its parameters. It must have no side effects, and do the same each
    /// time it gets the same parameters.
    ///
    /// # Errors
    /// One line for the user that names the parameter and says what values it takes.
    fn configure(params: Self::Params) -> Result<Self, String>;
}

/// A limit that a filter can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Bytes of memory of one instance.
    Memory(u64),
    /// Bytes of the buffers that one call allocates.
    Buffers(u64),
    /// Bytes of one scratch file.
    Scratch(u64),
    /// Time for opening, preparing, finalizing and closing.
    Setup(std::time::Duration),
    /// Times that one request may wait.
    Waits(u32),
}

impl Wish {
    /// The contract's name and value.
    #[doc(hidden)]
    pub fn into_contract(self) -> (String, u64) {
        let (name, value) = match self {
            Wish::Memory(bytes) => ("memory", bytes),
            Wish::Buffers(bytes) => ("buffers", bytes),
            Wish::Scratch(bytes) => ("scratch", bytes),
            Wish::Setup(time) => ("setup", u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            Wish::Waits(number) => ("waits", number.into()),
        };
        (name.to_string(), value)
    }
}

/// `wishes`: the limits that the filter needs.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `wishes` and does not implement the trait `Wishes`",
    note = "implement `Wishes`, or remove `wishes` from export!"
)]
pub trait Wishes: Filter {
    /// The limits for which the defaults are not right. It must always return the same, and is
    /// called before any parameter is known.
    fn limits() -> Vec<Wish>;
}

/// `threading`: a thread model that depends on the parameters.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `threading` and does not implement the trait `Threading`",
    note = "implement `Threading`, or remove `threading` from export!"
)]
pub trait Threading: Filter {
    /// The thread model. It replaces the one of the description.
    fn thread_model(&self) -> ThreadModel;
}

/// `lifecycle`: the life of the server. Each method is called once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `lifecycle` and does not implement the trait `Lifecycle`",
    note = "implement `Lifecycle`, or remove `lifecycle` from export!"
)]
pub trait Lifecycle: Filter {
    /// Called before the server listens. An error (one line for the user) ends the server.
    fn get_ready(&self) -> Result<(), String> {
        Ok(())
    }
    /// Called in the process that serves. An error (one line for the user) ends the server.
    fn after_fork(&self) -> Result<(), String> {
        Ok(())
    }
    /// Called after the last connection.
    fn cleanup(&self) {}
}

/// `admission`: who may connect.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `admission` and does not implement the trait `Admission`",
    note = "implement `Admission`, or remove `admission` from export!"
)]
pub trait Admission: Filter {
    /// Called when a client connects. An error drops the connection.
    fn preconnect(&self, readonly: bool) -> Result<(), Errno>;
}

/// `names`: which exports there are.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `names` and does not implement the trait `Names`",
    note = "implement `Names`, or remove `names` from export!"
)]
pub trait Names: Filter {
    /// The list of exports.
    fn list_exports(&self, readonly: bool, _is_tls: bool) -> Result<Vec<ExportEntry>, Errno> {
        next_open::list_exports(readonly)
    }
    /// The export that the empty name stands for.
    fn default_export(&self, readonly: bool, _is_tls: bool) -> Result<String, Errno> {
        next_open::default_export(readonly)
    }
}

/// `connection`: the life of a connection in this layer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `connection` and does not implement the trait `Connection`",
    note = "implement `Connection`, or remove `connection` from export!"
)]
pub trait Connection: Filter {
    /// Opens next and returns the handle, which `request::handle` returns from then on.
    fn open(&self, readonly: bool, exportname: &str, _is_tls: bool, _replayed: bool) -> Result<u64, Errno> {
        next_open::open(readonly, exportname)?;
        Ok(0)
    }
    /// Called when next is open, before the first request.
    fn prepare(&self) -> Result<(), Errno> {
        Ok(())
    }
    /// Called after the last request, while next still works.
    fn finalize(&self) -> Result<(), Errno> {
        Ok(())
    }
    /// Called when next is closed.
    fn close(&self) {}
}

/// `info`: what the export is.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `info` and does not implement the trait `Info`",
    note = "implement `Info`, or remove `info` from export!"
)]
pub trait Info: Filter {
    /// The size in bytes.
    fn get_size(&self) -> Result<u64, Errno> {
        next::get_size()
    }
    /// The block sizes in bytes, or `Errno::Enotsup` if the layer does not state any.
    fn block_size(&self) -> Result<BlockSizes, Errno> {
        next::block_size()
    }
    /// A description for people.
    fn export_description(&self) -> Option<String> {
        next::export_description()
    }
}

/// `features`: what the layer can do.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `features` and does not implement the trait `Features`",
    note = "implement `Features`, or remove `features` from export!"
)]
pub trait Features: Filter {
    /// Returns what this layer can do. `below` is what next can do.
    fn can(&self, below: Capabilities) -> Result<Capabilities, Errno>;
}

/// `reads`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `reads` and does not implement the trait `Reads`",
    note = "implement `Reads`, or remove `reads` from export!"
)]
pub trait Reads: Filter {
    /// Fills the payload with `length` bytes from `offset` on.
    fn pread(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno>;
}

/// `writes`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `writes` and does not implement the trait `Writes`",
    note = "implement `Writes`, or remove `writes` from export!"
)]
pub trait Writes: Filter {
    /// Writes the payload, which has `length` bytes, to `offset`.
    fn pwrite(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Errno>;
}

/// `flushes`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `flushes` and does not implement the trait `Flushes`",
    note = "implement `Flushes`, or remove `flushes` from export!"
)]
pub trait Flushes: Filter {
    /// Makes every write durable that was answered before the call.
    fn flush(&self) -> Result<(), Errno>;
}

/// `trims`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `trims` and does not implement the trait `Trims`",
    note = "implement `Trims`, or remove `trims` from export!"
)]
pub trait Trims: Filter {
    /// Discards a range.
    fn trim(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno>;
}

/// `zeroes`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `zeroes` and does not implement the trait `Zeroes`",
    note = "implement `Zeroes`, or remove `zeroes` from export!"
)]
pub trait Zeroes: Filter {
    /// Makes a range read as zero.
    fn zero(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<(), Errno>;
}

/// `mapping`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `mapping` and does not implement the trait `Mapping`",
    note = "implement `Mapping`, or remove `mapping` from export!"
)]
pub trait Mapping: Filter {
    /// The types of the bytes that a client would read now. Extents that `next::extents_forward`
    /// and `next::extents_forward_until` appended come before those that are returned. The last one
    /// may run on beyond the range as far as its type is known to hold.
    fn extents(&self, offset: u64, length: u64, flags: CommandFlags) -> Result<Vec<Extent>, Errno>;
}

/// `caching`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `caching` and does not implement the trait `Caching`",
    note = "implement `Caching`, or remove `caching` from export!"
)]
pub trait Caching: Filter {
    /// Caches a range, so that later reads are faster.
    fn cache(&self, offset: u64, length: u64) -> Result<(), Errno>;
}

/// `background`: ranges that the host caches when it has nothing else to do.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `background` and does not implement the trait `Background`",
    note = "implement `Background`, or remove `background` from export!"
)]
pub trait Background: Filter {
    /// The offset and length of the next range, or `None` if there is nothing more to do.
    fn next_range(&self) -> Option<(u64, u64)>;
}

/// `on-alarm`: calls at times that the filter sets with `alarms::set`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `on_alarm` and does not implement the trait `OnAlarm`",
    note = "implement `OnAlarm`, or remove `on_alarm` from export!"
)]
pub trait OnAlarm: Filter {
    /// The time of alarm `id` has come. For `Scope::Connection` it is a call of that connection,
    /// and for `Scope::Server` one without a connection.
    fn alarm(&self, scope: Scope, id: u32);
}

/// `on-watch`: changes of what parameters name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `on_watch` and does not implement the trait `OnWatch`",
    note = "implement `OnWatch`, or remove `on_watch` from export!"
)]
pub trait OnWatch: Filter {
    /// What the `nth` value of a parameter names has changed. `holds` says whether it is there,
    /// open or running now.
    fn changed(&self, param: &str, nth: u32, holds: bool);
}

/// `on-connection`: connections that come and go.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `on_connection` and does not implement the trait `OnConnection`",
    note = "implement `OnConnection`, or remove `on_connection` from export!"
)]
pub trait OnConnection: Filter {
    /// A connection was opened in this layer.
    fn opened(&self, connection: u64);
    /// A connection that was opened is gone.
    fn closed(&self, connection: u64);
}

/// `on-control`: commands at the sockets of parameters of the kind `control`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported with `on_control` and does not implement the trait `OnControl`",
    note = "implement `OnControl`, or remove `on_control` from export!"
)]
pub trait OnControl: Filter {
    /// A client of the socket that the `nth` value of a parameter names has sent `data`, 1 to 4096
    /// bytes. The answer, at most 4096 bytes, is sent back.
    fn received(&self, param: &str, nth: u32, data: &[u8]) -> Vec<u8>;
}
