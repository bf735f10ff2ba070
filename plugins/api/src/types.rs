//! Small shared types: capabilities, block sizes, flags of a request, thread models.

use std::fmt;

/// The longest request with data, in bytes: 64 MiB, as in nbdkit. The server refuses longer ones
/// before it allocates anything.
pub const MAX_REQUEST: u32 = 64 * 1024 * 1024;

/// How many calls of one layer may run at once; other layers are not affected. The names are
/// nbdkit's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadModel {
    /// One connection at a time; the next client waits until it is closed.
    SerializeConnections,
    /// Many connections, but one request at a time in total.
    SerializeAllRequests,
    /// One request at a time for each connection.
    SerializeRequests,
    /// No limit.
    Parallel,
}

impl ThreadModel {
    /// nbdkit's name, for example `serialize_requests`.
    pub fn name(self) -> &'static str {
        match self {
            ThreadModel::SerializeConnections => "serialize_connections",
            ThreadModel::SerializeAllRequests => "serialize_all_requests",
            ThreadModel::SerializeRequests => "serialize_requests",
            ThreadModel::Parallel => "parallel",
        }
    }

    /// Reads nbdkit's name; `-` may stand for `_`.
    pub fn parse(name: &str) -> Option<ThreadModel> {
        [Self::SerializeConnections, Self::SerializeAllRequests, Self::SerializeRequests, Self::Parallel]
            .into_iter()
            .find(|model| model.name() == name.replace('-', "_"))
    }
}

impl fmt::Display for ThreadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a layer does an operation that can be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Support {
    /// Not available, and not emulated.
    None,
    /// The gate in front of the layer emulates it: zero by pwrite, FUA by flush, cache by pread.
    Emulate,
    /// The layer does it itself.
    Native,
}

/// What a layer offers on one connection: nbdkit's `can_*` functions in one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes are accepted. Without it the gate offers neither trim, zero, fast_zero nor FUA.
    pub write: bool,
    /// `flush` makes completed writes durable.
    pub flush: bool,
    /// Whether seeks are slow; a hint.
    pub rotational: bool,
    /// `trim` is accepted.
    pub trim: bool,
    /// `zero` with [`Flags::fast_zero`] is accepted (it may still answer ENOTSUP).
    pub fast_zero: bool,
    /// `extents` can find holes or zeroes.
    pub extents: bool,
    /// A flush on one connection covers writes completed on every other (NBD_FLAG_CAN_MULTI_CONN).
    /// The chain removes it if it serves one connection at a time.
    pub multi_conn: bool,
    /// Writing zeroes: [`Support::Emulate`] is by pwrite.
    pub zero: Support,
    /// Force unit access: [`Support::Emulate`] is by flush.
    pub fua: Support,
    /// Prefetching: [`Support::Emulate`] is by pread, whose data is discarded.
    pub cache: Support,
}

impl Capabilities {
    /// Read-only, nothing else.
    pub const READ_ONLY: Capabilities = Capabilities {
        write: false,
        flush: false,
        rotational: false,
        trim: false,
        fast_zero: false,
        extents: false,
        multi_conn: false,
        zero: Support::None,
        fua: Support::None,
        cache: Support::None,
    };

    /// Reading, writing and flushing. The gate emulates the rest: zero by writing, and FUA by
    /// flushing.
    pub const READ_WRITE_FLUSH: Capabilities = Capabilities {
        write: true,
        flush: true,
        zero: Support::Emulate,
        fua: Support::Emulate,
        ..Capabilities::READ_ONLY
    };

    /// Everything, which the layer does itself. Seeks are not slow.
    pub const NATIVE: Capabilities = Capabilities {
        write: true,
        flush: true,
        rotational: false,
        trim: true,
        fast_zero: true,
        extents: true,
        multi_conn: true,
        zero: Support::Native,
        fua: Support::Native,
        cache: Support::Native,
    };

    /// Without `write`, removes all capabilities that need it. Without `flush`, removes emulated
    /// FUA.
    pub fn normalized(mut self) -> Capabilities {
        if !self.write {
            self.trim = false;
            self.zero = Support::None;
            self.fua = Support::None;
        }
        if self.fua == Support::Emulate && !self.flush {
            self.fua = Support::None;
        }
        if self.zero == Support::None {
            self.fast_zero = false;
        }
        self
    }
}

/// The block sizes of an export in bytes, as the NBD specification constrains them:
/// `minimum` a power of two up to 64 KiB, `preferred` a power of two of at least 512 up to 32 MiB,
/// `maximum` a multiple of `minimum` or 0xffffffff (no limit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths should be multiples of it. A client that negotiated block sizes is held
    /// to it.
    pub minimum: u32,
    /// The size and alignment at which the layer works best.
    pub preferred: u32,
    /// The longest data request.
    pub maximum: u32,
}

impl BlockSizes {
    /// Checks the constraints above.
    pub fn is_valid(&self) -> bool {
        self.minimum.is_power_of_two()
            && self.minimum <= 65536
            && self.preferred.is_power_of_two()
            && (512..=32 * 1024 * 1024).contains(&self.preferred)
            && self.preferred >= self.minimum
            && self.maximum >= self.preferred
            && (self.maximum == u32::MAX || self.maximum.is_multiple_of(self.minimum))
    }
}

/// The commands with a range but no data, whose length may be more than 32 bits can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeCommand {
    /// `trim`
    Trim,
    /// `zero`
    Zero,
    /// `cache`
    Cache,
    /// `extents`
    Extents,
}

/// Modifiers of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// pwrite, trim, zero: durable before the answer.
    pub fua: bool,
    /// zero: a hole may be left.
    pub may_trim: bool,
    /// zero: fail with ENOTSUP rather than be as slow as writing.
    pub fast_zero: bool,
    /// extents: one extent is enough.
    pub req_one: bool,
}

impl Flags {
    /// No modifier.
    pub const NONE: Flags = Flags { fua: false, may_trim: false, fast_zero: false, req_one: false };
    /// Only `fua`.
    pub const FUA: Flags = Flags { fua: true, ..Flags::NONE };
}

/// One line of a list of exports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportEntry {
    /// What a client asks for; at most 4096 bytes of UTF-8.
    pub name: String,
    /// For people; at most 4096 bytes of UTF-8.
    pub description: Option<String>,
}
